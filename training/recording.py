"""The folder of a run as training writes it: log, TensorBoard events, checkpoints, results.

L blocks, K layer types.
"""

import contextlib
import dataclasses
import hashlib
import html
import json
import logging
import os
import uuid
import zlib
from pathlib import Path

import numpy as np
import tensorflow as tf

import data_utils
from layers import SEARCH, as_letters, from_letters
from support import files
from support.checkpoints import Checkpoints
from support.console import Console
from support.corpora import SPLITS
from support.errors import InputError
from support.events import EventLog, summary_values
from training.scoring import finite
from training.settings import Settings
from training.trained_run import read_config

# Flags that may change when a run is resumed: no schedule changes, and weights by rounding only.
FREE_FLAGS = ("data_dir", "max_steps", "logs_dir", "log_every", "save_every", "distribute",
              "accumulate", "steps_per_execution")
CHECKPOINTS_KEPT = 3


class Recorder:
    """Writes the folder of a run. If the run has begun, restores its last checkpoint.

    Args:
      folder: the folder of the run.
      config: the result of `configuration`.
      data_dir: where the tokenizer is; the folder gets a copy.
      state: the content of a checkpoint; `weights`, `tau`, `best_loss` and `evaluated` are used.

    Attributes:
      resumed: the step of the restored checkpoint; None for a new run.

    Raises:
      InputError: the folder holds a run with another configuration, or one that another process is
        training, or no checkpoint can be restored.
    """

    def __init__(self, folder: Path, config: dict, data_dir: Path, state: tf.train.Checkpoint):
        self.folder, self._config, self._state = folder, config, state
        self._corpus = config["data"]["corpus"]
        self._unsaved_best = None  # step and state
        self._run_id = uuid.uuid4().hex
        if (folder / "config.json").exists() or has_begun(folder):
            self._run_id = _checked_same(folder, config)["run_id"]
        self._checkpoints = Checkpoints(folder / "checkpoints", self._run_id, CHECKPOINTS_KEPT)
        self._best = Checkpoints(folder / "best", self._run_id)
        files.refuse_links(folder)
        with files.named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._console, self._file = Console(), _LogFile(folder / "training_log.log")
        self._log = _logger(self._console, self._file)
        self.say = self._log.info  # to the log and the console
        self._note = self._log.debug  # to the log alone
        self.resumed = self._checkpoints.restore_last(state, self.say)
        for name in ("tokenizer.model", "tokenizer.vocab"):
            files.write_whole(folder / name, (data_dir / name).read_bytes())
        files.write_json(folder / "config.json", config | {"run_id": self._run_id})
        self._check_best()
        new = self.resumed is None
        self._events = {
            "train": EventLog(folder / "train", after=-1 if new else self.resumed),
            "valid": EventLog(folder / "valid", after=-1 if new else int(state.evaluated))}

    def _check_best(self):
        """Keeps the next evaluated network if the best one is damaged or gone."""
        steps = self._best.steps()
        damages = [damage for damage in map(self._best.damage, steps) if damage]
        if not steps and np.isfinite(self._state.best_loss.numpy()):
            damages = [f"{self.folder / 'best'} is gone"]
        for damage in damages:
            self.say(f"{damage}: keeping the best network from now on")
            self._state.best_loss.assign(np.inf)

    def describe(self, model, device: str, versions: dict):
        """Reports the configuration, network and versions; for a new run, also to TensorBoard."""
        config = self._config
        self._note("flags " + json.dumps(config["flags"]))
        self._note("versions " + json.dumps(versions))
        model.summary(line_length=80, print_fn=lambda text, line_break=False: self._note(text))
        self.say(f"{self.folder}: architecture {config['flags']['architecture']}, "
                 f"{model.count_params():,} parameters, corpus {self._corpus}, on {device}")
        if self.resumed is not None:
            self.say(f"resumed at step {self.resumed:,}")
            return
        shown = config["flags"] | config["data"]
        rows = [f"| {name} | {value} |" for name, value in shown.items()]
        table = "\n".join(["| setting | value |", "|---|---|", *rows])
        self._events["train"].record(0, summary_values("text", {"configuration": table}))
        row = _hyperparameters(self.folder.name, config["flags"], model.count_params())
        self._events["valid"].record(0, row)

    def progress(self, fraction: float, text: str):
        """Writes a line to the log, and shows it on the console beside a progress bar."""
        self._note(text)
        self._console.progress(fraction, text)

    def scalars(self, split: str, step: int, values: dict):
        """Writes numbers to TensorBoard; the same tag of `train` and `valid` is one chart."""
        numbers = {name: np.float32(value) for name, value in values.items()}
        self._events[split].record(step, summary_values("scalars", numbers))

    def pi(self, step: int, kinds: list[str], pi: np.ndarray):
        """Writes pi [L, K] for plot_search.py.

        TensorBoard shows the expected number of blocks of each layer type, and the mean entropy.
        """
        self._events["train"].record(step, summary_values("pi", {"pi/all": np.float32(pi)}))
        values = {f"pi/{kind}_blocks": number for kind, number in zip(kinds, pi.sum(axis=0))}
        self.scalars("train", step, values | {"pi/entropy": entropy(pi).mean()})

    def heat_map(self, step: int, kinds: list[str], pi: np.ndarray):
        """Writes pi [L, K] to TensorBoard as a picture."""
        from support import pictures  # matplotlib takes a second to import

        title = f"pi at step {step:,}, {self._corpus}"
        image = pictures.architecture_heat_map(pi, kinds, title)
        height, width, _ = image.shape
        content = [b"%d" % width, b"%d" % height, tf.io.encode_png(image).numpy()]
        self._events["train"].record(step, summary_values("images", {"pi": content}))

    def text(self, step: int, prompt: str, written: str):
        """Writes a prompt and its continuation by the network to TensorBoard."""
        quoted = [html.escape(part).replace("\n", "<br>") for part in (prompt, written)]
        line = "**{}** {}".format(*quoted)
        self._events["valid"].record(step, summary_values("text", {"continued": line}))

    def evaluation(self, step: int, valid: dict):
        """Writes validation metrics. The next save keeps the network if it is the best so far."""
        self.say(f"step {step:,}  valid  {_line(valid)}")
        self.scalars("valid", step, {
            f"metrics/{name}": value for name, value in valid.items() if value is not None})
        if valid["loss"] < self._state.best_loss:
            self._state.best_loss.assign(valid["loss"])
            with tf.device("CPU:0"):
                weights = {path: tf.Variable(value) for path, value in self._state.weights.items()}
                best = tf.train.Checkpoint(weights=weights, tau=tf.Variable(self._state.tau))
            self._unsaved_best = step, best

    def save(self, step: int, last: bool = False):
        """Writes a checkpoint, after all records up to its step. The last three are kept.

        Removes results.json, which belongs to an earlier end of the run. If saving fails, training
        continues and the next save tries again.

        Raises:
          OSError: the last save failed.
        """
        try:
            self._file.write_waiting()
            for log in self._events.values():
                log.flush(step)
            if self._unsaved_best:
                best_step, best = self._unsaved_best
                self._best.save(best, best_step)
                self._unsaved_best = None
            (self.folder / "results.json").unlink(missing_ok=True)
            self._checkpoints.save(self._state, step)
        except OSError as error:
            if last:
                raise
            self.say(f"{error}: not saved at step {step:,}; the next save will try again")

    def finish(self, results: dict):
        """Writes results.json and reports its content. Infinite metrics are null in JSON."""
        self._file.write_waiting()
        scores = {split: finite(results[split]) for split in SPLITS}
        path = self.folder / "results.json"
        if not path.exists():  # the run may have ended here before
            self.scalars("valid", results["steps"], {
                f"test/{name}": value for name, value in results["test"].items()
                if value is not None})
        files.write_json(path, results | scores | {"run_id": self._run_id})
        for split in SPLITS:
            self.say(f"{split:5}  {_line(results[split])}")
        self._say_architecture(results["architecture"], [max(row) for row in results["pi"]])
        self.say(f"results in {path}")
        self._file.write_waiting()

    def _say_architecture(self, architecture: str, pi: list[float]):
        """Reports the letters of an architecture and the largest pi of each block."""
        names = from_letters(architecture)
        if SEARCH in names:
            self.say("a uniform search does not choose an architecture: run "
                     f"python choose.py --run={self.folder}")
            return
        kinds = [f"{name} ({largest:.2f})" for name, largest in zip(names, pi)]
        self.say(f"architecture {architecture} (most likely, pi): {', '.join(kinds)}")
        if undecided := sum(largest < 0.5 for largest in pi):
            self.say(f"the search is undecided: no layer type reaches a pi of 0.5 in "
                     f"{undecided} of {len(pi)} blocks")

    def close(self):
        """Closes all files."""
        for log in self._events.values():
            log.close()
        for handler in self._log.handlers:
            handler.close()


