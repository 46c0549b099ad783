"""Texts of the user, documentation as a stand-in, and how texts are cut into blocks."""

import gzip
import hashlib
import os

import pytest
from test_downloads import content_of

from support import corpora, own_text, pydocs
from support.errors import InputError

# --------------------------------------------------------------------------------------------------
# Documentation


def test_documentation_is_parsed_deduplicated_and_split_by_document(tmp_path, monkeypatch):
    sources = []
    not_python = ["def (:\n", "a" + ".b" * 100_000, "-" * 100_000 + "1", "\0"]
    modules = [f'"""Module {number}."""\nraise SystemExit  # never imported\n'
               f'def f():\n    "Common."\nclass C:\n    "Class {number}."\n'
               for number in range(40)]
    for number, text in enumerate(not_python + modules):
        sources.append(tmp_path / f"{number}.py")
        sources[-1].write_text(text)
    monkeypatch.setattr(pydocs, "_source_files", lambda: sources)
    corpus = pydocs.make(tmp_path / "pydocs")
    texts = {split: text.decode() for split, text in content_of(corpus).items()}
    assert "".join(texts.values()).count("Common.") == 1
    for number in range(40):
        split = {18: "valid", 19: "test"}.get(number % 20, "train")
        assert f"Module {number}.\n" in texts[split] and f"Class {number}.\n" in texts[split]


def test_documentation_skips_tests_and_installed_packages():
    paths = [str(path) for path in pydocs._source_files()]
    for part in ("/json/decoder.py", "/tensorflow/", "/numpy/"):
        assert any(part in path for path in paths)
    assert not any("/tests/" in path.split("/lib/python3", 1)[-1] for path in paths)
    assert len(paths) == len(set(paths))


# --------------------------------------------------------------------------------------------------
# Own text


