"""Trains and evaluates a network.

B batch, T sequence length, M memory length, A blocks that need memory, D model width, K layer
types, W windows of one execution, R replicas.
"""

import contextlib
import functools
import math
import random
import threading
import time
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import tensorflow as tf

import data_utils
from model import PARTransformerXL
from support import cli, devices
from support.checkpoints import by_path
from support.corpora import SPLITS
from support.errors import InputError
from support.tokenization import Tokenizer
from training.language_model import LanguageModel
from training.latency import layer_latency
from training.optimizers import (
    learning_rate_schedule,
    parameter_groups,
    tau_schedule,
    trains_architecture,
)
from training.scoring import Evaluator, metrics
from training.settings import Settings
from training.step import Totals, TrainingStep

PREFETCHED = 40  # windows read ahead
SEEDED = threading.Lock()  # held while weights are initialized from Python's global generator
PROMPT, WRITTEN = 8, 48  # tokens of the sample text: given, and written by the network


def build_network(settings: Settings, vocab_size: int, static_shapes: bool) -> PARTransformerXL:
    """The network of some settings.

    Raises:
      InputError: the sizes contradict each other.
    """
    try:
        arguments = settings.network_arguments(vocab_size)
        return PARTransformerXL(**arguments, static_shapes=static_shapes)
    except ValueError as error:
        raise InputError(str(error)) from None


