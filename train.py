"""Trains the SuperNet, or a network of fixed architecture, and writes everything about the run to logs/<model_name>.

B batch, T sequence length, M memory length, A blocks with attention, D model width, L blocks, K kinds of layer.
"""

import datetime
import json
import logging
import math
import os
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import cli
import data_utils
from cli import InputError
from model import KINDS, SEARCH, Draws, PARTransformerXL

DATA_DIR = flags.DEFINE_string("data_dir", "data/tfrecords", "what make_data.sh made")
MODEL_NAME = flags.DEFINE_string("model_name", "supernet", "the run is logs/<model_name>; the same name again resumes it")
ARCHITECTURE = flags.DEFINE_list("architecture", [SEARCH], "one of search, attention, dense, identity for all blocks, or one for each")
NUM_LAYERS = flags.DEFINE_integer("num_layers", 6, "L, blocks", lower_bound=1)
D_MODEL = flags.DEFINE_integer("d_model", 128, "D, model width", lower_bound=1)
NUM_HEADS = flags.DEFINE_integer("num_heads", 4, "attention heads", lower_bound=1)
D_FFN = flags.DEFINE_integer("d_ffn", 1024, "inner width of the dense layer", lower_bound=1)
MEM_LEN = flags.DEFINE_integer("mem_len", 16, "M, memory length", lower_bound=0)
DROPOUT_RATE = flags.DEFINE_float("dropout_rate", 0.1, "of each branch, before its residual", lower_bound=0, upper_bound=0.99)
CUTOFFS = cli.define_integers("cutoffs", "the first id of each tail of the adaptive softmax, the vocabulary size left out; none: a plain softmax")
PROJ_FACTOR = flags.DEFINE_integer("proj_factor", 4, "tail i is D / proj_factor^i wide", lower_bound=1)
PROJ_DIMS = cli.define_integers("proj_dims", "the tails' widths themselves")
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
MIXED_PRECISION = flags.DEFINE_boolean("mixed_precision", False, "compute in bfloat16; parameters, softmax, loss and norms stay float32")

flags.register_multi_flags_validator(["d_model", "num_heads"], lambda f: f["d_model"] % f["num_heads"] == 0,
                                     "--d_model must be divisible by --num_heads")
flags.register_multi_flags_validator(["architecture", "num_layers"], lambda f: len(f["architecture"]) in (1, f["num_layers"]),
                                     "--architecture must name one kind, or one for each of the --num_layers blocks")
flags.register_multi_flags_validator(["clipvalue", "clipnorm"], lambda f: f["clipvalue"] is None or f["clipnorm"] is None,
                                     "--clipvalue and --clipnorm exclude each other")

# Flags that may differ when a run is resumed: they change neither weights nor schedules.
FREE_FLAGS = ("data_dir", "max_steps", "log_every")
CHECKPOINTS_KEPT = 3


# ---------------------------------------------------------------------------------------------------------------------
# The experiment's parts


def build_model(vocab_size: int, static_shapes: bool) -> PARTransformerXL:
    """The network that the flags describe."""
    architecture = ARCHITECTURE.value * (NUM_LAYERS.value if len(ARCHITECTURE.value) == 1 else 1)
    try:
        return PARTransformerXL(
            vocab_size, architecture, d_model=D_MODEL.value, num_heads=NUM_HEADS.value, d_ffn=D_FFN.value,
            mem_len=MEM_LEN.value, dropout_rate=DROPOUT_RATE.value, cutoffs=cli.integers(CUTOFFS.value),
            proj_factor=PROJ_FACTOR.value, proj_dims=cli.integers(PROJ_DIMS.value), straight_through=STRAIGHT_THROUGH.value,
            trainable_tau=TAU_START.value if TAU_IS_TRAINABLE.value else None, static_shapes=static_shapes, name="par_transformer_xl")
    except ValueError as error:
        raise InputError(str(error)) from None


