"""Downloads from a hostile server on this machine.

Whatever it does, they end soon, with a reason, and leave no file.
"""

import hashlib
import io
import socket
import ssl
import threading
import time
import zipfile
from pathlib import Path

import pytest

from support import published

CERTIFICATE = Path(__file__).with_name("localhost.pem")
TEXTS = {"train": b"a b c\n" * 50, "valid": b"d e\n", "test": b"f\n"}
LIMIT = 1.0  # seconds that a download may take in these tests


class Server:
    """Listens on loopback; `answer(connection, path)` does what it likes with each request."""

    def __init__(self, answer, tls=True):
        self.asked, self._answer, self._socket = [], answer, socket.create_server(("127.0.0.1", 0))
        self._context = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(CERTIFICATE)
        self.address = f"{'https' if tls else 'http'}://localhost:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._talk, args=[connection], daemon=True).start()

    def _talk(self, connection):
        try:
            with (
                self._context.wrap_socket(connection, server_side=True)
                if self._context
                else connection as connection
            ):
                path = connection.recv(4096).split()[1].decode()
                self.asked.append(path)
                self._answer(connection, path)
        except (OSError, IndexError):  # the client has left
            pass

    def close(self):
        self._socket.close()


@pytest.fixture
def download(monkeypatch, tmp_path):
    """A function: the three texts above, as WikiText-2, from a server with a given answer.

    Returns (corpus, server).
    """
    hashes = {
        f"{split}.txt": "git:" + hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()
        for split, text in TEXTS.items()
    }
    tiny = published.PUBLISHED["wikitext-2"]._replace(
        archive_bytes=100_000, file_bytes=300, hashes=hashes
    )
    monkeypatch.setattr(published, "STALL_SECONDS", LIMIT / 2)
    monkeypatch.setattr(published, "SLOWEST", 2 * tiny.archive_bytes / LIMIT)
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    servers = []

    def download_from(answer, tls=True):
        servers.append(Server(answer, tls))
        address = servers[-1].address
        there = tiny._replace(file_url=address + "/{file}", archive_url=address + "/archive.zip")
        monkeypatch.setitem(published.PUBLISHED, "wikitext-2", there)
        return published.get("wikitext-2", tmp_path / "wikitext-2"), servers[-1]

    yield download_from
    for server in servers:
        server.close()


def respond(connection, content, status="200 OK", length=None, headers=""):
    length = len(content) if length is None else length
    connection.sendall(
        f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n".encode() + content
    )


def archive(members, **settings):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", **settings) as file:
        for name, text in members.items():
            file.writestr(name, text)
    return content.getvalue()


def serve_files(connection, path):
    respond(connection, TEXTS[path.strip("/").removesuffix(".txt")])


def serve_archive(connection, path):
    members = {f"wikitext-2/wiki.{split}.tokens": text for split, text in TEXTS.items()} | {
        "../../evil": b"x",
        "/evil": b"x",
    }
    respond(
        connection,
        archive(members) if path.endswith(".zip") else b"",
        "200 OK" if path.endswith(".zip") else "404 Not Found",
    )


def redirect(connection, path):
    if path.startswith("/there"):
        serve_files(connection, path.removeprefix("/there"))
    else:
        respond(connection, b"", "302 Found", headers=f"Location: /there{path}\r\n")


@pytest.mark.parametrize("answer", [serve_files, serve_archive, redirect])
def test_an_honest_server_is_believed(answer, download, tmp_path, monkeypatch):
    monkeypatch.setattr(published, "STALL_SECONDS", 60)  # however busy this machine is
    corpus, server = download(answer)
    assert {
        split: text.parts[0].path.read_bytes() for split, text in corpus.texts.items()
    } == TEXTS and server.asked
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "test.txt",
        "train.txt",
        "valid.txt",
        "wikitext-2",
    ]


def stall(connection, path):
    time.sleep(10)


