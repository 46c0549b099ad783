"""Texts, from wherever they come."""

import errno
import gzip
import hashlib
import io
import lzma
import os
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

import data_utils
from support import corpora, own_text, published, pydocs
from support.cli import InputError

TEXTS = {"train": b"a b c\n" * 50, "valid": b"d e\n", "test": b"f\n"}
WHOLE = "".join(f"line {number}: \u00e4\n" for number in range(100)).encode()


@pytest.fixture
def tiny_corpora(monkeypatch):
    """The published corpora are the three short texts above; those of one file are `WHOLE`."""
    for name in published.PUBLISHED:
        contents = (
            {f"{split}.txt": text for split, text in TEXTS.items()}
            if "wikitext" in name
            else {name: WHOLE}
        )
        hashes = {
            "wikitext-2": lambda text: (
                "git:" + hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()
            ),
            "text8": lambda text: "md5:" + hashlib.md5(text).hexdigest(),
        }
        of = hashes.get(name, lambda text: "sha1:" + hashlib.sha1(text).hexdigest())
        changed = published.PUBLISHED[name]._replace(
            hashes={file: of(text) for file, text in contents.items()}
        )
        monkeypatch.setitem(published.PUBLISHED, name, changed)


def content_of(corpus):
    """The bytes of each split."""
    return {
        split: b"".join(part.path.read_bytes()[part.start : part.end] for part in text.parts)
        for split, text in corpus.texts.items()
    }


@pytest.fixture
def internet(monkeypatch):
    """A dictionary, from address to content, as the network; what it lacks is unreachable."""
    contents, asked = {}, []

    def open_(opener, request, timeout):
        assert timeout and not request.get_header("User-agent").startswith("Python")
        asked.append(request.full_url)
        if request.full_url not in contents:
            raise urllib.error.URLError("unreachable")
        return io.BytesIO(contents[request.full_url])

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", open_)
    contents["asked"] = asked
    return contents


def files_at(texts):
    return {
        published.PUBLISHED["wikitext-2"].file_url.format(file=f"{split}.txt"): text
        for split, text in texts.items()
    }


def archive_of(texts, name="wikitext-2"):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for split, text in texts.items():
            archive.writestr(f"{name}/wiki.{split}.tokens", text)
    return {published.PUBLISHED[name].archive_url: content.getvalue()}


@pytest.mark.parametrize(
    "source",
    [files_at(TEXTS), archive_of(TEXTS), files_at({"train": TEXTS["train"]}) | archive_of(TEXTS)],
    ids=["files", "archive", "both"],
)
def test_wikitext2_is_downloaded_once(source, tiny_corpora, internet, tmp_path):
    internet.update(source)
    corpus = published.get("wikitext-2", tmp_path / "wikitext-2")
    assert corpus.name == "wikitext-2"
    assert content_of(corpus) == TEXTS
    internet["asked"].clear()
    published.get("wikitext-2", tmp_path / "wikitext-2")
    assert internet["asked"] == []


@pytest.mark.parametrize(
    "bad", [b"", TEXTS["train"][:-1], TEXTS["train"] + b"x", b"x" * len(TEXTS["train"])]
)
def test_a_wrong_download_is_refused_and_leaves_no_file(bad, tiny_corpora, internet, tmp_path):
    internet.update(files_at(TEXTS | {"train": bad}))
    internet.update(archive_of(TEXTS | {"train": bad}))
    with pytest.raises(published.Unreachable, match="not the published file"):
        published.get("wikitext-2", tmp_path / "data" / "wikitext-2")
    assert not list(tmp_path.iterdir())


def test_a_failed_download_leaves_what_was_there_and_what_is_whole(
    tiny_corpora, internet, tmp_path
):
    internet.update(files_at({"train": TEXTS["train"]}))
    (tmp_path / "text8").mkdir()
    for name in ("text8", "wikitext-2"):
        with pytest.raises(published.Unreachable):
            published.get(name, tmp_path / name)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["text8", "wikitext-2", "wikitext-2/train.txt"]