def learning_rate_schedule(max_lr: float, warmup_steps: int, total_steps: int):
    """Learning rate by step: linear from 0 to `max_lr` over the warm-up, then a cosine to 0 at `total_steps`."""
    return keras.optimizers.schedules.CosineDecay(0.0, max(1, total_steps - warmup_steps), warmup_target=max_lr, warmup_steps=warmup_steps)


def tau_schedule(tau_start: float, tau_end: float, total_steps: int):
    """Temperature by step: from `tau_start` exponentially to `tau_end` at `total_steps`."""
    return lambda step: tau_start * (tau_end / tau_start) ** (tf.cast(step, tf.float32) / total_steps)


def build_optimizer(schedule):
    """The Keras optimizer that the flags name."""
    optimizer = type(keras.optimizers.get(OPT_NAME.value))
    return optimizer(learning_rate=schedule, clipvalue=CLIPVALUE.value, clipnorm=CLIPNORM.value)


def window_nll(model, window, memory, filled, tau, draws=None):
    """The loss of one window.

    Args:
      window: int32 [B, T + 1].
      memory, filled, tau, draws: as the model takes them.

    Returns:
      The summed negative log-likelihood of the targets, how many they are (padding is none), and the next memory.
    """
    inputs, targets = window[:, :-1], tf.reshape(window[:, 1:], [-1])  # [B, T], [B T]
    hidden, memory = model(inputs, memory, filled=filled, tau=tau, draws=draws)
    nll = model.softmax(tf.reshape(hidden, [-1, hidden.shape[-1]]), targets)  # [B T]
    real = tf.cast(targets != data_utils.PAD, tf.float32)  # [B T]
    return tf.reduce_sum(nll * real), tf.reduce_sum(real), memory


def make_train_steps(strategy, model, optimizer, tau_at, steps_per_epoch: int, jit_compile: bool):
    """A function that does many training steps in one call.

    `train_steps(iterator, memory, num_steps)` returns the summed negative log-likelihood, the number of targets, and the
    memory; `optimizer.iterations` counts the steps, and everything that depends on the step depends on it alone.
    """

    @tf.function(jit_compile=jit_compile or None)
    def update(window, memory):
        replica = tf.distribute.get_replica_context()
        step = optimizer.iterations.value
        draws = Draws(SEED.value, step, replica.replica_id_in_sync_group)
        filled = filled_memory(model, window, step % steps_per_epoch)
        with tf.GradientTape() as tape:
            nll, targets, memory = window_nll(model, window, memory, filled, tau_at(step), draws)
            loss = nll / replica.all_reduce("sum", targets)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return nll, targets, memory

    @tf.function
    def train_steps(iterator, memory, num_steps):
        total_nll = total_targets = tf.zeros([], tf.float64)
        for _ in tf.range(num_steps):
            nll, targets, memory = strategy.run(update, args=(next(iterator), memory))
            total_nll += tf.cast(strategy.reduce("sum", nll, axis=None), tf.float64)
            total_targets += tf.cast(strategy.reduce("sum", targets, axis=None), tf.float64)
        return total_nll, total_targets, memory

    return train_steps


def make_evaluate(strategy, model, jit_compile: bool):
    """A function that scores every target of a split: `evaluate(dataset, memory, tau)` returns the mean loss in nats."""

    @tf.function(jit_compile=jit_compile or None)
    def score(window, memory, number, tau):
        return window_nll(model, window, memory, filled_memory(model, window, number), tau)

    @tf.function
    def evaluate(dataset, memory, tau):
        total_nll = total_targets = tf.zeros([], tf.float64)
        number = tf.zeros([], tf.int64)
        for window in dataset:
            nll, targets, memory = strategy.run(score, args=(window, memory, number, tau))
            total_nll += tf.cast(strategy.reduce("sum", nll, axis=None), tf.float64)
            total_targets += tf.cast(strategy.reduce("sum", targets, axis=None), tf.float64)
            number += 1
        return total_nll / total_targets

    return evaluate


