"""The raw text of a corpus, UTF-8: WikiText-2 or WikiText-103, the documentation on this machine, or the user's own.

Every way ends in a `Corpus`: a name, which all logs and pictures of a run show, and of each split the parts of files that it is.
"""

import ast
import contextlib
import importlib.util
import inspect
import itertools
import os
import re
import signal
import sys
import sysconfig
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from typing import Iterator, NamedTuple

import files
from cli import InputError

SPLITS = ("train", "valid", "test")
HELD_OUT = 0.05  # of a text that has no splits, for each of the last two


class Part(NamedTuple):
    """A part of a UTF-8 file, in bytes."""

    path: Path
    start: int
    end: int


class Text(NamedTuple):
    """A text: parts of files, one after another."""

    name: str
    parts: list[Part]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(part.end - part.start for part in self.parts)

    def sha256(self) -> str:
        """Of its bytes, in hexadecimal."""
        return files.digest(block for part in self.parts for block in files.blocks(*part))


class Corpus(NamedTuple):
    name: str
    texts: dict[str, Text]  # of each split


def whole_file(path: Path) -> Text:
    return Text(path.name, [Part(path, 0, path.stat().st_size)])


class Unreachable(InputError):
    """No source delivers the corpus."""


# ---------------------------------------------------------------------------------------------------------------------
# WikiText-2 and WikiText-103 (Merity et al. 2016, arXiv 1609.07843)


class Published(NamedTuple):
    """What is known of a published corpus."""

    archive_bytes: int  # no fewer than its archive has
    split_bytes: int  # no fewer than a split has
    prefix: str  # hashed before the content of a split: with "blob <size>\0" the SHA-1 is git's name for it
    sha1: dict[str, str]  # of each split


WIKITEXT = {
    "wikitext-2": Published(8 << 20, 16 << 20, "blob {size}\0", {
        "train": "2d84b35af79e411d73ea7cae83c73964c6ac83b4",
        "valid": "eec944eb2d9e46061cd34a6913528797db6842fc",
        "test": "6f3fc88e4cd88456ea892971f9f12243e8428624"}),
    "wikitext-103": Published(200 << 20, 600 << 20, "", {
        "train": "b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",
        "valid": "c326ac59dc587676d58c422eb8a03e119582f92b",
        "test": "8a5befc548865cec54ed4273cf87dbbad60d1e47"}),
}
FILES_URL = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/{split}.txt"
ARCHIVE_URL = "https://wikitext.smerity.com/{name}-v1.zip"
STALL_SECONDS, SLOWEST = 20, 50_000  # the longest that a download may stand still, and the bytes per second that it must have
BREAK_BYTES = 1 << 16  # within which a text is cut at a line end, if there is one


def wikitext(name: str, folder: Path) -> Corpus:
    """WikiText-2 or WikiText-103 from `folder`, downloaded into it where a file is missing.

    Raises:
      InputError: a file in `folder` is not the published one.
      Unreachable: no source delivers a file.
    """
    paths = {split: folder / f"{split}.txt" for split in SPLITS}
    for split, path in paths.items():
        if path.exists() and not _is_published(name, split, path):
            raise InputError(f"{path} is not {name} as published: delete it to download it again, "
                             f"or use the folder as your own text with --input_dir={folder}")
    _download(name, folder, [split for split, path in paths.items() if not path.exists()])
    return Corpus(name, {split: whole_file(path) for split, path in paths.items()})


def _is_published(name: str, split: str, path: Path) -> bool:
    published = WIKITEXT[name]
    prefix = published.prefix.format(size=path.stat().st_size).encode()
    return files.digest(itertools.chain([prefix], files.blocks(path)), "sha1") == published.sha1[split]


def _download(name: str, folder: Path, missing: list[str]):
    """Downloads splits: each by itself where it is to be had so, otherwise from the archive.

    Raises:
      Unreachable: one cannot be had.
    """
    archive, reasons = ARCHIVE_URL.format(name=name), []
    sources = [{FILES_URL.format(split=split): [split] for split in missing}] if name == "wikitext-2" else []
    for source in [*sources, {archive: missing}]:
        try:
            for url, splits in source.items():
                if wanted := [split for split in splits if not (folder / f"{split}.txt").exists()]:
                    _download_splits(url, name, wanted, folder, archived=url == archive)
        except Exception as error:  # there is no list of what http.client and zipfile raise for bytes that are not what they should be
            reasons.append(f"{url}: {' '.join(str(error).split()) or type(error).__name__}")
        else:
            return
    raise Unreachable(f"cannot download {name} ({'; '.join(reasons)})")


