"""What the tests share: a tiny corpus, the data made of it, and a search trained on them."""

import functools
import random
import signal
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import keras  # noqa: E402
from absl import flags  # noqa: E402
from absl.testing import flagsaver  # noqa: E402

import data_utils  # noqa: E402
import tokenization  # noqa: E402
import train  # noqa: E402
from support import corpora, own_text  # noqa: E402

flags.FLAGS(["train.py"])  # the defaults; a test sets its own

BATCH_SIZE, SEQ_LEN, VOCAB_SIZE = 4, 8, 340
TINY = dict(num_layers=2, d_model=8, num_heads=2, d_ffn=16, mem_len=6, cutoffs=["20,60"], epochs=2, warmup_steps=20, max_lr=0.01, log_every=7)


@pytest.fixture(autouse=True)
def heeded_signals():
    """Ctrl-C interrupts and a closed terminal ends, also where pytest was started in the background, by nohup, and after a test of what comes then."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def write_corpus(folder: Path, lines=(150, 40, 30)) -> Path:
    """A folder with train.txt, valid.txt and test.txt: a first-order Markov chain over 300 made-up words."""
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7))) for _ in range(300)]
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


def make_data(corpus_dir: Path, output_dir: Path, tokenizer: tokenization.Settings | Path = tokenization.Settings(vocab_size=VOCAB_SIZE), **settings):
    """Makes tiny data of a folder of texts."""
    data_utils.build(own_text.from_folder(corpus_dir), output_dir, tokenizer, **dict(batch_size=BATCH_SIZE, seq_len=SEQ_LEN) | settings)


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "markov")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory, corpus_dir):
    """Data made of the corpus; not to be changed by a test."""
    output_dir = tmp_path_factory.mktemp("data") / "tfrecords"
    make_data(corpus_dir, output_dir, shards=2)
    return output_dir


def train_in(folder: Path, **settings) -> Path:
    """Trains a tiny network in a folder, with the given flags. Returns the folder of the run."""
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(**TINY | settings):
        patch.chdir(folder)
        try:
            train.main(None)
        finally:
            keras.config.set_dtype_policy("float32")
    return folder / "logs" / settings.get("model_name", "supernet")


def when_called(patch, place, count, act):
    """Lets the `count`-th call of a place in the program begin with `act()`. Returns a list that grows with each call."""
    owner, name = place
    original, calls = getattr(owner, name), []

    def call(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == count:
            act()
        return original(*arguments, **settings)

    patch.setattr(owner, name, call)
    return calls


@pytest.fixture
def run_train(data_dir, tmp_path):
    """A function that trains with the given flags in a folder of the test's own, and returns the folder of the run."""
    return functools.partial(train_in, tmp_path, data_dir=str(data_dir))


@pytest.fixture(scope="session")
def search_run(data_dir, tmp_path_factory):
    """The folder of a finished search; not to be changed by a test."""
    return train_in(tmp_path_factory.mktemp("search"), data_dir=str(data_dir))