def filled_memory(model, window, number):
    """How many memory positions hold tokens at a split's window `number`."""
    seq_len = window.shape[1] - 1
    return tf.minimum(number * seq_len, model.mem_len)


def metrics(loss: float, split: dict) -> dict:
    """Loss in nats per token, and what does not depend on the tokenizer; `split` is the split's entry in metadata.json.

    The total negative log-likelihood is taken over all targets of the split: loss * targets.
    """
    total = loss * split["targets"]
    return {
        "loss": loss,
        "perplexity": float(np.exp(loss)),
        "word_perplexity": float(np.exp(total / split["words"])),
        "bits_per_byte": total / math.log(2) / split["bytes"],
    }


def make_state(model, optimizer, memory) -> tf.train.Checkpoint:
    """Everything that a resumed run needs; its step is `optimizer.iterations`.

    The totals are of the epoch so far (summed loss, targets) and of the run (seconds of training, targets).
    """
    totals = {name: tf.Variable(0.0, dtype=tf.float64, trainable=False) for name in ("epoch_nll", "epoch_targets", "seconds", "targets")}
    return tf.train.Checkpoint(model=model, optimizer=optimizer, memory=tf.Variable(memory, trainable=False), **totals)


def restore(state: tf.train.Checkpoint, checkpoints: tf.train.CheckpointManager):
    """Restores the latest checkpoint, if there is one.

    Raises:
      InputError: it cannot be read, or is of another network.
    """
    if checkpoints.latest_checkpoint:
        try:
            state.restore(checkpoints.latest_checkpoint).assert_existing_objects_matched()
        except (ValueError, IndexError, AssertionError, tf.errors.OpError) as error:
            raise InputError(f"cannot restore {checkpoints.latest_checkpoint}: {str(error).splitlines()[0]}") from None


# ---------------------------------------------------------------------------------------------------------------------
# The run's folder


class Run:
    """What a run writes to its folder: config.json, training_log.log, TensorBoard events, results.json.

    Raises:
      InputError: the folder holds a run of another configuration; what differs is named.
    """

    def __init__(self, folder: Path, config: dict):
        self.folder = folder
        config_path = folder / "config.json"
        if config_path.exists():
            self._check_same(json.loads(config_path.read_text()), config)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(config_path, config)
        console, file = logging.StreamHandler(sys.stdout), logging.FileHandler(folder / "training_log.log")
        console.setLevel(logging.INFO)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._log = logging.Logger(folder.name)
        self._log.addHandler(console)
        self._log.addHandler(file)
        self.note = self._log.debug  # to the file
        self.say = self._log.info  # to the file and to the console
        self._corpus = config["data"]["corpus"]
        self._writers = {split: tf.summary.create_file_writer(str(folder / split)) for split in ("train", "valid")}

    def scalars(self, split: str, step: int, values: dict):
        """Writes numbers to TensorBoard; `train` and `valid` share a chart."""
        with self._writers[split].as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def architecture(self, step: int, pi: np.ndarray):
        """Writes the heat map of pi [L, K] to TensorBoard."""
        import pictures

        title = f"pi at step {step:,}, {self._corpus}"
        with self._writers["train"].as_default(step):
            tf.summary.image("pi", pictures.architecture_heat_map(pi, title)[None])

    def configuration(self, config: dict):
        """Writes the configuration to TensorBoard as a table."""
        rows = "\n".join(f"| {name} | {value} |" for part in ("data", "flags") for name, value in config[part].items() if name != "sha256")
        with self._writers["train"].as_default(0):
            tf.summary.text("configuration", f"| setting | value |\n|---|---|\n{rows}")

    def flush(self):
        for writer in self._writers.values():
            writer.flush()

    def _check_same(self, before: dict, now: dict):
        differences = [f"{name}: {before[part].get(name)} before, {value} now"
                       for part in ("flags", "data") for name, value in now[part].items()
                       if name not in FREE_FLAGS and before[part].get(name) != value]
        if differences:
            raise InputError(f"{self.folder} is a run of another configuration ({'; '.join(differences)}): choose another --model_name")


