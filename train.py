"""Trains the SuperNet, or a network of fixed architecture, and writes logs/<model_name>.

    ./train.sh --model_name=short --epochs=3 --max_lr=1e-3 --warmup_steps=500
    ./train.sh --model_name=baseline --architecture=adadad

L blocks, D model width, M memory length.
"""

import contextlib
import datetime
import math
import re
import sys
import time
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
from absl import flags

from support import cli
from support.cli import InputError
from training.settings import SEARCH, define_settings, settings_of_flags

with cli.group("Data"):
    DATA_DIR = cli.define_path("data_dir", "data/tfrecords", "what make_data.sh made")

with cli.group("Network"):
    ARCHITECTURE = cli.define_path(
        "architecture", None,
        "search; or a letter for each block of a fixed network, such as aaddid (attention, dense, "
        "identity); or random; or the finished run logs/NAME, for what it found "
        "(default: search, or that of --init_from)")
    NUM_LAYERS = flags.DEFINE_integer(
        "num_layers", 6, "L, blocks of a search or a random network", lower_bound=1)
    define_settings(first="d_model", last="tie_embeddings")

with cli.group("Search"):
    define_settings(first="search", last="latency_weight")

with cli.group("Schedule"):
    define_settings(first="epochs", last="warmup_steps")

with cli.group("Optimizer"):
    define_settings(first="opt_name", last="clipnorm")

with cli.group("Run"):
    LOGS_DIR = cli.define_path("logs_dir", "logs", "where the folders of runs are")
    MODEL_NAME = flags.DEFINE_string(
        "model_name", "supernet",
        "the run is the folder of this name in --logs_dir; the same name again resumes it")
    INIT_FROM = cli.define_path(
        "init_from", None,
        "start from the best weights of the run logs/NAME, a network of the same sizes")
    define_settings(first="seed")
    LOG_EVERY = flags.DEFINE_integer("log_every", 100, "steps per line of the log", lower_bound=1)
    SAVE_EVERY = flags.DEFINE_string(
        "save_every", "10m",
        "a checkpoint after so many steps, or minutes with an m, besides one after each epoch")

with cli.group("Devices"):
    DISTRIBUTE = flags.DEFINE_enum(
        "distribute", "auto", ["auto", "none", "mirrored", "multi_worker"],
        "share the rows of a batch among the GPUs of this machine, or of all that TF_CONFIG names; "
        "auto: where there are several")
    define_settings(first="accumulate")
    JIT_COMPILE = flags.DEFINE_enum(
        "jit_compile", "auto", ["auto", "true", "false"],
        "compile the step with XLA; auto: on a GPU")
    STEPS_PER_EXECUTION = flags.DEFINE_integer(
        "steps_per_execution", 20,
        "steps that are sent to the device together, with XLA as one program, if they train the "
        "same parameters; changes results by rounding only", lower_bound=1)
    MIXED_PRECISION = flags.DEFINE_boolean(
        "mixed_precision", False,
        "attention and dense layers compute in bfloat16; parameters, residuals, norms, softmax and "
        "loss stay float32")

flags.register_validator("model_name", lambda name: re.fullmatch(r"\w[\w.-]*", name),
                         "must be letters, digits, '_', '-' and '.', not beginning with '-' or '.'")
flags.register_validator("save_every", lambda text: re.fullmatch(r"0*[1-9]\d*m?", text),
                         "must be a number of steps, or of minutes as in 10m")
cli.begin(__name__)

with cli.quiet():  # TensorFlow greets where it is loaded: after --help, which does without it
    import data_utils
    from layers import KINDS, as_letters, from_letters, letters
    from support import devices
    from support.versions import versions
    from training.recording import NullRun, Run, configuration, fingerprint, has_begun
    from training.scoring import exp
    from training.trained_run import TrainedRun, take_weights
    from training.trainer import Trainer


