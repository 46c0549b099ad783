"""Checkpoints that are complete or absent.

A checkpoint is a folder named by its step, with the SHA-256 of each of its files. It is written
under another name and then renamed, so a process that is killed leaves earlier checkpoints intact.
The SHA-256 reveals later damage. Reading a checkpoint never executes anything.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Callable, Sequence

import keras
import tensorflow as tf

from support import files
from support.errors import InputError, printable

HASHES = "sha256.json"
REPLACED = ".replaced"
STEP = re.compile("0|[1-9][0-9]{0,17}")


def by_path(variables: Sequence[keras.Variable]) -> dict[str, tf.Variable]:
    """Keras variables by path, as `tf.train.Checkpoint` tracks them."""
    return {variable.path: variable.value for variable in variables}


class Checkpoints:
    """The last `keep` checkpoints in a folder, of the run `run_id` unless that is None.

    Raises:
      InputError: TensorFlow would read the path of the folder as a pattern.
    """

    def __init__(self, folder: Path, run_id: str | None = None, keep: int = 1):
        files.check_no_pattern(folder)
        self._folder, self._run_id, self._keep = folder, run_id, keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints, ascending; InputError if the folder cannot be read."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self._folder} cannot be read: {error.strerror}") from None
        return sorted(int(name) for name in names if STEP.fullmatch(name))

    def damage(self, step: int) -> str | None:
        """A one-line description of the damage to a checkpoint; None if it is intact."""
        folder = self._folder / str(step)
        try:
            record = files.read_json(folder / HASHES, ["checkpoint", "run_id"])
            if self._run_id and record["run_id"] != self._run_id:
                return f"{folder} belongs to another run"
            for name, sha256 in record["checkpoint"].items():
                if files.sha256(folder / name) != sha256:
                    return f"{folder / name} is damaged"
        except InputError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"

    def save(self, state: tf.train.Checkpoint, step: int):
        """Writes a checkpoint, replaces one of the same step, and removes those not to be kept.

        Raises:
          OSError: it cannot be written; earlier checkpoints are unchanged.
        """
        folder = self._folder / str(step)
        partial, removed = self._folder / "partial", self._folder / "removed"
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
                hashes = {path.name: files.sha256(path) for path in paths}
                files.write_json(partial / HASHES, {"checkpoint": hashes, "run_id": self._run_id})
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
        """Restores every variable of `state` from an intact checkpoint.

        Raises:
          InputError: the checkpoint lacks a variable of `state`, or has it in another shape.
        """
        path = self._folder / str(step) / "state"
        try:
            status = state.read(str(path))
            status.expect_partial()  # or TensorFlow warns of each value that is not used
            status.assert_existing_objects_matched()
        except (ValueError, IndexError, AssertionError, tf.errors.OpError) as error:
            reason = printable(str(error).splitlines()[0], 200)
            raise InputError(f"cannot restore {path}: {reason}") from None

    def restore_last(self, state: tf.train.Checkpoint, say: Callable[[str], None]) -> int | None:
        """Restores the last intact checkpoint, and reports those that are damaged.

        Returns its step; None if there are no checkpoints.

        Raises:
          InputError: all checkpoints are damaged.
        """
        self._put_back()
        steps = self.steps()
        for step in reversed(steps):
            if damage := self.damage(step):
                say(f"{damage}: using the checkpoint before it")
                continue
            self.restore(state, step)
            return step
        if steps:
            raise InputError(f"no checkpoint in {self._folder} can be restored: "
                             f"delete {self._folder.parent} to train from the start")

    def _put_back(self):
        """Undoes a replacement that a killed process left half done."""
        for replaced in self._folder.glob(f"*{REPLACED}"):
            if not replaced.with_suffix("").exists():
                with contextlib.suppress(FileNotFoundError):  # another worker was faster
                    replaced.rename(replaced.with_suffix(""))

    def _superfluous(self, step: int) -> list[int]:
        """The steps to remove once `step` is saved: the oldest beyond `keep`, and all later ones.

        Later ones are damaged, or of steps that were lost when the run resumed before them.
        """
        steps = self.steps()
        last = steps.index(step) + 1
        return steps[:max(0, last - self._keep)] + steps[last:]
