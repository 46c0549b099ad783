"""Trains the SuperNet, or a network of fixed architecture, and writes everything about the run to logs/<model_name>.

B batch, T sequence length, M memory length, A blocks with attention, D model width, K kinds of layer,
R replicas, S shares of a batch, W weights.
"""

import contextlib
import datetime
import hashlib
import itertools
import json
import math
import re
import sys
import time
import zlib
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
from absl import flags

from support import cli, devices

with cli.quiet():
    import keras
    import tensorflow as tf

import data_utils
from cutoffs import read_counts
from evaluate import Evaluator, exp, filled_memory, metrics, real_targets, window_nll
from model import KINDS, LETTERS, SEARCH, Block, Draws, PARTransformerXL, by_path, score_bias
from runs import NullRun, Run, TrainedRun, has_begun
from support.cli import InputError

DATA_DIR = cli.define_path("data_dir", "data/tfrecords", "what make_data.sh made")
MODEL_NAME = flags.DEFINE_string("model_name", "supernet", "the run is logs/<model_name>; the same name again resumes it")
ARCHITECTURE = cli.define_path("architecture", None, "search; or a fixed network: a letter of attention, dense, identity for each block, "
                                   "such as aaddid; what the finished run logs/NAME has found; or random (default: search, or that of --init_from)")
INIT_FROM = cli.define_path("init_from", None, "start from the best weights of the run logs/NAME, a network of the same sizes")
NUM_LAYERS = flags.DEFINE_integer("num_layers", 6, "L, blocks of a search or a random network", lower_bound=1)
D_MODEL = flags.DEFINE_integer("d_model", 128, "D, model width", lower_bound=1)
NUM_HEADS = flags.DEFINE_integer("num_heads", 4, "attention heads", lower_bound=1)
D_FFN = flags.DEFINE_integer("d_ffn", 1024, "inner width of the dense layer", lower_bound=1)
MEM_LEN = flags.DEFINE_integer("mem_len", 16, "M, memory length", lower_bound=0)
DROPOUT_RATE = flags.DEFINE_float("dropout_rate", 0.1, "of each branch, before its residual", lower_bound=0, upper_bound=0.99)
CUTOFFS = cli.define_integers("cutoffs", "250,2500", "the first id of each tail of the adaptive softmax, the vocabulary size left out; none: a plain softmax")
PROJ_FACTOR = flags.DEFINE_integer("proj_factor", 4, "tail i is D / proj_factor^i wide", lower_bound=1)
PROJ_DIMS = cli.define_integers("proj_dims", "", "the tails' widths themselves")
STRAIGHT_THROUGH = flags.DEFINE_boolean("straight_through", False, "sample one kind per block, with the gradient of the mixture")
TAU_START = flags.DEFINE_float("tau_start", 1.0, "temperature of the Gumbel-Softmax at the start", lower_bound=1e-3)
TAU_END = flags.DEFINE_float("tau_end", 0.1, "and at the last step", lower_bound=1e-3)
TAU_IS_TRAINABLE = flags.DEFINE_boolean("tau_is_trainable", False, "learn the temperature from tau_start instead")
SEARCH_MODE = flags.DEFINE_enum("search", "joint", ["joint", "alternating"], "weights and architecture learn in every step; or in turn, weights "
                                "alone during --warmup_steps")
ARCH_SHARE = flags.DEFINE_float("arch_share", 0.2, "share of the steps of an alternating search that train the architecture, between 0 and 1")
ARCH_LR_FACTOR = flags.DEFINE_float("arch_lr_factor", 1.0, "the architecture's learning rate, relative to that of the weights", lower_bound=0)
GUMBEL_PER_ROW = flags.DEFINE_boolean("gumbel_per_row", False, "sample the architecture for each row of a batch, not once for all")
LATENCY_WEIGHT = flags.DEFINE_float("latency_weight", 0.0, "nats of loss per millisecond that the layers of the sampled network take for a window", lower_bound=0)
OPT_NAME = flags.DEFINE_enum("opt_name", "adam", ["adam", "adamw", "nadam", "rmsprop", "sgd"], "the Keras optimizer")
MAX_LR = flags.DEFINE_float("max_lr", 1e-4, "learning rate after the warm-up", lower_bound=0)
WARMUP_STEPS = flags.DEFINE_integer("warmup_steps", 4000, "the learning rate rises from 0 so long, then falls to 0 as a cosine", lower_bound=0)
CLIPVALUE = flags.DEFINE_float("clipvalue", None, "bound each element of a gradient", lower_bound=1e-6)
CLIPNORM = flags.DEFINE_float("clipnorm", None, "bound the norm of each variable's gradient", lower_bound=1e-6)
EPOCHS = flags.DEFINE_integer("epochs", 20, "passes over the training split", lower_bound=1)
MAX_STEPS = flags.DEFINE_integer("max_steps", None, "stop after so many steps; changes no schedule", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "of initial weights, dropout and Gumbel noise", lower_bound=0)
LOG_EVERY = flags.DEFINE_integer("log_every", 100, "steps per line of the log", lower_bound=1)
SAVE_EVERY = flags.DEFINE_string("save_every", "10m", "a checkpoint after so many steps, or minutes with an m, besides one after each epoch")
DISTRIBUTE = flags.DEFINE_enum("distribute", "auto", ["auto", "none", "mirrored", "multi_worker"], "share the rows of a batch among the GPUs of this machine, or "
                               "of all that TF_CONFIG names; auto: where there are several")
