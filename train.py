"""Trains the SuperNet, or a network of fixed architecture, and writes everything about the run to logs/<model_name>.

B batch, T sequence length, M memory length, A blocks with attention, D model width, L blocks, K kinds of layer.
"""

import datetime
import hashlib
import json
import math
import os
import re
import sys
import time
from pathlib import Path

from absl import flags

import cli

with cli.quiet():
    import keras
    import tensorflow as tf

import data_utils
from cli import InputError
from cutoffs import read_counts
from model import KINDS, SEARCH, Draws, PARTransformerXL
from runs import Run

# The branches of a block run side by side, each on half of the cores: faster than one after the other on all of them.
# (TensorFlow reads this when it first computes something, not when it is imported.)
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, CORES // 2)))

DATA_DIR = flags.DEFINE_string("data_dir", "data/tfrecords", "what make_data.sh made")
MODEL_NAME = flags.DEFINE_string("model_name", "supernet", "the run is logs/<model_name>; the same name again resumes it")
ARCHITECTURE = flags.DEFINE_list("architecture", [SEARCH], "one of search, attention, dense, identity for all blocks, or one for each")
NUM_LAYERS = flags.DEFINE_integer("num_layers", 6, "L, blocks", lower_bound=1)
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
OPT_NAME = flags.DEFINE_enum("opt_name", "adam", ["adam", "adamw", "nadam", "rmsprop", "sgd"], "the Keras optimizer")
MAX_LR = flags.DEFINE_float("max_lr", 1e-4, "learning rate after the warm-up", lower_bound=0)
WARMUP_STEPS = flags.DEFINE_integer("warmup_steps", 4000, "the learning rate rises from 0 so long, then falls to 0 as a cosine", lower_bound=0)
CLIPVALUE = flags.DEFINE_float("clipvalue", None, "bound each element of a gradient", lower_bound=0)
CLIPNORM = flags.DEFINE_float("clipnorm", None, "bound the norm of each variable's gradient", lower_bound=0)
EPOCHS = flags.DEFINE_integer("epochs", 20, "passes over the training split", lower_bound=1)
MAX_STEPS = flags.DEFINE_integer("max_steps", None, "stop after so many steps; changes no schedule", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "of initial weights, dropout and Gumbel noise", lower_bound=0, upper_bound=2**31 - 1)
LOG_EVERY = flags.DEFINE_integer("log_every", 100, "steps per line of the log, all done in one call", lower_bound=1)
JIT_COMPILE = flags.DEFINE_enum("jit_compile", "auto", ["auto", "true", "false"], "compile the step with XLA; auto: on a GPU")
MIXED_PRECISION = flags.DEFINE_boolean("mixed_precision", False, "attention and dense layers compute in bfloat16; parameters, residuals, norms, softmax and loss stay float32")

flags.register_validator("model_name", lambda name: re.fullmatch(r"\w[\w.-]*", name), "must be letters, digits, '_', '-' and '.'")
flags.register_multi_flags_validator(["d_model", "num_heads"], lambda f: f["d_model"] % f["num_heads"] == 0,
                                     "--d_model must be divisible by --num_heads")
flags.register_multi_flags_validator(["architecture", "num_layers"], lambda f: len(f["architecture"]) in (1, f["num_layers"]),
                                     "--architecture must name one kind, or one for each of the --num_layers blocks")
flags.register_multi_flags_validator(["clipvalue", "clipnorm"], lambda f: f["clipvalue"] is None or f["clipnorm"] is None,
                                     "--clipvalue and --clipnorm exclude each other")


# ---------------------------------------------------------------------------------------------------------------------
# The parts that the flags describe


def architecture() -> list[str]:
    return ARCHITECTURE.value * (NUM_LAYERS.value if len(ARCHITECTURE.value) == 1 else 1)


def build_model(vocab_size: int, static_shapes: bool) -> PARTransformerXL:
    try:
        return PARTransformerXL(
            vocab_size, architecture(), d_model=D_MODEL.value, num_heads=NUM_HEADS.value, d_ffn=D_FFN.value,
            mem_len=MEM_LEN.value, dropout_rate=DROPOUT_RATE.value, cutoffs=cli.integers(CUTOFFS.value),
            proj_factor=PROJ_FACTOR.value, proj_dims=cli.integers(PROJ_DIMS.value), straight_through=STRAIGHT_THROUGH.value,
            trainable_tau=TAU_START.value if TAU_IS_TRAINABLE.value else None, static_shapes=static_shapes, name="par_transformer_xl")
    except ValueError as error:
        raise InputError(str(error)) from None


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


