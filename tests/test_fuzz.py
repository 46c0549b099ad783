"""Damaged files, and unexpected texts."""

import random
import re
import shutil
import signal

import numpy as np
import pytest
from conftest import ids_of, make_data

import data_utils
from support import corpora, tokenization
from support.errors import InputError
from support.tokenization import EOS, UNK, Tokenizer, TokenizerSettings
from training.trained_run import TrainedRun


@pytest.fixture(autouse=True)
def no_hang():
    """Ends a test that hangs."""
    signal.alarm(120)
    yield
    signal.alarm(0)


def mutated(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A file's content after one of the accidents that happen to files."""
    start, length = rng.randrange(len(content)), rng.choice([1, 4, 64, 4096])
    end = min(start + length, len(content))
    flipped = bytes([content[start] ^ 1 << rng.randrange(8)])
    return rng.choice([
        *3 * [content[:start] + flipped + content[start + 1:]],
        content[:start],  # torn
        content[:start] + bytes(end - start) + content[end:],  # a block was never written
        content[:start] + content[end:],  # a block is missing
        content[:end] + content[start:],  # a block is repeated
        rng.choice(others),
        rng.choice([b"", rng.randbytes(length), content + rng.randbytes(length),
                    rng.randbytes(len(content))])])


def mutations(folder, rng, count):
    """Mutates one file of a folder after another, and repairs it before the next."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    contents = {path: path.read_bytes() for path in paths}
    while count:
        path = rng.choice(paths)
        changed = mutated(contents[path], list(contents.values()), rng)
        if changed != contents[path]:
            path.write_bytes(changed)
            yield path
            path.write_bytes(contents[path])
            count -= 1


def test_every_mutation_of_a_data_folder_is_named(data_dir, tmp_path):
    folder = shutil.copytree(data_dir, tmp_path / "data")
    metadata = data_utils.read_metadata(folder)
    for path in mutations(folder, random.Random(1), 400):
        try:
            assert data_utils.read_metadata(folder) == metadata
            assert path.name == "metadata.json"  # its white space
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    assert data_utils.read_metadata(folder) == metadata


def test_every_mutation_of_a_run_is_named_or_without_effect(search_run, tmp_path):
    left_out = shutil.ignore_patterns("events*", "training_log.log", "checkpoints")
    folder = shutil.copytree(search_run, tmp_path / "logs" / "run", ignore=left_out)

    def content():
        run = TrainedRun(folder)
        model, step = run.network()
        weights = [weight.numpy().tobytes() for weight in model.weights]
        vocabulary = run.tokenizer.vocabulary
        return run.flags, run.data, run.architecture, vocabulary, model.tau, step, weights

    before, refused = content(), 0
    for path in mutations(folder, random.Random(3), 60):
        try:
            assert content() == before
        except InputError as error:
            assert path.name in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 40


LINES = ["First, a line.", "", "   ", "and another @-@ one", "The end, without one"]
TEXTS = {
    "empty lines": "\n\n".join(LINES * 9),
    "only white space in most lines": "\n \n\t\n".join(LINES * 9),
    "invisible characters": "soft\u00adhyphen zero\u200bwidth mark\ufeff \u200b\n" * 20,
    "CRLF": "\r\n".join(LINES * 9),
    "BOM": "\ufeff" + "\n".join(LINES * 9),
    "control characters": "\x07\x1b[31m\x7f\n".join(LINES * 9),
    "form feeds": "\f\v\x1c\x85\u2028\u2029".join(LINES * 9),
    "Arabic and Hebrew": "مرحبا بالعالم\nשלום עולם\n\u202eabc\u202c\n" * 15,
    "Chinese, Japanese, Korean": "漢字かな交じり文。\n한국어 문장입니다\n" * 15,
    "emoji": "👩‍👩‍👧‍👦 🇩🇪 ☃️\n" * 20,
    "combining": "e\u0301\u0302\u0303 \u0301 " * 100 + "\n",
    "not a character": "\uffff\ufffe\U0010ffff \ue000\n" * 40,
    "ligatures that become many letters": "ﷺ ﬃ ½\n" * 40,
    "one long word": "x" * 20_000,
    "the special pieces": "[PAD] [EOS] <unk> <s> [UNK] ▁\n" * 20,
}


@pytest.mark.parametrize("first", range(0, len(TEXTS), len(corpora.SPLITS)))
def test_any_text_becomes_tokens_without_an_unknown_one(first, data_dir, tmp_path):
    texts = dict(zip(corpora.SPLITS, [*TEXTS.values()][first:]))
    for split, text in texts.items():
        (tmp_path / f"{split}.txt").write_bytes(text.encode())
    model = data_dir / "tokenizer.model"
    make_data(tmp_path, tmp_path / "data", model, batch_size=2, add_eos=True)
    metadata, tokenizer = data_utils.read_metadata(tmp_path / "data"), Tokenizer(model)
    for split, text in texts.items():
        stream = data_utils.load_stream(tmp_path / "data", split, metadata)
        entry, open_end = metadata["splits"][split], text[-1] not in "\r\n"
        assert np.sum(stream == EOS) == len(re.findall("\r\n|\r|\n", text)) + open_end
        assert UNK not in stream and entry["unknown_characters"] == 0
        whole = text.removeprefix("\ufeff")
        assert stream.tolist() == [*ids_of(tokenizer, whole, True).tolist(), *[EOS] * open_end]
        assert entry["words"] == len(whole.replace("▁", " ").split())


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_tokenizer_learns_from_any_text_or_says_why_not(text, tmp_path):
    (tmp_path / "text.txt").write_bytes(text.encode())
    try:
        model = tokenization.train_tokenizer(
            corpora.whole_file(tmp_path / "text.txt"), TokenizerSettings(vocab_size=290))
    except InputError as error:
        assert re.search(r"--vocab_size=290 is too \w+ for text.txt", str(error))
        assert "\n" not in str(error)
    else:
        (tmp_path / "tokenizer.model").write_bytes(model)
        assert Tokenizer(tmp_path / "tokenizer.model").vocab_size == 290