ACCUMULATE = flags.DEFINE_integer("accumulate", 1, "parts of a batch that a device computes one after another, for less memory", lower_bound=1)
JIT_COMPILE = flags.DEFINE_enum("jit_compile", "auto", ["auto", "true", "false"], "compile the step with XLA; auto: on a GPU")
MIXED_PRECISION = flags.DEFINE_boolean("mixed_precision", False, "attention and dense layers compute in bfloat16; parameters, residuals, norms, softmax and loss stay float32")

flags.register_validator("save_every", lambda text: re.fullmatch(r"0*[1-9]\d*m?", text), "must be a number of steps, or of minutes as in 10m")
flags.register_validator("architecture", lambda text: text != "", "must not be empty")
flags.register_validator("arch_share", lambda share: 0 < share < 1, "must lie between 0 and 1")
flags.register_multi_flags_validator(["search", "arch_share"], lambda f: f["search"] == "alternating" or f["arch_share"] == ARCH_SHARE.default,
                                     "--arch_share is about --search=alternating")
flags.register_validator("model_name", lambda name: re.fullmatch(r"\w[\w.-]*", name), "must be letters, digits, '_', '-' and '.'")
flags.register_multi_flags_validator(["tau_end", "tau_is_trainable"], lambda f: not f["tau_is_trainable"] or f["tau_end"] == TAU_END.default,
                                     "--tau_is_trainable learns the temperature: --tau_end would have no effect")
flags.register_multi_flags_validator(["proj_factor", "proj_dims"], lambda f: not cli.integers(f["proj_dims"]) or f["proj_factor"] == PROJ_FACTOR.default,
                                     "--proj_dims says the widths: --proj_factor would have no effect")
flags.register_multi_flags_validator(["d_model", "num_heads"], lambda f: f["d_model"] % f["num_heads"] == 0,
                                     "--d_model must be divisible by --num_heads")
flags.register_multi_flags_validator(["clipvalue", "clipnorm"], lambda f: f["clipvalue"] is None or f["clipnorm"] is None,
                                     "--clipvalue and --clipnorm exclude each other")


# ---------------------------------------------------------------------------------------------------------------------
# The parts that the flags describe


def run_dir() -> Path:
    return Path("logs") / MODEL_NAME.value


def architecture() -> list[str]:
    """The kind of each block.

    Raises:
      InputError: --architecture is none of what it may be, or names a run that has not finished, or leaves nothing to search for
        flags that are about the search.
    """
    text = ARCHITECTURE.value or SEARCH
    if INIT_FROM.value and not ARCHITECTURE.value:
        text = TrainedRun(run_dir()).flags["architecture"] if has_begun(run_dir()) else TrainedRun(Path(INIT_FROM.value)).architecture
    if text == SEARCH:
        return [SEARCH] * NUM_LAYERS.value
    if text == "random":
        text = "".join(np.random.default_rng(SEED.value).choice(list("adi"), NUM_LAYERS.value))
    elif Path(text).is_dir():
        text = TrainedRun(Path(text)).architecture
    if not set(text) <= set(LETTERS):
        raise InputError(f"unknown architecture '{text}': neither search nor random, nor a letter ({', '.join(LETTERS)}) for each block, "
                         "nor the folder of a run")
    kinds = [LETTERS[letter] for letter in text]
    for flag in (SEARCH_MODE, ARCH_LR_FACTOR, GUMBEL_PER_ROW, LATENCY_WEIGHT, STRAIGHT_THROUGH, TAU_IS_TRAINABLE):
        if SEARCH not in kinds and flag.value != flag.default:
            raise InputError(f"--{flag.name} is about a search, and the architecture {text} is fixed")
    return kinds


