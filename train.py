"""Trains a SuperNet or a fixed network, and writes logs/<model_name>.

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
from support.errors import InputError
from training.settings import SEARCH, SIZES, Settings, define_settings, settings_of

with cli.group("Data"):
    DATA_DIR = cli.define_path("data_dir", "data/tfrecords", "the output of make_data.sh")

with cli.group("Network"):
    ARCHITECTURE = cli.define_path(
        "architecture", None,
        "search; a letter for each block of a fixed network, such as aaddid (attention, dense, "
        "identity; l for local attention); random; or a finished run, logs/NAME, to use its "
        "architecture and its sizes (default: search, or that of --init_from)")
    NUM_LAYERS = flags.DEFINE_integer(
        "num_layers", len(Settings.architecture), "L, blocks of a search or a random network",
        lower_bound=1)

define_settings()

with cli.group("Run"):
    LOGS_DIR = cli.define_path("logs_dir", "logs", "the folder of all runs")
    MODEL_NAME = flags.DEFINE_string(
        "model_name", "supernet", "name of the run, a folder in --logs_dir; to resume a run, "
        "repeat its command")
    INIT_FROM = cli.define_path(
        "init_from", None, "start from the best weights of a run, logs/NAME, with its sizes")
    LOG_EVERY = flags.DEFINE_integer("log_every", 100, "steps per line of the log", lower_bound=1)
    SAVE_EVERY = flags.DEFINE_string(
        "save_every", "10m",
        "steps between checkpoints, or minutes, as in 10m; each epoch also ends with one")

with cli.group("Devices"):
    DISTRIBUTE = flags.DEFINE_enum(
        "distribute", "auto", ["auto", "none", "mirrored", "multi_worker"],
        "split each batch among the GPUs of this machine, or of all machines in TF_CONFIG; "
        "auto: if there are several")
    JIT_COMPILE = flags.DEFINE_enum(
        "jit_compile", "auto", ["auto", "true", "false"],
        "compile the step with XLA; auto: on a GPU")
    STEPS_PER_EXECUTION = flags.DEFINE_integer(
        "steps_per_execution", 20,
        "steps sent to the device together, with XLA as one program; affects results by rounding "
        "only", lower_bound=1)
    MIXED_PRECISION = flags.DEFINE_boolean(
        "mixed_precision", False,
        "compute attention and dense layers in bfloat16; parameters, residuals, norms, softmax and "
        "loss stay in float32")

flags.register_validator("model_name", lambda name: re.fullmatch(r"\w[\w.-]*", name),
                         "must be letters, digits, '_', '-' and '.', not beginning with '-' or '.'")
flags.register_validator("save_every", lambda text: re.fullmatch(r"0*[1-9]\d*m?", text),
                         "must be a number of steps, or of minutes as in 10m")
cli.begin(__name__)

with cli.quiet():  # TensorFlow prints messages when imported; --help does not need it
    import data_utils
    from layers import KINDS, as_letters, from_letters, letters
    from support import devices
    from support.versions import versions
    from training.recording import NullRecorder, Recorder, configuration, fingerprint, has_begun
    from training.scoring import exp
    from training.trained_run import TrainedRun, take_weights
    from training.trainer import Trainer


def main(_):
    cli.tensorflow_text()  # fails now if it does not load: the end of an epoch needs it
    data_dir, folder = Path(DATA_DIR.value), run_dir()
    metadata = data_utils.read_metadata(data_dir)
    source = source_run()
    values = flag_values(source)
    settings = settings_of(values, architecture(source))
    config = configuration(values, settings, metadata)
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

    make_recorder = Recorder if devices.is_chief(strategy) else NullRecorder
    with contextlib.closing(make_recorder(folder, config, data_dir, trainer.state)) as recorder:
        devices.check_agreement(
            strategy, trainer.step,
            "see different checkpoints: --logs_dir must be a folder that all of them share")
        if trainer.step > trainer.last_step:
            raise InputError(
                f"{folder} is already at step {trainer.step:,}: --max_steps must be at least that")
        recorder.describe(trainer.model, device, versions())
        report_caveats(trainer, recorder)
        valid = None
        with saved_when_interrupted(trainer, recorder) as handle_signals:
            while trainer.state.evaluated < trainer.last_step:
                train_epoch(trainer, recorder, handle_signals)
                valid = validate(trainer, recorder, handle_signals)
            scores = {
                "train": trainer.epoch_metrics(),
                "valid": valid or trainer.evaluate("valid", handle_signals),
                "test": trainer.evaluate("test", handle_signals),
            }
            recorder.finish(results(trainer, scores, config, device))


def train_epoch(trainer: Trainer, recorder: Recorder, handle_signals: Callable[[], None]):
    """Trains to the end of the epoch or run, and writes a line every `--log_every` steps.

    Signals are handled about once a second.
    """
    start, end = trainer.step, trainer.epoch_end
    if start == end:
        return
    epoch = start // trainer.steps_per_epoch + 1
    recorder.say(f"epoch {epoch} of {trainer.settings.epochs:g}, steps {start + 1:,} to {end:,} of "
                 f"{trainer.total_steps:,}, {trainer.metadata['corpus']}")
    save_steps, save_seconds = save_interval()
    last_save, steps_in_a_second = time.monotonic(), 1
    while trainer.step < end:
        next_line = next_multiple(trainer.step, LOG_EVERY.value)
        next_save = next_multiple(trainer.step, save_steps)
        stop = min(trainer.step + steps_in_a_second, next_line, next_save, end)
        num_steps = int(stop - trainer.step)
        seconds = trainer.train(num_steps)
        steps_in_a_second, since_save = trainer.all_reduce_max(
            max(1, num_steps // seconds), time.monotonic() - last_save)
        if trainer.step in (next_line, end):
            write_line(trainer, recorder)
        if trainer.step == end:  # `validate` saves
            if SEARCH in trainer.model.architecture:
                recorder.heat_map(end, trainer.model.kinds, trainer.model.pi())
        elif trainer.step == next_save or since_save >= save_seconds:
            trainer.complete_state()
            recorder.save(trainer.step)
            last_save = time.monotonic()
        handle_signals()


def write_line(trainer: Trainer, recorder: Recorder):
    """Writes a line to console and log, and its numbers to TensorBoard."""
    loss, speed = trainer.end_line()
    step, perplexity = trainer.step, exp(loss)
    remaining = round((trainer.last_step - step) * trainer.wall_seconds() / step)
    recorder.progress(
        step / trainer.last_step,
        f"step {step:,}/{trainer.last_step:,}  loss {loss:.4f}  "
        f"ETA {datetime.timedelta(seconds=remaining)}  {speed:,.0f} tokens/s  "
        f"perplexity {perplexity:.2f}  lr {trainer.learning_rate:.3e}  tau {trainer.tau:.4f}")
    recorder.scalars("train", step, {
        "metrics/loss": loss, "metrics/perplexity": perplexity,
        "training/learning_rate": trainer.learning_rate, "training/tau": trainer.tau,
        "training/tokens_per_second": speed})
    if SEARCH in trainer.model.architecture:
        recorder.pi(step, trainer.model.kinds, trainer.model.pi())


def validate(trainer: Trainer, recorder: Recorder, handle_signals: Callable[[], None]) -> dict:
    """Evaluates the validation split and saves. Returns its metrics."""
    if trainer.state.line.targets > 0:  # resumed where --max_steps now ends the run
        write_line(trainer, recorder)
    valid = trainer.evaluate("valid", handle_signals)
    trainer.state.evaluated.assign(trainer.step)
    trainer.complete_state()
    recorder.evaluation(trainer.step, valid)
    try:
        recorder.text(trainer.step, *trainer.write_text())
    finally:  # save the epoch even if the sample text fails
        recorder.save(trainer.step, last=trainer.step == trainer.last_step)
    return valid


def results(trainer: Trainer, scores: dict, config: dict, device: str) -> dict:
    """The content of results.json."""
    model, totals = trainer.model, trainer.state.run
    seconds = trainer.wall_seconds()
    return {
        "corpus": trainer.metadata["corpus"], "steps": trainer.step, "wall_seconds": seconds,
        "train_seconds": float(totals.seconds),
        "tokens_per_second": float(totals.targets) / seconds, **scores, "kinds": model.kinds,
        "pi": model.pi().tolist(),
        "architecture": as_letters(model.most_likely()), "parameters": model.count_params(),
        "versions": versions(), "device": device, "flags": config["flags"],
    }


# --------------------------------------------------------------------------------------------------
# The meaning of the flags


def run_dir() -> Path:
    return Path(LOGS_DIR.value) / MODEL_NAME.value


def source_run() -> TrainedRun | None:
    """The run that --init_from or --architecture names; this run itself once it has begun."""
    folder = INIT_FROM.value or (ARCHITECTURE.value if is_run(ARCHITECTURE.value) else None)
    if folder is None:
        return None
    return TrainedRun(run_dir() if has_begun(run_dir()) else Path(folder))


def is_run(text: str | None) -> bool:
    """Whether --architecture names the folder of a run rather than layer types."""
    return bool(text) and not set(text) <= set(letters()) and Path(text).is_dir()


def flag_values(source: TrainedRun | None) -> dict:
    """The value of each flag of this program. Sizes that are not given are those of `source`."""
    own = flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
    sizes = {name: getattr(source.settings, name) for name in SIZES} if source else {}
    return {flag.name: flag.value if flag.present else sizes.get(flag.name, flag.value)
            for flag in own}


def architecture(source: TrainedRun | None) -> list[str]:
    """The layer type of each block.

    Raises:
      InputError: --architecture is not valid, or names a run that has not finished.
    """
    text = ARCHITECTURE.value or SEARCH
    if source and (not ARCHITECTURE.value or is_run(text)):
        text = (source.flags["architecture"] if source.folder == run_dir()
                else TrainedRun(ARCHITECTURE.value or INIT_FROM.value).architecture)
    if text == SEARCH:
        return [SEARCH] * NUM_LAYERS.value
    if text == "random":
        kinds = flags.FLAGS.kinds
        if not kinds or not {*kinds} <= {*KINDS}:
            raise InputError(f"--kinds={','.join(kinds)}: choose from {', '.join(KINDS)}")
        choice = [KINDS[kind].letter for kind in kinds]
        text = "".join(np.random.default_rng(flags.FLAGS.seed).choice(choice, NUM_LAYERS.value))
    if not set(text) <= set(letters()):
        raise InputError(f"unknown architecture '{text}': use search, random, a letter for each "
                         f"block ({', '.join(letters())}), or the folder of a run")
    if NUM_LAYERS.value not in (len(text), NUM_LAYERS.default):
        raise InputError(f"--num_layers={NUM_LAYERS.value} has no effect: "
                         f"the architecture, {text}, has {len(text)} blocks")
    return from_letters(text)


def save_interval() -> tuple[float, float]:
    """Steps and seconds between checkpoints; one of them is infinite."""
    number = int(SAVE_EVERY.value.rstrip("m"))
    return (math.inf, 60 * number) if SAVE_EVERY.value.endswith("m") else (number, math.inf)


def next_multiple(step: int, interval: float) -> float:
    return (step // interval + 1) * interval


# --------------------------------------------------------------------------------------------------
# Around the training


def report_caveats(trainer: Trainer, recorder: Recorder):
    """Reports properties of data, layers and schedule that matter for reading the results."""
    for split, entry in trainer.metadata["splits"].items():
        if unknown := entry["unknown_characters"]:
            recorder.say(f"{split}: word perplexity and bits per byte not given: "
                         f"{unknown:,} characters are unknown to the tokenizer")
    if trainer.settings.latency_weight:
        times = [f"{kind} {ms:.2f}" for kind, ms in zip(trainer.model.kinds, trainer.latency())]
        recorder.say("milliseconds per window: " + ", ".join(times))
    warmup_steps = trainer.settings.warmup_steps
    if warmup_steps >= trainer.total_steps:
        recorder.say(f"the warm-up of {warmup_steps:,} steps does not end within the "
                     f"{trainer.total_steps:,} steps of the run: the learning rate never falls")


@contextlib.contextmanager
def saved_when_interrupted(trainer: Trainer, recorder: Recorder) -> Iterator[Callable[[], None]]:
    """Holds signals back inside the `with` block until it calls the yielded function, which saves.

    If one of several workers gets a signal, all of them stop.
    """
    with cli.uninterrupted() as waiting:
        def handle_signals():
            number, = trainer.all_reduce_max(waiting[0] if waiting else 0)
            if number:
                trainer.complete_state()
                recorder.save(trainer.step, last=True)
                recorder.say(f"interrupted at step {trainer.step:,} and saved: "
                             "to resume, repeat the command")
                trainer.all_reduce_max(0)  # no worker leaves before the chief has saved
                raise cli.Interrupted(int(number))

        yield handle_signals


if __name__ == "__main__":
    cli.run(main)
