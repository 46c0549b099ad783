"""Checkpoints that are complete or absent.

Each is a folder, named by its step, with the SHA-256 of every file in it. A checkpoint is written
under another name and then renamed, so a process that is killed leaves the earlier ones as they
were. What became of a file later, torn, truncated or with a bit turned, its SHA-256 tells. Nothing
in a checkpoint is ever executed.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Callable, Sequence

import keras
import tensorflow as tf

from support import cli, files
from support.cli import InputError

HASHES = "sha256.json"
FILE_NAME = re.compile(r"[\w.-]{1,100}", re.ASCII)  # as TensorFlow names the files of a checkpoint
REPLACED = ".replaced"
STEP = re.compile("0|[1-9][0-9]{0,17}")


def by_path(variables: Sequence[keras.Variable]) -> dict[str, tf.Variable]:
    """Keras variables as a checkpoint takes them.

    It does not look into Keras' own lists of variables.
    """
    return {variable.path: variable.value for variable in variables}


class Checkpoints:
    """The checkpoints in a folder.

    Args:
      folder: where they are, or will be.
      run_id: of the run that they belong to; None if that is unknown.
      keep: how many of them.

    Raises:
      InputError: TensorFlow would read the path of the folder as a pattern.
    """

    def __init__(self, folder: Path, run_id: str | None = None, keep: int = 1):
        files.check_no_pattern(folder)
        self._folder, self._run_id, self._keep = folder, run_id, keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, rising.

        Raises:
          InputError: the folder is there, and cannot be read.
        """
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self._folder} cannot be read: {error.strerror}") from None
        return sorted(int(name) for name in names if STEP.fullmatch(name))

    def damage(self, step: int) -> str | None:
        """What is wrong with the checkpoint of a step: the file and why.

        None if it is as it was written.
        """
        folder = self._folder / str(step)
        try:
            record = files.read_json(folder / HASHES, ["checkpoint", "step", "run_id"])
            hashes = record["checkpoint"]
            if not isinstance(hashes, dict) or not all(map(FILE_NAME.fullmatch, hashes)):
                return f"{folder / HASHES} does not list the files beside it"
            if record["step"] != step:
                return f"{folder} was renamed: it is the checkpoint of another step"
            if self._run_id and record["run_id"] != self._run_id:
                return f"{folder} belongs to another run"
            for name, sha256 in hashes.items():
                if files.sha256(folder / name) != sha256:
                    return f"{folder / name} is damaged"
            if more := set(os.listdir(folder)) - {HASHES, *hashes}:
                return f"{folder / HASHES} does not list {min(more)!a}"
        except InputError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"

    def save(self, state: tf.train.Checkpoint, step: int):
        """Writes the checkpoint of a step, in place of an earlier one of that step.

        Those that are then too many are removed.

        Raises:
          OSError: it cannot be written; the earlier ones are as they were.
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
                files.write_json(partial / HASHES, {
                    "checkpoint": hashes, "step": step, "run_id": self._run_id})
                if folder.exists():
                    folder.rename(folder.with_suffix(REPLACED))
                partial.rename(folder)
                shutil.rmtree(folder.with_suffix(REPLACED), ignore_errors=True)
                for other in self._superfluous(step):
                    (self._folder / str(other)).rename(removed)
                    shutil.rmtree(removed)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def shapes(self, step: int) -> dict[str, list[int]]:
        """The weights in the checkpoint of a step, by their path."""
        reader = tf.train.load_checkpoint(str(self._folder / str(step) / "state"))
        shapes = {}
        for key, shape in reader.get_variable_to_shape_map().items():
            if key.startswith("weights/"):
                escaped = key.split("/")[1]  # as TensorFlow writes a name: . is .., / is .S
                shapes[escaped.replace(".S", "/").replace("..", ".")] = list(shape)
        return shapes

    def restore(self, state: tf.train.Checkpoint, step: int):
        """Gives every variable of `state` its value in the checkpoint of a step.

        The checkpoint is not damaged.

        Raises:
          InputError: the checkpoint has not what `state` needs.
        """
        path = self._folder / str(step) / "state"
        try:
            status = state.read(str(path))
            status.expect_partial()  # or TensorFlow warns of each value that is not used
            status.assert_existing_objects_matched()
        except (ValueError, IndexError, AssertionError, tf.errors.OpError) as error:
            reason = cli.printable(str(error).splitlines()[0], 200)
            raise InputError(f"cannot restore {path}: {reason}") from None

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
            raise InputError(f"no checkpoint in {self._folder} can be restored: "
                             f"delete {self._folder.parent} to train from the start")

    def _put_back(self):
        """Puts a checkpoint back in its place where there is none.

        The process was killed before that which should replace it was there.
        """
        for replaced in self._folder.glob(f"*{REPLACED}"):
            if not replaced.with_suffix("").exists():
                with contextlib.suppress(FileNotFoundError):  # another worker was quicker
                    replaced.rename(replaced.with_suffix(""))

    def _superfluous(self, step: int) -> list[int]:
        """The checkpoints to remove when that of `step` has been written.

        They are all but the last few, and those of later steps, which were damaged or belong to a
        past that was lost.
        """
        steps = self.steps()
        last = steps.index(step) + 1
        return steps[:max(0, last - self._keep)] + steps[last:]
