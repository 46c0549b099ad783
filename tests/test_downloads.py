"""Published corpora from a server on this machine: the published files, or a reason in one line."""

import hashlib
import http.server
import io
import threading
import time
import zipfile

import pytest
from test_data_utils import WIKITEXT2, needs_wikitext2

import data_utils
from support import files, published, pydocs
from support.errors import InputError

TEXTS = {"train": b"a b c\n" * 50, "valid": b"d e\n", "test": b"f\n"}
LINES = "".join(f"line {number}: \u00e4\n" for number in range(100)).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    """Writes what `server.answer(path)` returns, a whole response, for everyone but robots."""

    def do_GET(self):
        self.server.asked.append(self.path)
        robot = self.headers["User-Agent"].startswith("Python")
        response = respond(status="403 Forbidden") if robot else self.server.answer(self.path)
        self.wfile.write(response)

    def log_message(self, *_):
        pass


def respond(content=b"", status="200 OK", length=None, headers=""):
    length = len(content) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n".encode() + content


def archive_of(members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return content.getvalue()


ARCHIVE = archive_of({f"in/{split}.tokens": text for split, text in TEXTS.items()})


def texts(path):
    split = path.strip("/").removesuffix(".txt")
    return respond(TEXTS[split]) if split in TEXTS else respond(status="404 Not Found")


def archive(path):
    return respond(ARCHIVE) if path.endswith(".zip") else respond(status="404 Not Found")


def redirect(path):
    if path.startswith("/there"):
        return texts(path.removeprefix("/there"))
    return respond(status="302 Found", headers=f"Location: /there{path}\r\n")


@pytest.fixture
def serve(monkeypatch):
    """A function that lets a server answer for all published corpora; it returns the server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def answer_by(answer):
        server.answer, server.asked = answer, []
        return server

    address = f"http://127.0.0.1:{server.server_port}"
    sha1 = {f"{split}.txt": hashlib.sha1(text).hexdigest() for split, text in TEXTS.items()}
    sources = [f"{address}/{{split}}.txt", f"{address}/all.zip#in/{{split}}.tokens"]
    for name in ("wikitext-2", "wikitext-103"):
        monkeypatch.setitem(published.PUBLISHED, name, published.Published(sha1, sources))
    whole = published.Published({"text8": hashlib.sha1(LINES).hexdigest()},
                                [f"{address}/text8.zip#text8"], (len(LINES) - 98, len(LINES) - 51))
    monkeypatch.setitem(published.PUBLISHED, "text8", whole)
    yield answer_by
    server.shutdown()
    server.server_close()


def content_of(corpus):
    return {split: b"".join(part.path.read_bytes()[part.start:part.end] for part in text.parts)
            for split, text in corpus.texts.items()}


def first_text(path):
    return texts(path) if path == "/train.txt" else archive(path)


@pytest.mark.parametrize("answer, asked", [
    (texts, ["/train.txt", "/valid.txt", "/test.txt"]),
    (archive, ["/train.txt", "/all.zip"]),
    (first_text, ["/train.txt", "/valid.txt", "/all.zip"]),
    (redirect, ["/train.txt", "/there/train.txt", "/valid.txt", "/there/valid.txt",
                "/test.txt", "/there/test.txt"])], ids=lambda value: getattr(value, "__name__", ""))
def test_a_corpus_is_downloaded_once(answer, asked, serve, tmp_path):
    server = serve(answer)
    for requests in (asked, asked):  # nothing is asked the second time
        corpus = data_utils.choose_corpus("wikitext-103", tmp_path)
        assert corpus.name == "wikitext-103" and content_of(corpus) == TEXTS
        assert server.asked == requests
    names = sorted(path.name for path in tmp_path.rglob("*.*"))
    assert names == ["test.txt", "train.txt", "valid.txt"]


def stall(path):
    time.sleep(2)
    return respond()


def redirect_for_ever(path):
    return respond(status="302 Found", headers=f"Location: {path}x\r\n")


@pytest.mark.parametrize("answer, reason", [
    (stall, "timed out"),
    (redirect_for_ever, "redirect"),
    (lambda path: b"", "closed"),
    (lambda path: b"220 smtp.example\r\n", "smtp"),
    (lambda path: respond(status="500 Internal\tServer Error"), "500: Internal Server"),
    (lambda path: respond(TEXTS["train"][:-1]), "not the published file"),
    (lambda path: respond(TEXTS["train"][:9], length=300), "not the published file|IncompleteRead"),
    (lambda path: respond(b"<html>log in</html>"), "not a zip file"),
    (lambda path: respond(ARCHIVE[:-30], length=len(ARCHIVE)), "zip file|IncompleteRead"),
    (lambda path: respond(archive_of({"in/train.tokens": b"x"})), "zip: not the published file"),
    (lambda path: respond(archive_of({"train.tokens": b"x"})), "zip: .*no item named")])
def test_a_failed_download_has_a_reason_and_leaves_no_file(
        answer, reason, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "STALL_SECONDS", 0.5)
    serve(answer)
    message = f"cannot download wikitext-2 .*({reason})"
    with pytest.raises(published.Unreachable, match=message) as error:
        data_utils.choose_corpus("wikitext-2", tmp_path)
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*"))


def test_files_that_are_there_are_kept(serve, tmp_path):
    serve(lambda path: texts(path) if path == "/train.txt" else respond(status="404 Not Found"))
    with pytest.raises(published.Unreachable):
        data_utils.choose_corpus("wikitext-2", tmp_path)
    train, = tmp_path.rglob("*.*")
    assert train.read_bytes() == TEXTS["train"]
    train.write_bytes(b"mine")
    for name in ("wikitext-2", "auto"):
        with pytest.raises(InputError, match="differs from the published wikitext-2: delete it"):
            data_utils.choose_corpus(name, tmp_path)
    assert train.read_bytes() == b"mine"


def test_without_network_auto_is_documentation_and_says_so(serve, tmp_path, monkeypatch, capsys):
    serve(lambda path: b"")
    monkeypatch.setattr(pydocs, "_documents", lambda: iter(["some text\n"] * 40))
    assert data_utils.choose_corpus("auto", tmp_path).name == "pydocs"
    assert "NOT WikiText-2" in capsys.readouterr().err


def test_a_disk_that_fails_is_not_taken_for_a_network_that_fails(serve, tmp_path, monkeypatch):
    serve(texts)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(files.NotWritten, match="cannot write .*/train.txt: Not a directory"):
        data_utils.choose_corpus("auto", tmp_path / "file")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(files.NotWritten, match="cannot write .*/train.txt: No space left on devi"):
        data_utils.choose_corpus("auto", tmp_path)
    assert [path.name for path in tmp_path.rglob("*.*")] == []


def test_a_corpus_of_one_file_is_cut_between_characters(serve, tmp_path):
    serve(lambda path: respond(archive_of({"text8": LINES})))
    splits = content_of(data_utils.choose_corpus("text8", tmp_path))
    assert list(splits) == ["train", "valid", "test"] and b"".join(splits.values()) == LINES
    cut = published.PUBLISHED["text8"].cuts[0]
    assert LINES[cut - 1:cut + 1] == "\u00e4".encode() and len(splits["train"]) == cut + 1
    assert len(splits["test"]) == 51


def test_splits_of_the_published_tables():
    for name in ("enwik8", "text8"):
        assert published.PUBLISHED[name].cuts == (90_000_000, 95_000_000)


@needs_wikitext2
def test_published_hashes_are_those_of_wikitext2():
    for name in ("valid.txt", "test.txt"):  # the folder has the articles of train in another order
        sha1 = hashlib.sha1((WIKITEXT2 / name).read_bytes()).hexdigest()
        assert published.PUBLISHED["wikitext-2"].sha1[name] == sha1