def network_arguments(vocab_size: int) -> dict:
    """What the flags say of the network."""
    return dict(
        vocab_size=vocab_size, architecture=architecture(), d_model=D_MODEL.value, num_heads=NUM_HEADS.value, d_ffn=D_FFN.value,
        mem_len=MEM_LEN.value, dropout_rate=DROPOUT_RATE.value, cutoffs=cli.integers(CUTOFFS.value), proj_factor=PROJ_FACTOR.value,
        proj_dims=cli.integers(PROJ_DIMS.value), straight_through=STRAIGHT_THROUGH.value, gumbel_per_row=GUMBEL_PER_ROW.value,
        trainable_tau=TAU_START.value if TAU_IS_TRAINABLE.value else None, name="par_transformer_xl")


def build_model(vocab_size: int, static_shapes: bool) -> PARTransformerXL:
    """The network that the flags describe; InputError where they cannot be."""
    try:
        return PARTransformerXL(**network_arguments(vocab_size), static_shapes=static_shapes)
    except ValueError as error:
        raise InputError(str(error)) from None


def take_weights(model: PARTransformerXL, folder: Path, data: dict):
    """Gives a network the weights that the network of another run has for it (fine-tuning).

    Raises:
      InputError: the run has another tokenizer, or lacks a weight, or has it in another shape.
    """
    run = TrainedRun(folder)
    if run.data["tokenizer_sha256"] != data["tokenizer_sha256"]:
        raise InputError(f"{folder} was trained with another tokenizer: make the data with --sp_model_prefix={folder / 'tokenizer'}")
    trained = by_path(run.network()[0].weights)
    for path, weight in by_path(model.weights).items():
        if path not in trained:
            raise InputError(f"{folder} has no {path}: its architecture lacks what this one needs")
        if trained[path].shape != weight.shape:
            raise InputError(f"{path} is {list(trained[path].shape)} in {folder} and {list(weight.shape)} here: --init_from needs a network of the same sizes")
        weight.assign(trained[path])


class FusedAdam(keras.optimizers.Adam):
    """Keras' Adam (Kingma & Ba 2014, in the form at the end of section 2), with one operation for each variable, not a dozen.

    Dense gradients only, and no `amsgrad`.
    """

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=self._momentums[index].value.handle, v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step, beta2_power=self.beta_2**step, lr=learning_rate,
            beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon, grad=gradient)


def build_optimizer(name: str, learning_rate, variables) -> keras.optimizers.Optimizer:
    """An optimizer of `variables`; `learning_rate` is a function without arguments."""
    kind = FusedAdam if OPT_NAME.value == "adam" else type(keras.optimizers.get(OPT_NAME.value))

    class Clipped(kind):
        """Clips what all replicas together have as the gradient of a variable. Keras' own clipping is of each replica's part of it."""

        def update_step(self, gradient, variable, learning_rate):
            if CLIPVALUE.value:
                gradient = tf.clip_by_value(gradient, -CLIPVALUE.value, CLIPVALUE.value)
            if CLIPNORM.value:
                gradient = tf.clip_by_norm(gradient, CLIPNORM.value)
            super().update_step(gradient, variable, learning_rate)

    optimizer = Clipped(learning_rate=learning_rate, name=name)
    optimizer.build(variables)
    return optimizer


def learning_rate_schedule(max_lr: float, warmup_steps: int, total_steps: int):
    """Learning rate by step: linear from 0 to `max_lr` over the warm-up, then a cosine to 0 at `total_steps`."""
    return keras.optimizers.schedules.CosineDecay(0.0, max(1, total_steps - warmup_steps), warmup_target=max_lr, warmup_steps=warmup_steps)


def tau_schedule(tau_start: float, tau_end: float, total_steps: int):
    """Temperature by step: from `tau_start` exponentially to `tau_end` at `total_steps`."""
    return lambda step: tau_start * (tau_end / tau_start) ** (tf.cast(step, tf.float32) / total_steps)


def trains_architecture(step: int, first_step: int, share: float) -> bool:
    """Whether a step of an alternating search trains the architecture: from `first_step` on, `share` of them, evenly spread."""
    count = step - first_step
    return count >= 0 and math.floor((count + 1) * share) > math.floor(count * share)


def layer_latency(batch_size: int, seq_len: int, jit_compile: bool) -> np.ndarray:
    """Milliseconds that each kind of layer takes here for a window [B, T], forward: [K], medians of 30 calls."""
    x = tf.zeros([batch_size, seq_len, D_MODEL.value])  # [B, T, D]
    medians = []
    for kind in KINDS:
        block = Block(kind, 0, D_MODEL.value, NUM_HEADS.value, D_FFN.value, dropout_rate=0.0)
        memory = tf.zeros([batch_size, MEM_LEN.value, D_MODEL.value], block.compute_dtype)  # [B, M, D]
        layer = tf.function(lambda: block(x, memory=memory, bias=score_bias(seq_len, MEM_LEN.value, MEM_LEN.value)), jit_compile=jit_compile or None)
        layer()
        times = []
        for _ in range(30):
            start = time.perf_counter()
            layer().numpy()
            times.append(time.perf_counter() - start)
        medians.append(1e3 * np.median(times))
    return np.array(medians)


