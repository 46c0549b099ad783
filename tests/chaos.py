"""Kills training, and the making of data, at random moments, and compares the end with that of an
undisturbed run.

    python tests/chaos.py --kills=20 --seed=1

It exits with status 1 if any weight, optimizer state, memory, total or metric differs, any curve of
TensorBoard except speed, or any byte of the data.
"""

import clean  # noqa: F401, I001

import argparse
import contextlib
import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator

import tensorflow as tf
import tiny
import warm
from conftest import PROJECT, write_corpus

import data_utils

DATA_FLAGS = ["--input_dir=corpus", *tiny.as_flags(**tiny.DATA)]
OF_A_RUN = dict(data_dir="data", model_name="run", num_layers=1, dropout_rate=0.2, save_every=40)
TRAIN_FLAGS = tiny.as_flags(**tiny.NETWORK | tiny.TRAINING | OF_A_RUN)
EXIT_CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
OF_SPEED = ("wall_seconds", "train_seconds", "tokens_per_second")
OF_A_START = ("checksum", "run_id")  # differ between any two runs


def start(folder: Path, program: str, *given: str, python=tuple(warm.PYTHON)) -> subprocess.Popen:
    return subprocess.Popen([*python, "-u", PROJECT / program, *given], cwd=folder, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen):
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def kill(process: subprocess.Popen, number: signal.Signals, begun: str, rng: random.Random,
         longest: float) -> bool:
    """Sends a signal up to `longest` seconds after a line that starts with `begun`; rarely before.

    Returns:
      Whether the process was still running.
    """
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 4))
    else:
        for line in process.stdout:
            if line.startswith(begun):
                break
        time.sleep(rng.uniform(0, longest))
    process.send_signal(number)
    process.communicate()
    return process.returncode != 0


def read_events(path: Path) -> Iterator:
    """Yields the events of a file, up to the last one, which a killed process left incomplete."""
    with contextlib.suppress(tf.errors.DataLossError):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            yield tf.compat.v1.Event.FromString(record)


def events_of(folder: Path) -> tuple[dict, dict]:
    """The TensorBoard events of a folder.

    Returns:
      {tag: {step: value}} of the scalars, and {tag: [steps]} of everything else.
    """
    scalars, others = {}, {}
    for path in sorted(folder.glob("events*")):
        for event in read_events(path):
            if event.HasField("session_log"):  # TensorBoard drops what a resumed run repeats
                scalars = {tag: {step: value for step, value in by_step.items()
                                 if step < event.step} for tag, by_step in scalars.items()}
                others = {tag: [step for step in steps if step < event.step]
                          for tag, steps in others.items()}
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor)
                if content.shape == () and value.metadata.plugin_data.plugin_name == "scalars":
                    curve = scalars.setdefault(value.tag, {})
                    assert event.step not in curve, f"{value.tag} twice at step {event.step}"
                    curve[event.step] = float(content)
                else:
                    others.setdefault(value.tag, []).append(event.step)
    return scalars, others


def state_of(folder: Path, kind: str = "checkpoints", step: int | None = None) -> dict:
    """{name: bytes} of all numbers but seconds in a checkpoint of a run, or in its `best` network.

    By default that of the last step.
    """
    if step is None:
        step = max(int(path.name) for path in (folder / kind).iterdir())
    reader = tf.train.load_checkpoint(str(folder / kind / str(step) / "state"))
    state = {}
    for key in reader.get_variable_to_shape_map():
        name = key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")
        if "_CHECKPOINTABLE" not in name and not name.endswith("seconds"):
            state[name] = reader.get_tensor(key).tobytes()
    return state


def everything_of(run: Path) -> dict:
    """All parts of a run that its repetition must have."""
    results = json.loads((run / "results.json").read_text())
    parts = {"checkpoints": state_of(run), "best": state_of(run, "best"),
             "results": {name: value for name, value in results.items()
                         if name not in (*OF_SPEED, *OF_A_START)}}
    for split in ("train", "valid"):
        parts[f"curves of {split}"], parts[f"events of {split}"] = events_of(run / split)
    parts["curves of train"].pop("training/tokens_per_second", None)
    return parts


def differences(whole: Path, killed: Path) -> list[str]:
    """The parts that differ between two runs and must not."""
    one, other = everything_of(whole), everything_of(killed)
    return [f"{part}: {name}" for part in one
            for name in sorted(one[part].keys() | other[part].keys())
            if name not in one[part] or name not in other[part]
            or one[part][name] != other[part][name]]


def disturb_training(folder: Path, kills: int, seed: int, longest: float = 8) -> list[str]:
    """Trains twice in a folder with `data`: undisturbed, and killed up to `kills` times.

    Returns:
      The differences in the end.
    """
    rng = random.Random(seed)
    given = [*TRAIN_FLAGS, f"--epochs={math.ceil(0.75 * longest * kills)}"]
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        (folder / name / "data").symlink_to(folder / "data")
    finish(start(folder / "whole", "train.py", *given))
    log = folder / "killed" / "logs" / "run" / "training_log.log"
    for number in range(kills):
        name = list(EXIT_CODES)[number % len(EXIT_CODES)]
        process = start(folder / "killed", "train.py", *given)
        if not kill(process, name, "epoch ", rng, longest):
            print("the run ended before all kills")
            break
        steps = re.findall(r" step (\d[\d,]*)", log.read_text()) if log.exists() else []
        print(f"kill {number + 1}: {name.name}, exit {process.returncode},",
              f"after step {steps[-1] if steps else 0}", flush=True)
        assert process.returncode in (EXIT_CODES[name], -name), process.returncode
    finish(start(folder / "killed", "train.py", *given))
    return differences(folder / "whole" / "logs" / "run", folder / "killed" / "logs" / "run")


def disturb_data(folder: Path, kills: int, seed: int) -> list[str]:
    """Makes data of `corpus` in a folder: undisturbed, and, killed, in place of older data.

    Returns:
      The files that differ in the end.
    """
    def make(output_dir: Path, *given: str) -> subprocess.Popen:
        return start(folder, "data_utils.py", *DATA_FLAGS, f"--output_dir={output_dir}", *given)

    rng = random.Random(seed)
    whole, old, killed = (folder / name for name in ("data", "old", "new"))
    finish(make(whole))
    finish(make(old, "--batch_size=2"))
    for number in range(kills):
        shutil.rmtree(killed, ignore_errors=True)
        shutil.copytree(old, killed)
        kill(make(killed), signal.SIGKILL, "corpus", rng, longest=1.2)
        batch_size = data_utils.read_metadata(killed)["batch_size"] if killed.exists() else None
        found = {2: "old", tiny.BATCH_SIZE: "new", None: "gone"}[batch_size]
        print(f"kill {number + 1}: the data are {found}", flush=True)
    finish(make(killed))
    one, other = (
        {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()}
        for made in (whole, killed))
    return [str(name) for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how often each is killed")
    parser.add_argument("--seed", type=int, help="of the moments (default: different each time)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_corpus(folder / "corpus")
        for disturb in (disturb_data, disturb_training):
            print(disturb.__name__)
            if found := disturb(folder, given.kills, given.seed):
                sys.exit("differences: " + ", ".join(found))
            print("no difference")


if __name__ == "__main__":
    main()