def _download_splits(url: str, name: str, splits: list[str], folder: Path, archived: bool):
    """Downloads splits of a corpus from one address: the one split, or an archive of all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        received, text = Path(temporary, "received"), Path(temporary, "text")
        _fetch(url, WIKITEXT[name].archive_bytes if archived else WIKITEXT[name].split_bytes, received)
        for split in splits:
            with open(text, "wb") as file:
                file.writelines(_member(received, f"{name}/wiki.{split}.tokens", WIKITEXT[name].split_bytes) if archived else files.blocks(received))
            if not _is_published(name, split, text):
                raise OSError("not the published file")
            files.sync(text)
            text.replace(folder / f"{split}.txt")


def _member(archive: Path, name: str, max_bytes: int) -> Iterator[bytes]:
    """The content of a member of an archive, up to about so many bytes."""
    with zipfile.ZipFile(archive) as opened, opened.open(name) as member:
        for _ in range(0, max_bytes, files.BLOCK_BYTES):
            yield member.read(files.BLOCK_BYTES)


def _fetch(url: str, max_bytes: int, path: Path):
    """Writes the content at `url` to a file, over HTTPS alone, also where it redirects, with a progress line.

    Raises:
      OSError: it cannot be had, has more than `max_bytes`, stands still or takes too long.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPSHandler, urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
                    urllib.request.HTTPDefaultErrorHandler, urllib.request.UnknownHandler):  # none for any other protocol
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})  # the archive's host refuses Python's own
    with _deadline(STALL_SECONDS + max_bytes / SLOWEST), opener.open(request, timeout=STALL_SECONDS) as response, open(path, "wb") as file:
        try:
            while block := response.read(1 << 16):
                file.write(block)
                if file.tell() > max_bytes:
                    raise OSError(f"more than {max_bytes:,} bytes")
                print(f"\r{url}: {file.tell() / 1e6:.1f} MB", end="", flush=True)
        finally:
            print()


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Ends a block with a TimeoutError where it takes too long."""
    def end(number, frame):
        raise TimeoutError(f"not finished after {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------------------------------------------------------
# The documentation that is on every machine with Python, numpy, keras and tensorflow


def pydocs(folder: Path) -> Corpus:
    """A stand-in of WikiText-2's size for machines without network: docstrings, whole modules per split, 90/5/5.

    The source files are parsed, never imported, in a fixed order; a text that appeared before is left out.
    """
    splits = {split: [] for split in SPLITS}
    for number, document in enumerate(_documents()):
        splits[{18: "valid", 19: "test"}.get(number % 20, "train")].append(document)
    for split, documents in splits.items():
        files.write_whole(folder / f"{split}.txt", "".join(documents).encode("utf-8", errors="ignore"))
    return Corpus("pydocs", {split: whole_file(folder / f"{split}.txt") for split in SPLITS})


def _documents() -> Iterator[str]:
    """The docstrings of one source file after another, and the topics of Python's own help."""
    seen = set()
    for path in _source_files():
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # templates and samples that are not Python
            continue
        texts = _topics(tree) if path.parent.name == "pydoc_data" else _docstrings(tree)
        new = [text for text in dict.fromkeys(texts) if text.strip() and text not in seen]
        seen.update(new)
        if new:
            yield "\n".join(new) + "\n"


def _source_files() -> Iterator[Path]:
    library = Path(sysconfig.get_paths()["stdlib"])
    yield from (path for path in _python_files(library) if "site-packages" not in path.parts)
    for package in ("numpy", "keras", "tensorflow"):
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise InputError(f"the package {package}, whose documentation is part of this corpus, is not installed")
        yield from _python_files(Path(spec.origin).parent)


def _python_files(folder: Path) -> list[Path]:
    paths = [path.relative_to(folder) for path in folder.rglob("*.py")]
    return [folder / path for path in sorted(paths) if not {"test", "tests"} & set(path.parts)]