def write_all(folder, names):
    """Each file holds its own name."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(f"{name}\n")
    return folder


@pytest.mark.parametrize("text", [
    "one two\nthree four five\n" * 300, "no line end at all " * 900, "漢字かな交じり文" * 500,
    "x" * 4000], ids=["lines", "words", "cjk", "one word"])
def test_one_file_is_split_contiguously_at_breaks(text, tmp_path):
    (tmp_path / "mine.txt").write_text(text)
    corpus = own_text.from_file(tmp_path / "mine.txt", 0.1, 0.2)
    parts = [part.decode() for part in content_of(corpus).values()]
    assert corpus.name == "mine" and "".join(parts) == text
    assert [len(part) / len(text) for part in parts] == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    if " " in text:
        assert all(part[-1].isspace() for part in parts)


@pytest.mark.parametrize("names, said", [
    (["train.txt", "wiki.valid.tokens", "test.txt"], "train.txt, wiki.valid.tokens, test.txt"),
    (["TRAIN.TXT", "Val.txt", "test.TXT"], "TRAIN.TXT, Val.txt, test.TXT"),
    (["Wiki.Train.Raw", "wiki.validation.raw", "wiki.test.raw"], "Wiki.Train.Raw, wiki.valida"),
    (["Train/b/10.txt", "Train/b/9.txt", "dev/a.TXT", "TEST/a.txt"],
     "Train/ (2 text file(s)), dev/ (1 text file(s)), TEST/ (1 text file(s))"),
    (["train/a.txt", "dev.txt", "test/.b.txt", "test/a.txt"], "train/ (1 text file(s)), dev.t"),
], ids=lambda value: value[0] if isinstance(value, list) else "")
def test_splits_are_known_by_their_names(names, said, tmp_path, capsys):
    write_all(tmp_path, [*names, "a.txt", "other/b.txt", "notes.md"])
    assert own_text.has_splits(tmp_path)
    corpus = own_text.from_folder(tmp_path)
    visible = [name for name in names if "/." not in name]
    train, valid, test = (content.decode().splitlines() for content in content_of(corpus).values())
    assert (train, valid, test) == (visible[-3::-1], visible[-2:-1], visible[-1:])
    assert corpus.texts["test"].name in names[-1]
    told = capsys.readouterr().out
    assert told.startswith(f"{tmp_path}: {said}")
    left_out = 3 + len(names) - len(visible)
    assert f"; {left_out} other file(s) or folder(s) left out, such as " in told


@pytest.mark.parametrize("names, message", [
    (["train.txt", "valid.txt", "book.txt"], "contains train.txt but no test.txt: add it"),
    (["test.txt", "book.txt"], "contains test.txt but no train.txt: .* or rename test.txt if"),
    (["train/a.txt", "test/a.txt"], "contains train but no valid.txt"),
    (["train.txt", "wiki.train.tokens", "valid.txt", "test.txt"],
     "contains both train.txt and wiki.train.tokens: keep one of them as train"),
    (["train.txt", "val.txt", "dev.txt", "test.txt"], "both dev.txt and val.txt: .* as valid"),
    (["train.txt", "train/a.txt", "valid.txt", "test.txt"], "both train and train.txt"),
    (["ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"],
     "contains ptb.test.txt and ptb.train.txt, which would be joined: name splits train.txt, "),
    (["train-00000-of-12.txt", "Test-00000-of-1.txt"], "Test-00000-of-1.txt and train-00000"),
    (["wikitext/train.txt", "wikitext/test.txt"], "wikitext/test.txt and wikitext/train.txt"),
    (["x/train/a.txt", "x/dev/b.txt"], "contains x/dev and x/train, which would be joined"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_test_text_is_never_trained_on(names, message, tmp_path):
    write_all(tmp_path, names)
    with pytest.raises(InputError, match=message) as error:
        own_text.from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_any_other_texts_are_joined_by_name_and_split(tmp_path, capsys):
    """Names with words for splits, numbers, capitals, links; files that are not texts."""
    folder, used = tmp_path / "books", [
        "How to train your dragon.txt", "The test of time.txt", "a/test.txt", "b/train.txt",
        "chapter1.txt", "chapter2.TXT", "chapter10.txt", "trains.txt"]
    write_all(folder, [
        *used, "z.txt", ".hidden.txt", "._chapter1.txt", "~$time.txt", "notes.md", "old.txt.gz",
        ".ipynb_checkpoints/c.txt", "__MACOSX/a.txt", "data/unigram_counts.txt", "gone.txt"])
    (folder / "z.txt").rename(tmp_path / "z.txt")
    (folder / "gone.txt").rename(tmp_path / "linked.txt")
    (folder / "y.txt").symlink_to(tmp_path / "linked.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "z.txt").rename(tmp_path / "elsewhere" / "z.txt")
    (folder / "z").symlink_to(tmp_path / "elsewhere")
    undecodable = folder / os.fsdecode(b"caf\xe9.txt")
    undecodable.write_text("coffee\n" * 9)
    assert not own_text.has_splits(folder)
    corpus = own_text.from_folder(folder, 0.2, 0.3)
    train, valid, test = (text.decode() for text in content_of(corpus).values())
    assert (train + valid + test).splitlines() == [
        *used[:4], *["coffee"] * 9, *used[4:], "gone.txt", "z.txt"]
    size = len(train + valid + test)
    assert len(valid) / size == pytest.approx(0.2, abs=0.15)
    assert len(test) / size == pytest.approx(0.3, abs=0.15)
    assert all(text.endswith("\n") for text in (train, valid, test))
    assert capsys.readouterr().out == (
        f"{folder}: 11 text file(s), from How to train your dragon.txt to z/z.txt; "
        "9 other file(s) or folder(s) left out, such as ._chapter1.txt\n")
    corpus = own_text.from_file(undecodable, 0.3, 0.3)
    assert corpus.name.encode() == "caf\N{REPLACEMENT CHARACTER}".encode()


@pytest.mark.parametrize("where", ["a/locked", "train/locked", ""])
def test_a_folder_that_cannot_be_read_is_named(where, tmp_path, monkeypatch):
    write_all(tmp_path, ["b.txt", f"{where}/c.txt", "d/e.txt"])
    scandir = os.scandir

    def as_who_may_not(path):
        if path == str(tmp_path / where):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", as_who_may_not)
    with pytest.raises(InputError, match=f"{tmp_path / where} cannot be read .Permission denied.:"):
        own_text.from_folder(tmp_path)


@pytest.mark.parametrize("function, name, message", [
    (own_text.from_file, "folder", "folder is a folder: use --input_dir"),
    (own_text.from_file, "missing", "missing is missing"),
    (own_text.from_file, "pipe", "pipe is not a regular file"),
    (own_text.from_file, "short", "short is too short to be split: nothing is left for"),
    (own_text.from_folder, "empty", "empty is a file: use --input_text"),
    (own_text.from_folder, "missing", "missing is missing"),
    (own_text.from_folder, "folder", "folder contains no .txt files: nothing left out"),
    (own_text.from_folder, "packed", "contains no .txt files: 1 other .* such as a.txt.gz"),
], ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_a_path_without_text_is_named(function, name, message, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_text("")
    (tmp_path / "short").write_text("two\n")
    os.mkfifo(tmp_path / "pipe")
    write_all(tmp_path / "packed", ["a.txt.gz"])
    with pytest.raises(InputError, match=message):
        function(tmp_path / name)


# --------------------------------------------------------------------------------------------------
# Blocks


@pytest.mark.parametrize("size", [1, 3, 4, 7, 100, 10_000])
@pytest.mark.parametrize("break_bytes", [1, 2, 12])
@pytest.mark.parametrize("text", [
    "one two\n\nthree\nfour", "ä ö ü\n" * 50, "漢字" * 100, "x" * 200 + "\n", "a\nb\nc\n\n\ne"],
    ids=["lines", "umlauts", "cjk", "one word", "line ends"])
def test_blocks_are_the_text_in_any_encoding_of_its_lines(
        text, break_bytes, size, tmp_path, monkeypatch):
    """Cuts fall between characters, never within a line end. A byte order mark has no bytes."""
    monkeypatch.setattr(corpora, "BREAK_BYTES", break_bytes)
    for mark in ("", "\ufeff"):
        for line_end in ("\n", "\r\n", "\r"):
            path = tmp_path / "text.txt"
            path.write_bytes((mark + text.replace("\n", line_end)).encode())
            part, = corpora.whole_file(path).parts
            chunks = list(corpora.chunks(part, size))
            assert [0, *(chunk.end for chunk in chunks)] == [
                *(chunk.start for chunk in chunks), path.stat().st_size]
            blocks = list(corpora.blocks(corpora.whole_file(path), size))
            assert len(blocks) == len(chunks)
            assert len(blocks) > 1 or size + break_bytes + 4 > path.stat().st_size
            decoded = [block.decode() for block, _ in blocks]
            assert "".join(decoded) == text.removesuffix("\n") + "\n"
            assert sum(num_bytes for _, num_bytes in blocks) == len(text.encode())
            if break_bytes == 12 and text.startswith("ä"):
                assert all(block[-1].isspace() for block in decoded[:-2])


def test_mixed_line_ends_are_line_ends(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"a\r\nb\rc\nd\r\n\r\r\ne")
    for size in range(1, 16):
        blocks = corpora.blocks(corpora.whole_file(tmp_path / "text.txt"), size)
        assert b"".join(block for block, _ in blocks) == b"a\nb\nc\nd\n\n\ne\n"


def test_small_files_are_joined_in_blocks(tmp_path):
    contents = [b"\xef\xbb\xbfone\n", b"", b"two", b"three\n" * 30, b"four\n", b"five"]
    parts = []
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.txt").write_bytes(content)
        parts += corpora.whole_file(tmp_path / f"{number}.txt").parts
    text = corpora.Text("many", parts)
    whole = b"one\ntwo\n" + b"three\n" * 30 + b"four\nfive\n"
    for size, count in [(1, None), (20, None), (100, 3), (150, 3), (1000, 1)]:
        blocks = [block for block, _ in corpora.blocks(text, size)]
        assert b"".join(blocks) == whole and count in (None, len(blocks))
    assert all(span.size <= 100 or len(span.parts) == 1 for span in corpora.spans(text, 100))


@pytest.mark.parametrize("content, message", [
    (b"fine\ncaf\xe9 au lait\n", "is not UTF-8: line 2, byte 4"),
    (b"good\nbroken \xe2\x82", "is not UTF-8: line 2, byte 8"),
    (b"\xed\xa0\x80 a lone surrogate\n", "is not UTF-8: line 1, byte 1"),
    (b"fine\n" * 300_000 + b"caf\xe9\n", "is not UTF-8: line 300001, byte 4"),
    (b"fine\n" * 300_000 + b"no\0t", "contains a NUL byte: line 300001, byte 3"),
    (gzip.compress(b"text " * 99), "is compressed: unpack it with gunzip"),
    (b"PK\x03\x04\x14\0\xff", "is a zip archive or an office document: unzip it, or save it"),
    (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "is a PDF document: convert it with pdftotext"),
    ("Wer, was und wo\n".encode("utf-16"), "is UTF-16: convert it with iconv -f UTF-16 -t UTF-8"),
], ids=lambda value: value[:25] if isinstance(value, str) else "")
def test_a_file_that_is_not_utf8_is_named_with_its_format(content, message, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"text.txt {message}"):
        corpora.checked_sha256(corpora.whole_file(path))


def test_the_hash_is_of_the_bytes(tmp_path):
    content = "\ufeffä\r\n".encode() * 99 + b"end"
    (tmp_path / "text.txt").write_bytes(content)
    found = corpora.checked_sha256(corpora.whole_file(tmp_path / "text.txt"))
    assert found == hashlib.sha256(content).hexdigest()
