"""Kills training, and the making of data, at random moments.

The end is compared with that of an undisturbed run.

    python tests/chaos.py --kills=20 --seed=1

Every kill is told. The program ends with status 1 where something differs that must not: any
weight, optimizer state, memory, total or metric; any curve of TensorBoard but those of speed; any
byte of the data.
"""

import clean  # noqa: F401, I001

import argparse
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

import tensorflow as tf
import tiny
import warm
from conftest import PROJECT, write_corpus

import data_utils

DATA_FLAGS = ["--input_dir=corpus", *tiny.as_flags(**tiny.DATA)]
OF_A_RUN = dict(data_dir="data", model_name="run", num_layers=1, dropout_rate=0.2, save_every=40)
TRAIN_FLAGS = tiny.as_flags(**tiny.NETWORK | tiny.TRAINING | OF_A_RUN)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EXIT_CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


def start(folder: Path, program: str, *given: str, python=tuple(warm.PYTHON)) -> subprocess.Popen:
    command = [*python, "-u", PROJECT / program, *given]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen):
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def kill(
    process: subprocess.Popen,
    number: signal.Signals,
    begun: str,
    rng: random.Random,
    longest: float,
) -> bool:
    """Sends a signal at a random moment.

    It comes up to `longest` seconds after a line that begins with `begun`; now and then before.

    Returns:
      Whether the process was still there.
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


def events_of(folder: Path) -> tuple[dict, dict]:
    """The TensorBoard events of a folder.

    Returns:
      {tag: {step: value}} of the scalars, and {tag: [steps]} of everything else.
    """
    scalars, others = {}, {}
    for path in sorted(folder.glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            if event.HasField("session_log"):  # TensorBoard drops what a resumed run repeats
                scalars = {tag: {step: value for step, value in by_step.items()
                                 if step < event.step} for tag, by_step in scalars.items()}
                others = {tag: [step for step in steps if step < event.step]
                          for tag, steps in others.items()}
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor)
                if content.shape == () and value.metadata.plugin_data.plugin_name == "scalars":
                    assert event.step not in scalars.setdefault(value.tag, {}), (
                        f"{value.tag} twice at step {event.step}"
                    )
                    scalars[value.tag][event.step] = float(content)
                else:
                    others.setdefault(value.tag, []).append(event.step)
    return scalars, others


def state_of(folder: Path, kind: str = "checkpoints", step: int | None = None) -> dict:
    """Every number, as bytes, of one of the `checkpoints` of a run, or of its `best` network.

    It is that of `step`, or the last. The seconds are left out.
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


def differences(whole: Path, killed: Path) -> list[str]:
    """What differs between two runs that must not."""
    found = []
    for kind in ("checkpoints", "best"):
        one, other = state_of(whole, kind), state_of(killed, kind)
        found += [
            f"{kind}: {name}"
            for name in sorted(one.keys() | other.keys())
            if one.get(name) != other.get(name)
        ]
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, killed)]
    found += [
        f"results: {name}"
        for name in results[0]
        if name not in ("wall_seconds", "train_seconds", "tokens_per_second", "checksum", "run_id")
        and results[0][name] != results[1][name]
    ]
    for split in ("train", "valid"):
        (scalars, others), (killed_scalars, killed_others) = (
            events_of(folder / split) for folder in (whole, killed)
        )
        (
            scalars.pop("training/tokens_per_second", None),
            killed_scalars.pop("training/tokens_per_second", None),
        )
        found += [
            f"{split}: {tag}"
            for tag in sorted(scalars.keys() | killed_scalars.keys())
            if scalars.get(tag) != killed_scalars.get(tag)
        ]
        found += [
            f"{split}: {tag}"
            for tag in sorted(others.keys() | killed_others.keys())
            if others.get(tag) != killed_others.get(tag)
        ]
    return found


def disturb_training(folder: Path, kills: int, seed: int, longest: float = 8) -> list[str]:
    """Trains twice in a folder that holds `data`: undisturbed, and killed so often.

    Each kill comes after `longest` seconds at the longest.

    Returns:
      What differs in the end.
    """
    rng, given = (
        random.Random(seed),
        [*TRAIN_FLAGS, f"--epochs={math.ceil(0.75 * longest * kills)}"],
    )
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        (folder / name / "data").symlink_to(folder / "data")
    finish(start(folder / "whole", "train.py", *given))
    log = folder / "killed" / "logs" / "run" / "training_log.log"
    for number in range(kills):
        name = SIGNALS[number % len(SIGNALS)]
        process = start(folder / "killed", "train.py", *given)
        if not kill(process, name, "epoch ", rng, longest):
            print("the run has ended before all kills")
            break
        steps = re.findall(r" step (\d[\d,]*)", log.read_text()) if log.exists() else []
        print(
            f"kill {number + 1}: {name.name}, exit {process.returncode},",
            f"after step {steps[-1] if steps else 0}",
            flush=True,
        )
        assert process.returncode in (EXIT_CODES[name], -name), (
            f"{name.name} ends with {process.returncode}"
        )
    finish(start(folder / "killed", "train.py", *given))
    return differences(folder / "whole" / "logs" / "run", folder / "killed" / "logs" / "run")


def disturb_data(folder: Path, kills: int, seed: int) -> list[str]:
    """Makes data of `corpus` in a folder: undisturbed, and in place of old data, killed so often.

    Returns:
      The files that differ in the end.
    """
    rng, old, output_dir = random.Random(seed), folder / "old", folder / "killed_data"
    finish(start(folder, "data_utils.py", *DATA_FLAGS, f"--output_dir={folder / 'data'}"))
    finish(start(folder, "data_utils.py", *DATA_FLAGS, "--batch_size=2", f"--output_dir={old}"))
    for number in range(kills):
        shutil.rmtree(output_dir, ignore_errors=True)
        shutil.copytree(old, output_dir)
        kill(
            start(folder, "data_utils.py", *DATA_FLAGS, f"--output_dir={output_dir}"),
            signal.SIGKILL,
            "corpus",
            rng,
            longest=1.2,
        )
        batch_size = (
            data_utils.read_metadata(output_dir)["batch_size"] if output_dir.exists() else None
        )
        print(
            f"kill {number + 1}: the data are",
            {2: "the old", 4: "the new", None: "not there"}[batch_size],
            flush=True,
        )
    finish(start(folder, "data_utils.py", *DATA_FLAGS, f"--output_dir={output_dir}"))
    one, other = (
        {path.relative_to(made): path.read_bytes() for path in made.rglob("*") if path.is_file()}
        for made in (folder / "data", output_dir)
    )
    return [str(name) for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
