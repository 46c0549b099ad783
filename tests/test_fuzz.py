"""Files that are not what they were, and texts that nobody expects."""

import random
import re
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from conftest import BATCH_SIZE, SEQ_LEN, VOCAB_SIZE, ids_of, make_data, write_corpus

import data_utils
from support import corpora, files, tokenization
from support.cli import InputError
from support.tokenization import EOS, UNK, Settings, Tokenizer
from training.trained_run import TrainedRun


@pytest.fixture(autouse=True)
def no_hang():
    """Ends a test that hangs."""
    signal.alarm(120)
    yield
    signal.alarm(0)


def mutated(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """The content of a file after one of the things that happen to files."""
    start, length = rng.randrange(len(content)), rng.choice([1, 4, 64, 4096])
    kind = rng.randrange(9)
    if kind <= 2:  # a bit has turned
        return (
            content[:start] + bytes([content[start] ^ 1 << rng.randrange(8)]) + content[start + 1 :]
        )
    if kind == 3:  # torn
        return content[:start]
    if kind == 4:  # a block was never written
        return (
            content[:start]
            + bytes(len(content[start : start + length]))
            + content[start + length :]
        )
    if kind == 5:  # a block is missing
        return content[:start] + content[start + length :]
    if kind == 6:  # a block is there twice
        return content[: start + length] + content[start:]
    if kind == 7:  # another file's content
        return rng.choice(others)
    return rng.choice(
        [b"", rng.randbytes(length), content + rng.randbytes(length), rng.randbytes(len(content))]
    )


def mutations(folder, rng, count):
    """Mutates one file of a folder after another, and mends it when the next is asked for."""
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
            assert path.name == "metadata.json"  # of white space
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    assert data_utils.read_metadata(folder) == metadata


def test_records_below_the_hashes_are_read_as_they_were_written_or_not_at_all(data_dir, tmp_path):
    folder, rng, refused = shutil.copytree(data_dir, tmp_path / "data"), random.Random(2), 0
    metadata = data_utils.read_metadata(folder)
    shutil.copytree(folder, tmp_path / "sealed")
    windows = {
        split: list(data_utils.load_windows(folder, split, metadata).as_numpy_iterator())
        for split in corpora.SPLITS
    }
    for split in corpora.SPLITS:
        for path in mutations(folder / split, rng, 30):
            name = str(path.relative_to(folder))
            files.write_json(
                folder / "metadata.json",
                metadata | {"sha256": metadata["sha256"] | {name: files.sha256(path)}},
            )
            try:
                read = list(
                    data_utils.load_windows(
                        folder, split, data_utils.read_metadata(folder)
                    ).as_numpy_iterator()
                )
            except (InputError, tf.errors.DataLossError):
                refused += 1
            else:
                originals = {window.tobytes() for window in windows[split]}
                assert len(read) == len(windows[split]) and all(
                    window.tobytes() in originals for window in read
                )
    assert refused > 75


def test_a_file_that_belongs_elsewhere_is_named(data_dir, tmp_path):
    folder = shutil.copytree(data_dir, tmp_path / "data")
    one, other = sorted((folder / "train").iterdir())
    for foreign in (folder / "train" / "00002-of-00002.tfrecord", folder / "valid" / "notes.txt"):
        shutil.copy(one, foreign)
        with pytest.raises(InputError, match=f"{foreign} does not belong there"):
            data_utils.read_metadata(folder)
        foreign.unlink()
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    with pytest.raises(InputError, match=f"{one} is missing or damaged"):
        data_utils.read_metadata(folder)


def test_every_mutation_of_a_run_is_named_or_without_effect(search_run, tmp_path):
    folder = tmp_path / "logs" / "run"
    shutil.copytree(
        search_run,
        folder,
        ignore=shutil.ignore_patterns("events*", "training_log.log", "checkpoints"),
    )

    def content():
        run = TrainedRun(folder)
        model, step = run.network()
        return (
            run.flags,
            run.data,
            run.architecture,
            run.tokenizer_path.read_bytes(),
            model.tau,
            step,
            [weight.numpy().tobytes() for weight in model.weights],
        )

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
    "what nobody sees": "soft\u00adhyphen zero\u200bwidth mark\ufeff \u200b\n" * 20,
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
        stream, entry = (
            data_utils.load_stream(tmp_path / "data", split, metadata),
            metadata["splits"][split],
        )
        open_end = text[-1] not in "\r\n"
        line_ends = len(re.findall("\r\n|\r|\n", text)) + open_end
        assert (
            np.sum(stream == EOS) == line_ends
            and UNK not in stream
            and entry["unknown_characters"] == 0
        )
        whole = text.removeprefix("\ufeff")
        assert stream.tolist() == [
            *ids_of(tokenizer, whole, True).tolist(),
            *[EOS] * open_end,
        ]
        assert entry["words"] == len(whole.replace("▁", " ").split())


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_tokenizer_learns_from_any_text_or_says_why_not(text, tmp_path):
    (tmp_path / "text.txt").write_bytes(text.encode())
    try:
        model = tokenization.train_tokenizer(
            corpora.whole_file(tmp_path / "text.txt"), Settings(vocab_size=290)
        )
    except InputError as error:
        assert "--vocab_size=290 does not suit text.txt" in str(error) and "\n" not in str(error)
    else:
        (tmp_path / "tokenizer.model").write_bytes(model)
        assert Tokenizer(tmp_path / "tokenizer.model").vocab_size == 290


@pytest.mark.parametrize(
    "content, message",
    [
        (b"good\n\xff\xfe\n", "line 2, byte 1"),
        (b"\xed\xa0\x80 a lone surrogate\n", "line 1, byte 1"),
        (b"good\nbroken \xe2\x82", "line 2, byte 8"),
        ("UTF-16".encode("utf-16"), "is UTF-16: iconv"),
        (b"good\n\0\n", "line 2, byte 1"),
        (b"", "is empty"),
        (b" \n\t\r\n\x0b\n\xe2\x80\xa8\n", "is empty"),
    ],
)
def test_what_is_not_text_is_named(content, message, tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    (folder / "test.txt").write_bytes(content)
    with pytest.raises(InputError, match=f"test.txt .*{message}"):
        make_data(folder, tmp_path / "data", batch_size=2)
    assert not (tmp_path / "data").exists()


def test_one_line_of_12_megabytes(data_dir, tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    line = (folder / "valid.txt").read_text().replace("\n", " ")
    repeats = 12_000_000 // len(line) + 1
    (folder / "train.txt").write_text(line * repeats)
    make_data(
        folder,
        tmp_path / "data",
        data_dir / "tokenizer.model",
        batch_size=BATCH_SIZE * 8,
        seq_len=SEQ_LEN * 4,
    )
    metadata = data_utils.read_metadata(tmp_path / "data")
    once = ids_of(Tokenizer(data_dir / "tokenizer.model"), line, False)
    entry, counts = (
        metadata["splits"]["train"],
        np.loadtxt(tmp_path / "data" / "unigram_counts.txt"),
    )
    assert entry["bytes"] > 12_000_000 and entry["words"] == len(line.split()) * repeats
    assert counts.tolist() == (np.bincount(once, minlength=VOCAB_SIZE) * repeats).tolist()
