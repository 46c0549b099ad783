import hashlib
import io
import urllib.error
import urllib.request
import zipfile

import pytest

import corpora
from cli import InputError

TEXTS = {"train": b"a b c\n" * 50, "valid": b"d e\n", "test": b"f\n"}


@pytest.fixture
def published(monkeypatch):
    """WikiText-2 is for this test the three short texts above."""
    sha1 = {split: hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest() for split, text in TEXTS.items()}
    monkeypatch.setitem(corpora.WIKITEXT, "wikitext-2", corpora.WIKITEXT["wikitext-2"]._replace(sha1=sha1))
    sha1 = {split: hashlib.sha1(text).hexdigest() for split, text in TEXTS.items()}
    monkeypatch.setitem(corpora.WIKITEXT, "wikitext-103", corpora.WIKITEXT["wikitext-103"]._replace(sha1=sha1))


def content_of(corpus):
    """The bytes of each split."""
    return {split: b"".join(part.path.read_bytes()[part.start:part.end] for part in text.parts) for split, text in corpus.texts.items()}


@pytest.fixture
def internet(monkeypatch):
    """A dictionary from address to content that stands for the network; what it lacks is unreachable."""
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
    return {corpora.FILES_URL.format(split=split): text for split, text in texts.items()}


def archive_of(texts, name="wikitext-2"):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for split, text in texts.items():
            archive.writestr(f"{name}/wiki.{split}.tokens", text)
    return {corpora.ARCHIVE_URL.format(name=name): content.getvalue()}


@pytest.mark.parametrize("source", [files_at(TEXTS), archive_of(TEXTS), files_at({"train": TEXTS["train"]}) | archive_of(TEXTS)],
                         ids=["files", "archive", "both"])
def test_wikitext2_is_downloaded_once(source, published, internet, tmp_path):
    internet.update(source)
    corpus = corpora.wikitext("wikitext-2", tmp_path / "wikitext-2")
    assert corpus.name == "wikitext-2"
    assert content_of(corpus) == TEXTS
    internet["asked"].clear()
    corpora.wikitext("wikitext-2", tmp_path / "wikitext-2")
    assert internet["asked"] == []


@pytest.mark.parametrize("bad", [b"", TEXTS["train"][:-1], TEXTS["train"] + b"x", b"x" * len(TEXTS["train"])])
def test_a_wrong_download_is_refused_and_leaves_no_file(bad, published, internet, tmp_path):
    internet.update(files_at(TEXTS | {"train": bad}))
    internet.update(archive_of(TEXTS | {"train": bad}))
    with pytest.raises(corpora.Unreachable, match="not the published file"):
        corpora.wikitext("wikitext-2", tmp_path / "wikitext-2")
    assert not (tmp_path / "wikitext-2" / "train.txt").exists()


