import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import corpora
import data_utils
import tokenization
from cli import InputError
from conftest import BATCH_SIZE, PROJECT, SEQ_LEN, VOCAB_SIZE, when_called, write_corpus
from tokenization import PAD, UNK

WIKITEXT2 = next((folder for folder in (PROJECT / "data" / "wikitext-2", PROJECT.parent / "shared" / "wikitext-2") if folder.exists()), None)


def plain_rows(stream, batch_size):
    """The B rows of a stream: as equal as can be, longer ones first."""
    rows, start = [], 0
    for b in range(batch_size):
        length = len(stream) // batch_size + (1 if b < len(stream) % batch_size else 0)
        rows.append(stream[start:start + length])
        start += length
    return rows


def plain_windows(stream, batch_size, seq_len):
    """Context batching as a plain loop."""
    rows, windows, s = plain_rows(stream, batch_size), [], 0
    while any(s * seq_len + 1 < len(row) for row in rows):
        windows.append([[row[p] if p < len(row) else 0 for p in range(s * seq_len, (s + 1) * seq_len + 1)] for row in rows])
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
        targets = np.concatenate(windows, axis=1).reshape(batch_size, -1, seq_len + 1)[:, :, 1:].ravel()
        expected = [token for row in plain_rows(stream.tolist(), batch_size) for token in row[1:]]
        assert sorted(targets[targets != 0]) == expected  # each token after the first of its row, once


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
                    past = min(lead * T, window[row, 0] - 1)  # what the windows before this one in the text hold
                    assert read[row][len(read[row]) - past:] == list(range(window[row, 0] - past, window[row, 0])), "not read before"
                read[row] += window[row, :-1].tolist()
        assert sorted(scored) == list(range(2, num_tokens + 1))


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5, 50])
def test_shards_lose_nothing_and_keep_order(shards, tmp_path):
    for num_tokens in range(60, 75):
        stream = np.arange(1, num_tokens + 1, dtype=np.int32)
        folder = tmp_path / str(num_tokens) / "train"
        folder.parent.mkdir()
        paths = data_utils.write_records(stream, 3, 4, shards, folder)
        windows = plain_windows(stream.tolist(), 3, 4)
        assert len(paths) == min(shards, len(windows))
        metadata = {"batch_size": 3, "seq_len": 4, "sha256": {f"train/{path.name}": "" for path in paths}}
        loaded = list(data_utils.load_windows(folder.parent, "train", metadata).as_numpy_iterator())
        assert np.array_equal(loaded, windows) and loaded[0].dtype == np.int32
        assert np.array_equal(data_utils.load_stream(folder.parent, "train", metadata), stream)


def test_metadata_tells_what_the_files_hold(data_dir, corpus_dir):
    metadata = data_utils.read_metadata(data_dir)
    assert (metadata["corpus"], metadata["batch_size"], metadata["seq_len"], metadata["vocab_size"]) == ("markov", BATCH_SIZE, SEQ_LEN, VOCAB_SIZE)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "tokenizer.model"))
    for split in corpora.SPLITS:
        text = (corpus_dir / f"{split}.txt").read_text()
        tokens = [token for line in text.splitlines() for token in pieces.encode(line)]
        entry = metadata["splits"][split]
        assert (entry["words"], entry["bytes"], entry["tokens"]) == (len(text.split()), len(text.encode()), len(tokens))
        windows = list(data_utils.load_windows(data_dir, split, metadata).as_numpy_iterator())
        assert entry["steps"] == len(windows)
        assert sum((window[:, 1:] != PAD).sum() for window in windows) == len(tokens) - BATCH_SIZE
        if split == "train":
            counts = [int(line) for line in (data_dir / "unigram_counts.txt").read_text().splitlines()]
            assert counts == np.bincount(tokens, minlength=VOCAB_SIZE).tolist()


