"""What a training writes into its folder, logs/<model_name>: log, TensorBoard events, checkpoints.

L blocks, K kinds of layer.
"""

import contextlib
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
from layers import KINDS, as_letters, letters
from support import files
from support.checkpoints import Checkpoints
from support.cli import InputError
from support.console import Console
from support.corpora import SPLITS
from support.events import EventLog, summary_values
from training import schema
from training.scoring import finite
from training.settings import Settings
from training.trained_run import read_config

# Flags that may differ when a run is resumed: they change neither weights nor schedules.
FREE_FLAGS = ("data_dir", "max_steps", "logs_dir", "log_every", "save_every", "distribute",
              "accumulate", "steps_per_execution")
CHECKPOINTS_KEPT = 3
VALID_TAGS = {  # in TensorBoard
    "loss": "loss",
    "perplexity": "perplexity",
    "word_perplexity": "raw_text/word_perplexity",
    "bits_per_byte": "raw_text/bits_per_byte",
}


class Run:
    """Writes the folder of a run. A run that was there is continued from its last checkpoint.

    Args:
      folder: of the run.
      config: what the run is, by `configuration`.
      data_dir: where the tokenizer is, which whoever uses the network will need.
      state: what its checkpoints hold; `weights`, `tau`, `best_loss` and `evaluated` among it.

    Raises:
      InputError: the folder holds a run of another configuration, or one that goes on elsewhere, or
        checkpoints none of which can be restored.
    """

    def __init__(self, folder: Path, config: dict, data_dir: Path, state: tf.train.Checkpoint):
        self.folder, self._corpus, self._state = folder, config["data"]["corpus"], state
        self._unsaved_best = None  # its step and its state
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
        self.note = self._log.debug  # to the log alone
        self.resumed = self._checkpoints.restore_last(state, self.say)
        for name in ("tokenizer.model", "tokenizer.vocab"):
            files.write_whole(folder / name, (data_dir / name).read_bytes())
        files.write_json(folder / "config.json", config | {"run_id": self._run_id})
        new, best_steps = self.resumed is None, self._best.steps()
        damages = [damage for damage in map(self._best.damage, best_steps) if damage]
        if not best_steps and np.isfinite(state.best_loss.numpy()):
            damages = [f"{folder / 'best'} is gone"]
        for damage in damages:
            self.say(f"{damage}: the best network from now on is kept")
            state.best_loss.assign(np.inf)
        recorded = {
            "train": -1 if new else self.resumed,
            "valid": -1 if new else int(state.evaluated),
            ".": -1 if new else self.resumed}
        self._events = {part: EventLog(folder / part, after=step, tell=self.say)
                        for part, step in recorded.items()}

    def describe(self, config: dict, model, device: str, versions: dict):
        """Tells what is to be trained, on what, with what; at the start to TensorBoard too."""
        self.note("flags " + json.dumps(config["flags"]))
        self.note("versions " + json.dumps(versions))
        model.summary(line_length=80, print_fn=lambda text, line_break=False: self.note(text))
        self.say(f"{self.folder}: architecture {config['flags']['architecture']}, "
                 f"{model.count_params():,} parameters, corpus {self._corpus}, on {device}")
        if self.resumed is not None:
            self.say(f"resumed at step {self.resumed:,}")
            return
        settings = config["data"] | config["flags"]
        rows = [f"| {name} | {value} |" for name, value in settings.items()]
        table = "\n".join(["| setting | value |", "|---|---|", *rows])
        self._events["train"].record(0, summary_values("text", {"configuration": table}))
        self._events["."].record(0, _hyperparameters(self.folder.name, config["flags"]))

    def progress(self, fraction: float, text: str):
        """Writes a line to the log, and shows it on the console beside what is done of the run."""
        self.note(text)
        self._console.progress(fraction, text)

    def scalars(self, split: str, step: int, values: dict):
        """Writes numbers to TensorBoard; those of `train` and `valid` share a chart."""
        numbers = {name: np.float32(value) for name, value in values.items()}
        self._events[split].record(step, summary_values("scalars", numbers))

    def pi(self, step: int, pi: np.ndarray):
        """Writes pi [L, K] to TensorBoard: as it is, and for each kind the expected blocks."""
        for_plot_search = summary_values("pi", {"pi/all": np.float32(pi)})
        self._events["train"].record(step, for_plot_search)
        blocks = zip(KINDS, pi.sum(axis=0))
        self.scalars("train", step, {f"pi/{kind}_blocks": number for kind, number in blocks})

    def heat_map(self, step: int, pi: np.ndarray):
        """Writes pi [L, K] to TensorBoard as a picture."""
        from support import pictures  # matplotlib takes a second to import

        title = f"pi at step {step:,}, {self._corpus}"
        image = pictures.architecture_heat_map(pi, list(KINDS), title)
        height, width, _ = image.shape
        content = [b"%d" % width, b"%d" % height, tf.io.encode_png(image).numpy()]
        self._events["train"].record(step, summary_values("images", {"pi": content}))

    def text(self, step: int, prompt: str, written: str):
        """Writes a text of the network to TensorBoard, behind what it was given to continue."""
        quoted = [html.escape(part).replace("\n", "<br>") for part in (prompt, written)]
        line = "**{}** {}".format(*quoted)
        self._events["valid"].record(step, summary_values("text", {"continued": line}))

    def evaluation(self, step: int, valid: dict):
        """Writes the validation metrics. The next save keeps a network that is the best so far."""
        self.say(f"step {step:,}  valid  {_line(valid)}")
        given = {name: value for name, value in valid.items() if value is not None}
        self.scalars("valid", step, {VALID_TAGS[name]: value for name, value in given.items()})
        if valid["loss"] < self._state.best_loss:
            self._state.best_loss.assign(valid["loss"])
            with tf.device("CPU:0"):
                weights = {path: tf.Variable(value) for path, value in self._state.weights.items()}
                best = tf.train.Checkpoint(weights=weights, tau=tf.Variable(self._state.tau))
            self._unsaved_best = step, best

    def save(self, step: int, last: bool = False):
        """Writes a checkpoint, after what was recorded until then; the last three are kept.

        A results.json that is there is of an earlier end, and goes. If it cannot save, training
        goes on and the next save tries again.

        Raises:
          OSError: it cannot, and is the last.
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
            self.say(f"{error}: not saved at step {step:,}, the next save tries again")

    def finish(self, results: dict):
        """Writes results.json and tells what it holds. A metric that overflows is null in JSON."""
        self._file.write_waiting()
        scores = {split: finite(results[split]) for split in SPLITS}
        files.write_json(
            self.folder / "results.json", results | scores | {"run_id": self._run_id})
        for split in SPLITS:
            self.say(f"{split:5}  {_line(results[split])}")
        kinds = [f"{letters()[letter]} ({max(probabilities):.2f})"
                 for letter, probabilities in zip(results["architecture"], results["pi"])]
        self.say(f"architecture {results['architecture']} (most likely, pi): {', '.join(kinds)}")
        self.say(f"results in {self.folder / 'results.json'}")
        self._file.write_waiting()

    def close(self):
        """Ends the files that are being written."""
        for log in self._events.values():
            log.close()
        for handler in self._log.handlers:
            handler.close()


def configuration(flags: dict, settings: Settings, metadata: dict) -> dict:
    """What makes a run the run that it is.

    Args:
      flags: the value of each flag of train.py.
      settings: what they mean.
      metadata: of the data.

    Returns:
      {"flags": ..., "data": ..., "layers": the kinds that there are, "model": the arguments of the
      network}.

    Raises:
      InputError: it is larger than what `schema` lets a reader of the run believe.
    """
    meaning = {
        "architecture": as_letters(settings.architecture), "num_layers": len(settings.architecture),
        "cutoffs": list(settings.cutoffs), "proj_dims": list(settings.proj_dims),
        "init_from": flags["init_from"] and os.path.relpath(flags["init_from"])}
    hashes = json.dumps(metadata["sha256"], sort_keys=True).encode()
    names = ("corpus", "batch_size", "seq_len", "vocab_size", "add_eos")
    data = {name: metadata[name] for name in names} | {
        "files_sha256": hashlib.sha256(hashes).hexdigest(),
        "tokenizer_sha256": data_utils.tokenizer_sha256(metadata)}
    network = settings.network_arguments(metadata["vocab_size"])
    kinds = {"kinds": list(KINDS)}  # in the order of pi
    config = {"flags": flags | meaning, "data": data, "layers": kinds, "model": network}
    if fault := schema.fault(config | {"run_id": uuid.uuid4().hex}):
        raise InputError(f"such a run could not be resumed: {fault}")
    return config


def fingerprint(config: dict) -> int:
    """A number that tells one configuration from another, wherever the data are."""
    same = [config["flags"] | {"data_dir": "", "logs_dir": ""}, config["data"]]
    return zlib.crc32(json.dumps(same, sort_keys=True).encode())


def has_begun(folder: Path) -> bool:
    """Whether there is a run in a folder, of which something would be lost."""
    return bool(Checkpoints(folder / "checkpoints").steps())


class NullRun:
    """What the workers beside the chief have in place of a `Run`: it restores, and records nothing.

    Args: as of a `Run`, of which the second and the third are not looked at.

    Raises:
      InputError: there are checkpoints, none of which can be restored.
    """

    def __init__(self, folder: Path, config: dict, data_dir: Path, state: tf.train.Checkpoint):
        run_id = None  # the chief has yet to write it
        if (folder / "config.json").exists():
            run_id = read_config(folder)["run_id"]
        Checkpoints(folder / "checkpoints", run_id).restore_last(state, print)

    def _record_nothing(self, *args, **kwargs):
        pass

    say = note = describe = progress = scalars = pi = text = _record_nothing
    heat_map = evaluation = save = finish = close = _record_nothing


def _hyperparameters(name: str, flags: dict) -> list:
    """The values of a row of HParams, TensorBoard's table of runs."""
    from tensorboard.plugins.hparams import api  # it takes a moment to import

    values = {}
    for flag, value in flags.items():
        if flag not in FREE_FLAGS:
            values[flag] = value if isinstance(value, (bool, int, float)) else str(value)
    row = api.hparams_pb(values, trial_id=name).SerializeToString()
    return tf.compat.v1.Summary.FromString(row).value


def _checked_same(folder: Path, now: dict) -> dict:
    """The configuration of the run in a folder.

    Raises:
      InputError: it is another configuration than the run has now.
    """
    before = read_config(folder)
    differences = []
    for part in ("flags", "data", "layers"):
        for name, value in now[part].items():
            old = before[part].get(name, getattr(Settings, name, None))  # later flags: the default
            if name not in FREE_FLAGS and old != value:
                differences.append(f"{name}: {old} before, {value} now")
    if differences:
        raise InputError(f"{folder} is a run of another configuration ({'; '.join(differences)}): "
                         "choose another --model_name")
    return before


class _LogFile(logging.Handler):
    """A log file for one process at a time. What the disk does not take waits until it does."""

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
          InputError: the file is no longer that which is being written.
          OSError: the disk does not take them.
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
    """A logger whose lines go on in a file, those of level INFO and above to the console too."""
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.Logger("run")
    log.addHandler(file)
    log.addHandler(console)
    return log


def _line(metrics: dict) -> str:
    texts = {name: "not given" if value is None else f"{value:.4g}"
             for name, value in metrics.items()}
    return "  ".join(f"{name} {text}" for name, text in texts.items())