def build_optimizer(schedule) -> keras.optimizers.Optimizer:
    optimizer = FusedAdam if OPT_NAME.value == "adam" else type(keras.optimizers.get(OPT_NAME.value))
    return optimizer(learning_rate=schedule, clipvalue=CLIPVALUE.value, clipnorm=CLIPNORM.value)


def learning_rate_schedule(max_lr: float, warmup_steps: int, total_steps: int):
    """Learning rate by step: linear from 0 to `max_lr` over the warm-up, then a cosine to 0 at `total_steps`."""
    return keras.optimizers.schedules.CosineDecay(0.0, max(1, total_steps - warmup_steps), warmup_target=max_lr, warmup_steps=warmup_steps)


def tau_schedule(tau_start: float, tau_end: float, total_steps: int):
    """Temperature by step: from `tau_start` exponentially to `tau_end` at `total_steps`."""
    return lambda step: tau_start * (tau_end / tau_start) ** (tf.cast(step, tf.float32) / total_steps)


def prepare_device() -> tuple[str, bool]:
    """Sets precision and lets GPU memory grow as needed. Returns the device's name, and whether to compile for it."""
    if MIXED_PRECISION.value:
        keras.config.set_dtype_policy("mixed_bfloat16")
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else f"CPU, {CORES} cores"
    return name, bool(gpus) if JIT_COMPILE.value == "auto" else JIT_COMPILE.value == "true"


def configuration(metadata: dict) -> dict:
    """What makes a run the run that it is: its flags and its data."""
    given = {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])}
    parsed = {"architecture": architecture(), "cutoffs": cli.integers(CUTOFFS.value), "proj_dims": cli.integers(PROJ_DIMS.value)}
    fingerprint = hashlib.sha256(json.dumps(metadata["sha256"], sort_keys=True).encode()).hexdigest()
    data = {name: metadata[name] for name in ("corpus", "batch_size", "seq_len", "vocab_size")}
    return {"flags": given | parsed, "data": data | {"files_sha256": fingerprint[:16]}}


# ---------------------------------------------------------------------------------------------------------------------
# Training