def build(corpus_dir, output_dir, **changes):
    settings = dict(vocab_size=VOCAB_SIZE, lowercase=True, add_eos=False, sp_model_prefix=None, batch_size=BATCH_SIZE, seq_len=SEQ_LEN, shards=1)
    data_utils.build(corpora.from_folder(corpus_dir), output_dir, **settings | changes)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_text_gives_the_same_bytes_and_replaces_old_data(corpus_dir, tmp_path):
    build(corpus_dir, tmp_path / "data")
    first = files_of(tmp_path / "data")
    build(corpus_dir, tmp_path / "data", batch_size=2)
    assert json.loads((tmp_path / "data" / "metadata.json").read_text())["batch_size"] == 2
    build(corpus_dir, tmp_path / "data")
    assert files_of(tmp_path / "data") == first
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_trained_tokenizer_is_used_again(corpus_dir, data_dir, tmp_path):
    build(corpus_dir, tmp_path / "data", sp_model_prefix=str(data_dir / "tokenizer"), vocab_size=None, shards=2)
    assert (tmp_path / "data" / "tokenizer.model").read_bytes() == (data_dir / "tokenizer.model").read_bytes()
    assert files_of(tmp_path / "data")["train/00000-of-00002.tfrecord"] == (data_dir / "train" / "00000-of-00002.tfrecord").read_bytes()