def write_json(path: Path, content: dict):
    """Writes a JSON file so that it appears complete or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def configuration(metadata: dict) -> dict:
    """What makes a run the run that it is: its flags and its data."""
    return {
        "flags": {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])},
        "data": {name: metadata[name] for name in ("corpus", "batch_size", "seq_len", "vocab_size", "sha256")},
    }


# ---------------------------------------------------------------------------------------------------------------------
# The experiment


def prepare_device() -> tuple[str, bool]:
    """Lets GPU memory grow as needed and sets the precision. Returns the device's name, and whether it is a GPU."""
    if MIXED_PRECISION.value:
        keras.config.set_dtype_policy("mixed_bfloat16")
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"), True
    return f"CPU, {os.cpu_count()} cores", False


def split_rows(strategy, memory):
    """Gives each replica its rows of a memory [A, B, M, D]."""
    parts = tf.split(memory, strategy.num_replicas_in_sync, axis=1)
    return strategy.experimental_distribute_values_from_function(lambda context: parts[context.replica_id_in_sync_group])


def main(_):
    data_dir = Path(DATA_DIR.value)
    metadata = data_utils.read_metadata(data_dir)
    device, is_gpu = prepare_device()
    jit_compile = is_gpu if JIT_COMPILE.value == "auto" else JIT_COMPILE.value == "true"
    keras.utils.set_random_seed(SEED.value)
    steps_per_epoch = metadata["splits"]["train"]["steps"]
    total_steps = EPOCHS.value * steps_per_epoch
    last_step = min(MAX_STEPS.value or total_steps, total_steps)

    strategy = tf.distribute.get_strategy()
    with strategy.scope():
        model = build_model(metadata["vocab_size"], static_shapes=jit_compile)
        learning_rate_at = learning_rate_schedule(MAX_LR.value, WARMUP_STEPS.value, total_steps)
        optimizer = build_optimizer(learning_rate_at)
        optimizer.build(model.trainable_variables)
    tau_at = tau_schedule(TAU_START.value, TAU_END.value, total_steps)
    train_steps = make_train_steps(strategy, model, optimizer, tau_at, steps_per_epoch, jit_compile)
    evaluate = make_evaluate(strategy, model, jit_compile)

    config = configuration(metadata)
    run = Run(Path("logs") / MODEL_NAME.value, config)
    state = make_state(model, optimizer, model.empty_memory(metadata["batch_size"]))
    checkpoints = tf.train.CheckpointManager(state, str(run.folder / "checkpoints"), CHECKPOINTS_KEPT)
    restore(state, checkpoints)
    step = int(optimizer.iterations)
    describe(run, config, model, device, step, total_steps)

    def windows(split, first=0):
        dataset = data_utils.load_windows(data_dir, split, metadata)
        return strategy.experimental_distribute_dataset(dataset.skip(first).prefetch(tf.data.AUTOTUNE))

    def scores(split):
        memory = split_rows(strategy, tf.zeros_like(state.memory))
        loss = float(evaluate(windows(split), memory, model.temperature(tau_at(step))))
        return metrics(finite(loss, step), metadata["splits"][split])

    valid = None
    while step < last_step:
        epoch, step_in_epoch = divmod(step, steps_per_epoch)
        epoch_end = min((epoch + 1) * steps_per_epoch, last_step)
        if step_in_epoch == 0:
            state.epoch_nll.assign(0.0)
            state.epoch_targets.assign(0.0)
        run.say(f"epoch {epoch + 1} of {EPOCHS.value}, steps {step + 1:,} to {epoch_end:,} of {total_steps:,}, {metadata['corpus']}")
        bar = keras.utils.Progbar(epoch_end - step, stateful_metrics=["loss", "perplexity"])
        bar_start = step
        iterator, memory = iter(windows("train", step_in_epoch)), split_rows(strategy, state.memory)
        while step < epoch_end:
            num_steps = min(LOG_EVERY.value - step % LOG_EVERY.value, epoch_end - step)
            start = time.perf_counter()
            nll, targets, memory = train_steps(iterator, memory, tf.constant(num_steps))
            nll, targets, seconds = float(nll), float(targets), time.perf_counter() - start
            step += num_steps
            loss = finite(nll / targets, step)
            for total, value in ((state.epoch_nll, nll), (state.epoch_targets, targets), (state.seconds, seconds), (state.targets, targets)):
                total.assign_add(value)
            values = {
                "loss": loss, "perplexity": float(np.exp(loss)), "learning_rate": float(learning_rate_at(step)),
                "tau": float(model.temperature(tau_at(step))), "tokens_per_second": targets / seconds,
            }
            run.scalars("train", step, values | pi_scalars(model))
            run.note(progress_line(step, total_steps, values, (last_step - step) * seconds / num_steps))
            bar.update(step - bar_start, [("loss", loss), ("perplexity", values["perplexity"])])
        state.memory.assign(strategy.gather(memory, axis=1))
        valid = scores("valid")
        run.scalars("valid", step, valid)
        run.architecture(step, model.pi())
        run.say(f"step {step:,}  " + "  ".join(f"valid {name} {value:.4g}" for name, value in valid.items()))
        checkpoints.save(checkpoint_number=step)

    results = {
        "corpus": metadata["corpus"], "steps": step, "wall_seconds": float(state.seconds),
        "tokens_per_second": float(state.targets / state.seconds),
        "train": metrics(float(state.epoch_nll / state.epoch_targets), metadata["splits"]["train"]),
        "valid": valid or scores("valid"), "test": scores("test"),
        "pi": model.pi().tolist(), "architecture": [KINDS[kind] for kind in model.pi().argmax(axis=1)],
        "parameters": model.count_params(), "versions": data_utils.versions(), "device": device, "flags": config["flags"],
    }
    write_json(run.folder / "results.json", results)
    for split in data_utils.corpora.SPLITS:
        run.say(f"{split:5}  " + "  ".join(f"{name} {value:.4g}" for name, value in results[split].items()))
    run.say(f"architecture {', '.join(results['architecture'])}; results in {run.folder / 'results.json'}")