def test_a_wrong_local_file_is_named_and_kept(published, internet, tmp_path):
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    (folder / "train.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match="train.txt is not wikitext-2 as published"):
        corpora.choose("auto", tmp_path)
    assert (folder / "train.txt").read_bytes() == b"mine"


def test_auto_falls_back_to_documentation_and_says_so(published, internet, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(corpora, "_documents", lambda: iter(["some text\n"] * 40))
    assert corpora.choose("auto", tmp_path).name == "pydocs"
    assert "NOT WikiText-2" in capsys.readouterr().err
    with pytest.raises(InputError, match="cannot download"):
        corpora.choose("wikitext-2", tmp_path)


def test_documentation_is_parsed_deduplicated_and_split_by_document(tmp_path, monkeypatch):
    sources = []
    for number in range(40):
        source = tmp_path / f"module_{number:02d}.py"
        source.write_text(f'"""Module {number}."""\nraise SystemExit  # never imported\ndef f():\n    "Common."\nclass C:\n    "Class {number}."\n')
        sources.append(source)
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics = {'a': 'Topic a.', 'b': 'Topic b.'}\n")
    monkeypatch.setattr(corpora, "_source_files", lambda: [tmp_path / "pydoc_data" / "topics.py", tmp_path / "broken.py", *sources])
    corpus = corpora.pydocs(tmp_path / "pydocs")
    texts = {split: text.decode() for split, text in content_of(corpus).items()}
    everything = "".join(texts.values())
    assert everything.count("Common.") == 1 and "Topic a.\nTopic b.\n" in texts["train"]
    for number in range(40):  # document 0 is topics, 1 ... 40 the modules; the 19th and 20th of every 20 are held out
        split = {18: "valid", 19: "test"}.get((number + 1) % 20, "train")
        assert f"Module {number}.\n" in texts[split] and f"Class {number}.\n" in texts[split]


def test_documentation_skips_tests_and_installed_packages():
    paths = [str(path) for path in corpora._source_files()]
    assert any(path.endswith("pydoc_data/topics.py") for path in paths)
    assert any("/tensorflow/" in path for path in paths) and any("/numpy/" in path for path in paths)
    assert not any("/tests/" in path.split("/lib/python3", 1)[-1] for path in paths)
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("text", ["one two\nthree four five\n" * 300, "no line end at all " * 900, "漢字かな交じり文" * 500, "x" * 4000],
                         ids=["lines", "words", "cjk", "one word"])
def test_one_file_is_split_contiguously_at_breaks(text, tmp_path):
    (tmp_path / "mine.txt").write_text(text)
    corpus = corpora.from_file(tmp_path / "mine.txt", 0.1, 0.2)
    parts = [text.decode() for text in content_of(corpus).values()]
    assert corpus.name == "mine" and "".join(parts) == text
    assert abs(len(parts[1]) / len(text) - 0.1) < 0.02 and abs(len(parts[2]) / len(text) - 0.2) < 0.02
    if " " in text:
        assert all(part[-1].isspace() for part in parts)


def test_a_folder_takes_both_ways_of_naming(tmp_path):
    for name in ("train.txt", "wiki.valid.tokens", "test.txt"):
        (tmp_path / name).write_text("x")
    assert corpora.from_folder(tmp_path).texts["valid"].name == "wiki.valid.tokens"
    (tmp_path / "test.txt").unlink()
    with pytest.raises(InputError, match="neither test.txt nor wiki.test.tokens"):
        corpora.from_folder(tmp_path)


def test_a_folder_of_any_texts_is_split_as_one_in_the_order_of_names(tmp_path):
    written = {name: "".join(f"line {number} of {name}\n" for number in range(count)) for name, count in [("b.txt", 50), ("a/z.txt", 300), ("c.txt", 2), ("empty.txt", 0)]}
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "notes.md").write_text("not a text")
    corpus = corpora.from_folder(tmp_path, 0.2, 0.3)
    train, valid, test = (text.decode() for text in content_of(corpus).values())
    assert train + valid + test == "".join(written[name] for name in sorted(written)) and corpora.is_to_split(tmp_path)
    assert abs(len(valid) / len(train + valid + test) - 0.2) < 0.01 and all(text.endswith("\n") for text in (train, valid, test))
    (tmp_path / "test.txt").write_text("x\n")
    with pytest.raises(InputError, match="neither train.txt nor wiki.train.tokens"):
        corpora.from_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no .txt files"):
        corpora.from_folder(tmp_path / "empty")


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10_000])
@pytest.mark.parametrize("text", ["\ufeffone two\r\n\nthree\nfour", "ä ö ü\n" * 50, "漢字" * 300, "x" * 500 + "\n"], ids=["mixed", "umlauts", "cjk", "one word"])
def test_chunks_are_the_part_and_their_lines_its_lines(text, size, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    part, = corpora.whole_file(path).parts
    monkeypatch.setattr(corpora, "BREAK_BYTES", 12)
    chunks = list(corpora.chunks(part, size))
    assert [chunk.start for chunk in chunks[1:]] == [chunk.end for chunk in chunks[:-1]] and (chunks[0].start, chunks[-1].end) == part[1:]
    assert len(chunks) > 1 or size + 12 > len(text.encode())
    pieces = [piece for chunk in chunks for piece in corpora.lines(chunk)]
    assert "".join(line + "\n" * ended for line, ended in pieces) == "".join(line + "\n" * ended for line, ended in corpora.lines(part))
    if "漢" not in text and "x" not in text:
        assert pieces == list(corpora.lines(part))


def test_wikitext_103_is_downloaded_once_from_its_archive(published, internet, tmp_path):
    internet.update(archive_of(TEXTS, "wikitext-103"))
    corpus = corpora.choose("wikitext-103", tmp_path)
    assert corpus.name == "wikitext-103" and content_of(corpus) == TEXTS and internet["asked"] == ["https://wikitext.smerity.com/wikitext-103-v1.zip"]
    (tmp_path / "wikitext-103" / "valid.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match="valid.txt is not wikitext-103 as published"):
        corpora.choose("wikitext-103", tmp_path)
    (tmp_path / "wikitext-103" / "valid.txt").unlink()
    internet.update(archive_of(TEXTS | {"valid": b"torn"}, "wikitext-103"))
    with pytest.raises(corpora.Unreachable, match="cannot download wikitext-103 .*not the published file"):
        corpora.choose("wikitext-103", tmp_path)


def test_lines_come_without_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffone\r\n\ntwo\x0bthree\u2028four".encode())
    part, = corpora.whole_file(path).parts
    assert list(corpora.lines(part)) == [("one", True), ("", True), ("two\x0bthree\u2028four", True)]


def test_text_that_is_not_utf8_is_named_with_line_and_byte(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"fine\ncaf\xe9 au lait\n")
    with pytest.raises(InputError, match="latin.txt is not UTF-8: line 2, byte 4"):
        list(corpora.lines(*corpora.whole_file(path).parts))