@pytest.mark.parametrize("place", [(tokenization, "train_tokenizer"), (tokenization, "write_stream"), (data_utils, "write_records")], ids=str)
def test_a_build_that_fails_leaves_the_old_data(place, corpus_dir, tmp_path, monkeypatch):
    build(corpus_dir, tmp_path / "data")
    before = files_of(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(*place, fail)
    with pytest.raises(OSError):
        build(corpus_dir, tmp_path / "data")
    assert files_of(tmp_path) == before


def test_a_failing_rename_leaves_the_old_data(corpus_dir, tmp_path, monkeypatch):
    build(corpus_dir, tmp_path / "data")
    before, rename = files_of(tmp_path), Path.rename

    def interrupted(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(corpus_dir, tmp_path / "data")
    assert files_of(tmp_path / "data") == {path.removeprefix("data/"): content for path, content in before.items()}
    (tmp_path / "data").rename(tmp_path / ".data.partial" / "old")  # as after a kill between the two renames
    with pytest.raises(InputError):
        build(corpus_dir, tmp_path / "data", vocab_size=100_000)
    assert files_of(tmp_path) == before


def test_two_builds_of_one_folder_are_refused(corpus_dir, tmp_path):
    with data_utils._workspace(tmp_path / "data", {}), pytest.raises(InputError, match="data is being made by another process"):
        build(corpus_dir, tmp_path / "data")
    build(corpus_dir, tmp_path / "data")


class Killed(BaseException):
    """Stands for the end of the process."""


def kill():
    raise Killed


@pytest.mark.parametrize("place, count, done", [
    ((tokenization, "train_tokenizer"), 1, 0), ((tokenization, "encode"), 1, 0), ((tokenization, "encode"), 5, 4), ((data_utils, "write_records"), 2, None)], ids=str)
def test_a_build_that_was_killed_goes_on_where_it_was(place, count, done, corpus_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(corpora, "BREAK_BYTES", 200)
    monkeypatch.setattr(tokenization, "_in_order", lambda processes, function, arguments: (tokenization.encode(*each) for each in arguments))
    build(corpus_dir, tmp_path / "whole")
    chunks = sum(len(list(corpora.chunks(part, 2000))) for text in corpora.from_folder(corpus_dir).texts.values() for part in text.parts)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        when_called(patch, place, count, kill)
        build(corpus_dir, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    with monkeypatch.context() as patch:
        calls, trained = (when_called(patch, (tokenization, name), 0, kill) for name in ("encode", "train_tokenizer"))
        build(corpus_dir, tmp_path / "data")
    assert len(trained) == (place[1] == "train_tokenizer") and (done is None or len(calls) == chunks - done)
    assert files_of(tmp_path / "data") == files_of(tmp_path / "whole") and {path.name for path in tmp_path.iterdir()} == {"data", "whole"}


@pytest.mark.parametrize("change", ["another text", "other flags", "a damaged note of the work"])
def test_what_was_done_for_another_build_is_not_used(change, corpus_dir, tmp_path, monkeypatch):
    corpus = shutil.copytree(corpus_dir, tmp_path / "corpus")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        when_called(patch, (data_utils, "write_records"), 1, kill)
        build(corpus, tmp_path / "data")
    settings = {}
    if change == "another text":
        (corpus / "train.txt").write_text((corpus / "train.txt").read_text().replace("a", "b"))
    elif change == "other flags":
        settings = {"add_eos": True}
    elif "work" in change:
        (tmp_path / ".data.partial" / "work.json").write_text("{")
    build(corpus, tmp_path / "data", **settings)
    build(corpus, tmp_path / "other", **settings)
    assert files_of(tmp_path / "data") == files_of(tmp_path / "other")


@pytest.mark.parametrize("metadata", [None, "{}", '{"sha256": 1}', '{"mine": 1}'])
def test_files_of_the_user_are_never_deleted(metadata, corpus_dir, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    if metadata:
        (tmp_path / "metadata.json").write_text(metadata)
    with pytest.raises(InputError, match="holds files that were not made here"):
        build(corpus_dir, tmp_path)
    build(corpus_dir, tmp_path / "data")
    (tmp_path / "data" / "train" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="train/notes.txt"):
        build(corpus_dir, tmp_path / "data")
    assert (tmp_path / "thesis.tex").exists() and (tmp_path / "data" / "train" / "notes.txt").exists()


def test_bad_text_is_refused_in_one_line(corpus_dir, tmp_path):
    cases = [
        ({"train": b""}, {}, "train.txt is empty"),
        ({"train": b" \n\n"}, {}, "train.txt is empty"),
        ({"test": b"caf\xe9\n"}, {}, "test.txt is not UTF-8: line 1"),
        ({"valid": b"few words\n"}, {}, "valid.txt is too short: .* needs 36"),
        ({}, {"vocab_size": 100_000}, "it supports at most [0-9]+ pieces"),
        ({}, {"vocab_size": 5}, "--vocab_size=5 does not suit"),
        ({}, {"sp_model_prefix": str(corpus_dir / "missing")}, "missing.model"),
    ]
    for number, (texts, changes, message) in enumerate(cases):
        folder = write_corpus(tmp_path / f"corpus_{number}")
        for split, text in texts.items():
            (folder / f"{split}.txt").write_bytes(text)
        with pytest.raises((InputError, OSError), match=message) as error:
            build(folder, tmp_path / "data", **changes)
        assert "\n" not in str(error.value) and not (tmp_path / "data").exists()


def test_missing_and_damaged_data_are_named(corpus_dir, tmp_path):
    with pytest.raises(InputError, match="run ./make_data.sh first"):
        data_utils.read_metadata(tmp_path / "data")
    build(corpus_dir, tmp_path / "data", shards=3)
    record = tmp_path / "data" / "valid" / "00001-of-00003.tfrecord"
    content = record.read_bytes()
    for damaged in (content[:-1], content[:100] + bytes([content[100] ^ 1]) + content[101:], b""):
        record.write_bytes(damaged)
        with pytest.raises(InputError, match="valid/00001-of-00003.tfrecord is missing or damaged"):
            data_utils.read_metadata(tmp_path / "data")
    record.unlink()
    with pytest.raises(InputError, match="00001-of-00003.tfrecord is missing"):
        data_utils.read_metadata(tmp_path / "data")
    for damaged in ("{", "{}", "[]", '{"sha256": []}'):
        (tmp_path / "data" / "metadata.json").write_text(damaged)
        with pytest.raises(InputError, match="metadata.json is damaged"):
            data_utils.read_metadata(tmp_path / "data")


@pytest.mark.skipif(WIKITEXT2 is None, reason="WikiText-2 is not in data/wikitext-2")
def test_wikitext2_has_the_published_number_of_words(tmp_path):
    build(WIKITEXT2, tmp_path / "data", vocab_size=12_000, batch_size=32, seq_len=32)
    words = {split: entry["words"] for split, entry in data_utils.read_metadata(tmp_path / "data")["splits"].items()}
    assert words == {"train": 2_051_910, "valid": 213_886, "test": 241_211}
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "data" / "tokenizer.model"))
    assert UNK not in pieces.encode("the <unk> of 1 @,@ 000 @-@ year")  # "<unk>" is a word of this corpus
