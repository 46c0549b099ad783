"""The folder of a run, logs/<model_name>/: configuration, tokenizer, log, TensorBoard events, checkpoints, results.

`Run` writes it while training goes on, `TrainedRun` reads it. L blocks, K kinds of layer.
"""

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Iterator

import keras
import numpy as np
import tensorflow as tf

from model import KINDS, LETTERS, PARTransformerXL, by_path
from support import files
from support.checkpoints import Checkpoints
from support.cli import InputError

# Flags that may differ when a run is resumed: they change neither weights nor schedules.
FREE_FLAGS = ("data_dir", "max_steps", "log_every", "save_every", "distribute", "accumulate")
CHECKPOINTS_KEPT = 3
READ_BACK = {"flags": ("data_dir", "architecture", "mem_len", "mixed_precision"),
             "data": ("corpus", "batch_size", "seq_len", "vocab_size", "add_eos", "tokenizer_sha256"),
             "model": ("vocab_size", "architecture")}  # of a configuration, by those who use a trained network


class Run:
    """Writes the folder of a run. Where a run was before, it is continued: `state` is restored from its last checkpoint.

    Args:
      folder: of the run.
      config: {"flags": ..., "data": ..., "model": ...}; what the run is, and the arguments of its network.
      data_dir: where the tokenizer is, which whoever uses the network will need.
      state: what its checkpoints hold; `weights`, `tau`, `best_loss` and `evaluated` among it.

    Raises:
      InputError: the folder holds a run of another configuration, or one that goes on elsewhere, or checkpoints none of which
        can be restored.
    """

    def __init__(self, folder: Path, config: dict, data_dir: Path, state: tf.train.Checkpoint):
        self.folder, self._corpus, self._state = folder, config["data"]["corpus"], state
        self._checkpoints, self._best = Checkpoints(folder / "checkpoints", keep=CHECKPOINTS_KEPT), Checkpoints(folder / "best")
        if (folder / "config.json").exists() or self._checkpoints.steps():
            _check_same(folder, config)
        with files.named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._log = _open_log(folder / "training_log.log")
        self.say, self.note = self._log.info, self._log.debug  # to the log and the console, or to the log alone
        for name in ("tokenizer.model", "tokenizer.vocab"):
            files.write_whole(folder / name, (data_dir / name).read_bytes())
        files.write_json(folder / "config.json", config)
        self._best_state = tf.train.Checkpoint(weights=state.weights, tau=state.tau)
        self.resumed = self._checkpoints.restore_last(state, self.say)
        for damage in filter(None, map(self._best.damage, self._best.steps())):
            self.say(f"{damage}: the best network from now on is kept")
            state.best_loss.assign(np.inf)
        self._forget_events("train", after=-1 if self.resumed is None else self.resumed)
        self._forget_events("valid", after=-1 if self.resumed is None else int(state.evaluated))
        self._writers = {split: tf.summary.create_file_writer(str(folder / split)) for split in ("train", "valid")}

    def describe(self, config: dict, model, device: str, versions: dict):
        """Tells what is to be trained, on what, with what; at the start of a run to TensorBoard too."""
        self.note("flags " + json.dumps(config["flags"]))
        self.note("versions " + json.dumps(versions))
        model.summary(line_length=80, print_fn=lambda text, line_break=False: self.note(text))
        self.say(f"{self.folder}: architecture {config['flags']['architecture']}, {model.count_params():,} parameters, corpus {self._corpus}, on {device}")
        if self.resumed is None:
            table = "\n".join(f"| {name} | {value} |" for name, value in (config["data"] | config["flags"]).items())
            with self._events("train", 0):
                tf.summary.text("configuration", f"| setting | value |\n|---|---|\n{table}")
            self.heat_map(0, model.pi())
        else:
            self.say(f"resumed at step {self.resumed:,}")

    def begin_epoch(self, text: str, num_steps: int):
        """Tells of an epoch of so many steps."""
        self.say(text)
        self._bar = keras.utils.Progbar(num_steps, stateful_metrics=["loss", "perplexity"])

    def progress(self, done: int, values: dict):
        """Shows on the console how many steps of the epoch are done, and some numbers."""
        with contextlib.suppress(OSError):  # of a console that has gone
            self._bar.update(done, values.items())

    def scalars(self, split: str, step: int, values: dict):
        """Writes numbers to TensorBoard; those of `train` and `valid` share a chart."""
        with self._events(split, step):
            for name, value in values.items():
                tf.summary.scalar(name, np.float32(value))  # not Python's numbers: TensorFlow keeps each that it has ever converted

    def pi_scalars(self, step: int, pi: np.ndarray):
        """Writes pi [L, K] to TensorBoard as numbers."""
        self.scalars("train", step, {f"pi/block_{block}/{kind}": value
                                     for block, row in enumerate(pi, 1) for kind, value in zip(KINDS, row)})

    def heat_map(self, step: int, pi: np.ndarray):
        """Writes pi [L, K] to TensorBoard as a picture."""
        from support import pictures  # matplotlib takes a second to import

        image = pictures.architecture_heat_map(pi, KINDS, f"pi at step {step:,}, {self._corpus}")
        with self._events("train", step):
            tf.summary.image("pi", image[None])

    def evaluation(self, step: int, valid: dict):
        """Writes the validation metrics, and keeps the network if none was as good before."""
        self.say(f"step {step:,}  valid  {_line(valid)}")
        tags = {"loss": "loss", "perplexity": "perplexity", "word_perplexity": "raw_text/word_perplexity", "bits_per_byte": "raw_text/bits_per_byte"}
        self.scalars("valid", step, {tags[name]: value for name, value in valid.items() if value is not None})
        if valid["loss"] < self._state.best_loss:
            self._state.best_loss.assign(valid["loss"])
            self._best.save(self._best_state, step)

    def save(self, step: int):
        """Writes a checkpoint, after what was recorded until then; the last three are kept."""
        for split, writer in self._writers.items():
            with files.named(self.folder / split):
                writer.flush()
        self._checkpoints.save(self._state, step)

    def finish(self, results: dict):
        """Writes results.json and tells what it holds. JSON knows no infinity: a metric that overflows becomes null."""
        splits = ("train", "valid", "test")
        numbers = {split: {name: value if value is not None and np.isfinite(value) else None for name, value in results[split].items()} for split in splits}
        files.write_json(self.folder / "results.json", results | numbers)
        for split in splits:
            self.say(f"{split:5}  {_line(results[split])}")
        kinds = ", ".join(f"{LETTERS[letter]} ({max(row):.2f})" for letter, row in zip(results["architecture"], results["pi"]))
        self.say(f"architecture {results['architecture']} (most likely, pi): {kinds}\nresults in {self.folder / 'results.json'}")

    def close(self):
        """Ends the files that are being written."""
        for writer in self._writers.values():
            writer.close()
        for handler in self._log.handlers:
            handler.close()

    def _forget_events(self, split: str, after: int):
        """Removes the TensorBoard events of later steps than `after`: they will be recorded again."""
        for path in (self.folder / split).glob("events*"):
            events, kept, damaged = 0, [], False
            try:
                for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                    events += 1
                    if tf.compat.v1.Event.FromString(record).step <= after:
                        kept.append(record)
            except tf.errors.DataLossError:  # most often of the last one, where the process was killed while it wrote
                damaged = True
                self.say(f"{path} is damaged after its first {events:,} events: the others, up to step {after:,}, are lost")
            if len(kept) <= 1:  # the first tells the version of the format
                path.unlink()
            elif damaged or len(kept) < events:
                partial = path.with_name("partial")
                with files.named(path):
                    try:
                        with tf.io.TFRecordWriter(str(partial)) as writer:
                            for record in kept:
                                writer.write(record)
                        partial.replace(path)
                    finally:
                        partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _events(self, split: str, step: int) -> Iterator[None]:
        """What is recorded in this block goes to the TensorBoard events of a split at a step."""
        with files.named(self.folder / split), self._writers[split].as_default(np.int64(step)):
            yield


