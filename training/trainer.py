"""The trainer: a network in training, from one step to the next.

B batch, T sequence length, M memory length, A blocks that need memory, D model width, K kinds of
layer, R replicas, P shares of a batch, S blocks that are searched, W windows of one execution.
"""

import contextlib
import math
import random
import threading
import time
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import tensorflow as tf

import data_utils
from layers import KINDS
from layers.draws import Draws
from model import PARTransformerXL
from support import cli, devices
from support.checkpoints import by_path
from support.cli import InputError
from support.corpora import SPLITS
from support.tokenization import Tokenizer
from training.latency import layer_latency
from training.optimizers import (
    build_optimizer,
    learning_rate_schedule,
    tau_schedule,
    trains_architecture,
)
from training.scoring import Evaluator, filled_memory, metrics, real_targets, window_nll
from training.settings import Settings
from training.writer import Writer, memory_length

PREFETCHED = 40  # windows that are read while others are trained on
SEEDED = threading.Lock()  # held while initial weights come from Python's one random generator
PROMPT, WRITTEN = 8, 48  # tokens that a text begins with, and that the network writes


def build_network(settings: Settings, vocab_size: int, static_shapes: bool) -> PARTransformerXL:
    """The network of some settings.

    Raises:
      InputError: there can be none.
    """
    try:
        arguments = settings.network_arguments(vocab_size)
        return PARTransformerXL(**arguments, static_shapes=static_shapes)
    except ValueError as error:
        raise InputError(str(error)) from None


class Totals(tf.Module):
    """What was trained since some moment.

    Attributes:
      nll: the summed negative log-likelihood, in nats.
      targets: of how many tokens.
      seconds: in which time.
    """

    def __init__(self):
        super().__init__()
        self.nll = tf.Variable(0.0, dtype=tf.float64)
        self.targets = tf.Variable(0.0, dtype=tf.float64)
        self.seconds = tf.Variable(0.0, dtype=tf.float64)

    @property
    def loss(self) -> float:
        """The mean, in nats per token."""
        return float(self.nll) / float(self.targets)

    def add(self, nll, targets):
        """Adds those of a step."""
        self.nll.assign_add(tf.cast(nll, tf.float64))
        self.targets.assign_add(tf.cast(targets, tf.float64))

    def reset(self):
        for total in (self.nll, self.targets, self.seconds):
            total.assign(0.0)


