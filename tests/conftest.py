"""Fixtures of the tests: a tiny corpus, its data, trainers, and a finished search."""

import clean  # noqa: F401, I001

import dataclasses
import fcntl
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
from tiny import BATCH_SIZE, NETWORK, SEQ_LEN, TRAINING, VOCAB_SIZE

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from absl import flags  # noqa: E402
from absl.testing import flagsaver  # noqa: E402

import data_utils  # noqa: E402
import export  # noqa: E402
import train  # noqa: E402
from support import corpora, own_text, tokenization  # noqa: E402
from training.settings import Settings  # noqa: E402
from training.trained_run import TrainedRun  # noqa: E402
from training.trainer import Trainer  # noqa: E402

flags.FLAGS(["train.py"])  # the defaults; a test sets its own

TINY = NETWORK | TRAINING


def pytest_configure(config):
    """Starts one server of warm processes (warm.py) for all workers of pytest, unless COLD=1."""
    if not hasattr(config, "workerinput") and not os.environ.get("COLD"):
        config.warm_server = warm.start()


def pytest_unconfigure(config):
    if hasattr(config, "warm_server"):
        warm.stop(config.warm_server)


# First, what shows a newcomer in a minute that the installation works: from a text to results, and
# the fast tests. Then the slowest, so that no worker ends with one.
FIRST = (
    "test_scripts.py::test_from_text_to_results", "test_files.py", "test_cli.py", "test_corpora.py",
    "test_downloads.py", "test_cutoffs.py", "test_adaptive_softmax.py", "test_tokenization.py")
LONGEST = (
    "test_colab.py", "test_chaos.py", "test_distribute.py", "test_bench.py", "test_disk.py",
    "test_train.py", "test_resume.py", "test_damage.py")


def pytest_collection_modifyitems(items):
    """Sorts the tests by FIRST and LONGEST."""

    def place(item) -> int:
        name = item.nodeid.split("/")[-1]
        order = [*FIRST, *LONGEST]
        return next((n for n, begun in enumerate(order) if name.startswith(begun)), len(order))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test starts in a folder of its own, away from the user's data/ and logs/."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def usual_signals():
    """SIGINT and SIGHUP have their usual effect even if pytest was started by nohup."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# --------------------------------------------------------------------------------------------------
# The corpus and the data


def write_corpus(folder: Path, lines=(150, 40, 30)) -> Path:
    """A folder with train.txt, valid.txt and test.txt: a Markov chain over 300 made-up words."""
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(300)]
    following = {word: rng.choices(words, k=4) for word in words}
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in zip(corpora.SPLITS, lines):
        text = []
        for _ in range(count):
            line = [rng.choice(words)]
            for _ in range(rng.randint(3, 15)):
                line.append(rng.choice(following[line[-1]]))
            text.append(" ".join(line).capitalize() + " .\n")
        (folder / f"{split}.txt").write_text("".join(text))
    return folder


TOKENIZER = tokenization.TokenizerSettings(vocab_size=VOCAB_SIZE)


def make_data(corpus_dir: Path, output_dir: Path,
              tokenizer: tokenization.TokenizerSettings | Path = TOKENIZER, **settings):
    """Makes tiny data of a folder of texts."""
    sizes = {"batch_size": BATCH_SIZE, "seq_len": SEQ_LEN}
    corpus = own_text.from_folder(corpus_dir)
    data_utils.build(corpus, output_dir, tokenizer, **sizes | settings)


def ids_of(tokenizer: tokenization.Tokenizer, text: str, add_eos: bool) -> np.ndarray:
    """The ids of a text, int32 [N]."""
    return tokenizer.tokenize(tf.constant(text), add_eos)[0].numpy()


def once(tmp_path_factory, name: str, fill) -> Path:
    """A read-only folder that `fill(folder)` fills once for all workers of pytest."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, partial = root / name, root / f"{name}.partial"
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            fill(partial)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory):
    """A read-only folder of texts."""
    folder = once(tmp_path_factory, "corpus", lambda folder: write_corpus(folder / "markov"))
    return folder / "markov"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, corpus_dir):
    """Data made of the corpus; not to be changed by a test."""
    make = functools.partial(make_data, corpus_dir)
    return once(tmp_path_factory, "data", lambda folder: make(folder / "tfrecords")) / "tfrecords"


# --------------------------------------------------------------------------------------------------
# Trainers and trainings