def _docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def _topics(tree: ast.AST) -> Iterator[str]:
    """The values of pydoc_data/topics.py: one dictionary of texts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from (inspect.cleandoc(value.value) for value in node.values if isinstance(value, ast.Constant))


# ---------------------------------------------------------------------------------------------------------------------
# The user's own text


def is_to_split(folder: Path) -> bool:
    """Whether a folder has no splits of its own."""
    return not any((folder / name).is_file() for split in SPLITS for name in _names(split))


def _names(split: str) -> tuple[str, str]:
    return f"{split}.txt", f"wiki.{split}.tokens"


def from_folder(folder: Path, valid_fraction: float = HELD_OUT, test_fraction: float = HELD_OUT) -> Corpus:
    """A folder with train, valid and test, as `.txt` or `wiki.*.tokens`; or with any `.txt` files, which are split as one text.

    Raises:
      InputError: a split is missing, or there is no text.
    """
    name = folder.resolve().name
    if is_to_split(folder):
        paths = sorted(path for path in folder.rglob("*.txt") if path.is_file())
        if not paths:
            raise InputError(f"{folder} holds no .txt files")
        return _split(name, paths, valid_fraction, test_fraction)
    texts = {}
    for split in SPLITS:
        found = [folder / name for name in _names(split) if (folder / name).is_file()]
        if not found:
            raise InputError(f"{folder} holds neither {' nor '.join(_names(split))}")
        texts[split] = whole_file(found[0])
    return Corpus(name, texts)


def from_file(path: Path, valid_fraction: float = HELD_OUT, test_fraction: float = HELD_OUT) -> Corpus:
    """One file, split contiguously into train, valid and test.

    Raises:
      InputError: the file is missing or empty.
    """
    if not path.is_file() or not path.stat().st_size:
        raise InputError(f"{path} is missing or empty")
    return _split(path.stem, [path], valid_fraction, test_fraction)


def _split(name: str, paths: list[Path], valid_fraction: float, test_fraction: float) -> Corpus:
    """Files, one after another, split contiguously. A split begins at the next line end, or where lines are very long at the next
    space or character."""
    size = sum(path.stat().st_size for path in paths)
    bounds = [0, round(size * (1 - valid_fraction - test_fraction)), round(size * (1 - test_fraction)), size]
    whole = paths[0].name if len(paths) == 1 else name
    texts = {split: Text(f"{split} part of {whole}", []) for split in SPLITS}
    start = 0  # of the file, in the whole text
    for path in paths:
        end = path.stat().st_size
        cuts = [_next_break(path, min(max(bound - start, 0), end)) for bound in bounds]
        for split, *part in zip(SPLITS, cuts, cuts[1:]):
            if part[0] < part[1]:
                texts[split].parts.append(Part(path, *part))
        start += end
    return Corpus(name, texts)


def _next_break(path: Path, position: int) -> int:
    """Where a file may be cut, from a position on: after a line, a word, or a UTF-8 character."""
    size = path.stat().st_size
    if position in (0, size):
        return position
    text = b"".join(files.blocks(path, position, position + BREAK_BYTES))
    for boundary in (rb"\n", rb"\s", rb"(?=[^\x80-\xbf])"):
        if match := re.compile(boundary).search(text):
            return position + match.end()
    return size


# ---------------------------------------------------------------------------------------------------------------------
# Choosing and reading


def choose(name: str, data: Path) -> Corpus:
    """`--corpus`: its name, or `auto`, which is WikiText-2, or pydocs where that cannot be had."""
    if name == "pydocs":
        return pydocs(data / "pydocs")
    if name != "auto":
        return wikitext(name, data / name)
    try:
        return wikitext("wikitext-2", data / "wikitext-2")
    except Unreachable as error:
        print(f"{error}\n\n{'*' * 100}\nThis is NOT WikiText-2, which cannot be had: the corpus is 'pydocs', documentation found "
              f"on this machine.\nIts perplexities compare with nothing published.\n{'*' * 100}\n", file=sys.stderr)
        return pydocs(data / "pydocs")


def chunks(part: Part, size: int) -> Iterator[Part]:
    """A part of a file in smaller parts of about so many bytes, each of which begins where a line does, if lines are not very long."""
    start = part.start
    while start < part.end:
        end = part.end if start + size + BREAK_BYTES > part.end else _next_break(part.path, start + size)
        yield Part(part.path, start, end)
        start = end


def lines(part: Part) -> Iterator[tuple[str, bool]]:
    """The lines of a part of a UTF-8 file, without their ends and without a byte order mark, and whether the line ends there.

    Raises:
      InputError: the text is not UTF-8; file, line and byte are named.
    """
    with open(part.path, "rb") as file:
        size, position = os.fstat(file.fileno()).st_size, file.seek(part.start)
        while line := file.readline(part.end - position):
            try:
                text = line.decode("utf-8" if position else "utf-8-sig")
            except UnicodeDecodeError as error:
                number = 1 + sum(block.count(b"\n") for block in files.blocks(part.path, 0, position))
                raise InputError(f"{part.path} is not UTF-8: line {number}, byte {error.start + 1}; iconv converts") from None
            position += len(line)
            yield text.rstrip("\r\n"), line.endswith(b"\n") or position == size