class Trainer:
    """A network in training: its optimizers, its data, and the state that a checkpoint holds.

    Whatever depends on the step (schedules, noise, which window is read, how much of the memory is
    filled, whether weights or architecture learn) depends on the number `state.step` alone; so a
    run resumes at any step exactly.

    On one device W steps are one program, compiled as a whole with `jit_compile`. XLA compiles no
    communication between replicas: there the loop over the steps stays a graph, and each replica
    compiles the loss and the gradients of a step.

    Each of R replicas has the data and the memory of its own rows alone, and computes them in as
    many parts, one after another, as `settings.accumulate` says. Noise, loss and gradient are those
    of the whole batch, whatever the number of shares P.

    Args:
      data_dir: what make_data.sh made.
      metadata: its metadata.
      settings: what to train, and how.
      jit_compile: compile with XLA.
      strategy: whose replicas train; None for one device.
      steps_per_execution: W, the most steps that are sent to the device together, if they train
        the same parameters; changes results by rounding only.

    Raises:
      InputError: the settings do not suit each other or the data.
    """

    def __init__(self, data_dir: Path, metadata: dict, settings: Settings,
                 jit_compile: bool = False, strategy: tf.distribute.Strategy | None = None,
                 steps_per_execution: int = 20):
        self.metadata, self.settings, self.jit_compile = metadata, settings, jit_compile
        self.steps_per_execution = steps_per_execution
        self._data_dir, self._strategy = data_dir, strategy or tf.distribute.get_strategy()
        self.steps_per_epoch = metadata["splits"]["train"]["steps"]
        self.total_steps = max(1, round(settings.epochs * self.steps_per_epoch))
        self.last_step = min(settings.max_steps or self.total_steps, self.total_steps)
        self.shares = self._strategy.num_replicas_in_sync * settings.accumulate
        self._check_settings()
        self._learning_rate_at = learning_rate_schedule(
            settings.max_lr, settings.warmup_steps, self.total_steps)
        self._tau_at = tau_schedule(settings.tau_start, settings.tau_end, self.total_steps)
        with self._strategy.scope():
            with SEEDED:  # not keras.utils.set_random_seed, which frees resources of TensorFlow
                random.seed(settings.seed)
                self.model = build_network(
                    settings, metadata["vocab_size"], static_shapes=jit_compile)
            self.model.softmax.start_from(data_utils.read_counts(data_dir / "unigram_counts.txt"))
            step, latency = tf.Variable(0, dtype=tf.int64), tf.Variable(tf.zeros(len(KINDS)))
            self._groups = self._parameter_groups(step)
        empty_memory = self.model.empty_memory(metadata["batch_size"])  # [A, B, M, D]
        with tf.device("CPU:0"):  # not on the replicas, which have memory for their own rows alone
            memory = tf.Variable(tf.cast(empty_memory, tf.float32))  # whatever the precision
        optimizers = {name: by_path(optimizer.variables)
                      for name, (optimizer, _) in self._groups.items()}
        self.state = tf.train.Checkpoint(
            step=step, weights=by_path(self.model.weights), optimizers=optimizers, memory=memory,
            tau=tf.Variable(settings.tau_start), latency=latency,
            best_loss=tf.Variable(math.inf, dtype=tf.float64),
            wall_seconds=tf.Variable(0.0, dtype=tf.float64),  # of all sittings
            evaluated=tf.Variable(0, dtype=tf.int64),  # the step of the last validation
            line=Totals(), epoch=Totals(), run=Totals())  # since the last line of the log, ...
        self._last_look = time.monotonic()
        self._totals = self.state.line, self.state.epoch, self.state.run
        self._windows = self._memory = None  # while training goes on
        self._next_window = None  # the step that the next of the windows is for
        one_device = self._strategy is tf.distribute.get_strategy()
        self._compiled_train_steps = tf.function(
            self._train_steps, jit_compile=jit_compile and one_device or None)
        self._compiled_loss_and_gradients = tf.function(
            self._loss_and_gradients, jit_compile=jit_compile or None)
        self._evaluator = Evaluator(
            self.model, jit_compile, self._strategy, steps_per_execution if jit_compile else 1)
        self._writer = Writer(
            self.model, memory_length(settings.mem_len, metadata["seq_len"]), jit_compile)

    @property
    def step(self) -> int:
        return int(tf.convert_to_tensor(self.state.step))

    @property
    def epoch_end(self) -> int:
        """Where the epoch ends that is being trained, or waits to be evaluated; or the run."""
        epochs = int(self.state.evaluated) // self.steps_per_epoch + 1
        return min(epochs * self.steps_per_epoch, self.last_step)

    @property
    def learning_rate(self) -> float:
        return float(self._learning_rate_at(self.step))

    @property
    def tau(self) -> float:
        return float(self.model.temperature(self._tau_at(self.step)))

    def wall_seconds(self) -> float:
        """The time of all sittings of the run: training, validation, saving and the rest."""
        now = time.monotonic()
        self.state.wall_seconds.assign_add(np.float64(now - self._last_look))
        self._last_look = now
        return float(self.state.wall_seconds)

    def all_reduce_max(self, *numbers: float) -> list[float]:
        """Each number, the greatest of all workers, which must all call this at the same point."""
        return devices.all_reduce_max(self._strategy, *numbers)

    # ----------------------------------------------------------------------------------------------
    # Training

    def train(self, num_steps: int) -> float:
        """Trains `num_steps` steps. Returns the seconds it took.

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
            groups, count = self._trained_at(step), self._steps_alike(step, end)
            # Step, weights and memory advance together.
            with self._blaming_data(), cli.uninterrupted():
                self._memory, finite = self._compiled_train_steps(
                    self._windows_of(count), tf.constant(count), self._memory, groups)
            if not finite:
                what = f"the loss of step {self.step + 1:,}"
                raise _not_finite(what, _magnitudes(self.state.weights))
            step += count
        seconds = time.perf_counter() - start
        self.state.tau.assign(self.tau)
        for totals in self._totals:
            totals.seconds.assign_add(np.float64(seconds))  # TensorFlow caches every Python float
        return seconds

    @contextlib.contextmanager
    def _blaming_data(self) -> Iterator[None]:
        """Raises InputError if the data were the reason of a failure: it names what became of them.

        Windows of another size or vocabulary fail too.
        """
        try:
            yield
        except (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.NotFoundError):
            data_utils.check_unchanged(self._data_dir, self.metadata)
            data_utils.read_metadata(self._data_dir)
            raise

    def latency(self) -> np.ndarray:
        """Milliseconds that each kind of layer takes here, [K]: measured once for a run.

        Zeros where no search asks for it, `settings.latency_weight`.
        """
        if self.settings.latency_weight and not self.state.latency.numpy().any():
            B, T = self.metadata["batch_size"], self.metadata["seq_len"]
            measured = layer_latency(self.model.sizes, B, T, self.jit_compile)
            self.state.latency.assign(self.all_reduce_max(*measured))
        return self.state.latency.numpy()

    def _steps_alike(self, step: int, end: int) -> int:
        """How many steps from `step` on, before `end`, are one execution.

        They lie in one epoch and train the same groups.
        """
        epoch_end = (step // self.steps_per_epoch + 1) * self.steps_per_epoch
        end, last = min(end, epoch_end, step + self.steps_per_execution), step + 1
        while last < end and self._trained_at(last) == self._trained_at(step):
            last += 1
        return last - step

    def _train_steps(self, windows, num_steps, memory, groups):
        """Steps on all replicas, until a loss is not finite.

        Each replica has its own rows of windows and memory.

        Args:
          windows: int32 [W, B, T + 1], of which the first `num_steps` are trained on.
          num_steps: a scalar.
          memory: [A, B, M, D].
          groups: names of the groups of parameters that learn.

        Returns:
          The last memory, and whether all losses are finite.
        """
        number, finite = 0, True
        while tf.logical_and(finite, number < num_steps):
            window = self._run(tf.gather, windows, number)  # [B, T + 1]
            memory, finite = self._train_step(window, memory, groups)
            number += 1
        return memory, finite

    def _train_step(self, window, memory, groups):
        """One step with window [B, T + 1] and memory [A, B, M, D].

        Returns:
          The next memory, and whether the loss is finite. If not, nothing has changed.
        """
        targets = self._sum(self._run(_num_targets, window))  # []
        nll, new_memory, gradients = self._run(
            self._loss_and_gradients_in_parts, window, memory, targets, groups)
        nll = self._sum(nll)  # []
        finite = tf.math.is_finite(nll)
        if finite:
            self._run(self._apply_gradients, gradients, groups)
            for totals in self._totals:
                totals.add(nll, targets)
            self.state.step.assign_add(1)
            memory = new_memory
        return memory, finite

    def _loss_and_gradients_in_parts(self, window, memory, targets, groups):
        """`_loss_and_gradients` for the rows of a replica, one part after another."""
        parts = self.settings.accumulate
        first = tf.distribute.get_replica_context().replica_id_in_sync_group * parts
        if parts == 1:
            return self._compiled_loss_and_gradients(window, memory, targets, first, groups)
        windows = tf.stack(tf.split(window, parts))  # [parts, B/P, T + 1]
        memories = tf.stack(tf.split(memory, parts, axis=1))  # [parts, A, B/P, M, D]
        nll, new_memory, gradients = self._compiled_loss_and_gradients(
            windows[0], memories[0], targets, first, groups)
        new_memories = tf.TensorArray(memory.dtype, parts, element_shape=new_memory.shape)
        new_memories = new_memories.write(0, new_memory)
        for i in tf.range(1, parts):
            more = self._compiled_loss_and_gradients(
                windows[i], memories[i], targets, first + i, groups)
            nll += more[0]
            new_memories = new_memories.write(i, more[1])
            gradients = tf.nest.map_structure(tf.add, gradients, more[2])
        return nll, tf.concat(tf.unstack(new_memories.stack(), parts), axis=1), gradients

    def _loss_and_gradients(self, window, memory, targets, share, groups):
        """For a share of the rows of a batch, window [B/P, T + 1] and memory [A, B/P, M, D].

        Returns:
          The summed negative log-likelihood, the next memory, and for each group of parameters the
          gradients of this share's part of the loss: the mean over the `targets` of the batch.
        """
        step = tf.convert_to_tensor(self.state.step)
        draws = Draws(self.settings.seed, step, share, self.shares)
        filled = filled_memory(self.model, window, step % self.steps_per_epoch)
        with tf.GradientTape() as tape:
            nll, memory = window_nll(self.model, window, memory, filled, self._tau_at(step), draws)
            nll = tf.reduce_sum(nll)  # []
            loss = nll / targets
            if self.settings.latency_weight:
                milliseconds = self._latency(step, draws, window.shape[0])
                loss += self.settings.latency_weight * milliseconds / self.shares
        gradients = tape.gradient(loss, [self._groups[name][1] for name in groups])
        # Dense, so that Adam squares the sum of the gradients of an id that occurs twice.
        return nll, memory, tf.nest.map_structure(tf.convert_to_tensor, gradients)

    def _apply_gradients(self, gradients, groups):
        """Moves the parameters of each group by the sum of the gradients of all replicas."""
        for name, own in zip(groups, gradients):
            optimizer, variables = self._groups[name]
            own = [tf.identity(gradient) for gradient in own]  # placed on this replica's device
            optimizer.apply(own, variables)

    def _run(self, function, *arguments):
        """What a function gives on each replica."""
        return self._strategy.run(function, args=arguments)

    def _sum(self, numbers):
        """The sum of what all replicas have."""
        return self._strategy.reduce("sum", numbers, axis=None)

    def _latency(self, step, draws, rows):
        """The milliseconds that the network sampled at a step is expected to take for a window."""
        sample = self.model.sample(self._tau_at(step), draws, rows)  # [S, K] or [rows, S, K]
        milliseconds = tf.reduce_sum(sample * self.state.latency, axis=[-2, -1])  # [] or [rows]
        return tf.reduce_mean(milliseconds)

    def _windows_from(self, step: int) -> Iterator[np.ndarray]:
        """The windows of the training split from that of a step on, over and over: [B, T + 1]."""
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

    def _parameter_groups(self, step) -> dict:
        """Optimizer and variables of the weights, and of the architecture where it is searched."""
        def learning_rate():
            return self._learning_rate_at(step)

        architecture = self.model.architecture_parameters
        theirs = {variable.path for variable in architecture}
        weights = [each for each in self.model.trainable_variables if each.path not in theirs]
        optimizer = build_optimizer(self.settings, "weights", learning_rate, weights)
        groups = {"weights": (optimizer, weights)}
        if architecture:
            factor = self.settings.arch_lr_factor
            optimizer = build_optimizer(
                self.settings, "architecture", lambda: learning_rate() * factor, architecture)
            groups["architecture"] = optimizer, architecture
        return groups

    def _trained_at(self, step: int) -> tuple[str, ...]:
        """The groups of parameters that a step trains."""
        if self.settings.search == "joint":
            return tuple(self._groups)
        turn = trains_architecture(step, self.settings.warmup_steps, self.settings.arch_share)
        return ("architecture",) if turn else ("weights",)

    def _check_settings(self):
        """Raises InputError where settings do not suit each other or the data."""
        rows, parts = self.metadata["batch_size"], self.settings.accumulate
        warmup_steps = self.settings.warmup_steps
        if rows % self.shares:
            raise InputError(
                f"{rows} rows, the --batch_size of the data, cannot be divided among "
                f"{self.shares // parts} device(s), in --accumulate={parts} part(s) each")
        if self.settings.search == "alternating" and warmup_steps >= self.total_steps:
            raise InputError(
                f"--warmup_steps={warmup_steps} leaves none of the {self.total_steps:,} steps to "
                "train the architecture in")

    # ----------------------------------------------------------------------------------------------
    # What came of it

    def end_line(self) -> tuple[float, float]:
        """The mean loss and the tokens per second since this was last called."""
        line = self.state.line
        loss, speed = line.loss, float(line.targets) / float(line.seconds)
        line.reset()
        return loss, speed

    def epoch_metrics(self) -> dict:
        """The metrics of the last epoch as far as it was trained, with noise and dropout."""
        return metrics(self.state.epoch.loss, self.metadata["splits"]["train"])

    def evaluate(self, split: str, between: Callable[[], None] = lambda: None) -> dict:
        """The metrics of a split, without noise; calls `between` now and then.

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

    def write_text(self) -> tuple[str, str]:
        """The first words of the validation split, and how the network goes on: a draw."""
        decode = Tokenizer(self._data_dir / "tokenizer.model").decode
        windows = data_utils.load_windows(self._data_dir, "valid", self.metadata)
        with self._blaming_data():
            prompt = next(windows.as_numpy_iterator())[0, :PROMPT]  # [PROMPT]
        written = self._writer.write(prompt, WRITTEN, seed=self.step, tau=self.tau)
        return "".join(decode(prompt)), "".join(decode(written, within_line=True))

    def complete_state(self):
        """Brings the memory of all replicas into the state, and looks at every number of it.

        Raises:
          FloatingPointError: one is not finite.
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
                raise _not_finite(f"what step {self.step:,} left", sizes)


def _num_targets(window):
    return tf.reduce_sum(real_targets(window))


def _magnitudes(variables: dict) -> dict:
    """The mean absolute value of each variable: not finite where one of its numbers is not."""
    sizes = {}
    for path, variable in variables.items():
        total = tf.reduce_sum(tf.abs(tf.cast(variable, tf.float32)))  # []
        sizes[path] = total / max(1, variable.shape.num_elements())
    return sizes


def _not_finite(what: str, sizes: dict) -> FloatingPointError:
    """The error that says what is not finite, and which variable of these sizes may be why."""
    where = f"all weights are, those of {max(sizes, key=sizes.get)} are the largest"
    for path, size in sizes.items():
        if not math.isfinite(size):
            where = f"the first such variable is {path}"
            break
    return FloatingPointError(
        f"{what} is not finite ({where}): stopped; the last checkpoint is from before. "
        "A lower --max_lr or --clipnorm may help")
