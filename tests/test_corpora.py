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
    table = {split: (len(text), hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()) for split, text in TEXTS.items()}
    monkeypatch.setattr(corpora, "WIKITEXT2", table)


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


def archive_of(texts):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for split, text in texts.items():
            archive.writestr(f"wikitext-2/wiki.{split}.tokens", text)
    return {corpora.ARCHIVE_URL: content.getvalue()}


@pytest.mark.parametrize("source", [files_at(TEXTS), archive_of(TEXTS), files_at({"train": TEXTS["train"]}) | archive_of(TEXTS)],
                         ids=["files", "archive", "both"])
def test_wikitext2_is_downloaded_once(source, published, internet, tmp_path):
    internet.update(source)
    corpus = corpora.wikitext2(tmp_path / "wikitext-2")
    assert corpus.name == "wikitext-2"
    assert {split: path.read_bytes() for split, path in corpus.paths.items()} == TEXTS
    internet["asked"].clear()
    corpora.wikitext2(tmp_path / "wikitext-2")
    assert internet["asked"] == []


@pytest.mark.parametrize("bad", [b"", TEXTS["train"][:-1], TEXTS["train"] + b"x", b"x" * len(TEXTS["train"])])
def test_a_wrong_download_is_refused_and_leaves_no_file(bad, published, internet, tmp_path):
    internet.update(files_at(TEXTS | {"train": bad}))
    internet.update(archive_of(TEXTS | {"train": bad}))
    with pytest.raises(corpora.Unreachable, match="not the published file"):
        corpora.wikitext2(tmp_path / "wikitext-2")
    assert not list(tmp_path.rglob("*.*"))


def test_a_wrong_local_file_is_named_and_kept(published, internet, tmp_path):
    folder = tmp_path / "wikitext-2"
    folder.mkdir()
    (folder / "train.txt").write_bytes(b"mine")
    with pytest.raises(InputError, match="train.txt is not WikiText-2 as published"):
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
    texts = {split: path.read_text() for split, path in corpus.paths.items()}
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
    corpus = corpora.from_file(tmp_path / "mine.txt", 0.1, 0.2, tmp_path / "splits")
    parts = [corpus.paths[split].read_bytes().decode() for split in corpora.SPLITS]
    assert corpus.name == "mine" and "".join(parts) == text
    assert abs(len(parts[1]) / len(text) - 0.1) < 0.02 and abs(len(parts[2]) / len(text) - 0.2) < 0.02
    if " " in text:
        assert all(part[-1].isspace() for part in parts)


def test_a_folder_takes_both_ways_of_naming(tmp_path):
    for name in ("train.txt", "wiki.valid.tokens", "test.txt"):
        (tmp_path / name).write_text("x")
    assert corpora.from_folder(tmp_path).paths["valid"].name == "wiki.valid.tokens"
    (tmp_path / "test.txt").unlink()
    with pytest.raises(InputError, match="neither test.txt nor wiki.test.tokens"):
        corpora.from_folder(tmp_path)


def test_lines_come_without_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffone\r\n\ntwo\x0bthree\u2028four".encode())
    assert list(corpora.lines(path)) == ["one", "", "two\x0bthree\u2028four"]


def test_text_that_is_not_utf8_is_named_with_line_and_byte(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"fine\ncaf\xe9 au lait\n")
    with pytest.raises(InputError, match="latin.txt is not UTF-8: line 2, byte 4"):
        list(corpora.lines(path))
