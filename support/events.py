"""TensorBoard's event files: what is in them, as far as they are whole; and writing them."""

import contextlib
import re
import time
from pathlib import Path
from typing import Callable, Iterable

from google.protobuf.message import DecodeError

from support import cli, files

tf = cli.tensorflow()

NAME = "events.out.tfevents.{:010}"


class EventLog:
    """Writes the TensorBoard events of a folder; what the disk does not take waits until it does.

    TensorFlow's own writer loses events without a word where a disk is full.

    Args:
      folder: where they are, or will be.
      after: the events of later steps are removed: they will be recorded again.
      tell: is called with a line about each file that is damaged.

    Raises:
      OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, after: int, tell: Callable[[str], None]):
        self._folder, self._flushed = folder, after
        self._waiting = []  # what was recorded after that step
        self._open(tell)

    def record(self, step: int, values: Iterable):
        """Writes an event of a step: values for TensorBoard, such as `summary_values` makes."""
        event = tf.compat.v1.Event(wall_time=time.time(), step=step)
        event.summary.value.extend(values)
        self._waiting.append(event)
        if not self._failed:
            with contextlib.suppress(tf.errors.OpError):  # the next flush tells
                self._write([event])

    def flush(self, step: int):
        """Writes what could not be written before; what is recorded later is of later steps.

        Raises:
          OSError: the disk does not take them.
        """
        if self._failed:
            self.close()
            self._open(tell=lambda line: None)
            with files.named(self._folder):
                self._write(self._waiting)
        self._waiting.clear()
        self._flushed = step

    def close(self):
        with contextlib.suppress(tf.errors.OpError):
            self._writer.close()

    def _open(self, tell: Callable[[str], None]):
        with files.named(self._folder):
            self._folder.mkdir(exist_ok=True)
            last = _forget(self._folder, self._flushed, tell)
            self._writer = tf.io.TFRecordWriter(str(self._folder / NAME.format(last + 1)))
            self._write([tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2")])

    def _write(self, events: list):
        self._failed = True
        for event in events:
            self._writer.write(event.SerializeToString())
        self._writer.flush()
        self._failed = False


def summary_values(plugin: str, tensors: dict) -> list:
    """Tensors by their tags, for a plugin of TensorBoard: `scalars`, `images`, `text`, ..."""
    values = []
    for tag, tensor in tensors.items():
        value = tf.compat.v1.Summary.Value(tag=tag, tensor=tf.make_tensor_proto(tensor))
        value.metadata.plugin_data.plugin_name = plugin
        values.append(value)
    return values


def read_events(path: Path) -> tuple[list, str | None]:
    """The events of a file, and what is wrong with it.

    Most often its last one is damaged, where the process was killed while it wrote.

    Returns:
      `tf.compat.v1.Event`s, up to the first damage; what that is, or None.
    """
    events = []
    if not path.is_file():
        return events, f"{path} is not a regular file"
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            events.append(tf.compat.v1.Event.FromString(record))
    except (tf.errors.OpError, DecodeError):
        return events, f"{path} is damaged after its first {len(events):,} events"
    return events, None


def _forget(folder: Path, after: int, tell: Callable[[str], None]) -> int:
    """Removes the events of steps after `after`, and sets aside what is no events file.

    Returns:
      The largest number in the names of those that remain, -1 where there is none: in the order of
      their names TensorBoard reads files.
    """
    last = -1
    for path in sorted(folder.glob("events*")):
        recorded, damage = read_events(path)
        if damage and not recorded:
            aside = _unused(path.with_name(f"set-aside-{path.name}"))
            tell(f"{path} is no events file: it is now {aside}")
            path.rename(aside)
            continue
        if damage:
            tell(f"{damage}: the others, up to step {after:,}, are lost")
        kept = [event for event in recorded if event.step <= after]
        if len(kept) <= 1:  # the first tells the version of the format
            path.unlink()
            continue
        _replace(path, kept)  # a writer that failed may still have the old file
        if number := re.match(r"events\.out\.tfevents\.(\d+)", path.name):
            last = max(last, int(number[1]))
    return last


def _unused(path: Path) -> Path:
    """A path, with more letters where there is such a file."""
    while path.exists():
        path = path.with_name(f"{path.name}_")
    return path


def _replace(path: Path, events: list):
    """Writes an events file anew; if it cannot be written, it is as it was."""
    partial = path.with_name("partial")
    partial.unlink(missing_ok=True)
    try:
        with tf.io.TFRecordWriter(str(partial)) as writer:
            for event in events:
                writer.write(event.SerializeToString())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
