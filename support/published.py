"""Published corpora, downloaded over HTTPS and held against the hashes that were published."""

import contextlib
import itertools
import signal
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from typing import Iterator, NamedTuple

from support import cli, console, files
from support.cli import InputError
from support.corpora import SPLITS, Corpus, Part, Text, next_character, whole_file


class Unreachable(InputError):
    """No source delivers the corpus."""


class Published(NamedTuple):
    """Where the files of a corpus are to be had, and what tells that they are those published."""

    archive_url: str
    members: dict[str, str]  # of the archive, for each file
    # Of each file, after the name of the algorithm; "git" is the SHA-1 by which git names a file.
    hashes: dict[str, str]
    archive_bytes: int  # no fewer than the archive has
    file_bytes: int  # no fewer than a file has
    file_url: str | None = None  # of each file by itself


PUBLISHED = {
    # Merity et al. 2016, arXiv 1609.07843
    "wikitext-2": Published(
        "https://wikitext.smerity.com/wikitext-2-v1.zip",
        {f"{split}.txt": f"wikitext-2/wiki.{split}.tokens" for split in SPLITS},
        {"train.txt": "git:2d84b35af79e411d73ea7cae83c73964c6ac83b4",
         "valid.txt": "git:eec944eb2d9e46061cd34a6913528797db6842fc",
         "test.txt": "git:6f3fc88e4cd88456ea892971f9f12243e8428624"},
        8 << 20, 16 << 20,
        "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/{file}"),
    "wikitext-103": Published(
        "https://wikitext.smerity.com/wikitext-103-v1.zip",
        {f"{split}.txt": f"wikitext-103/wiki.{split}.tokens" for split in SPLITS},
        {"train.txt": "sha1:b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",
         "valid.txt": "sha1:c326ac59dc587676d58c422eb8a03e119582f92b",
         "test.txt": "sha1:8a5befc548865cec54ed4273cf87dbbad60d1e47"},
        200 << 20, 600 << 20),
    # Mahoney 2006, Large Text Compression Benchmark: the first 10^8 bytes of a dump of Wikipedia;
    # and a clean text, a to z alone
    "enwik8": Published(
        "https://mattmahoney.net/dc/enwik8.zip", {"enwik8": "enwik8"},
        {"enwik8": "sha1:57b8363b814821dc9d47aa4d41f58733519076b2"}, 36 << 20, 100_000_000),
    "text8": Published(
        "https://mattmahoney.net/dc/text8.zip", {"text8": "text8"},
        {"text8": "md5:3bea1919949baf155f99411df5fada7e"}, 36 << 20, 100_000_000),
}
HELD_OUT_BYTES = 5_000_000  # of enwik8 and text8, for each of valid and test
STALL_SECONDS = 20  # the longest that a download may stand still
SLOWEST = 50_000  # the bytes per second that it must have


def get(name: str, folder: Path) -> Corpus:
    """A published corpus from `folder`, downloaded into it where a file is missing.

    Raises:
      InputError: a file in `folder` is not the published one.
      Unreachable: no source delivers a file.
      files.NotWritten: `folder` cannot be written.
    """
    corpus = PUBLISHED[name]
    for file, expected in corpus.hashes.items():
        if (folder / file).exists() and _hash(folder / file, expected) != expected:
            raise InputError(
                f"{folder / file} is not {name} as published: delete it to download it again, "
                "or use it as your own text with --input_dir or --input_text")
    if missing := [file for file in corpus.members if not (folder / file).exists()]:
        with _workspace(folder) as workspace:
            _download(name, workspace, missing)
    if len(corpus.members) == len(SPLITS):
        return Corpus(name, {split: whole_file(folder / f"{split}.txt") for split in SPLITS})
    path = folder / name
    size = path.stat().st_size
    train_end = next_character(path, size - 2 * HELD_OUT_BYTES)
    valid_end = next_character(path, size - HELD_OUT_BYTES)
    bounds = [0, train_end, valid_end, size]
    texts = {}
    for split, start, end in zip(SPLITS, bounds, bounds[1:]):
        texts[split] = Text(f"{split} part of {name}", [Part(path, start, end)])
    return Corpus(name, texts)


def _hash(path: Path, like: str) -> str:
    """The hash of a file, by the algorithm of another hash."""
    algorithm = like.split(":")[0]
    if algorithm == "git":
        header = f"blob {path.stat().st_size}\0".encode()
        return "git:" + files.digest(itertools.chain([header], files.blocks(path)), "sha1")
    return f"{algorithm}:{files.digest(files.blocks(path), algorithm)}"


