"""From text to windows, against plain loops."""

import functools
import json
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
from support import corpora, output_folder, tokenization
from support.cli import InputError
from support.tokenization import EOS, PAD, UNK, Settings, Tokenizer

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
        windows.append(
            [
                [row[p] if p < len(row) else 0 for p in range(s * seq_len, (s + 1) * seq_len + 1)]
                for row in rows
            ]
        )
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


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 5, 50])
def test_shards_lose_nothing_and_keep_order(shards, tmp_path):
    for num_tokens in (60, *range(63, 75, 2), 74):  # every remainder of 3 rows and of 4 tokens
        stream = np.arange(1, num_tokens + 1, dtype=np.int32)
        folder = tmp_path / str(num_tokens) / "train"
        folder.parent.mkdir()
        paths = data_utils.write_records(stream, 3, 4, shards, folder)
        windows = plain_windows(stream.tolist(), 3, 4)
        assert len(paths) == min(shards, len(windows))
        metadata = {
            "batch_size": 3,
            "seq_len": 4,
            "sha256": {f"train/{path.name}": "" for path in paths},
        }
        loaded = list(data_utils.load_windows(folder.parent, "train", metadata).as_numpy_iterator())
        assert np.array_equal(loaded, windows) and loaded[0].dtype == np.int32
        assert np.array_equal(data_utils.load_stream(folder.parent, "train", metadata), stream)


def test_metadata_tells_what_the_files_hold(data_dir, corpus_dir):
    metadata = data_utils.read_metadata(data_dir)
    assert (
        metadata["corpus"],
        metadata["batch_size"],
        metadata["seq_len"],
        metadata["vocab_size"],
    ) == ("markov", BATCH_SIZE, SEQ_LEN, VOCAB_SIZE)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "tokenizer.model"))
    for split in corpora.SPLITS:
        text = (corpus_dir / f"{split}.txt").read_text()
        tokens = [token for line in text.splitlines() for token in pieces.encode(line)]
        entry = metadata["splits"][split]
        assert (entry["words"], entry["bytes"], entry["tokens"]) == (
            len(text.split()),
            len(text.encode()),
            len(tokens),
        )
        windows = list(data_utils.load_windows(data_dir, split, metadata).as_numpy_iterator())
        assert entry["steps"] == len(windows)
        assert sum((window[:, 1:] != PAD).sum() for window in windows) == len(tokens) - BATCH_SIZE
        if split == "train":
            counts = [
                int(line) for line in (data_dir / "unigram_counts.txt").read_text().splitlines()
            ]
            assert counts == np.bincount(tokens, minlength=VOCAB_SIZE).tolist()