def stall_after_headers(connection, path):
    respond(connection, b"a", length=10**6)
    time.sleep(10)


def drip(connection, path):
    respond(connection, b"", length=10**6)
    for _ in range(100):
        connection.sendall(b"a")
        time.sleep(0.1)


def drip_headers(connection, path):
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(100):
        connection.sendall(b"a")
        time.sleep(0.1)


def never_end(connection, path):
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"a" * 100_000)


def promise_much(connection, path):
    respond(connection, b"a" * 300_000, length=10**15)


def redirect_for_ever(connection, path):
    respond(connection, b"", "302 Found", headers=f"Location: {path}x\r\n")


HOSTILE = {
    "stalls": (stall, "timed out"),
    "stalls after the headers": (stall_after_headers, "timed out"),
    "drips": (drip, "not finished after"),
    "drips its headers": (drip_headers, "not finished after"),
    "never ends": (never_end, "more than"),
    "promises much": (promise_much, "more than"),
    "ends too early": (
        lambda connection, path: respond(connection, b"a", length=200),
        "not the published file",
    ),
    "hangs up": (lambda connection, path: None, "closed|EOF|reset"),
    "is no web server": (
        lambda connection, path: connection.sendall(b"220 smtp.example\r\n"),
        "smtp",
    ),
    "sends noise": (lambda connection, path: connection.sendall(bytes(range(256)) * 100), "."),
    "sends an endless header": (
        lambda connection, path: connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1000),
        "headers",
    ),
    "fails": (
        lambda connection, path: respond(connection, b"", "500 Internal\tServer Error"),
        "500",
    ),
    "redirects for ever": (redirect_for_ever, "redirect"),
    "redirects to a file": (
        lambda connection, path: respond(
            connection, b"", "302 Found", headers="Location: file:///etc/passwd\r\n"
        ),
        "302|file",
    ),
    "sends another text": (
        lambda connection, path: respond(connection, TEXTS["train"][::-1]),
        "not the published file",
    ),
    "sends another archive": (
        lambda connection, path: respond(
            connection, archive({"wikitext-2/wiki.train.tokens": b"x" * 300})
        ),
        "not the published file",
    ),
    "lacks the member": (
        lambda connection, path: respond(
            connection, archive({"../wikitext-2/wiki.train.tokens": b"x"})
        ),
        "no item named",
    ),
    "sends a bomb": (
        lambda connection, path: respond(
            connection,
            archive(
                {"wikitext-2/wiki.train.tokens": b"x" * 10**7}, compression=zipfile.ZIP_DEFLATED
            ),
        ),
        "not the published file",
    ),
    "tears the archive": (
        lambda connection, path: respond(
            connection, archive({"wikitext-2/wiki.train.tokens": b"x" * 300})[:-30]
        ),
        "zip",
    ),
}


@pytest.mark.parametrize("answer, reason", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_server_ends_in_a_reason_and_no_file(answer, reason, download, tmp_path):
    start = time.monotonic()
    with pytest.raises(published.Unreachable, match=reason) as error:
        download(answer)
    assert time.monotonic() - start < 2 * LIMIT + 1  # two addresses
    assert "\n" not in str(error.value) and not [
        path for path in tmp_path.rglob("*") if path.is_file()
    ]


def test_plain_http_is_refused_at_once_and_after_a_redirect(download, tmp_path):
    with pytest.raises(published.Unreachable, match="unknown url type: http"):
        download(serve_files, tls=False)
    plain = Server(serve_files, tls=False)
    with pytest.raises(published.Unreachable, match="unknown url type: http"):
        download(
            lambda connection, path: respond(
                connection, b"", "302 Found", headers=f"Location: {plain.address}{path}\r\n"
            )
        )
    assert plain.asked == [] and not list(tmp_path.rglob("*.*"))
    plain.close()


def test_a_server_whose_name_nobody_vouches_for_is_refused(download, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(published.Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        download(serve_files)