def tiny_settings(**changes) -> Settings:
    """The settings of the flags TINY, with changes."""
    own = {"architecture": ("search",) * NETWORK["num_layers"], "cutoffs": (20, 60)}
    no_settings = ("num_layers", "log_every")
    of_flags = {name: value for name, value in TINY.items() if name not in no_settings}
    return Settings(**of_flags | own | changes)


TRAINERS = {}  # the trainers of this process, and their variables with initial values


def shared_trainer(data_dir, metadata, settings, jit_compile=False, strategy=None,
                   steps_per_execution=20) -> Trainer:
    """A trainer like a new one, but traced only once for all tests with the same settings."""
    same = (metadata["sha256"], dataclasses.replace(settings, max_steps=None), jit_compile,
            steps_per_execution, keras.config.dtype_policy().name)
    if repr(same) not in TRAINERS:
        trainer = Trainer(
            data_dir, metadata, settings, jit_compile, strategy, steps_per_execution)
        parts = tf.train.TrackableView(trainer.state).descendants()
        variables = [part for part in parts if isinstance(part, tf.Variable)]
        TRAINERS[repr(same)] = trainer, [(variable, variable.numpy()) for variable in variables]
    trainer, values = TRAINERS[repr(same)]
    for variable, value in values:
        variable.assign(value)
    trainer.settings, trainer._data_dir = settings, data_dir
    trainer.last_step = min(settings.max_steps or trainer.total_steps, trainer.total_steps)
    trainer._windows = trainer._memory = trainer._next_window = None
    trainer._last_look = time.monotonic()
    return trainer


@pytest.fixture
def trainer_of(data_dir):
    """A function: a trainer on the tiny data, with changes of the tiny settings."""
    def trainer(fresh=False, **changes):
        make = Trainer if fresh else shared_trainer
        return make(data_dir, data_utils.read_metadata(data_dir), tiny_settings(**changes))

    return trainer


def train_in(folder: Path, fresh: bool = False, **settings) -> Path:
    """Trains a tiny network in a folder.

    Args:
      folder: the parent of logs/.
      fresh: trace a trainer of its own.
      **settings: flags of train.py.

    Returns:
      The folder of the run.
    """
    flag_values = TINY | settings
    if settings.get("architecture", "random") != "random" and "num_layers" not in settings:
        del flag_values["num_layers"]  # given by the architecture
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(**flag_values):
        patch.chdir(folder)
        if not fresh:
            patch.setattr(train, "Trainer", shared_trainer)
        try:
            train.main(None)
        finally:
            keras.config.set_dtype_policy("float32")
    return folder / "logs" / settings.get("model_name", "supernet")


@pytest.fixture
def run_train(data_dir, tmp_path):
    """A function: `train_in` the folder of the test, with some flags."""
    return functools.partial(train_in, tmp_path, data_dir=str(data_dir))


@pytest.fixture(scope="session")
def search_run(data_dir, tmp_path_factory):
    """The read-only folder of a finished search."""
    search = functools.partial(train_in, data_dir=str(data_dir))
    return once(tmp_path_factory, "search", search) / "logs" / "supernet"


@pytest.fixture(scope="session")
def saved_model(search_run, tmp_path_factory):
    """The read-only folder of a SavedModel of that search."""
    def save(folder):
        export.save(TrainedRun(search_run), None, tf.float32, folder / "par" / "1")

    return once(tmp_path_factory, "export", save) / "par" / "1"


@pytest.fixture
def begun(search_run, tmp_path):
    """The folder of a finished search that a test may resume or damage."""
    return Path(shutil.copytree(search_run, tmp_path / "logs" / "supernet"))


def copy_project(to: Path, *left_out: str) -> Path:
    """Copies the project without generated files and without those `left_out`."""
    left_out = (".git", ".venv", "data", "logs", "__pycache__", ".*_cache", *left_out)
    return Path(shutil.copytree(PROJECT, to, ignore=shutil.ignore_patterns(*left_out)))


@pytest.fixture
def repository(tmp_path):
    """A repository to clone."""
    copy = copy_project(tmp_path / "origin")
    git = ["git", "-C", copy, "-c", "user.name=test", "-c", "user.email=test"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    return copy


OFFLINE = {name: "http://127.0.0.1:9"
           for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}


@pytest.fixture
def offline(monkeypatch):
    """No network for this process."""
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def when_called(patch, place, count, act):
    """Calls `act()` before the `count`-th call of a function of the program.

    Returns:
      A list that grows with each call.
    """
    owner, name = place
    original, calls = getattr(owner, name), []

    def call(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == count:
            act()
        return original(*arguments, **settings)

    patch.setattr(owner, name, call)
    return calls