def test_metadata_do_not_depend_on_how_a_file_writes_its_lines(corpus_dir, data_dir, tmp_path):
    shutil.copytree(corpus_dir, tmp_path / "corpus")
    for split, mark, line_end in [
        ("train", "", "\r\n"), ("valid", "\ufeff", "\r\n"), ("test", "", "\r")
    ]:
        path = tmp_path / "corpus" / f"{split}.txt"
        path.write_bytes((mark + path.read_text().replace("\n", line_end)).encode())
    make_data(tmp_path / "corpus", tmp_path / "data", shards=2)
    made, expected = files_of(tmp_path / "data"), files_of(data_dir)
    assert {name for name in made if made[name] != expected[name]} == {"metadata.json"}
    made, expected = (
        data_utils.read_metadata(folder)["splits"] for folder in (tmp_path / "data", data_dir)
    )
    for split in corpora.SPLITS:
        del made[split]["text_sha256"], expected[split]["text_sha256"]
    assert made == expected


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_text_gives_the_same_bytes_and_replaces_old_data(corpus_dir, data_dir, tmp_path):
    make_data(corpus_dir, tmp_path / "data", data_dir / "tokenizer.model", batch_size=2)
    assert json.loads((tmp_path / "data" / "metadata.json").read_text())["batch_size"] == 2
    make_data(corpus_dir, tmp_path / "data", shards=2)
    assert files_of(tmp_path / "data") == files_of(data_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_commit_is_told_and_marked_where_files_differ(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    git = ["git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", tmp_path, "init", "--quiet"], check=True)  # around it: not its own
    assert data_utils.commit(folder) is None
    (folder / "file").write_text("one")
    for command in (["init", "--quiet"], ["add", "file"], ["commit", "--quiet", "--message=one"],
                    ["tag", "v1"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    assert len(head) == 40 and data_utils.commit(folder) == head
    (folder / "file").write_text("two")
    assert data_utils.commit(folder) == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert data_utils.commit(folder) is None


def test_a_trained_tokenizer_is_used_again(corpus_dir, data_dir, tmp_path):
    make_data(corpus_dir, tmp_path / "data", data_dir / "tokenizer.model", shards=2)
    made, before = files_of(tmp_path / "data"), files_of(data_dir)
    assert {name for name in made if made[name] != before[name]} == {"metadata.json"}


@pytest.mark.parametrize(
    "place",
    [(tokenization, "train_tokenizer"), (data_utils, "Stream"), (data_utils, "write_records")],
    ids=str,
)
def test_a_build_that_fails_leaves_the_old_data(place, corpus_dir, data_dir, tmp_path, monkeypatch):
    shutil.copytree(data_dir, tmp_path / "data")
    before = files_of(tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(*place, fail)
    with pytest.raises(OSError):
        make_data(corpus_dir, tmp_path / "data")
    assert files_of(tmp_path) == before


def test_a_failing_rename_leaves_the_old_data(corpus_dir, data_dir, tmp_path, monkeypatch):
    shutil.copytree(data_dir, tmp_path / "data")
    before, rename = files_of(tmp_path), Path.rename

    def interrupted(path, target):
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_data(corpus_dir, tmp_path / "data")
    assert files_of(tmp_path / "data") == {
        path.removeprefix("data/"): content for path, content in before.items()
    }
    (tmp_path / ".data.partial").mkdir()
    (tmp_path / ".data.partial" / output_folder.MARK).touch()
    # As after a kill between the two renames.
    (tmp_path / "data").rename(tmp_path / ".data.partial" / "old")
    with pytest.raises(InputError):
        make_data(corpus_dir, tmp_path / "data", Settings(vocab_size=100_000))
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("as_link", [False, True])
def test_a_folder_of_the_user_in_the_place_of_the_workspace_is_left(
    as_link, corpus_dir, data_dir, tmp_path
):
    mine = tmp_path / ("mine" if as_link else ".data.partial")
    (mine / "new").mkdir(parents=True)
    (mine / "new" / "notes.txt").write_text("mine")
    if as_link:
        (tmp_path / ".data.partial").symlink_to(mine)
    before = files_of(tmp_path)
    with pytest.raises(InputError, match=".data.partial is there, and was not made by this"):
        make_data(corpus_dir, tmp_path / "data", data_dir / "tokenizer.model")
    assert files_of(tmp_path) == before


def test_two_builds_of_one_folder_are_refused(corpus_dir, data_dir, tmp_path):
    given = corpus_dir, tmp_path / "data", data_dir / "tokenizer.model"
    being_made = pytest.raises(InputError, match="data is being made by another process")
    with output_folder.replaced(tmp_path / "data"), being_made:
        make_data(*given)
    make_data(*given)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    "place, count",
    [
        ((tokenization, "train_tokenizer"), 1),
        ((data_utils, "Stream"), 3),
        ((data_utils, "write_records"), 2),
    ],
    ids=str,
)
def test_what_a_killed_build_has_left_is_removed(
    place, count, corpus_dir, data_dir, tmp_path, monkeypatch
):
    make = functools.partial(make_data, corpus_dir, tmp_path / "data", shards=2)

    def kill():
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # no time to tidy up
        when_called(patch, place, count, kill)
        make()
    assert not (tmp_path / "data").exists()
    assert files_of(tmp_path / ".data.partial") or place[1] == "train_tokenizer"
    make()
    assert files_of(tmp_path / "data") == files_of(data_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


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
    "line",
    ["word " * 300_000, "漢字かな" * 120_000, "x" * 1_500_000],
    ids=["spaces", "cjk", "one word"],
)
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


@pytest.mark.parametrize("metadata", [None, "{}", '{"sha256": 1}', '{"mine": 1}'])
def test_files_of_the_user_are_never_deleted(metadata, corpus_dir, data_dir, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    shutil.copytree(data_dir, tmp_path / "data")
    if metadata:
        (tmp_path / "metadata.json").write_text(metadata)
    with pytest.raises(InputError, match="holds files that were not made here"):
        make_data(corpus_dir, tmp_path)
    (tmp_path / "data" / "train" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="train/notes.txt"):
        make_data(corpus_dir, tmp_path / "data")
    assert (tmp_path / "thesis.tex").exists() and (
        tmp_path / "data" / "train" / "notes.txt"
    ).exists()


def test_what_cannot_be_replaced_is_refused_before_all_work(corpus_dir, tmp_path, monkeypatch):
    (tmp_path / "notes").write_text("years of work")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setattr(corpora, "checked_sha256", None)
    for path, message in [
        (tmp_path / "notes", "notes is a file: choose another"),
        (Path("/dev/null"), "/dev/null is a file"),
        (tmp_path / "loop", "loop is a link that leads to itself"),
        (
            Path("/proc"),
            "/proc is a mount point, which cannot be replaced as a whole: name a folder within it",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            make_data(corpus_dir, path)
    assert (tmp_path / "notes").read_text() == "years of work"


def test_bad_text_is_refused_in_one_line(corpus_dir, tmp_path):
    cases = [
        ({"train": b""}, {}, "train.txt is empty"),
        ({"train": b" \n\n"}, {}, "train.txt is empty"),
        ({"test": b"caf\xe9\n"}, {}, "test.txt is not UTF-8: line 1"),
        ({"valid": b"few words\n"}, {}, "valid.txt is too short: .* needs 36"),
        ({}, {"tokenizer": Settings(vocab_size=100_000)}, "it supports at most [0-9]+ pieces"),
        ({}, {"tokenizer": Settings(vocab_size=5)}, "--vocab_size=5 does not suit"),
        ({}, {"tokenizer": corpus_dir / "missing.model"}, "missing.model"),
    ]
    for number, (texts, changes, message) in enumerate(cases):
        folder = write_corpus(tmp_path / f"corpus_{number}")
        for split, text in texts.items():
            (folder / f"{split}.txt").write_bytes(text)
        with pytest.raises((InputError, OSError), match=message) as error:
            make_data(folder, tmp_path / "data", **changes)
        assert "\n" not in str(error.value) and not (tmp_path / "data").exists()


def test_missing_and_damaged_data_are_named(data_dir, tmp_path):
    with pytest.raises(InputError, match="run ./make_data.sh first"):
        data_utils.read_metadata(tmp_path / "data")
    shutil.copytree(data_dir, tmp_path / "data")
    record = tmp_path / "data" / "valid" / "00001-of-00002.tfrecord"
    content = record.read_bytes()
    for damaged in (content[:-1], content[:100] + bytes([content[100] ^ 1]) + content[101:], b""):
        record.write_bytes(damaged)
        with pytest.raises(InputError, match="valid/00001-of-00002.tfrecord is missing or damaged"):
            data_utils.read_metadata(tmp_path / "data")
    record.unlink()
    with pytest.raises(InputError, match="00001-of-00002.tfrecord is missing"):
        data_utils.read_metadata(tmp_path / "data")
    for damaged in ("{", "{}", "[]", '{"sha256": []}'):
        (tmp_path / "data" / "metadata.json").write_text(damaged)
        with pytest.raises(InputError, match="metadata.json is damaged"):
            data_utils.read_metadata(tmp_path / "data")


@needs_wikitext2
def test_wikitext2_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "SAMPLE_BYTES", 4 << 20)  # training on all of it takes 12 s
    make_data(WIKITEXT2, tmp_path / "data", Settings(vocab_size=12_000), batch_size=32, seq_len=32)
    splits = data_utils.read_metadata(tmp_path / "data")["splits"]
    assert {split: entry["words"] for split, entry in splits.items()} == {
        "train": 2_051_910,
        "valid": 213_886,
        "test": 241_211,
    }
    assert {split: entry["bytes"] for split, entry in splits.items()} == {
        "train": 10_797_148,
        "valid": 1_121_681,
        "test": 1_256_449,
    }
    assert {entry["unknown_characters"] for entry in splits.values()} == {0}
    tokenizer = Tokenizer(tmp_path / "data" / "tokenizer.model")
    characters = "".join(sorted(set((WIKITEXT2 / "train.txt").read_text()))).replace("\n", "")
    package = sentencepiece.SentencePieceProcessor(
        model_file=str(tmp_path / "data" / "tokenizer.model")
    )
    assert (
        "".join(tokenizer.decode(ids_of(tokenizer, characters, False))).replace(" ", "")
        == package.normalize(characters.replace("\ufeff", "")).replace("▁", "")
        and len(characters) > 250
    )
    assert "?" in "".join(tokenizer.decode(ids_of(tokenizer, "Who was the king?", False)))
    counts = np.loadtxt(tmp_path / "data" / "unigram_counts.txt")
    assert np.all(np.diff(counts[4:]) <= 0) and counts.sum() == splits["train"]["tokens"]


@needs_wikitext2
def test_wikitext2_by_words_is_the_task_of_the_published_tables(tmp_path):
    make_data(
        WIKITEXT2,
        tmp_path / "data",
        Settings("word", None, "identity"),
        batch_size=32,
        seq_len=32,
        add_eos=True,
    )
    metadata = data_utils.read_metadata(tmp_path / "data")
    streams = {
        split: data_utils.load_stream(tmp_path / "data", split, metadata)
        for split in corpora.SPLITS
    }
    assert {split: len(stream) for split, stream in streams.items()} == {
        "train": 2_088_628,
        "valid": 217_646,
        "test": 245_569,
    }
    assert [
        len(np.unique(np.concatenate(list(streams.values())))),
        len(np.unique(streams["train"])),
    ] == [33_278, 33_278]
    assert UNK not in np.concatenate(list(streams.values()))
