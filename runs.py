"""The folder of a run, logs/<model_name>/: configuration, log, TensorBoard events, checkpoints, results."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

import pictures
from cli import InputError
from model import KINDS

# Flags that may differ when a run is resumed: they change neither weights nor schedules.
FREE_FLAGS = ("data_dir", "max_steps", "log_every")
CHECKPOINTS_KEPT = 3


class Run:
    """Writes the folder of a run. Where a run was before, it is continued: `state` is restored from its last checkpoint.

    Args:
      folder: of the run.
      config: {"flags": ..., "data": ...}; what the run is.
      state: what its checkpoints hold.

    Raises:
      InputError: the folder holds a run of another configuration, or a checkpoint that cannot be restored.
    """

    def __init__(self, folder: Path, config: dict, state: tf.train.Checkpoint):
        self.folder, self._corpus = folder, config["data"]["corpus"]
        if (folder / "config.json").exists():
            self._check_same(config)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "config.json", config)
        self._log = _open_log(folder / "training_log.log")
        self.say, self.note = self._log.info, self._log.debug  # to the log and the console, or to the log alone
        self._checkpoints = tf.train.CheckpointManager(state, str(folder / "checkpoints"), CHECKPOINTS_KEPT)
        self._restore(state)
        self._writers = {split: tf.summary.create_file_writer(str(folder / split)) for split in ("train", "valid")}

    def describe(self, config: dict, model, device: str, versions: dict):
        """Tells what is to be trained, on what, with what; at the start of a run to TensorBoard too."""
        self.note("flags " + json.dumps(config["flags"]))
        self.note("versions " + json.dumps(versions))
        model.summary(line_length=80, print_fn=lambda text, line_break=False: self.note(text))
        self.say(f"{self.folder}: {model.count_params():,} parameters, corpus {self._corpus}, on {device}")
        if self._checkpoints.latest_checkpoint is None:
            table = "\n".join(f"| {name} | {value} |" for name, value in (config["data"] | config["flags"]).items())
            with self._writers["train"].as_default(0):
                tf.summary.text("configuration", f"| setting | value |\n|---|---|\n{table}")
            self._heat_map(0, model.pi())

    def scalars(self, split: str, step: int, values: dict):
        """Writes numbers to TensorBoard; those of `train` and `valid` share a chart."""
        with self._writers[split].as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def pi_scalars(self, step: int, pi: np.ndarray):
        """Writes pi [L, K] to TensorBoard as numbers."""
        self.scalars("train", step, {f"pi/block_{block}/{kind}": value
                                     for block, row in enumerate(pi, 1) for kind, value in zip(KINDS, row)})

    def evaluation(self, step: int, valid: dict, pi: np.ndarray):
        """Writes the validation metrics, and the heat map of pi [L, K]."""
        self.say(f"step {step:,}  valid  {_line(valid)}")
        self.scalars("valid", step, valid)
        self._heat_map(step, pi)

    def save(self, step: int):
        """Writes a checkpoint; the last three are kept."""
        self._checkpoints.save(checkpoint_number=step)
        for writer in self._writers.values():
            writer.flush()

    def finish(self, results: dict):
        """Writes results.json and tells what it holds. JSON knows no infinity: a metric that overflows becomes null."""
        splits = ("train", "valid", "test")
        numbers = {split: {name: value if np.isfinite(value) else None for name, value in results[split].items()} for split in splits}
        _write_json(self.folder / "results.json", results | numbers)
        for split in splits:
            self.say(f"{split:5}  {_line(results[split])}")
        kinds = ", ".join(f"{kind} ({max(row):.2f})" for kind, row in zip(results["architecture"], results["pi"]))
        self.say(f"most likely architecture (pi): {kinds}\nresults in {self.folder / 'results.json'}")

    def _heat_map(self, step: int, pi: np.ndarray):
        image = pictures.architecture_heat_map(pi, f"pi at step {step:,}, {self._corpus}")
        with self._writers["train"].as_default(step):
            tf.summary.image("pi", image[None])

    def _restore(self, state: tf.train.Checkpoint):
        path = self._checkpoints.latest_checkpoint
        try:
            if path:
                state.restore(path).assert_existing_objects_matched()
        except (ValueError, IndexError, AssertionError, tf.errors.OpError) as error:
            raise InputError(f"cannot restore {path}: {str(error).splitlines()[0]}") from None

    def _check_same(self, now: dict):
        try:
            before = json.loads((self.folder / "config.json").read_text())
            differences = [f"{name}: {before[part].get(name)} before, {value} now"
                           for part in ("flags", "data") for name, value in now[part].items()
                           if name not in FREE_FLAGS and before[part].get(name) != value]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.folder / 'config.json'} is damaged ({error}): choose another --model_name") from None
        if differences:
            raise InputError(f"{self.folder} is a run of another configuration ({'; '.join(differences)}): choose another --model_name")


def _open_log(path: Path) -> logging.Logger:
    """A logger whose lines go on in a file, those of level INFO and above to the console too."""
    console, file = logging.StreamHandler(sys.stdout), logging.FileHandler(path)
    console.setLevel(logging.INFO)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.Logger(path.stem)
    log.addHandler(console)
    log.addHandler(file)
    return log


def _line(metrics: dict) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _write_json(path: Path, content: dict):
    """Writes a JSON file so that it appears complete or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