def main(_):
    cli.tensorflow_text()  # or say now why it does not load: the end of an epoch needs it
    data_dir, folder = Path(DATA_DIR.value), run_dir()
    metadata, settings = data_utils.read_metadata(data_dir), settings_of_flags(architecture())
    config = configuration(own_flags(), settings, metadata)
    device, on_gpu = devices.prepare(MIXED_PRECISION.value)
    strategy = devices.strategy(DISTRIBUTE.value)
    devices.check_agreement(
        strategy, fingerprint(config), "have different flags, or different data")
    jit_compile = on_gpu if JIT_COMPILE.value == "auto" else JIT_COMPILE.value == "true"
    trainer = Trainer(
        data_dir, metadata, settings, jit_compile, strategy, STEPS_PER_EXECUTION.value)
    if INIT_FROM.value and not has_begun(folder):
        take_weights(trainer.model, Path(INIT_FROM.value), config["data"])
    if strategy.num_replicas_in_sync > 1:
        device = f"{strategy.num_replicas_in_sync} x {device}"

    recorder = Run if devices.is_chief(strategy) else NullRun
    with contextlib.closing(recorder(folder, config, data_dir, trainer.state)) as run:
        devices.check_agreement(
            strategy, trainer.step,
            "see different checkpoints: logs/ must be a folder that all of them share")
        if trainer.step > trainer.last_step:
            raise InputError(
                f"{folder} is at step {trainer.step:,} already: --max_steps must not be less")
        run.describe(config, trainer.model, device, versions())
        tell_what_to_know(trainer, run)
        valid = None
        with saved_when_interrupted(trainer, run) as handle_signals:
            while trainer.state.evaluated < trainer.last_step:
                train_epoch(trainer, run, handle_signals)
                valid = validate(trainer, run, handle_signals)
            scores = {
                "train": trainer.epoch_metrics(),
                "valid": valid or trainer.evaluate("valid", handle_signals),
                "test": trainer.evaluate("test", handle_signals),
            }
            run.finish(results(trainer, scores, config, device))