class NullRecorder:
    """Stands in for a `Recorder` on workers other than the chief: restores, but records nothing.

    Args: see `Recorder`; `config` and `data_dir` are not used.

    Raises:
      InputError: there are checkpoints, and none can be restored.
    """

    def __init__(self, folder: Path, config: dict, data_dir: Path, state: tf.train.Checkpoint):
        run_id = None  # the chief has not written it yet
        if (folder / "config.json").exists():
            run_id = read_config(folder)["run_id"]
        Checkpoints(folder / "checkpoints", run_id).restore_last(state, print)

    def _record_nothing(self, *args, **kwargs):
        pass

    say = describe = progress = scalars = pi = text = _record_nothing
    heat_map = evaluation = save = finish = close = _record_nothing


def entropy(pi: np.ndarray) -> np.ndarray:
    """The entropy of probabilities [..., K] in nats, [...]: log(K) if uniform, 0 if certain."""
    return -np.sum(pi * np.log(np.maximum(pi, 1e-30)), axis=-1)


def configuration(flags: dict, settings: Settings, metadata: dict) -> dict:
    """The configuration that identifies a run, stored in its config.json.

    Args:
      flags: the value of each flag of train.py.
      settings: the settings that they give.
      metadata: of the data.

    Returns:
      {"flags": ..., "data": ...}.
    """
    meaning = {
        "architecture": as_letters(settings.architecture), "num_layers": len(settings.architecture),
        "cutoffs": list(settings.cutoffs),
        "init_from": flags["init_from"] and os.path.relpath(flags["init_from"])}
    hashes = json.dumps(metadata["sha256"], sort_keys=True).encode()
    names = ("corpus", "batch_size", "seq_len", "vocab_size", "add_eos")
    data = {name: metadata[name] for name in names} | {
        "files_sha256": hashlib.sha256(hashes).hexdigest(),
        "tokenizer_sha256": data_utils.tokenizer_sha256(metadata)}
    return {"flags": flags | meaning, "data": data}