def configuration(metadata: dict) -> dict:
    """What makes a run the run that it is: its flags and its data."""
    given = {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])}
    network = network_arguments(metadata["vocab_size"])
    kinds = network["architecture"]
    parsed = {"architecture": "".join(kind[0] for kind in kinds), "num_layers": len(kinds),
              "cutoffs": network["cutoffs"], "proj_dims": network["proj_dims"], "init_from": INIT_FROM.value and str(Path(INIT_FROM.value))}
    files_sha256 = hashlib.sha256(json.dumps(metadata["sha256"], sort_keys=True).encode()).hexdigest()
    data = {name: metadata[name] for name in ("corpus", "batch_size", "seq_len", "vocab_size", "add_eos")}
    data |= {"files_sha256": files_sha256, "tokenizer_sha256": data_utils.tokenizer_sha256(metadata)}
    return {"flags": given | parsed, "data": data, "model": network}


# ---------------------------------------------------------------------------------------------------------------------
# Training


class Trainer:
    """A model in training: the optimizers, the data, and the state that a checkpoint holds.

    Whatever depends on the step (schedules, noise, which window is read, how much of the memory is filled, whether weights or
    architecture learn) depends on the number `state.step` alone; so a run resumes at any step exactly.

    Each of R replicas has the data and the memory of its own rows alone, and computes them in as many shares, one after another,
    as --accumulate says. Noise, loss and gradient are those of the whole batch, whatever the number of shares S.

    Args:
      data_dir: what make_data.sh made.
      metadata: its metadata.
      jit_compile: compile the step with XLA.
      strategy: whose replicas train; None for one device.

    Raises:
      InputError: the flags do not suit each other or the data.
    """

    def __init__(self, data_dir: Path, metadata: dict, jit_compile: bool, strategy: tf.distribute.Strategy | None = None):
        self.metadata, self.jit_compile, self._data_dir = metadata, jit_compile, data_dir
        self._strategy = strategy or tf.distribute.get_strategy()
        replicas = self._strategy.num_replicas_in_sync
        self.shares = replicas * ACCUMULATE.value
        if metadata["batch_size"] % self.shares:
            raise InputError(f"{metadata['batch_size']} rows, the --batch_size of the data, cannot be divided among {replicas} device(s), "
                             f"in --accumulate={ACCUMULATE.value} part(s) each")
        self.steps_per_epoch = metadata["splits"]["train"]["steps"]
        self.total_steps = EPOCHS.value * self.steps_per_epoch
        self.last_step = min(MAX_STEPS.value or self.total_steps, self.total_steps)
        if SEARCH_MODE.value == "alternating" and WARMUP_STEPS.value >= self.total_steps:
            raise InputError(f"--warmup_steps={WARMUP_STEPS.value} leaves none of the {self.total_steps:,} steps to train the architecture in")
        self._learning_rate_at = learning_rate_schedule(MAX_LR.value, WARMUP_STEPS.value, self.total_steps)
        self._tau_at = tau_schedule(TAU_START.value, TAU_END.value, self.total_steps)
        with self._strategy.scope():
            self.model = build_model(metadata["vocab_size"], static_shapes=jit_compile)
            self.model.softmax.start_from(read_counts(data_dir / "unigram_counts.txt"))
            step, latency = tf.Variable(0, dtype=tf.int64), tf.Variable(tf.zeros(len(KINDS)))
            self._groups = self._parameter_groups(step)
        with tf.device("CPU:0"):  # not on the replicas, which have memory for their own rows alone
            totals = {since: tf.Variable(tf.zeros([3], tf.float64)) for since in ("line", "epoch", "run")}  # nll, targets, seconds of each
            memory = tf.Variable(self.model.empty_memory(metadata["batch_size"]))  # [A, B, M, D]
            self.state = tf.train.Checkpoint(
                weights=by_path(self.model.weights), step=step, memory=memory, tau=tf.Variable(TAU_START.value),
                best_loss=tf.Variable(math.inf, dtype=tf.float64), evaluated=tf.Variable(0, dtype=tf.int64), latency=latency,
                optimizers={name: by_path(optimizer.variables) for name, (optimizer, _) in self._groups.items()}, **totals)
        self._iterator = self._memory = None  # on the replicas, while training goes on
        # XLA compiles no communication between replicas: of several it compiles the gradients alone, of one device the whole step.
        one_device = self._strategy is tf.distribute.get_strategy()
        self._update_compiled = tf.function(self._update, jit_compile=jit_compile and one_device or None)
        self._gradients_compiled = tf.function(self._gradients, jit_compile=jit_compile or None)
        self._evaluator = Evaluator(self.model, jit_compile, self._strategy)

    @property
    def step(self) -> int:
        return int(tf.convert_to_tensor(self.state.step))

    @property
    def epoch_end(self) -> int:
        """Where the epoch ends that is being trained, or waits to be evaluated; or the run."""
        return min((int(self.state.evaluated) // self.steps_per_epoch + 1) * self.steps_per_epoch, self.last_step)

    def all_reduce_max(self, *numbers: float) -> list[float]:
        """Each number, the greatest that any worker gives for it; all workers must call this at the same point."""
        return devices.all_reduce_max(self._strategy, *numbers)

    @property
    def learning_rate(self) -> float:
        return float(self._learning_rate_at(self.step))

    @property
    def tau(self) -> float:
        return float(self.model.temperature(self._tau_at(self.step)))

    def train(self, num_steps: int) -> float:
        """Trains `num_steps` steps, one call for consecutive ones that train the same parameters. Returns the seconds it took.

        Raises:
          FloatingPointError: the loss of a step is not finite.
          InputError: the data have been replaced.
        """
        if self._iterator is None:
            self._iterator = iter(self._windows(first=self.step % self.steps_per_epoch))
            self._memory = devices.split_rows(self._strategy, self.state.memory, axis=1)
        if self.step % self.steps_per_epoch == 0:
            self.state.epoch.assign(np.zeros(3))
        start = time.perf_counter()
        for names, steps in itertools.groupby(range(self.step, self.step + num_steps), self._trained_at):
            try:
                self._memory, sizes = self._train_steps(self._iterator, self._memory, tf.constant(len(list(steps))), names)
            except tf.errors.InvalidArgumentError:  # windows of another size, ids of another vocabulary
                data_utils.check_unchanged(self._data_dir, self.metadata)
                raise
            if not math.isfinite(self.state.line[0]):
                raise _not_finite(f"the loss of step {self.step:,}", dict(zip(self.state.weights, sizes.numpy())))
        seconds = time.perf_counter() - start
        self.state.tau.assign(self.tau)
        self.state.line.assign_add([0.0, 0.0, seconds])
        return seconds

    def end_line(self) -> tuple[float, float]:
        """The mean loss and the tokens per second since this was last called."""
        nll, targets, seconds = self.state.line.numpy()
        self.state.epoch.assign_add(self.state.line)
        self.state.run.assign_add(self.state.line)
        self.state.line.assign(np.zeros(3))
        return nll / targets, targets / seconds

    def evaluate(self, split: str, between: Callable[[], None]) -> dict:
        """The metrics of every target of a split, without noise; calls `between` after each window."""
        stream = data_utils.load_stream(self._data_dir, split, self.metadata)
        data_utils.check_unchanged(self._data_dir, self.metadata)
        score = self._evaluator(stream, self.metadata["batch_size"], self.metadata["seq_len"], self.tau, between)
        if not math.isfinite(score.nll):
            raise _not_finite(f"the loss of {split} after step {self.step:,}", _sizes(self.state.weights))
        return metrics(score.nll / score.targets, self.metadata["splits"][split])

    def complete_state(self):
        """Brings the memory of all replicas into the state, and looks at every number of it that a checkpoint would hold.

        Raises:
          FloatingPointError: one is not finite.
          InputError: the data have been replaced.
        """
        data_utils.check_unchanged(self._data_dir, self.metadata)
        if self._memory is not None:
            self.state.memory.assign(devices.gather_rows(self._strategy, self._memory, axis=1))
        for variables in (self.state.weights, *self.state.optimizers.values(), {"memory": self.state.memory}):
            sizes = _sizes(variables)
            if not np.isfinite(list(sizes.values())).all():
                raise _not_finite(f"what step {self.step:,} left", sizes)

    def epoch_metrics(self) -> dict:
        """The metrics of the last epoch as far as it was trained, with noise and dropout."""
        nll, targets, _ = self.state.epoch.numpy()
        return metrics(nll / targets, self.metadata["splits"]["train"])

    def _parameter_groups(self, step) -> dict:
        """The optimizer and the variables of the weights, and of the architecture where it is searched."""
        architecture = self.model.architecture_parameters
        weights = [variable for variable in self.model.trainable_variables if not any(variable is other for other in architecture)]
        groups = {"weights": (build_optimizer("weights", lambda: self._learning_rate_at(step), weights), weights)}
        if architecture:
            optimizer = build_optimizer("architecture", lambda: self._learning_rate_at(step) * ARCH_LR_FACTOR.value, architecture)
            groups["architecture"] = optimizer, architecture
        return groups

    def _trained_at(self, step: int) -> tuple[str, ...]:
        """The parameter groups that a step trains."""
        if SEARCH_MODE.value == "joint":
            return tuple(self._groups)
        return ("architecture",) if trains_architecture(step, WARMUP_STEPS.value, ARCH_SHARE.value) else ("weights",)

    def _update(self, window, memory, names):
        """One step of some parameter groups on one replica: its rows [B/R, T + 1] of the window, its rows of the memory [A, B/R, M, D].

        Returns:
          The summed negative log-likelihood of the targets of all replicas, how many these are, this replica's rows of the next
          memory; and the sizes of all weights [W] before the step if that sum is not finite, otherwise 0.
        """
        replica = tf.distribute.get_replica_context()
        targets = replica.all_reduce("sum", tf.reduce_sum(real_targets(window)))  # []
        nll, memory, gradients = self._accumulated(window, memory, replica.replica_id_in_sync_group, targets, names)
        nll, weights = replica.all_reduce("sum", nll), self.state.weights
        sizes = tf.cond(tf.math.is_finite(nll), lambda: tf.zeros([len(weights)]), lambda: tf.stack(list(_sizes(weights).values())))
        for name, group in zip(names, gradients):
            optimizer, variables = self._groups[name]
            optimizer.apply(group, variables)  # sums the gradients of all replicas
        return nll, targets, memory, sizes

    def _accumulated(self, window, memory, replica, targets, names):
        """What `_gradients` gives for the rows of a replica, one share after another."""
        if ACCUMULATE.value == 1:
            return self._gradients_compiled(window, memory, replica, targets, names)
        windows, memories = tf.stack(tf.split(window, ACCUMULATE.value)), tf.stack(tf.split(memory, ACCUMULATE.value, axis=1))
        first = replica * ACCUMULATE.value
        nll, new_memory, gradients = self._gradients_compiled(windows[0], memories[0], first, targets, names)
        new_memories = tf.TensorArray(memory.dtype, ACCUMULATE.value, element_shape=new_memory.shape).write(0, new_memory)
        for i in tf.range(1, ACCUMULATE.value):
            more_nll, new_memory, more_gradients = self._gradients_compiled(windows[i], memories[i], first + i, targets, names)
            nll, gradients = nll + more_nll, tf.nest.map_structure(tf.add, gradients, more_gradients)
            new_memories = new_memories.write(i, new_memory)
        return nll, tf.concat(tf.unstack(new_memories.stack(), ACCUMULATE.value), axis=1), gradients

    def _gradients(self, window, memory, share, targets, names):
        """For a share of the rows, window [B/S, T + 1] and memory [A, B/S, M, D], of a batch with so many targets.

        Returns:
          The summed negative log-likelihood, the next memory, and the gradients of this share's part of the loss, for each group.
        """
        step = tf.convert_to_tensor(self.state.step)
        draws = Draws(SEED.value, step, share, self.shares)
        filled = filled_memory(self.model, window, step % self.steps_per_epoch)
        with tf.GradientTape() as tape:
            nll, memory = window_nll(self.model, window, memory, filled, self._tau_at(step), draws)
            nll = tf.reduce_sum(nll)  # []
            loss = nll / targets
            if LATENCY_WEIGHT.value:
                loss += LATENCY_WEIGHT.value * self._latency(step, draws, window.shape[0]) / self.shares
        gradients = tape.gradient(loss, [self._groups[name][1] for name in names])
        return nll, memory, tf.nest.map_structure(tf.convert_to_tensor, gradients)  # dense: Keras squares a repeated id's gradients one by one

    def _latency(self, step, draws, rows):
        """The milliseconds that the network sampled at this step is expected to take for a window."""
        sample = self.model.sample(self._tau_at(step), draws, rows)  # [searched, K] or [rows, searched, K]
        milliseconds = tf.reduce_sum(sample * self.state.latency, axis=[-2, -1])
        return tf.reduce_mean(milliseconds)

    @tf.function
    def _train_steps(self, iterator, memory, num_steps, names):
        """Steps on all replicas, until a loss is not finite. Returns the last memory, and the last sizes."""
        sizes = tf.zeros([len(self.state.weights)])
        for _ in tf.range(num_steps):
            nll, targets, memory, sizes = self._strategy.run(self._update_compiled, args=(next(iterator), memory, names))
            nll, targets, sizes = (self._strategy.experimental_local_results(value)[0] for value in (nll, targets, sizes))
            self.state.step.assign_add(1)
            self.state.line.assign_add(tf.cast([nll, targets, 0.0], tf.float64))
            if not tf.math.is_finite(nll):
                break
        return memory, sizes

    def _windows(self, first: int):
        """The windows of the training split from number `first` on, over and over; each replica gets its own rows."""
        def of_worker(context):
            rows = context.get_per_replica_batch_size(self.metadata["batch_size"])
            replicas = context.num_replicas_in_sync // context.num_input_pipelines  # of this worker
            windows = data_utils.load_windows(self._data_dir, "train", self.metadata, context.input_pipeline_id * replicas * rows, replicas * rows)
            by_replica = windows.repeat().skip(first).map(lambda window: tf.reshape(window, [replicas, rows, -1])).unbatch()
            return by_replica.prefetch(tf.data.AUTOTUNE)  # [B/R, T + 1]

        return self._strategy.distribute_datasets_from_function(of_worker)


def _sizes(variables: dict) -> dict:
    """The mean absolute value of each variable: not finite where one of its numbers is not."""
    return {path: tf.reduce_sum(tf.abs(tf.cast(variable, tf.float32))) / max(1, variable.shape.num_elements()) for path, variable in variables.items()}


def _not_finite(what: str, sizes: dict) -> FloatingPointError:
    """The error that something is not finite, and which of the variables with these sizes was the first, or is the largest."""
    first = next((path for path, size in sizes.items() if not math.isfinite(size)), None)
    where = f"the first such variable is {first}" if first else f"all weights are, those of {max(sizes, key=sizes.get)} are the largest"
    return FloatingPointError(f"{what} is not finite ({where}): stopped; the last checkpoint is from before. A lower --max_lr or --clipnorm may help")


# ---------------------------------------------------------------------------------------------------------------------
# The experiment


def save_interval() -> tuple[float, float]:
    """The steps and the seconds after which to save, one of them infinite."""
    number = int(SAVE_EVERY.value.rstrip("m"))
    return (math.inf, 60 * number) if SAVE_EVERY.value.endswith("m") else (number, math.inf)


def next_multiple(step: int, interval: float) -> float:
    return (step // interval + 1) * interval


def train_epoch(trainer: Trainer, run: Run, handle_signals: Callable[[], None]):
    """Trains to the end of the epoch or of the run, about a second at once: so long a signal to stop has to wait."""
    start, end = trainer.step, trainer.epoch_end
    if start == end:
        return
    run.begin_epoch(f"epoch {start // trainer.steps_per_epoch + 1} of {EPOCHS.value}, steps {start + 1:,} to {end:,} of {trainer.total_steps:,}, {trainer.metadata['corpus']}", end - start)
    save_steps, save_seconds = save_interval()
    last_save, at_once = time.monotonic(), 1
    while trainer.step < end:
        stop = min(trainer.step + at_once, next_multiple(trainer.step, LOG_EVERY.value), next_multiple(trainer.step, save_steps), end)
        num_steps = int(stop - trainer.step)
        seconds = trainer.train(num_steps)
        at_once, since_save = trainer.all_reduce_max(max(1, num_steps // seconds), time.monotonic() - last_save)
        if trainer.step % LOG_EVERY.value == 0 or trainer.step == end:
            run.progress(trainer.step - start, write_line(trainer, run))
        if trainer.step == end:
            run.heat_map(end, trainer.model.pi())
        elif trainer.step % save_steps == 0 or since_save >= save_seconds:
            save(trainer, run)
            last_save = time.monotonic()
        handle_signals()


def write_line(trainer: Trainer, run: Run) -> dict:
    """Writes a line to the log, and its numbers to TensorBoard. Returns loss and perplexity of the steps since the last one."""
    loss, speed = trainer.end_line()
    step, perplexity = trainer.step, exp(loss)
    remaining = (trainer.last_step - step) * trainer.metadata["batch_size"] * trainer.metadata["seq_len"] / speed
    run.note(f"step {step:,}/{trainer.total_steps:,}  loss {loss:.4f}  perplexity {perplexity:.2f}  lr {trainer.learning_rate:.3e}  "
             f"tau {trainer.tau:.4f}  {speed:,.0f} tokens/s  ETA {datetime.timedelta(seconds=round(remaining))}")
    run.scalars("train", step, {"loss": loss, "perplexity": perplexity, "training/learning_rate": trainer.learning_rate,
                                "training/tau": trainer.tau, "training/tokens_per_second": speed})
    if SEARCH in trainer.model.architecture:
        run.pi_scalars(step, trainer.model.pi())
    return {"loss": loss, "perplexity": perplexity}


def validate(trainer: Trainer, run: Run, handle_signals: Callable[[], None]) -> dict:
    """Scores the validation split and saves. Returns its metrics."""
    if trainer.state.line[1]:  # stopped in the middle of an epoch, which is now to be its end
        write_line(trainer, run)
    valid = trainer.evaluate("valid", handle_signals)
    trainer.state.evaluated.assign(trainer.step)
    trainer.complete_state()
    run.evaluation(trainer.step, valid)
    run.save(trainer.step)
    return valid


def save(trainer: Trainer, run: Run):
    trainer.complete_state()
    run.save(trainer.step)


@contextlib.contextmanager
def saved_when_interrupted(trainer: Trainer, run: Run) -> Iterator[Callable[[], None]]:
    """A block that signals stop where it calls the function that it is given, and only there; on all workers if on one."""
    with cli.uninterrupted() as waiting:
        def handle_signals():
            number, = trainer.all_reduce_max(waiting[0] if waiting else 0)
            if number:
                save(trainer, run)
                run.say(f"interrupted at step {trainer.step:,} and saved: the same command goes on from here")
                trainer.all_reduce_max(0)  # no worker leaves before the chief has saved
                raise cli.Interrupted(int(number))

        yield handle_signals


def check_agreement(strategy: tf.distribute.Strategy, number: int, disagreement: str):
    """Raises InputError where the workers do not all give the same number."""
    most, least = devices.all_reduce_max(strategy, number, -number)
    if most != -least:
        raise InputError(f"the workers {disagreement}")


def main(_):
    data_dir, folder = Path(DATA_DIR.value), run_dir()
    metadata = data_utils.read_metadata(data_dir)
    device, on_gpu = devices.prepare(MIXED_PRECISION.value)
    strategy, config = devices.strategy(DISTRIBUTE.value), configuration(metadata)
    same = json.dumps([config["flags"] | {"data_dir": ""}, config["data"]], sort_keys=True)
    check_agreement(strategy, zlib.crc32(same.encode()), "have different flags, or different data")
    keras.utils.set_random_seed(SEED.value)
    trainer = Trainer(data_dir, metadata, on_gpu if JIT_COMPILE.value == "auto" else JIT_COMPILE.value == "true", strategy)
    model = trainer.model
    if INIT_FROM.value and not has_begun(folder):
        take_weights(model, Path(INIT_FROM.value), config["data"])

    with contextlib.closing((Run if devices.is_chief(strategy) else NullRun)(folder, config, data_dir, trainer.state)) as run:
        check_agreement(strategy, trainer.step, "see different checkpoints: logs/ must be a folder that all of them share")
        if trainer.step > trainer.last_step:
            raise InputError(f"{folder} is at step {trainer.step:,} already: --max_steps must not be less")
        if strategy.num_replicas_in_sync > 1:
            device = f"{strategy.num_replicas_in_sync} x {device}"
        run.describe(config, model, device, data_utils.versions())
        for split, entry in metadata["splits"].items():
            if entry["unknown_characters"]:
                run.say(f"{split}: word perplexity and bits per byte not given: {entry['unknown_characters']:,} characters are unknown to the tokenizer")
        if LATENCY_WEIGHT.value:
            if not trainer.step:
                latency = layer_latency(metadata["batch_size"] // trainer.shares, metadata["seq_len"], trainer.jit_compile)
                trainer.state.latency.assign(trainer.all_reduce_max(*latency))
            run.say("milliseconds per window: " + ", ".join(f"{kind} {ms:.2f}" for kind, ms in zip(KINDS, trainer.state.latency.numpy())))
        if WARMUP_STEPS.value >= trainer.total_steps:
            run.say(f"the warm-up of {WARMUP_STEPS.value:,} steps is as long as the whole run: the learning rate never falls")

        valid = None
        with saved_when_interrupted(trainer, run) as handle_signals:
            while trainer.state.evaluated < trainer.last_step:
                train_epoch(trainer, run, handle_signals)
                valid = validate(trainer, run, handle_signals)
            _, targets, seconds = trainer.state.run.numpy()
            run.finish({
                "corpus": metadata["corpus"], "steps": trainer.step, "wall_seconds": seconds, "tokens_per_second": targets / seconds,
                "train": trainer.epoch_metrics(), "valid": valid or trainer.evaluate("valid", handle_signals),
                "test": trainer.evaluate("test", handle_signals),
                "pi": model.pi().tolist(), "architecture": "".join(KINDS[kind][0] for kind in model.pi().argmax(axis=1)),
                "parameters": model.count_params(), "versions": data_utils.versions(), "device": device, "flags": config["flags"],
            })


if __name__ == "__main__":
    cli.run(main)