class Trainer:
    """A model in training: the optimizer, the data, and the state that a checkpoint holds.

    `optimizer.iterations` counts the steps, and whatever depends on the step (schedules, noise, which window is read, how
    much of the memory is filled) depends on this count alone; so a run resumes at any step exactly.

    Args:
      data_dir: what make_data.sh made.
      metadata: its metadata.
      jit_compile: compile the step with XLA.
    """

    def __init__(self, data_dir: Path, metadata: dict, jit_compile: bool):
        self.metadata, self._data_dir = metadata, data_dir
        self.steps_per_epoch = metadata["splits"]["train"]["steps"]
        self.total_steps = EPOCHS.value * self.steps_per_epoch
        self.last_step = min(MAX_STEPS.value or self.total_steps, self.total_steps)
        self._learning_rate_at = learning_rate_schedule(MAX_LR.value, WARMUP_STEPS.value, self.total_steps)
        self._tau_at = tau_schedule(TAU_START.value, TAU_END.value, self.total_steps)
        self._strategy = tf.distribute.get_strategy()
        with self._strategy.scope():
            self.model = build_model(metadata["vocab_size"], static_shapes=jit_compile)
            self.model.softmax.start_from(read_counts(data_dir / "unigram_counts.txt"))
            self._optimizer = build_optimizer(self._learning_rate_at)
            self._optimizer.build(self.model.trainable_variables)
        totals = {name: tf.Variable(0.0, dtype=tf.float64) for name in ("epoch_nll", "epoch_targets", "seconds", "targets")}
        memory = tf.Variable(self.model.empty_memory(metadata["batch_size"]))  # [A, B, M, D]
        self.state = tf.train.Checkpoint(model=self.model, optimizer=self._optimizer, memory=memory, **totals)
        self._iterator = self._memory = None  # on the replicas, while training goes on
        self._update_compiled = tf.function(self._update, jit_compile=jit_compile or None)
        self._score_compiled = tf.function(self._score, jit_compile=jit_compile or None)

    @property
    def step(self) -> int:
        return int(tf.convert_to_tensor(self._optimizer.iterations.value))

    @property
    def learning_rate(self) -> float:
        return float(self._learning_rate_at(self.step))

    @property
    def tau(self) -> float:
        return float(self.model.temperature(self._tau_at(self.step)))

    def train(self, num_steps: int) -> tuple[float, float, float]:
        """Trains `num_steps` steps in one call. Returns the mean loss, the number of targets and the seconds it took."""
        if self._iterator is None:
            self._iterator = iter(self._windows("train", first=self.step % self.steps_per_epoch))
            self._memory = self._split_rows(self.state.memory)
        if self.step % self.steps_per_epoch == 0:
            self.state.epoch_nll.assign(0.0)
            self.state.epoch_targets.assign(0.0)
        start = time.perf_counter()
        nll, targets, self._memory = self._train_steps(self._iterator, self._memory, tf.constant(num_steps))
        nll, targets = float(nll), float(targets)
        seconds = time.perf_counter() - start
        self.state.memory.assign(self._strategy.gather(self._memory, axis=1))
        for name, value in {"epoch_nll": nll, "epoch_targets": targets, "seconds": seconds, "targets": targets}.items():
            getattr(self.state, name).assign_add(value)
        return self._finite(nll / targets), targets, seconds

    def evaluate(self, split: str) -> dict:
        """The metrics of every target of a split, without noise."""
        memory = self._split_rows(tf.zeros_like(self.state.memory))
        nll, targets = self._total(self._windows(split), memory, tf.constant(self.tau))
        return metrics(self._finite(float(nll / targets)), self.metadata["splits"][split])

    def epoch_metrics(self) -> dict:
        """The metrics of the last epoch as far as it was trained, with noise and dropout."""
        return metrics(float(self.state.epoch_nll / self.state.epoch_targets), self.metadata["splits"]["train"])

    def _update(self, window, memory):
        """One step on one replica: its rows [B, T + 1] of the window, its rows of the memory [A, B, M, D]."""
        replica = tf.distribute.get_replica_context()
        step = tf.convert_to_tensor(self._optimizer.iterations.value)
        draws = Draws(SEED.value, step, replica.replica_id_in_sync_group)
        filled = filled_memory(self.model, window, step % self.steps_per_epoch)
        with tf.GradientTape() as tape:
            nll, targets, memory = window_nll(self.model, window, memory, filled, self._tau_at(step), draws)
            loss = nll / replica.all_reduce("sum", targets)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]  # else Keras squares a repeated id's gradients one by one
        self._optimizer.apply(dense, self.model.trainable_variables)
        return nll, targets, memory

    def _score(self, window, memory, number, tau):
        return window_nll(self.model, window, memory, filled_memory(self.model, window, number), tau)

    @tf.function
    def _train_steps(self, iterator, memory, num_steps):
        total_nll = total_targets = tf.zeros([], tf.float64)
        for _ in tf.range(num_steps):
            nll, targets, memory = self._strategy.run(self._update_compiled, args=(next(iterator), memory))
            total_nll += self._sum(nll)
            total_targets += self._sum(targets)
        return total_nll, total_targets, memory

    @tf.function
    def _total(self, windows, memory, tau):
        total_nll = total_targets = tf.zeros([], tf.float64)
        number = tf.zeros([], tf.int32)
        for window in windows:
            nll, targets, memory = self._strategy.run(self._score_compiled, args=(window, memory, number, tau))
            total_nll += self._sum(nll)
            total_targets += self._sum(targets)
            number += 1
        return total_nll, total_targets

    def _sum(self, value):
        return tf.cast(self._strategy.reduce("sum", value, axis=None), tf.float64)

    def _windows(self, split: str, first: int | None = None):
        """The windows of a split once, or from window `first` on without end."""
        dataset = data_utils.load_windows(self._data_dir, split, self.metadata)
        if first is not None:
            dataset = dataset.repeat().skip(first)
        return self._strategy.experimental_distribute_dataset(dataset.prefetch(tf.data.AUTOTUNE))

    def _split_rows(self, memory):
        """Gives each replica its rows of a memory [A, B, M, D]."""
        parts = tf.split(memory, self._strategy.num_replicas_in_sync, axis=1)
        return self._strategy.experimental_distribute_values_from_function(lambda context: parts[context.replica_id_in_sync_group])

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {self.step:,}: stopped, the last checkpoint is from before; "
                                     "a lower --max_lr or --clipnorm may help")
        return loss


def window_nll(model, window, memory, filled, tau, draws=None):
    """The loss of one window.

    Args:
      model: the network.
      window: int32 [B, T + 1].
      memory, filled, tau, draws: as the model takes them.

    Returns:
      The summed negative log-likelihood of the targets, how many they are (padding is none), and the next memory.
    """
    window = tf.ensure_shape(window, [memory.shape[1], window.shape[1]])  # a replica's part of a batch forgets its size
    inputs, targets = window[:, :-1], tf.reshape(window[:, 1:], [-1])  # [B, T], [B T]
    hidden, memory = model(inputs, memory, filled=filled, tau=tau, draws=draws)
    nll = model.softmax(tf.reshape(hidden, [-1, hidden.shape[-1]]), targets)  # [B T]
    real = tf.cast(targets != data_utils.PAD, tf.float32)  # [B T]
    return tf.reduce_sum(nll * real), tf.reduce_sum(real), memory


