"""The folder of a run, logs/<model_name>/: configuration, tokenizer, log, TensorBoard events, checkpoints, results.

`Run` writes it while training goes on, `TrainedRun` reads it. L blocks, K kinds of layer.
"""

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

import pictures
from cli import InputError
from model import KINDS, LETTERS, PARTransformerXL, by_path

# Flags that may differ when a run is resumed: they change neither weights nor schedules.
FREE_FLAGS = ("data_dir", "max_steps", "log_every")
CHECKPOINTS_KEPT = 3
READ_BACK = {"flags": ("data_dir", "mem_len", "mixed_precision"),
             "data": ("corpus", "batch_size", "seq_len", "vocab_size", "add_eos", "tokenizer_sha256"),
             "model": ("vocab_size", "architecture")}  # of a configuration, by those who use a trained network


class Run:
    """Writes the folder of a run. Where a run was before, it is continued: `state` is restored from its last checkpoint.

    Args:
      folder: of the run.
      config: {"flags": ..., "data": ..., "model": ...}; what the run is, and the arguments of its network.
      data_dir: where the tokenizer is, which whoever uses the network will need.
      state: what its checkpoints hold; `weights`, `tau` and `best_loss` among it.

    Raises:
      InputError: the folder holds a run of another configuration, or a checkpoint that cannot be restored.
    """

    def __init__(self, folder: Path, config: dict, data_dir: Path, state: tf.train.Checkpoint):
        self.folder, self._corpus, self._state = folder, config["data"]["corpus"], state
        if (folder / "config.json").exists():
            _check_same(folder, config)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.model", "tokenizer.vocab"):
            shutil.copy(data_dir / name, folder)
        write_json(folder / "config.json", config)
        self._log = _open_log(folder / "training_log.log")
        self.say, self.note = self._log.info, self._log.debug  # to the log and the console, or to the log alone
        self._checkpoints = tf.train.CheckpointManager(state, str(folder / "checkpoints"), CHECKPOINTS_KEPT)
        self._best = tf.train.CheckpointManager(tf.train.Checkpoint(weights=state.weights, tau=state.tau), str(folder / "best"), max_to_keep=1)
        if self._checkpoints.latest_checkpoint:
            _restore(state, self._checkpoints.latest_checkpoint)
        self._writers = {split: tf.summary.create_file_writer(str(folder / split)) for split in ("train", "valid")}

    def describe(self, config: dict, model, device: str, versions: dict):
        """Tells what is to be trained, on what, with what; at the start of a run to TensorBoard too."""
        self.note("flags " + json.dumps(config["flags"]))
        self.note("versions " + json.dumps(versions))
        model.summary(line_length=80, print_fn=lambda text, line_break=False: self.note(text))
        self.say(f"{self.folder}: architecture {config['flags']['architecture']}, {model.count_params():,} parameters, corpus {self._corpus}, on {device}")
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
        """Writes the validation metrics and the heat map of pi [L, K], and keeps the network if none was as good before."""
        self.say(f"step {step:,}  valid  {_line(valid)}")
        self.scalars("valid", step, {name if name in ("loss", "perplexity") else f"raw_text/{name}": value for name, value in valid.items()})
        self._heat_map(step, pi)
        if valid["loss"] < self._state.best_loss:
            self._state.best_loss.assign(valid["loss"])
            self._best.save(checkpoint_number=step)

    def save(self, step: int):
        """Writes a checkpoint; the last three are kept."""
        self._checkpoints.save(checkpoint_number=step)
        for writer in self._writers.values():
            writer.flush()

    def finish(self, results: dict):
        """Writes results.json and tells what it holds. JSON knows no infinity: a metric that overflows becomes null."""
        splits = ("train", "valid", "test")
        numbers = {split: {name: value if np.isfinite(value) else None for name, value in results[split].items()} for split in splits}
        write_json(self.folder / "results.json", results | numbers)
        for split in splits:
            self.say(f"{split:5}  {_line(results[split])}")
        kinds = ", ".join(f"{LETTERS[letter]} ({max(row):.2f})" for letter, row in zip(results["architecture"], results["pi"]))
        self.say(f"architecture {results['architecture']} (most likely, pi): {kinds}\nresults in {self.folder / 'results.json'}")

    def _heat_map(self, step: int, pi: np.ndarray):
        image = pictures.architecture_heat_map(pi, f"pi at step {step:,}, {self._corpus}")
        with self._writers["train"].as_default(step):
            tf.summary.image("pi", image[None])


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
        path = self.folder / "results.json"
        try:
            return json.loads(path.read_text())["architecture"]
        except FileNotFoundError:
            raise InputError(f"{self.folder} has no results.json: it has not finished") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error})") from None

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
        there = {name: tf.train.latest_checkpoint(str(self.folder / folder)) for name, folder in (("best", "best"), ("latest", "checkpoints"))}
        there |= {path.stem.removeprefix("ckpt-"): str(path.with_suffix("")) for path in self.folder.glob("*/ckpt-*.index")}
        there = {name: path for name, path in there.items() if path}
        if checkpoint not in there:
            raise InputError(f"{self.folder} has no checkpoint '{checkpoint}': there is {', '.join(there) or 'none yet'}")
        path = there[checkpoint]
        model, tau = PARTransformerXL(**self._config["model"] | changes), tf.Variable(0.0)
        _restore(tf.train.Checkpoint(weights=by_path(model.weights), tau=tau), path)
        return model, float(tau), int(path.rpartition("-")[2])

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
        config = json.loads(path.read_text())
        if all(name in config[part] for part, names in READ_BACK.items() for name in names):
            return config
        raise ValueError("settings are missing")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder} is no run: {path} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged, or was written by another version ({error})") from None


def _check_same(folder: Path, now: dict):
    before = _read_config(folder)
    differences = [f"{name}: {before[part].get(name)} before, {value} now"
                   for part in ("flags", "data") for name, value in now[part].items()
                   if name not in FREE_FLAGS and before[part].get(name) != value]
    if differences:
        raise InputError(f"{folder} is a run of another configuration ({'; '.join(differences)}): choose another --model_name")


def _restore(state: tf.train.Checkpoint, path: str):
    try:
        state.restore(path).assert_existing_objects_matched().expect_partial()
    except (ValueError, IndexError, AssertionError, tf.errors.OpError) as error:
        raise InputError(f"cannot restore {path}: {str(error).splitlines()[0]}") from None


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


def write_json(path: Path, content: dict):
    """Writes a JSON file so that it appears complete or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