def train_epoch(trainer: Trainer, run: Run, handle_signals: Callable[[], None]):
    """Trains to the end of the epoch or of the run, and writes a line every `--log_every` steps.

    It trains about a second at once: so long has a signal to wait.
    """
    start, end = trainer.step, trainer.epoch_end
    if start == end:
        return
    epoch = start // trainer.steps_per_epoch + 1
    run.say(f"epoch {epoch} of {trainer.settings.epochs:g}, steps {start + 1:,} to {end:,} of "
            f"{trainer.total_steps:,}, {trainer.metadata['corpus']}")
    save_steps, save_seconds = save_interval()
    last_save, steps_per_second = time.monotonic(), 1
    while trainer.step < end:
        next_line = next_multiple(trainer.step, LOG_EVERY.value)
        next_save = next_multiple(trainer.step, save_steps)
        stop = min(trainer.step + steps_per_second, next_line, next_save, end)
        num_steps = int(stop - trainer.step)
        seconds = trainer.train(num_steps)
        steps_per_second, since_save = trainer.all_reduce_max(
            max(1, num_steps // seconds), time.monotonic() - last_save)
        if trainer.step in (next_line, end):
            write_line(trainer, run)
        if trainer.step == end:  # no save here: `validate` saves
            if SEARCH in trainer.model.architecture:
                run.heat_map(end, trainer.model.pi())
        elif trainer.step == next_save or since_save >= save_seconds:
            trainer.complete_state()
            run.save(trainer.step)
            last_save = time.monotonic()
        handle_signals()


def write_line(trainer: Trainer, run: Run):
    """Writes a line to the console and the log, and its numbers to TensorBoard."""
    loss, speed = trainer.end_line()
    step, perplexity = trainer.step, exp(loss)
    remaining = round((trainer.last_step - step) * trainer.wall_seconds() / step)
    run.progress(
        step / trainer.last_step,
        f"step {step:,}/{trainer.last_step:,}  loss {loss:.4f}  "
        f"ETA {datetime.timedelta(seconds=remaining)}  {speed:,.0f} tokens/s  "
        f"perplexity {perplexity:.2f}  lr {trainer.learning_rate:.3e}  tau {trainer.tau:.4f}")
    run.scalars("train", step, {
        "loss": loss, "perplexity": perplexity, "training/learning_rate": trainer.learning_rate,
        "training/tau": trainer.tau, "training/tokens_per_second": speed})
    if SEARCH in trainer.model.architecture:
        run.pi(step, trainer.model.pi())


def validate(trainer: Trainer, run: Run, handle_signals: Callable[[], None]) -> dict:
    """Scores the validation split and saves. Returns its metrics."""
    if trainer.state.line.targets > 0:  # --max_steps now ends the run within an epoch
        write_line(trainer, run)
    valid = trainer.evaluate("valid", handle_signals)
    trainer.state.evaluated.assign(trainer.step)
    trainer.complete_state()
    run.evaluation(trainer.step, valid)
    try:
        run.text(trainer.step, *trainer.write_text())
    finally:  # a failed sample must not cost an epoch
        run.save(trainer.step, last=trainer.step == trainer.last_step)
    return valid


def results(trainer: Trainer, scores: dict, config: dict, device: str) -> dict:
    """What results.json tells of a run."""
    model, totals = trainer.model, trainer.state.run
    seconds = trainer.wall_seconds()
    return {
        "corpus": trainer.metadata["corpus"], "steps": trainer.step, "wall_seconds": seconds,
        "train_seconds": float(totals.seconds),
        "tokens_per_second": float(totals.targets) / seconds, **scores, "pi": model.pi().tolist(),
        "architecture": as_letters(model.most_likely()), "parameters": model.count_params(),
        "versions": versions(), "device": device, "flags": config["flags"],
    }


# --------------------------------------------------------------------------------------------------
# What the flags say


def run_dir() -> Path:
    return Path(LOGS_DIR.value) / MODEL_NAME.value


def architecture() -> list[str]:
    """The kind of each block.

    Raises:
      InputError: --architecture is none of what it may be, or names a run that has not finished.
    """
    text = ARCHITECTURE.value or SEARCH
    if INIT_FROM.value and not ARCHITECTURE.value:
        resumed = has_begun(run_dir())
        text = (TrainedRun(run_dir()).flags["architecture"] if resumed
                else TrainedRun(Path(INIT_FROM.value)).architecture)
    if text == SEARCH:
        return [SEARCH] * NUM_LAYERS.value
    if text == "random":
        choice = [layer.letter for layer in KINDS.values()]
        text = "".join(np.random.default_rng(flags.FLAGS.seed).choice(choice, NUM_LAYERS.value))
    elif not set(text) <= set(letters()) and Path(text).is_dir():
        text = TrainedRun(Path(text)).architecture
    if not set(text) <= set(letters()):
        raise InputError(f"unknown architecture '{text}': neither search nor random, nor a letter "
                         f"({', '.join(letters())}) for each block, nor the folder of a run")
    if NUM_LAYERS.value not in (len(text), NUM_LAYERS.default):
        raise InputError(f"--num_layers={NUM_LAYERS.value} has no effect: "
                         f"the architecture, {text}, has {len(text)} layers")
    return from_letters(text)


def own_flags() -> dict:
    """The value of each flag of this program."""
    own = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
    return {flag.name: flag.value for flag in own}


def save_interval() -> tuple[float, float]:
    """The steps and the seconds after which to save, one of them infinite."""
    number = int(SAVE_EVERY.value.rstrip("m"))
    return (math.inf, 60 * number) if SAVE_EVERY.value.endswith("m") else (number, math.inf)


def next_multiple(step: int, interval: float) -> float:
    return (step // interval + 1) * interval


# --------------------------------------------------------------------------------------------------
# Around the training


def tell_what_to_know(trainer: Trainer, run: Run):
    """Says what a reader of the results should know of data, layers and schedule."""
    for split, entry in trainer.metadata["splits"].items():
        if unknown := entry["unknown_characters"]:
            run.say(f"{split}: word perplexity and bits per byte not given: "
                    f"{unknown:,} characters are unknown to the tokenizer")
    if trainer.settings.latency_weight:
        times = [f"{kind} {ms:.2f}" for kind, ms in zip(KINDS, trainer.latency())]
        run.say("milliseconds per window: " + ", ".join(times))
    warmup_steps = trainer.settings.warmup_steps
    if warmup_steps >= trainer.total_steps:
        run.say(f"the warm-up of {warmup_steps:,} steps does not end within the "
                f"{trainer.total_steps:,} of the run: the learning rate never falls")


@contextlib.contextmanager
def saved_when_interrupted(trainer: Trainer, run: Run) -> Iterator[Callable[[], None]]:
    """A block that signals stop only where it calls the function that it is given.

    If one of several workers gets a signal, all of them stop.
    """
    with cli.uninterrupted() as waiting:
        def handle_signals():
            number, = trainer.all_reduce_max(waiting[0] if waiting else 0)
            if number:
                trainer.complete_state()
                run.save(trainer.step, last=True)
                run.say(f"interrupted at step {trainer.step:,} and saved: "
                        "the same command goes on from here")
                trainer.all_reduce_max(0)  # no worker leaves before the chief has saved
                raise cli.Interrupted(int(number))

        yield handle_signals


if __name__ == "__main__":
    cli.run(main)
