"""From text to windows, against plain loops."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from conftest import (
    BATCH_SIZE,
    PROJECT,
    SEQ_LEN,
    VOCAB_SIZE,
    ids_of,
    make_data,
    when_called,
    write_corpus,
)

import data_utils
from support import corpora, files, output_folder, tokenization, versions
from support.errors import InputError
from support.tokenization import EOS, PAD, UNK, Tokenizer, TokenizerSettings

WIKITEXT2 = Path(
    os.environ.get("WIKITEXT2") or PROJECT.parent / "shared" / "wikitext-2").absolute()
needs_wikitext2 = pytest.mark.skipif(
    not WIKITEXT2.exists(), reason="the environment variable WIKITEXT2 names no folder with it")


def plain_rows(stream, batch_size):
    """The B rows of a stream: as equal as can be, longer ones first."""
    rows, start = [], 0
    for b in range(batch_size):
        length = len(stream) // batch_size + (1 if b < len(stream) % batch_size else 0)
        rows.append(stream[start : start + length])
        start += length
    return rows


def plain_windows(stream, batch_size, seq_len):
    """Context batching as a plain loop."""
    rows, windows, s = plain_rows(stream, batch_size), [], 0
    while any(s * seq_len + 1 < len(row) for row in rows):
        positions = range(s * seq_len, (s + 1) * seq_len + 1)
        windows.append([[row[p] if p < len(row) else PAD for p in positions] for row in rows])
        s += 1
    return windows


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
@pytest.mark.parametrize("seq_len", [1, 2, 3, 7])
def test_windows_equal_a_plain_loop_for_every_remainder(batch_size, seq_len):
    for num_tokens in range(batch_size * 2, batch_size * (3 * seq_len + 2)):
        stream = np.arange(1, num_tokens + 1, dtype=np.int32)
        windows = list(data_utils.windows(stream, batch_size, seq_len))
        assert np.array_equal(windows, plain_windows(stream.tolist(), batch_size, seq_len))
        assert len(windows) == data_utils.num_windows(num_tokens, batch_size, seq_len)
        by_row = np.concatenate(windows, axis=1).reshape(batch_size, -1, seq_len + 1)
        targets = by_row[:, :, 1:].ravel()
        expected = [token for row in plain_rows(stream.tolist(), batch_size) for token in row[1:]]
        # Each token after the first of its row is a target once.
        assert sorted(targets[targets != 0]) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3, 40])
@pytest.mark.parametrize("lead", [0, 1, 3])
def test_scoring_windows_score_each_token_once_after_its_own_past(batch_size, lead):
    T = 3
    for num_tokens in range(2, 60):
        stream = np.arange(1, num_tokens + 1, dtype=np.int32)
        scored, read = [], [[] for _ in range(batch_size)]
        for window, rows in data_utils.scoring_windows(stream, batch_size, T, lead):
            assert window.shape == (batch_size, T + 1) and window.dtype == np.int32
            for row in range(batch_size):
                targets = [token for token in window[row, 1:] if token]
                assert all(b == a + 1 for a, b in zip(window[row], targets))
                if rows[row] and targets:
                    scored += targets
                    first = window[row, 0]
                    past = min(lead * T, first - 1)  # tokens in the windows before this one
                    read_last = read[row][len(read[row]) - past :]
                    assert read_last == list(range(first - past, first)), "not read before"
                read[row] += window[row, :-1].tolist()
        assert sorted(scored) == list(range(2, num_tokens + 1))


def test_records_hold_the_windows_in_order(tmp_path):
    for num_tokens in range(60, 75):  # every remainder of 3 rows and of 4 tokens
        stream = np.arange(1, num_tokens + 1, dtype=np.int32)
        folder = tmp_path / str(num_tokens)
        folder.mkdir()
        data_utils.write_records(stream, 3, 4, folder / "train")
        assert (folder / "train" / "00000-of-00001.tfrecord").is_file()  # the name in old data
        metadata = {"batch_size": 3, "seq_len": 4}
        loaded = list(data_utils.load_windows(folder, "train", metadata).as_numpy_iterator())
        assert np.array_equal(loaded, plain_windows(stream.tolist(), 3, 4))
        assert loaded[0].dtype == np.int32
        assert np.array_equal(data_utils.load_stream(folder, "train", metadata), stream)


def test_metadata_describe_the_files(data_dir, corpus_dir):
    metadata = data_utils.read_metadata(data_dir)
    assert metadata["corpus"] == "markov" and metadata["vocab_size"] == VOCAB_SIZE
    assert (metadata["batch_size"], metadata["seq_len"]) == (BATCH_SIZE, SEQ_LEN)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "tokenizer.model"))
    for split in corpora.SPLITS:
        text = (corpus_dir / f"{split}.txt").read_text()
        tokens = [token for line in text.splitlines() for token in pieces.encode(line)]
        entry = metadata["splits"][split]
        assert entry["words"] == len(text.split()) and entry["bytes"] == len(text.encode())
        assert entry["tokens"] == len(tokens)
        windows = list(data_utils.load_windows(data_dir, split, metadata).as_numpy_iterator())
        assert entry["steps"] == len(windows)
        assert sum((window[:, 1:] != PAD).sum() for window in windows) == len(tokens) - BATCH_SIZE
        if split == "train":
            counts = np.bincount(tokens, minlength=VOCAB_SIZE)
            assert np.loadtxt(data_dir / "unigram_counts.txt").tolist() == counts.tolist()


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_data_depend_on_the_text_alone_and_replace_old_data(
        with_tokenizer, corpus_dir, data_dir, tmp_path):
    """Not on line ends, byte order marks or the folder; a trained tokenizer may be used again."""
    shutil.copytree(corpus_dir, tmp_path / "corpus")
    ends = {"train": ("", "\r\n"), "valid": ("\ufeff", "\r\n"), "test": ("", "\r")}
    for split, (mark, line_end) in ends.items():
        path = tmp_path / "corpus" / f"{split}.txt"
        path.write_bytes((mark + path.read_text().replace("\n", line_end)).encode())
    made = tmp_path / "made" / "data"
    make_data(corpus_dir, made, data_dir / "tokenizer.model", batch_size=2)
    assert data_utils.read_metadata(made)["batch_size"] == 2
    make_data(tmp_path / "corpus", made, *[data_dir / "tokenizer.model"] * with_tokenizer)
    found, expected = files_of(made), files_of(data_dir)
    assert {name for name in expected if found.pop(name) != expected[name]} == {"metadata.json"}
    assert not found and [path.name for path in made.parent.iterdir()] == ["data"]
    found, expected = data_utils.read_metadata(made), data_utils.read_metadata(data_dir)
    for split in corpora.SPLITS:
        del found["splits"][split]["text_sha256"], expected["splits"][split]["text_sha256"]
    differ = {key for key in expected if found[key] != expected[key]}
    assert differ == ({"corpus", "tokenizer"} if with_tokenizer else {"corpus"})


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}


def test_the_commit_is_marked_if_files_differ(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", tmp_path, "init", "--quiet"], check=True)  # around it: not its own
    assert versions.commit(folder) is None
    (folder / "file").write_text("one")
    for command in (["init", "--quiet"], ["add", "file"], ["commit", "--quiet", "--message=one"],
                    ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert len(head) == 40 and versions.commit(folder) == head
    (folder / "file").write_text("two")
    assert versions.commit(folder) == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert versions.commit(folder) is None


PLACES = [((tokenization, "train_tokenizer"), 1), ((data_utils, "Stream"), 3),
          ((data_utils, "write_records"), 2), ((Path, "rename"), 2)]


@pytest.mark.parametrize("place, count", PLACES)
def test_a_build_that_fails_leaves_the_old_data(
        place, count, corpus_dir, data_dir, tmp_path, monkeypatch):
    shutil.copytree(data_dir, tmp_path / "data")
    before = files_of(tmp_path)

    def fail():
        raise KeyboardInterrupt

    when_called(monkeypatch, place, count, fail)
    with pytest.raises(KeyboardInterrupt):
        make_data(corpus_dir, tmp_path / "data", batch_size=2)
    assert files_of(tmp_path) == before


def test_two_builds_of_one_folder_are_refused(corpus_dir, data_dir, tmp_path):
    given = corpus_dir, tmp_path / "data", data_dir / "tokenizer.model"
    being_made = pytest.raises(InputError, match="data is being made by another process")
    with pytest.raises(ZeroDivisionError), output_folder.replaced(tmp_path / "data"):
        with being_made:
            make_data(*given)
        raise ZeroDivisionError
    make_data(*given)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("place, count", PLACES)
def test_the_build_after_a_killed_one_restores_the_old_data_first(
        place, count, corpus_dir, data_dir, tmp_path, monkeypatch):
    data = Path(shutil.copytree(data_dir, tmp_path / "made" / "data"))

    def kill():
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # no time to tidy up
        patch.setattr(output_folder, "_restore", lambda *_: None)
        when_called(patch, place, count, kill)
        make_data(corpus_dir, data, batch_size=2)
    assert data.exists() == (place[1] != "rename")
    assert (data.parent / ".data.partial").exists()
    with pytest.raises(InputError):
        make_data(corpus_dir, data, TokenizerSettings(vocab_size=100_000))
    assert files_of(data) == files_of(data_dir)
    make_data(corpus_dir, data, batch_size=2)
    assert data_utils.read_metadata(data)["batch_size"] == 2
    assert [path.name for path in data.parent.iterdir()] == ["data"]


def test_the_blocks_of_a_text_make_one_stream(corpus_dir, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(data_utils, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(corpora, "BREAK_BYTES", 200)
    tokenizer = Tokenizer(data_dir / "tokenizer.model")
    lines = (corpus_dir / "train.txt").read_text().splitlines()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "tokenizer.model"))
    text = corpora.whole_file(corpus_dir / "train.txt")
    for add_eos in (False, True):
        stream = data_utils.Stream(tmp_path / "stream", text, tokenizer, add_eos)
        expected = [token for line in lines for token in pieces.encode(line) + [EOS] * add_eos]
        assert stream[:].tolist() == expected and len(stream) == len(expected)
        assert stream.words == sum(len(line.split()) for line in lines)
        assert stream.unknown_characters == 0
        counts = np.bincount(expected, minlength=VOCAB_SIZE)
        assert stream.counts(VOCAB_SIZE).tolist() == counts.tolist()
        new_ids = np.random.default_rng(0).permutation(VOCAB_SIZE)
        stream.renumber(new_ids)
        assert stream[:].tolist() == new_ids[expected].tolist()


@pytest.mark.parametrize(
    "line", ["word " * 300_000, "漢字かな" * 120_000, "x" * 1_500_000],
    ids=["spaces", "cjk", "one word"])
def test_a_long_line_costs_no_character(line, data_dir, tmp_path):
    (tmp_path / "text.txt").write_text(line)
    tokenizer = Tokenizer(data_dir / "tokenizer.model")
    text = corpora.whole_file(tmp_path / "text.txt")
    stream = data_utils.Stream(tmp_path / "stream", text, tokenizer, False)
    decoded = "".join(tokenizer.decode(stream[:].tolist()))
    if " " in line:
        assert decoded == line.strip() and stream.words == len(line.split())
    else:  # a cut adds a space
        assert decoded.replace(" ", "") == line
        assert stream.words - 1 <= len(line.encode()) // data_utils.BLOCK_BYTES


@pytest.mark.parametrize("metadata", [None, "{}", '{"mine": 1}'])
def test_files_of_the_user_are_never_deleted(metadata, corpus_dir, data_dir, tmp_path, monkeypatch):
    """The build is refused before all work."""
    monkeypatch.setattr(corpora, "checked_sha256", None)
    (tmp_path / "thesis.tex").write_text("years of work")
    if metadata:
        (tmp_path / "metadata.json").write_text(metadata)
    notes = shutil.copytree(data_dir, tmp_path / "data") / "train" / "notes.txt"
    notes.write_text("mine")
    before = files_of(tmp_path)
    for output_dir, message in [
            (tmp_path, "contains files that this program did not write"),
            (tmp_path / "data", "train/notes.txt"),
            (tmp_path / "thesis.tex", "thesis.tex is a file: choose another"),
            (Path("/proc"), "/proc is a mount point and cannot be replaced: choose a folder insi")]:
        with pytest.raises(InputError, match=message):
            make_data(corpus_dir, output_dir)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("texts, tokenizer, message", [
    ({"train": b""}, None, "train.txt is empty"),
    ({"train": b" \n\n"}, None, "train.txt is empty"),
    ({"test": b""}, None, "test.txt is empty"),
    ({"test": b" \n\t\r\n\x0b\n\xe2\x80\xa8\n"}, None, "test.txt is empty"),
    ({"test": b"caf\xe9\n"}, None, "test.txt is not UTF-8: line 1"),
    ({"valid": b"few words\n"}, None, "valid.txt is too short: .* needs 36"),
    ({}, TokenizerSettings(vocab_size=100_000),
     "--vocab_size=100000 is too large for train.txt: at most"),
    ({}, Path("missing.model"), "missing.model")])
def test_bad_text_is_refused_in_one_line(texts, tokenizer, message, tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    for split, text in texts.items():
        (folder / f"{split}.txt").write_bytes(text)
    with pytest.raises((InputError, OSError), match=message) as error:
        make_data(folder, tmp_path / "data", *[tokenizer] if tokenizer else [])
    assert "\n" not in str(error.value) and not (tmp_path / "data").exists()


def test_missing_data_are_named(data_dir, tmp_path):
    """test_fuzz.py damages them. Data of earlier versions with several files count as missing."""
    with pytest.raises(InputError, match="no data in .*/data: run ./make_data.sh first"):
        data_utils.read_metadata(tmp_path / "data")
    data = shutil.copytree(data_dir, tmp_path / "data")
    record = data / "valid" / data_utils.RECORDS
    record.rename(record.with_name("00000-of-00002.tfrecord"))
    named = pytest.raises(InputError, match=f"{record} is missing or damaged: run ./make_data.sh")
    with named:
        data_utils.read_metadata(data)
    metadata = files.read_json(data / "metadata.json")
    hashes = metadata["sha256"]
    hashes["valid/00000-of-00002.tfrecord"] = hashes.pop(f"valid/{data_utils.RECORDS}")
    files.write_json(data / "metadata.json", metadata)
    with named:
        data_utils.read_metadata(data)
    files.write_json(data / "metadata.json", {"sha256": {}})
    with pytest.raises(InputError, match="it lacks add_eos: delete .* and run ./make_data.sh"):
        data_utils.read_metadata(data)


@needs_wikitext2
def test_wikitext2_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "SAMPLE_BYTES", 4 << 20)  # training on all of it takes 12 s
    data = tmp_path / "data"
    make_data(WIKITEXT2, data, TokenizerSettings(vocab_size=12_000), batch_size=32, seq_len=32)
    splits = data_utils.read_metadata(data)["splits"]
    expected = {"train": (2_051_910, 10_797_148, 0), "valid": (213_886, 1_121_681, 0),
                "test": (241_211, 1_256_449, 0)}
    assert expected == {
        split: (entry["words"], entry["bytes"], entry["unknown_characters"])
        for split, entry in splits.items()}
    tokenizer = Tokenizer(data / "tokenizer.model")
    package = sentencepiece.SentencePieceProcessor(model_file=str(data / "tokenizer.model"))
    characters = "".join(sorted(set((WIKITEXT2 / "train.txt").read_text()) - {"\n", "\ufeff"}))
    back = "".join(tokenizer.decode(ids_of(tokenizer, characters, False)))
    assert back.replace(" ", "") == package.normalize(characters).replace("▁", "")
    assert len(characters) > 250
    assert "?" in "".join(tokenizer.decode(ids_of(tokenizer, "Who was the king?", False)))
    counts = np.loadtxt(data / "unigram_counts.txt")
    assert np.all(np.diff(counts[4:]) <= 0) and counts.sum() == splits["train"]["tokens"]


@needs_wikitext2
def test_wikitext2_by_words_is_the_task_of_the_published_tables(tmp_path):
    settings = TokenizerSettings("word", None, "identity")
    make_data(WIKITEXT2, tmp_path / "data", settings, batch_size=32, seq_len=32, add_eos=True)
    metadata = data_utils.read_metadata(tmp_path / "data")
    streams = {split: data_utils.load_stream(tmp_path / "data", split, metadata)
               for split in corpora.SPLITS}
    lengths = {split: len(stream) for split, stream in streams.items()}
    assert lengths == {"train": 2_088_628, "valid": 217_646, "test": 245_569}
    everything = np.unique(np.concatenate(list(streams.values())))
    assert len(everything) == len(np.unique(streams["train"])) == 33_278
    assert UNK not in everything