def finite(loss: float, step: int) -> float:
    """The loss, if it is a number.

    Raises:
      FloatingPointError: it is infinite or NaN.
    """
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {step:,}: stopped, the last checkpoint is from before; "
                                 "a lower --max_lr or --clipnorm may help")
    return loss


def describe(run: Run, config: dict, model, device: str, step: int, total_steps: int):
    """Writes to the log what is about to be trained, on what, with what."""
    run.note("flags " + json.dumps(config["flags"]))
    run.note("versions " + json.dumps(data_utils.versions()))
    model.summary(line_length=80, print_fn=lambda text, line_break=False: run.note(text))
    run.say(f"{run.folder}: {model.count_params():,} parameters, corpus {config['data']['corpus']}, on {device}")
    if WARMUP_STEPS.value >= total_steps:
        run.say(f"the warm-up of {WARMUP_STEPS.value:,} steps is as long as the whole run: the learning rate never falls")
    if step:
        run.say(f"resumed at step {step:,}")
    else:
        run.configuration(config)
        run.architecture(0, model.pi())


def pi_scalars(model) -> dict:
    """pi by TensorBoard tag; nothing for a network without a search."""
    if model.theta is None:
        return {}
    return {f"pi/block_{block + 1}/{kind}": value for block, row in enumerate(model.pi()) for kind, value in zip(KINDS, row)}


def progress_line(step: int, total_steps: int, values: dict, seconds_left: float) -> str:
    return (f"step {step:,}/{total_steps:,}  loss {values['loss']:.4f}  perplexity {values['perplexity']:.2f}  "
            f"lr {values['learning_rate']:.3e}  tau {values['tau']:.4f}  {values['tokens_per_second']:,.0f} tokens/s  "
            f"ETA {datetime.timedelta(seconds=round(seconds_left))}")


if __name__ == "__main__":
    cli.run(main)
