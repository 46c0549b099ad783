"""Checkpoints that are complete or absent: a folder for each, named by its step, with the SHA-256 of every file in it.

A checkpoint is written under another name and then renamed, so a process that is killed leaves the earlier ones as they were.
What became of a file later, torn, truncated or with a bit turned, its SHA-256 tells. Nothing in a checkpoint is ever executed.
"""

import contextlib
import shutil
from pathlib import Path
from typing import Callable

import tensorflow as tf

from support import files
from support.cli import InputError

HASHES = "sha256.json"
REPLACED = ".replaced"


class Checkpoints:
    """The checkpoints in a folder.

    Args:
      folder: where they are, or will be.
      keep: how many of them.
    """

    def __init__(self, folder: Path, keep: int = 1):
        self._folder, self._keep = folder, keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, rising."""
        return sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdecimal())

    def damage(self, step: int) -> str | None:
        """What is wrong with the checkpoint of a step: the file and why. None if it is as it was written."""
        folder = self._folder / str(step)
        try:
            for name, sha256 in files.read_json(folder / HASHES, ["checkpoint"])["checkpoint"].items():
                if files.sha256(folder / name) != sha256:
                    return f"{folder / name} is damaged"
        except InputError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"

    def save(self, state: tf.train.Checkpoint, step: int):
        """Writes the checkpoint of a step, in place of an earlier one of that step, and removes those that are then too many.

        Raises:
          OSError: it cannot be written; the earlier ones are as they were.
        """
        folder, partial, removed = (self._folder / name for name in (str(step), "partial", "removed"))
        with files.named(folder):
            self._put_back()
            for rest in (partial, removed):
                shutil.rmtree(rest, ignore_errors=True)
            partial.mkdir(parents=True)
            try:
                state.write(str(partial / "state"))
                paths = sorted(partial.iterdir())
                for path in paths:
                    files.sync(path)
                files.write_json(partial / HASHES, {"checkpoint": {path.name: files.sha256(path) for path in paths}})
                if folder.exists():
                    folder.rename(folder.with_suffix(REPLACED))
                partial.rename(folder)
                shutil.rmtree(folder.with_suffix(REPLACED), ignore_errors=True)
                for other in self._superfluous(step):
                    (self._folder / str(other)).rename(removed)
                    shutil.rmtree(removed)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def restore(self, state: tf.train.Checkpoint, step: int):
        """Gives every variable of `state` its value in the checkpoint of a step, which is not damaged.

        Raises:
          InputError: the checkpoint has not what `state` needs.
        """
        path = self._folder / str(step) / "state"
        try:
            state.read(str(path)).assert_existing_objects_matched().expect_partial()
        except (ValueError, IndexError, AssertionError, tf.errors.OpError) as error:
            raise InputError(f"cannot restore {path}: {str(error).splitlines()[0]}") from None

    def restore_last(self, state: tf.train.Checkpoint, tell: Callable[[str], None]) -> int | None:
        """Restores the last checkpoint that is as it was written, and tells of those that are not.

        Returns:
          Its step; None where there is no checkpoint at all.

        Raises:
          InputError: none can be restored.
        """
        self._put_back()
        steps = self.steps()
        for step in reversed(steps):
            if damage := self.damage(step):
                tell(f"{damage}: the checkpoint before is taken")
                continue
            self.restore(state, step)
            return step
        if steps:
            raise InputError(f"no checkpoint in {self._folder} can be restored: delete {self._folder.parent} to train from the start")

    def _put_back(self):
        """Puts a checkpoint back in its place if the process was killed before that which should replace it was there."""
        for replaced in self._folder.glob(f"*{REPLACED}"):
            if not replaced.with_suffix("").exists():
                with contextlib.suppress(FileNotFoundError):  # another worker was quicker
                    replaced.rename(replaced.with_suffix(""))

    def _superfluous(self, step: int) -> list[int]:
        """The checkpoints to remove when that of `step` has been written: all but the last few, and those of later steps, which
        were damaged or belong to a past that was lost."""
        steps = self.steps()
        last = steps.index(step) + 1
        return steps[:max(0, last - self._keep)] + steps[last:]