@contextlib.contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, which is made for it, and removed if it stays empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with files.named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            workspace = tempfile.TemporaryDirectory(dir=folder)
        with workspace:
            yield Path(workspace.name)
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _download(name: str, workspace: Path, missing: list[str]):
    """Downloads files: each by itself where it is to be had so, otherwise from the archive.

    They appear in the folder above `workspace`.

    Raises:
      Unreachable: one cannot be had.
      files.NotWritten: the network is not the reason.
    """
    corpus, folder, reasons = PUBLISHED[name], workspace.parent, []
    by_itself = {}
    if corpus.file_url:
        by_itself = {corpus.file_url.format(file=file): [file] for file in missing}
    for source in (by_itself, {corpus.archive_url: missing}):
        try:
            for url, wanted in source.items():
                if wanted := [file for file in wanted if not (folder / file).exists()]:
                    _download_files(url, corpus, wanted, workspace)
        except files.NotWritten:
            raise
        # There is no list of what http.client and zipfile raise for bytes that are not what they
        # should be.
        except Exception as error:
            reasons.append(f"{url}: {' '.join(str(error).split()) or type(error).__name__}")
    if not all((folder / file).exists() for file in missing):
        raise Unreachable(f"cannot download {name} ({'; '.join(reasons)})")


def _download_files(url: str, corpus: Published, wanted: list[str], workspace: Path):
    """Downloads files of a corpus from one address: the one file, or an archive of all."""
    received, content, folder = workspace / "received", workspace / "content", workspace.parent
    archived = url == corpus.archive_url
    _write(received, _fetch(url, corpus.archive_bytes if archived else corpus.file_bytes))
    for file in wanted:
        blocks = files.blocks(received)
        if archived:
            blocks = _member(received, corpus.members[file], corpus.file_bytes)
        _write(content, blocks)
        if _hash(content, corpus.hashes[file]) != corpus.hashes[file]:
            raise OSError("not the published file")
        with files.named(folder):
            files.sync(content)
            content.replace(folder / file)


def _write(path: Path, blocks: Iterator[bytes]):
    """Writes blocks to a file of the workspace.

    Raises:
      files.NotWritten: it cannot be written; an error of the blocks stays what it is.
    """
    with files.named(path.parent.parent):
        file = open(path, "wb")
    with file, contextlib.closing(blocks):
        for block in blocks:
            with files.named(path.parent.parent):
                file.write(block)
                file.flush()


def _member(archive: Path, name: str, max_bytes: int) -> Iterator[bytes]:
    """The content of a member of an archive, up to about so many bytes."""
    with zipfile.ZipFile(archive) as opened, opened.open(name) as member:
        for _ in range(0, max_bytes + 1, files.BLOCK_BYTES):
            yield member.read(files.BLOCK_BYTES)


def _fetch(url: str, max_bytes: int) -> Iterator[bytes]:
    """The content at `url`, with a progress line.

    It comes over HTTPS alone, also where it is redirected.

    Raises:
      OSError: it cannot be had, has more than `max_bytes` or stands still.
      InputError: it takes too long.
    """
    opener = urllib.request.OpenerDirector()
    handlers = (  # none for any other protocol
        urllib.request.ProxyHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.UnknownHandler)
    for handler in handlers:
        opener.add_handler(handler())
    agent = {"User-Agent": "Mozilla/5.0"}  # the archive's host refuses Python's own
    request = urllib.request.Request(url, headers=agent)
    print(f"downloading {url}")
    with (_deadline(STALL_SECONDS + max_bytes / SLOWEST),
          opener.open(request, timeout=STALL_SECONDS) as response):
        received = 0
        try:
            while block := response.read(1 << 16):
                received += len(block)
                if received > max_bytes:
                    raise OSError(f"more than {max_bytes:,} bytes")
                yield block
                console.redraw(f"{received / 1e6:.1f} MB")
        finally:
            console.redraw("\n")


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Ends a block with an InputError where it takes too long."""
    def end(number, frame):
        # No OSError, which `files.named` would take for one of the disk.
        raise InputError(f"not finished after {seconds} s")

    if not cli.in_main_thread():  # which alone may set an alarm
        yield
        return
    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