class Trainer:
    """Trains and evaluates a network on the data of a folder.

    Schedules, noise, windows, the fill of the memory and the choice of the parameters to train
    depend only on `state.step`. A run can therefore resume exactly, at any step.

    Args:
      data_dir: the output of make_data.sh.
      metadata: its metadata.
      settings: what to train, and how.
      jit_compile: compile with XLA.
      strategy: the replicas; None for one device.
      steps_per_execution: W, the maximum number of steps sent to the device together; affects
        results by rounding only.

    Attributes:
      model: the network.
      state: the content of a checkpoint.
      steps_per_epoch, total_steps: of the data, and of the whole schedule.
      last_step: the step at which training ends; `settings.max_steps` may make it earlier.

    Raises:
      InputError: settings contradict each other or the data.
    """

    def __init__(self, data_dir: Path, metadata: dict, settings: Settings,
                 jit_compile: bool = False, strategy: tf.distribute.Strategy | None = None,
                 steps_per_execution: int = 20):
        self.metadata, self.settings, self.steps_per_execution = (
            metadata, settings, steps_per_execution)
        self._data_dir, self._jit_compile = data_dir, jit_compile
        self._strategy = strategy or tf.distribute.get_strategy()
        self.steps_per_epoch = metadata["splits"]["train"]["steps"]
        self.total_steps = max(1, round(settings.epochs * self.steps_per_epoch))
        self.last_step = min(settings.max_steps or self.total_steps, self.total_steps)
        self._check_settings()
        self._learning_rate_at = learning_rate_schedule(
            settings.max_lr, settings.warmup_steps, self.total_steps)
        self._tau_at = tau_schedule(settings.tau_start, settings.tau_end, self.total_steps)
        with self._strategy.scope():
            self.model = self._initial_network()
            step = tf.Variable(0, dtype=tf.int64)
            latency = tf.Variable(tf.zeros(len(self.model.kinds)))
            self._groups = parameter_groups(
                self.model, settings, lambda: self._learning_rate_at(step))
        self.state = self._initial_state(step, latency)
        training_step = TrainingStep(
            self.model, settings, self._groups, self.state, self._tau_at, self.steps_per_epoch,
            self._strategy, jit_compile)
        self._train_steps = training_step.run_many
        self._evaluator = Evaluator(
            self.model, jit_compile, self._strategy, steps_per_execution if jit_compile else 1)
        self._last_look = time.monotonic()
        self._memory = None  # of each replica, while training
        self._windows = self._next_window = None  # an iterator, and the step of its next window

    def _check_settings(self):
        """Raises InputError if settings contradict each other or the data."""
        rows, parts = self.metadata["batch_size"], self.settings.accumulate
        replicas, warmup_steps = self._strategy.num_replicas_in_sync, self.settings.warmup_steps
        if rows % (replicas * parts):
            raise InputError(
                f"{rows} rows, the --batch_size of the data, cannot be divided evenly among "
                f"{replicas} device(s), in --accumulate={parts} part(s) each")
        if self.settings.search == "alternating" and warmup_steps >= self.total_steps:
            raise InputError(
                f"--warmup_steps={warmup_steps} leaves none of the {self.total_steps:,} steps to "
                "train the architecture")

    def _initial_network(self) -> PARTransformerXL:
        """The network before the first step; it predicts about the unigram frequencies."""
        with SEEDED:  # not keras.utils.set_random_seed, which frees resources of TensorFlow
            random.seed(self.settings.seed)
            model = build_network(
                self.settings, self.metadata["vocab_size"], static_shapes=self._jit_compile)
        model.softmax.start_from(data_utils.read_counts(self._data_dir / "unigram_counts.txt"))
        return model

    def _initial_state(self, step, latency) -> tf.train.Checkpoint:
        """The content of a checkpoint, before the first step."""
        empty_memory = self.model.empty_memory(self.metadata["batch_size"])  # [A, B, M, D]
        with tf.device("CPU:0"):  # not on the replicas, which hold the memory of their own rows
            memory = tf.Variable(tf.cast(empty_memory, tf.float32))  # whatever the precision
        optimizers = {name: by_path(optimizer.variables)
                      for name, (optimizer, _) in self._groups.items()}
        return tf.train.Checkpoint(
            step=step, weights=by_path(self.model.weights), optimizers=optimizers, memory=memory,
            tau=tf.Variable(self.settings.tau_start), latency=latency,
            best_loss=tf.Variable(math.inf, dtype=tf.float64),
            wall_seconds=tf.Variable(0.0, dtype=tf.float64),  # of all processes of the run
            evaluated=tf.Variable(0, dtype=tf.int64),  # the step of the last validation
            line=Totals(), epoch=Totals(), run=Totals())  # since the last line of the log, ...

    @property
    def step(self) -> int:
        return int(tf.convert_to_tensor(self.state.step))

    @property
    def epoch_end(self) -> int:
        """The last step of the first epoch that has not been evaluated yet, or of the run."""
        epochs = int(self.state.evaluated) // self.steps_per_epoch + 1
        return min(epochs * self.steps_per_epoch, self.last_step)

    @property
    def learning_rate(self) -> float:
        return float(self._learning_rate_at(self.step))

    @property
    def tau(self) -> float:
        return float(self.model.temperature(self._tau_at(self.step)))

    def wall_seconds(self) -> float:
        """The duration of the run so far: training, validation, saving and the rest."""
        now = time.monotonic()
        self.state.wall_seconds.assign_add(np.float64(now - self._last_look))
        self._last_look = now
        return float(self.state.wall_seconds)

    def all_reduce_max(self, *numbers: float) -> list[float]:
        """The maximum of each number over all workers, which must all call this."""
        return devices.all_reduce_max(self._strategy, *numbers)

    # ----------------------------------------------------------------------------------------------
    # Training

    def train(self, num_steps: int) -> float:
        """Trains `num_steps` steps. Returns the seconds that they took.

        Raises:
          FloatingPointError: the loss of a step is not finite.
          InputError: the data have been replaced.
          ValueError: `num_steps` is negative.
        """
        if num_steps < 0:
            raise ValueError(f"num_steps must be 0 or more, not {num_steps}")
        step = self.step
        if self._memory is None:
            memory = tf.cast(self.state.memory, self.model.compute_dtype)  # [A, B, M, D]
            self._memory = devices.split_rows(self._strategy, memory, axis=1)
        if self._next_window != step:  # at first, or after an error
            self._windows, self._next_window = self._windows_from(step), step
        self.latency()
        start, end = time.perf_counter(), step + num_steps
        while step < end:
            if step % self.steps_per_epoch == 0:
                self.state.epoch.reset()
            names, count = self._trained_at(step), self._steps_alike(step, end)
            # Step, weights and memory advance together.
            with self._blaming_data(), cli.uninterrupted():
                self._memory, finite = self._train_steps(
                    self._windows_of(count), tf.constant(count), self._memory, names)
            if not finite:
                what = f"the loss of step {self.step + 1:,}"
                raise _not_finite(what, _magnitudes(self.state.weights))
            step += count
        seconds = time.perf_counter() - start
        self.state.tau.assign(self.tau)
        for totals in (self.state.line, self.state.epoch, self.state.run):
            totals.seconds.assign_add(np.float64(seconds))  # TensorFlow caches every Python float
        return seconds

    def _trained_at(self, step: int) -> tuple[str, ...]:
        """The groups of parameters that a step trains."""
        if self.settings.search != "alternating":
            return tuple(self._groups)
        turn = trains_architecture(step, self.settings.warmup_steps, self.settings.arch_share)
        return ("architecture",) if turn else ("weights",)

    def _steps_alike(self, step: int, end: int) -> int:
        """The number of steps, starting at `step`, to run in one execution.

        They lie before `end`, in one epoch, and train the same groups of parameters.
        """
        epoch_end = (step // self.steps_per_epoch + 1) * self.steps_per_epoch
        end = min(end, epoch_end, step + self.steps_per_execution)
        last = step + 1
        while last < end and self._trained_at(last) == self._trained_at(step):
            last += 1
        return last - step

    def _windows_from(self, step: int) -> Iterator[np.ndarray]:
        """The windows [B, T + 1] of the training split from that of a step on, repeated forever."""
        windows = data_utils.load_windows(self._data_dir, "train", self.metadata)
        windows = windows.repeat().skip(step % self.steps_per_epoch)
        return windows.prefetch(PREFETCHED).as_numpy_iterator()

    def _windows_of(self, count: int):
        """Each replica's rows of the next windows, int32 [W, B/R, T + 1]: `count`, then zeros."""
        B, T = self.metadata["batch_size"], self.metadata["seq_len"]
        windows = np.zeros([self.steps_per_execution, B, T + 1], np.int32)
        for number in range(count):
            self._next_window += 1
            windows[number] = next(self._windows)
        return devices.split_rows(self._strategy, tf.constant(windows), axis=1)

    @contextlib.contextmanager
    def _blaming_data(self) -> Iterator[None]:
        """Turns an error of TensorFlow into InputError if damaged or replaced data caused it."""
        try:
            yield
        except (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.NotFoundError):
            data_utils.check_unchanged(self._data_dir, self.metadata)
            data_utils.read_metadata(self._data_dir)
            raise

    def latency(self) -> np.ndarray:
        """Milliseconds of each layer type on this machine, [K], measured once in a run.

        Zeros without `settings.latency_weight`.
        """
        if self.settings.latency_weight and not self.state.latency.numpy().any():
            B, T = self.metadata["batch_size"], self.metadata["seq_len"]
            measured = layer_latency(
                self.model.kinds, self.model.sizes, B, T, self._jit_compile)
            self.state.latency.assign(self.all_reduce_max(*measured))
        return self.state.latency.numpy()

    # ----------------------------------------------------------------------------------------------
    # Results

    def end_line(self) -> tuple[float, float]:
        """The mean loss and the tokens per second since the last call."""
        line = self.state.line
        loss, speed = line.loss, float(line.targets) / float(line.seconds)
        line.reset()
        return loss, speed

    def epoch_metrics(self) -> dict:
        """The training metrics of the current epoch so far, with noise and dropout."""
        return metrics(self.state.epoch.loss, self.metadata["splits"]["train"])

    def evaluate(self, split: str, between: Callable[[], None] = lambda: None) -> dict:
        """The metrics of a split, without noise. Calls `between` from time to time.

        Raises:
          ValueError: there is no such split.
          FloatingPointError: the loss is not finite.
          InputError: the data have been replaced.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        with self._blaming_data():
            stream = data_utils.load_stream(self._data_dir, split, self.metadata)
        data_utils.check_unchanged(self._data_dir, self.metadata)
        batch_size, seq_len = self.metadata["batch_size"], self.metadata["seq_len"]
        score = self._evaluator(stream, batch_size, seq_len, self.tau, between)
        if not math.isfinite(score.nll):
            what = f"the loss of {split} after step {self.step:,}"
            raise _not_finite(what, _magnitudes(self.state.weights))
        return metrics(score.nll / score.targets, self.metadata["splits"][split])

    @property
    def language_model(self) -> LanguageModel:
        """The network, at the temperature of this step, as functions of text."""
        self.model.tau = self.tau
        return self._language_model

    @functools.cached_property
    def _language_model(self) -> LanguageModel:
        return LanguageModel(
            self.model, Tokenizer(self._data_dir / "tokenizer.model"), self.metadata["add_eos"],
            self.metadata["seq_len"], self._jit_compile)

    def write_text(self) -> tuple[str, str]:
        """The first words of the validation split, and a continuation by the network."""
        language_model = self.language_model
        windows = data_utils.load_windows(self._data_dir, "valid", self.metadata)
        with self._blaming_data():
            prompt = next(windows.as_numpy_iterator())[0, :PROMPT]  # [PROMPT]
        written = language_model.writer.write(prompt, WRITTEN, seed=self.step)
        decode = language_model.tokenizer.decode
        return "".join(decode(prompt)), "".join(decode(written, within_line=True))

    def complete_state(self):
        """Makes `state` ready to be saved: adds the memory of all replicas, and checks all numbers.

        Raises:
          FloatingPointError: a number is not finite.
          InputError: the data have been replaced.
        """
        data_utils.check_unchanged(self._data_dir, self.metadata)
        self.wall_seconds()
        if self._memory is not None:
            memory = devices.gather_rows(self._strategy, self._memory, axis=1)  # [A, B, M, D]
            self.state.memory.assign(tf.cast(memory, tf.float32))
        memory = {"memory": self.state.memory}
        for variables in (self.state.weights, *self.state.optimizers.values(), memory):
            sizes = _magnitudes(variables)
            if not np.isfinite(list(sizes.values())).all():
                raise _not_finite(f"the state after step {self.step:,}", sizes)


def _magnitudes(variables: dict) -> dict:
    """The mean absolute value of each variable; not finite if one of its numbers is not."""
    sizes = {}
    for path, variable in variables.items():
        total = tf.reduce_sum(tf.abs(tf.cast(variable, tf.float32)))  # []
        sizes[path] = total / max(1, variable.shape.num_elements())
    return sizes


def _not_finite(what: str, sizes: dict) -> FloatingPointError:
    """An error that names the variable at fault, given the magnitude of each variable."""
    where = f"all weights are finite; those of {max(sizes, key=sizes.get)} are the largest"
    for path, size in sizes.items():
        if not math.isfinite(size):
            where = f"the first such variable is {path}"
            break
    return FloatingPointError(
        f"{what} is not finite ({where}): stopped; the last checkpoint was saved before that. "
        "A lower --max_lr or --clipnorm may help")