def fingerprint(config: dict) -> int:
    """A hash of a configuration that ignores where data and logs are."""
    same = [config["flags"] | {"data_dir": "", "logs_dir": ""}, config["data"]]
    return zlib.crc32(json.dumps(same, sort_keys=True).encode())


def has_begun(folder: Path) -> bool:
    """Whether a folder holds checkpoints of a run."""
    return bool(Checkpoints(folder / "checkpoints").steps())


def _hyperparameters(name: str, flags: dict, parameters: int) -> list:
    """The row of a run in HParams, TensorBoard's table of runs."""
    from tensorboard.plugins.hparams import api  # it takes a moment to import

    values = {"parameters": parameters}
    for flag, value in flags.items():
        if flag not in (*FREE_FLAGS, "model_name"):
            values[flag] = value if isinstance(value, (bool, int, float)) else str(value)
    row = api.hparams_pb(values, trial_id=name).SerializeToString()
    return tf.compat.v1.Summary.FromString(row).value


def _checked_same(folder: Path, now: dict) -> dict:
    """The configuration of the run in a folder.

    Raises:
      InputError: it differs from the present configuration.
    """
    before = read_config(folder)
    differences, defaults = [], json.loads(json.dumps(dataclasses.asdict(Settings())))
    for part in ("flags", "data"):
        for name, value in now[part].items():
            old = before[part].get(name, defaults.get(name))  # an older version lacks the flag
            if name not in FREE_FLAGS and old != value:
                differences.append(f"{name}: {old} before, {value} now")
    if differences:
        raise InputError(f"{folder} holds a run of another configuration "
                         f"({'; '.join(differences)}): choose another --model_name")
    return before


class _LogFile(logging.Handler):
    """A log file for one process at a time. Lines wait in memory while the disk is full."""

    def __init__(self, path: Path):
        if path.exists():
            files.check_regular(path)
        self._path, self._file, self._waiting = path, open(path, "ab", buffering=0), b""
        super().__init__()
        if not files.lock(self._file.fileno()):
            raise InputError(f"{path.parent} is being trained by another process")

    def emit(self, record):
        self._waiting += f"{self.format(record)}\n".encode()
        with contextlib.suppress(OSError):
            self.write_waiting()

    def write_waiting(self):
        """Writes all lines.

        Raises:
          InputError: the file was removed or replaced.
          OSError: the disk is full.
        """
        with files.named(self._path):
            self._check_there()
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting):]

    def _check_there(self):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno())):
                return
        raise InputError(f"{self._path.parent} was removed or replaced while it was being trained: "
                         "stopped")

    def close(self):
        super().close()
        self._file.close()


def _logger(console: Console, file: _LogFile) -> logging.Logger:
    """A logger that writes all lines to a file, and those from level INFO to the console."""
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.Logger("run")
    log.addHandler(file)
    log.addHandler(console)
    return log


def _line(metrics: dict) -> str:
    texts = {name: "not given" if value is None else f"{value:.4g}"
             for name, value in metrics.items()}
    return "  ".join(f"{name} {text}" for name, text in texts.items())