def filled_memory(model, window, number):
    """How many memory positions hold tokens at window `number` of a split, which starts with none."""
    return tf.minimum(number * (window.shape[1] - 1), model.mem_len)


def metrics(loss: float, split: dict) -> dict:
    """Loss in nats per token, and what does not depend on the tokenizer; `split` is the split's entry in metadata.json.

    Word perplexity and bits per byte spread the negative log-likelihood of all targets, loss * targets, over the raw text.
    A language without spaces has no words worth the name, and its word perplexity may be infinite.
    """
    total = loss * split["targets"]
    return {
        "loss": loss,
        "perplexity": exp(loss),
        "word_perplexity": exp(total / split["words"]),
        "bits_per_byte": total / math.log(2) / split["bytes"],
    }


def exp(nats: float) -> float:
    """e^nats, infinite where that overflows."""
    return math.exp(nats) if nats < 700 else math.inf


# ---------------------------------------------------------------------------------------------------------------------
# The experiment


def train_epoch(trainer: Trainer, run: Run):
    """Trains to the end of the epoch or of the run, with a line in the log every `--log_every` steps."""
    start = trainer.step
    epoch = start // trainer.steps_per_epoch
    end = min((epoch + 1) * trainer.steps_per_epoch, trainer.last_step)
    run.say(f"epoch {epoch + 1} of {EPOCHS.value}, steps {start + 1:,} to {end:,} of {trainer.total_steps:,}, {trainer.metadata['corpus']}")
    bar = keras.utils.Progbar(end - start, stateful_metrics=["loss", "perplexity"])
    while trainer.step < end:
        num_steps = min(LOG_EVERY.value - trainer.step % LOG_EVERY.value, end - trainer.step)
        loss, targets, seconds = trainer.train(num_steps)
        step, perplexity, speed = trainer.step, exp(loss), targets / seconds
        remaining = datetime.timedelta(seconds=round((trainer.last_step - step) * seconds / num_steps))
        run.note(f"step {step:,}/{trainer.total_steps:,}  loss {loss:.4f}  perplexity {perplexity:.2f}  lr {trainer.learning_rate:.3e}  "
                 f"tau {trainer.tau:.4f}  {speed:,.0f} tokens/s  ETA {remaining}")
        run.scalars("train", step, {"loss": loss, "perplexity": perplexity, "learning_rate": trainer.learning_rate,
                                    "tau": trainer.tau, "tokens_per_second": speed})
        if SEARCH in trainer.model.architecture:
            run.pi_scalars(step, trainer.model.pi())
        bar.update(step - start, [("loss", loss), ("perplexity", perplexity)])


def main(_):
    data_dir = Path(DATA_DIR.value)
    metadata = data_utils.read_metadata(data_dir)
    device, jit_compile = prepare_device()
    keras.utils.set_random_seed(SEED.value)
    trainer = Trainer(data_dir, metadata, jit_compile)
    model, config = trainer.model, configuration(metadata)
    run = Run(Path("logs") / MODEL_NAME.value, config, trainer.state)
    run.describe(config, model, device, data_utils.versions())
    if trainer.step:
        run.say(f"resumed at step {trainer.step:,}")
    if WARMUP_STEPS.value >= trainer.total_steps:
        run.say(f"the warm-up of {WARMUP_STEPS.value:,} steps is as long as the whole run: the learning rate never falls")

    valid = None
    while trainer.step < trainer.last_step:
        train_epoch(trainer, run)
        valid = trainer.evaluate("valid")
        run.evaluation(trainer.step, valid, model.pi())
        run.save(trainer.step)

    run.finish({
        "corpus": metadata["corpus"], "steps": trainer.step, "wall_seconds": float(trainer.state.seconds),
        "tokens_per_second": float(trainer.state.targets / trainer.state.seconds),
        "train": trainer.epoch_metrics(), "valid": valid or trainer.evaluate("valid"), "test": trainer.evaluate("test"),
        "pi": model.pi().tolist(), "architecture": [KINDS[kind] for kind in model.pi().argmax(axis=1)],
        "parameters": model.count_params(), "versions": data_utils.versions(), "device": device, "flags": config["flags"],
    })


if __name__ == "__main__":
    cli.run(main)