@pytest.mark.parametrize("place", ["data", "data/wikitext-2"])
def test_a_folder_that_cannot_be_written_is_not_taken_for_a_network_that_fails(
    place, tiny_corpora, internet, tmp_path
):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("a file")
    with pytest.raises(OSError, match="^cannot write .*data/wikitext-2: (Not a dir|File exists)"):
        data_utils.choose_corpus("auto", tmp_path / "data")
    assert internet["asked"] == [] and (tmp_path / place).read_text() == "a file"


@pytest.mark.parametrize("name", ["received", "content", "train.txt"])
def test_a_full_disk_is_not_taken_for_a_network_that_fails(
    name, tiny_corpora, internet, tmp_path, monkeypatch
):
    def refuse(path, *arguments):
        if Path(arguments[0] if name == "train.txt" else path).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, *arguments)

    internet.update(files_at(TEXTS))
    place = (Path, "replace") if name == "train.txt" else (published, "open")
    original = getattr(*place, open)
    monkeypatch.setattr(*place, refuse, raising=False)
    with pytest.raises(OSError, match="^cannot write .*/wikitext-2: No space left on device$"):
        data_utils.choose_corpus("auto", tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_a_whole_corpus_is_read_where_nothing_can_be_written(
    tiny_corpora, internet, tmp_path, monkeypatch
):
    for split, text in TEXTS.items():
        (tmp_path / f"{split}.txt").write_bytes(text)
    monkeypatch.setattr(published, "_workspace", None)
    assert content_of(published.get("wikitext-2", tmp_path)) == TEXTS


def test_a_wrong_local_file_is_named_and_kept(tiny_corpora, internet, tmp_path):
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    (folder / "train.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match="train.txt is not wikitext-2 as published"):
        data_utils.choose_corpus("auto", tmp_path)
    assert (folder / "train.txt").read_bytes() == b"mine"


def test_auto_falls_back_to_documentation_and_says_so(
    tiny_corpora, internet, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(pydocs, "_documents", lambda: iter(["some text\n"] * 40))
    assert data_utils.choose_corpus("auto", tmp_path).name == "pydocs"
    assert "NOT WikiText-2" in capsys.readouterr().err
    with pytest.raises(InputError, match="cannot download"):
        data_utils.choose_corpus("wikitext-2", tmp_path)


def test_documentation_is_parsed_deduplicated_and_split_by_document(tmp_path, monkeypatch):
    sources = []
    for number in range(40):
        source = tmp_path / f"module_{number:02d}.py"
        source.write_text(
            f'"""Module {number}."""\nraise SystemExit  # never imported\n'
            f'def f():\n    "Common."\nclass C:\n    "Class {number}."\n'
        )
        sources.append(source)
    no_python = {
        "broken": "def (:\n",
        "deep": "a" + ".b" * 100_000,
        "deeper": "-" * 100_000 + "1",
        "nul": "\0",
    }
    for name, text in no_python.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text(
        "topics = {'a': 'Topic a.', 'b': 'Topic b.'}\n"
    )
    unreadable = [tmp_path / f"{name}.py" for name in no_python]
    files = [tmp_path / "pydoc_data" / "topics.py", *unreadable, *sources]
    monkeypatch.setattr(pydocs, "_source_files", lambda: files)
    corpus = pydocs.make(tmp_path / "pydocs")
    texts = {split: text.decode() for split, text in content_of(corpus).items()}
    everything = "".join(texts.values())
    assert everything.count("Common.") == 1 and "Topic a.\nTopic b.\n" in texts["train"]
    for number in range(
        40
    ):  # document 0 is topics, 1 ... 40 the modules; the 19th and 20th of every 20 are held out
        split = {18: "valid", 19: "test"}.get((number + 1) % 20, "train")
        assert f"Module {number}.\n" in texts[split] and f"Class {number}.\n" in texts[split]


def test_documentation_skips_tests_and_installed_packages():
    paths = [str(path) for path in pydocs._source_files()]
    assert any(path.endswith("pydoc_data/topics.py") for path in paths)
    assert any("/tensorflow/" in path for path in paths) and any(
        "/numpy/" in path for path in paths
    )
    assert not any("/tests/" in path.split("/lib/python3", 1)[-1] for path in paths)
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize(
    "text",
    [
        "one two\nthree four five\n" * 300,
        "no line end at all " * 900,
        "漢字かな交じり文" * 500,
        "x" * 4000,
    ],
    ids=["lines", "words", "cjk", "one word"],
)
def test_one_file_is_split_contiguously_at_breaks(text, tmp_path):
    (tmp_path / "mine.txt").write_text(text)
    corpus = own_text.from_file(tmp_path / "mine.txt", 0.1, 0.2)
    parts = [text.decode() for text in content_of(corpus).values()]
    assert corpus.name == "mine" and "".join(parts) == text
    assert (
        abs(len(parts[1]) / len(text) - 0.1) < 0.02 and abs(len(parts[2]) / len(text) - 0.2) < 0.02
    )
    if " " in text:
        assert all(part[-1].isspace() for part in parts)


def write_all(folder, names):
    """Each file holds its own name."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(f"{name}\n")
    return folder


@pytest.mark.parametrize(
    "names, said",
    [
        (["train.txt", "wiki.valid.tokens", "test.txt"], "train.txt, wiki.valid.tokens, test.txt"),
        (["TRAIN.TXT", "Valid.txt", "test.TXT"], "TRAIN.TXT, Valid.txt, test.TXT"),
        (["train.txt", "val.txt", "test.txt"], "train.txt, val.txt, test.txt"),
        (["Wiki.Train.Raw", "wiki.validation.raw", "wiki.test.raw"], "Wiki.Train.Raw, wiki.valida"),
        (
            ["Train/b/10.txt", "Train/b/9.txt", "dev/a.TXT", "TEST/a.txt"],
            "Train/ (2 text file(s)), dev/ (1 text file(s)), TEST/ (1 text file(s))",
        ),
        (["train/a.txt", "dev.txt", "test/.b.txt", "test/a.txt"], "train/ (1 text file(s)), dev.t"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_splits_are_known_by_their_names(names, said, tmp_path, capsys):
    write_all(tmp_path, [*names, "a.txt", "other/b.txt", "notes.md"])
    corpus = own_text.from_folder(tmp_path)
    visible = [name for name in names if "/." not in name]
    train, valid, test = (content.decode().splitlines() for content in content_of(corpus).values())
    assert (train, valid, test) == (visible[-3::-1], visible[-2:-1], visible[-1:])
    assert not own_text.is_to_split(tmp_path) and corpus.texts["test"].name in names[-1]
    told = capsys.readouterr().out
    assert told.startswith(f"{tmp_path}: {said}")
    left_out = 3 + len(names) - len(visible)
    assert told.endswith(f"; {left_out} other file(s) or folder(s) left out, such as a.txt\n")


@pytest.mark.parametrize(
    "names, message",
    [
        (["train.txt", "valid.txt", "book.txt"], "contains train.txt but no test.txt: add it"),
        (["test.txt", "book.txt"], "contains test.txt but no train.txt: .* or rename test.txt if"),
        (["train/a.txt", "test/a.txt"], "contains train but no valid.txt"),
        (["train.txt", "wiki.train.tokens", "valid.txt", "test.txt"],
         "holds both train.txt and wiki.train.tokens: leave one of them there as train"),
        (["train.txt", "val.txt", "dev.txt", "test.txt"], "both dev.txt and val.txt: .* as valid"),
        (["train.txt", "train/a.txt", "valid.txt", "test.txt"], "both train and train.txt"),
        (["ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"],
         "holds ptb.test.txt and ptb.train.txt, which would be joined: name splits train.txt, "),
        (["train-00000-of-12.txt", "Test-00000-of-1.txt"], "holds Test-00000-of-1.txt and train-0"),
        (["wikitext/train.txt", "wikitext/test.txt"], "holds wikitext/test.txt and wikitext/train"),
        (["x/train/a.txt", "x/dev/a.txt"], "holds x/dev and x/train, which would be joined"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_test_text_is_never_trained_on(names, message, tmp_path):
    write_all(tmp_path, names)
    with pytest.raises(InputError, match=message) as error:
        own_text.from_folder(tmp_path)
    assert "\n" not in str(error.value)


def test_books_with_words_for_splits_in_their_names_are_books(tmp_path, capsys):
    write_all(tmp_path, [
        "How to train your dragon.txt", "The test of time.txt", "attestation.txt", "trains.txt",
        "a/test.txt", "b/train.txt", "validity/x.txt", "~$attestation.txt"])
    own_text.from_folder(tmp_path, 0.3, 0.3)
    told = capsys.readouterr().out
    assert ": 7 text file(s)," in told and "1 other" in told and "such as ~$attestation.txt" in told


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


def test_a_folder_of_any_texts_is_split_as_one_in_the_order_of_names(tmp_path):
    written = {
        name: "".join(f"line {number} of {name}\n" for number in range(count))
        for name, count in [("b.txt", 50), ("a/z.txt", 300), ("c.txt", 2), ("empty.txt", 0)]
    }
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.md").write_text("not a text")
    corpus = own_text.from_folder(tmp_path, 0.2, 0.3)
    train, valid, test = (text.decode() for text in content_of(corpus).values())
    assert train + valid + test == "".join(
        written[name] for name in sorted(written)
    ) and own_text.is_to_split(tmp_path)
    assert abs(len(valid) / len(train + valid + test) - 0.2) < 0.01 and all(
        text.endswith("\n") for text in (train, valid, test)
    )
    (tmp_path / "test.txt").write_text("x\n")
    with pytest.raises(InputError, match="contains test.txt but no train.txt"):
        own_text.from_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no .txt files"):
        own_text.from_folder(tmp_path / "empty")


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10_000])
@pytest.mark.parametrize(
    "text",
    ["\ufeffone two\r\n\nthree\nfour", "ä ö ü\n" * 50, "漢字" * 300, "x" * 500 + "\n"],
    ids=["mixed", "umlauts", "cjk", "one word"],
)
def test_chunks_are_the_part_and_their_lines_its_lines(text, size, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    (part,) = corpora.whole_file(path).parts
    monkeypatch.setattr(corpora, "BREAK_BYTES", 12)
    chunks = list(corpora.chunks(part, size))
    assert [chunk.start for chunk in chunks[1:]] == [chunk.end for chunk in chunks[:-1]] and (
        chunks[0].start,
        chunks[-1].end,
    ) == part[1:]
    assert len(chunks) > 1 or size + 12 > len(text.encode())
    blocks = list(corpora.blocks(corpora.whole_file(path), size))
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n")
    assert len(blocks) == len(chunks)
    assert b"".join(block for block, _ in blocks) == (lines.removesuffix("\n") + "\n").encode()
    assert sum(num_bytes for _, num_bytes in blocks) == len(lines.encode())
    for block, _ in blocks:
        block.decode()
        assert (
            size >= 12
            or "one two" not in text
            or block.endswith((b"\n", b" "))
            or len(block) < 12
        )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("break_bytes", [1, 2, 3, 1 << 16])
def test_no_block_ends_within_a_line_end(size, break_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "BREAK_BYTES", break_bytes)
    content = b"a\r\nb\rc\nd\r\n\r\r\ne"
    (tmp_path / "text.txt").write_bytes(content)
    blocks = [block for block, _ in corpora.blocks(corpora.whole_file(tmp_path / "text.txt"), size)]
    assert b"".join(blocks) == b"a\nb\nc\nd\n\n\ne\n"


@pytest.mark.parametrize("last", ["", "\n"])
@pytest.mark.parametrize("size", [1, 10, 1000])
def test_a_line_end_is_one_byte_and_a_byte_order_mark_none(size, last, tmp_path):
    """The blocks of a text are the same however its files write lines, and so are their bytes."""
    lines = f"one two\n\ndrei \u00e4\nfour{last}"
    for mark in ("", "\ufeff"):
        for line_end in ("\n", "\r\n", "\r"):
            (tmp_path / "text.txt").write_bytes((mark + lines.replace("\n", line_end)).encode())
            blocks = list(corpora.blocks(corpora.whole_file(tmp_path / "text.txt"), size))
            assert b"".join(block for block, _ in blocks) == f"{lines.rstrip()}\n".encode()
            assert sum(num_bytes for _, num_bytes in blocks) == len(lines.encode())


def test_small_files_are_joined_in_blocks_as_they_follow(tmp_path):
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
    assert all(
        span.size <= 100 or len(span.parts) == 1 for span in corpora.spans(text, 100)
    )


def test_wikitext_103_is_downloaded_once_from_its_archive(tiny_corpora, internet, tmp_path):
    internet.update(archive_of(TEXTS, "wikitext-103"))
    corpus = data_utils.choose_corpus("wikitext-103", tmp_path)
    assert (
        corpus.name == "wikitext-103"
        and content_of(corpus) == TEXTS
        and internet["asked"] == ["https://wikitext.smerity.com/wikitext-103-v1.zip"]
    )
    (tmp_path / "wikitext-103" / "valid.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match="valid.txt is not wikitext-103 as published"):
        data_utils.choose_corpus("wikitext-103", tmp_path)
    (tmp_path / "wikitext-103" / "valid.txt").unlink()
    internet.update(archive_of(TEXTS | {"valid": b"torn"}, "wikitext-103"))
    with pytest.raises(
        published.Unreachable, match="cannot download wikitext-103 .*not the published file"
    ):
        data_utils.choose_corpus("wikitext-103", tmp_path)


@pytest.mark.parametrize("name", ["enwik8", "text8"])
def test_a_corpus_of_one_file_is_split_by_bytes_between_characters(
    name, tiny_corpora, internet, tmp_path, monkeypatch
):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, WHOLE)
    internet[f"https://mattmahoney.net/dc/{name}.zip"] = content.getvalue()
    monkeypatch.setattr(published, "HELD_OUT_BYTES", 50)
    texts = content_of(data_utils.choose_corpus(name, tmp_path))
    assert list(texts) == ["train", "valid", "test"] and b"".join(texts.values()) == WHOLE
    assert (
        47 <= len(texts["test"]) <= 50
        and 47 <= len(texts["valid"]) <= 53
        and all(text.decode() for text in texts.values())
    )
    (tmp_path / name / name).write_bytes(WHOLE[:-1])
    with pytest.raises(InputError, match=f"{name} is not {name} as published"):
        data_utils.choose_corpus(name, tmp_path)


def test_a_folder_of_real_people(tmp_path, capsys):
    """Hidden and resource files, links, endings in capitals, numbers, names that are no text."""
    folder = tmp_path / "books"
    (tmp_path / "elsewhere").mkdir()
    for name in (
        "chapter10.txt",
        "chapter2.TXT",
        "chapter1.txt",
        ".hidden.txt",
        "._chapter1.txt",
        "notes.md",
        "old.txt.gz",
        ".ipynb_checkpoints/chapter1-checkpoint.txt",
        "__MACOSX/._a.txt",
        "part 2/a.txt",
        "../elsewhere/linked.txt",
    ):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(f"{name}\n" * 9)
    (folder / "z").symlink_to(tmp_path / "elsewhere")
    (folder / "part 2" / "loop").symlink_to(folder)
    (folder / "again.txt").symlink_to(folder / "chapter1.txt")
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    (folder / "made here").mkdir()
    for name in ("metadata.json", "tokenizer.model", "unigram_counts.txt"):
        (folder / "made here" / name).write_text("9\n")
    undecodable = folder / os.fsdecode(b"caf\xe9.txt")
    undecodable.write_text("a name\n" * 99)
    corpus = own_text.from_folder(folder)
    read = b"".join(content_of(corpus).values()).decode()
    names = list(dict.fromkeys(read.split("\n")[:-1]))
    assert names == [
        "chapter1.txt",
        "a name",
        "chapter2.TXT",
        "chapter10.txt",
        "part 2/a.txt",
        "../elsewhere/linked.txt",
    ]
    said = capsys.readouterr().out
    assert (
        "books: 6 text file(s), from again.txt to z/linked.txt; "
        "9 other file(s) or folder(s) left out" in said
    )
    with pytest.raises(InputError, match="holds no .txt files: 1 other .* such as a.txt.gz"):
        (tmp_path / "packed").mkdir()
        (tmp_path / "packed" / "a.txt.gz").write_bytes(b"")
        own_text.from_folder(tmp_path / "packed")
    assert own_text.from_file(undecodable).name.encode() == "caf\N{REPLACEMENT CHARACTER}".encode()


def test_a_corpus_with_the_names_of_the_raw_wikitext(tmp_path):
    for split in corpora.SPLITS:
        (tmp_path / f"wiki.{split}.raw").write_text(split)
    assert content_of(own_text.from_folder(tmp_path)) == {
        split: split.encode() for split in corpora.SPLITS
    }


@pytest.mark.parametrize(
    "function, name, message",
    [
        ("from_file", "folder", "folder is a folder: --input_dir takes folders"),
        ("from_file", "missing", "missing is missing"),
        ("from_file", "empty", "empty is empty"),
        ("from_file", "pipe", "pipe is no regular file: save it as one first"),
        ("from_file", "short", "short is too short to be split: nothing is left for"),
        ("from_folder", "empty", "empty is a file: --input_text takes files"),
        ("from_folder", "missing", "there is no folder"),
    ],
)
def test_what_is_no_text_is_told_for_what_it_is(function, name, message, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_text("")
    (tmp_path / "short").write_text("two\n")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=message):
        getattr(own_text, function)(tmp_path / name)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"fine\ncaf\xe9 au lait\n", "is not UTF-8: line 2, byte 4; iconv converts"),
        (b"fine\n" * 300_000 + b"caf\xe9\n", "is not UTF-8: line 300001, byte 4; iconv converts"),
        (gzip.compress(b"text " * 99), "is compressed: unpack it with gunzip"),
        (lzma.compress(b"text " * 99), "is compressed: unpack it with unxz"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "is compressed: unpack it with 7z x"),
        (b"PK\x03\x04\x14\0\xff", "is a zip archive or an office document: unzip it, or save it"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "is a PDF document: pdftotext converts it"),
        (b"PAR1\x15\x04\x15\0\xff", "is a Parquet table: write its column of text to a .txt file"),
        (b"\x89PNG\r\n\x1a\n\0", "is a picture"),
        (b"SQLite format 3\0\x10", "is an SQLite database: write its text to a .txt file"),
        ("Wer, was und wo\n".encode("utf-16-le"), "is UTF-16LE: iconv -f UTF-16LE -t UTF-8 conv"),
        ("K\u0101 t\u0101 \u0100\n".encode("utf-16-be"), "is UTF-16BE: iconv -f UTF-16BE -t UTF-8"),
        ("Wer, was und wo\n".encode("utf-16"), "is UTF-16: iconv -f UTF-16 -t UTF-8 converts it"),
        ("Wer, was und wo\n".encode("utf-32"), "is UTF-32: iconv -f UTF-32 -t UTF-8 converts it"),
        (b"fine\nno\0t fine\n", "contains a NUL byte, .*: line 2, byte 3; tr -d '.000' removes"),
        (b"fine\n" * 300_000 + b"no\0t", "contains a NUL byte, .*: line 300001, byte 3; tr"),
        (b"\x80\x04\x95\0\0\0\0", "is not a text file: line 1, byte 1 is not UTF-8, and it has"),
    ],
    ids=lambda value: value[:25] if isinstance(value, str) else "",
)
def test_what_is_not_utf8_is_told_for_what_it_is(content, message, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"text.txt {message}"):
        corpora.checked_sha256(corpora.whole_file(path))


def test_the_hash_is_of_the_bytes(tmp_path):
    (tmp_path / "text.txt").write_bytes("\ufeffä\r\n".encode() * 99 + b"end")
    assert (
        corpora.checked_sha256(corpora.whole_file(tmp_path / "text.txt"))
        == hashlib.sha256((tmp_path / "text.txt").read_bytes()).hexdigest()
    )
