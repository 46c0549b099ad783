"""Writes TensorBoard's event files without losing an event, and reads their curves."""

import contextlib
import time
from pathlib import Path
from typing import Iterable

import numpy as np
import tensorflow as tf

from support import files


class EventLog:
    """Writes the TensorBoard events of a folder. Events wait in memory while the disk is full.

    TensorFlow's own writer silently loses events when the disk is full. TensorBoard reads the files
    in the order of their names. Each file begins with the step from which it continues; TensorBoard
    drops the events of earlier files from that step on.

    Args:
      after: the step of the checkpoint from which the run resumes; -1 for a new run.

    Raises:
      OSError: the folder is not writable.
    """

    def __init__(self, folder: Path, after: int):
        self._folder, self._flushed = folder, after
        self._waiting = []  # recorded after that step
        self._open()

    def record(self, step: int, values: Iterable):
        """Writes an event of a step: values for TensorBoard, such as those of `summary_values`."""
        event = tf.compat.v1.Event(wall_time=time.time(), step=step)
        event.summary.value.extend(values)
        self._waiting.append(event)
        if not self._failed:
            with contextlib.suppress(tf.errors.OpError):  # the next flush reports it
                self._write([event])

    def flush(self, step: int):
        """Writes all waiting events. All later events must be of later steps.

        Raises:
          OSError: the disk is full.
        """
        if self._failed:
            self.close()
            self._open()
            with files.named(self._folder):
                self._write(self._waiting)
        self._waiting.clear()
        self._flushed = step

    def close(self):
        with contextlib.suppress(tf.errors.OpError):
            self._writer.close()

    def _open(self):
        start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        with files.named(self._folder):
            self._folder.mkdir(exist_ok=True)
            names = [path.suffix[1:] for path in self._folder.glob("events.out.tfevents.*")]
            number = max((int(name) for name in names if name.isdecimal()), default=-1) + 1
            path = self._folder / f"events.out.tfevents.{number:010}"
            self._writer = tf.io.TFRecordWriter(str(path))
            self._write([
                tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2"),
                tf.compat.v1.Event(
                    wall_time=time.time(), step=self._flushed + 1, session_log=start)])

    def _write(self, events: list):
        self._failed = True
        for event in events:
            self._writer.write(event.SerializeToString())
        self._writer.flush()
        self._failed = False


def summary_values(plugin: str, tensors: dict) -> list:
    """Tensors by tag, as values of a TensorBoard plugin: `scalars`, `images`, `text`, ..."""
    values = []
    for tag, tensor in tensors.items():
        value = tf.compat.v1.Summary.Value(tag=tag, tensor=tf.make_tensor_proto(tensor))
        value.metadata.plugin_data.plugin_name = plugin
        values.append(value)
    return values


def curves(folder: Path, plugin: str = "scalars") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The steps [S] and values [S, ...] of each tag of a plugin, as TensorBoard shows them.

    A device, a pipe or a folder among the event files raises InputError.
    """
    from tensorboard.backend.event_processing import plugin_event_accumulator as tensorboard

    for path in folder.glob("events*"):
        files.check_regular(path)
    events = tensorboard.EventAccumulator(
        str(folder), size_guidance=tensorboard.STORE_EVERYTHING_SIZE_GUIDANCE).Reload()
    by_tag = {}
    with contextlib.suppress(KeyError):  # the plugin has no tags
        for tag in events.PluginTagToContent(plugin):
            steps, values = zip(*((event.step, tf.make_ndarray(event.tensor_proto))
                                  for event in events.Tensors(tag)))
            by_tag[tag] = np.array(steps), np.array(values)
    return by_tag