def has_begun(folder: Path) -> bool:
    """Whether there is a run in a folder, of which something would be lost."""
    return bool(Checkpoints(folder / "checkpoints").steps())


class NullRun:
    """What the workers beside the chief have in place of a `Run`: it restores the same state, and records nothing.

    Args: as of a `Run`, of which the second and the third are not looked at.

    Raises:
      InputError: there are checkpoints, none of which can be restored.
    """

    def __init__(self, folder: Path, config: dict, data_dir: Path, state: tf.train.Checkpoint):
        Checkpoints(folder / "checkpoints").restore_last(state, print)

    def _record_nothing(self, *arguments):
        pass

    say = note = describe = begin_epoch = progress = scalars = pi_scalars = heat_map = evaluation = save = finish = close = _record_nothing


class TrainedRun:
    """Reads the folder of a run.

    Args:
      folder: of the run.

    Raises:
      InputError: it holds no run, or a damaged one.
    """

    def __init__(self, folder: Path):
        self.folder, self._config = folder, _read_config(folder)
        self.flags, self.data = self._config["flags"], self._config["data"]

    @property
    def architecture(self) -> str:
        """A letter for the most likely kind of each block, once the run has finished."""
        try:
            return files.read_json(self.folder / "results.json", ["architecture"])["architecture"]
        except FileNotFoundError:
            raise InputError(f"{self.folder} has no results.json: it has not finished") from None

    @property
    def tokenizer(self) -> Path:
        """The SentencePiece model of the run."""
        path = self.folder / "tokenizer.model"
        if files.sha256(path) != self.data["tokenizer_sha256"]:
            raise InputError(f"{path} is damaged")
        return path

    def network(self, checkpoint: str = "best", **changes) -> tuple[PARTransformerXL, float, int]:
        """The trained network.

        Args:
          checkpoint: `best` (the lowest validation loss), `latest`, or the step of one that is there.
          **changes: arguments of the network that shall differ from those in training, such as `mem_len`.

        Returns:
          The network, its temperature, and the step it comes from.

        Raises:
          InputError: there is no such checkpoint, or it cannot be restored.
        """
        folders = {"best": Checkpoints(self.folder / "best"), "latest": Checkpoints(self.folder / "checkpoints")}
        there = {name: (checkpoints, checkpoints.steps()[-1]) for name, checkpoints in folders.items() if checkpoints.steps()}
        there |= {str(step): (checkpoints, step) for checkpoints in folders.values() for step in checkpoints.steps()}
        if checkpoint not in there:
            raise InputError(f"{self.folder} has no checkpoint '{checkpoint}': there is {', '.join(there) or 'none yet'}")
        checkpoints, step = there[checkpoint]
        if damage := checkpoints.damage(step):
            others = [name for name, (checkpoints, step) in there.items() if not checkpoints.damage(step)]
            raise InputError(f"{damage}: choose another with --checkpoint, of {', '.join(others) or 'which there is none'}")
        model, tau = PARTransformerXL(**self._config["model"] | changes), tf.Variable(0.0)
        checkpoints.restore(tf.train.Checkpoint(weights=by_path(model.weights), tau=tau), step)
        return model, float(tau), step

    def scalars(self, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The curves of `train` or `valid` from its TensorBoard events: steps and values for each tag."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # it takes a second to import

        events = EventAccumulator(str(self.folder / split), size_guidance={"tensors": 0})  # 0: all of them
        events.Reload()
        curves = {}
        for tag in events.Tags()["tensors"]:
            if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
                by_step = {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}
                curves[tag] = np.array(sorted(by_step)), np.array([by_step[step] for step in sorted(by_step)])
        return curves


def _read_config(folder: Path) -> dict:
    path = folder / "config.json"
    try:
        config = files.read_json(path, READ_BACK)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is no run: {path} is missing") from None
    if not all(name in config[part] for part, names in READ_BACK.items() for name in names):
        raise InputError(f"{path} was written by another version of this program")
    return config


def _check_same(folder: Path, now: dict):
    before = _read_config(folder)
    differences = [f"{name}: {before[part].get(name)} before, {value} now"
                   for part in ("flags", "data") for name, value in now[part].items()
                   if name not in FREE_FLAGS and before[part].get(name) != value]
    if differences:
        raise InputError(f"{folder} is a run of another configuration ({'; '.join(differences)}): choose another --model_name")


class _Console(logging.StreamHandler):
    """The console, which may go while a run goes on."""

    def handleError(self, record):
        pass


class _LogFile(logging.FileHandler):
    """A log file for one process at a time, and one that stops the program where it cannot be written."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._path = path
        if not files.lock(self.stream.fileno()):
            raise InputError(f"{path.parent} is being trained by another process")

    def emit(self, record):
        with files.named(self._path):
            super().emit(record)

    def handleError(self, record):
        raise

    def close(self):
        with contextlib.suppress(OSError):  # of a line that could not be written, which has been told
            super().close()


def _open_log(path: Path) -> logging.Logger:
    """A logger whose lines go on in a file, those of level INFO and above to the console too."""
    console, file = _Console(sys.stdout), _LogFile(path)
    console.setLevel(logging.INFO)
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.Logger(path.stem)
    log.addHandler(console)
    log.addHandler(file)
    return log


def _line(metrics: dict) -> str:
    return "  ".join(f"{name} {'not given' if value is None else f'{value:.4g}'}" for name, value in metrics.items())
