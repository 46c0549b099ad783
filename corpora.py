"""The raw text of a corpus, UTF-8: a published one, the documentation on this machine, or the user's own.

Every way ends in a `Corpus`: a name, which all logs and pictures of a run show, and of each split the parts of files that it is.
"""

import ast
import codecs
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
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"PK\x03\x04": "unzip", b"\x28\xb5\x2f\xfd": "unzstd"}
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


class Corpus(NamedTuple):
    name: str
    texts: dict[str, Text]  # of each split


def whole_file(path: Path) -> Text:
    return Text(_shown(path.name), [Part(path, 0, path.stat().st_size)])


def _shown(name: str) -> str:
    """A file's name in characters that can be printed and written as UTF-8: not every name can."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)


class Unreachable(InputError):
    """No source delivers the corpus."""


# ---------------------------------------------------------------------------------------------------------------------
# Published corpora


class Published(NamedTuple):
    """Where the files of a corpus are to be had, and how to tell that they are those that were published."""

    archive_url: str
    members: dict[str, str]  # of the archive, for each file
    hashes: dict[str, str]  # of each file, after the name of the algorithm; "git" is the SHA-1 by which git names a file
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
    # Mahoney 2006, Large Text Compression Benchmark: the first 10^8 bytes of a dump of Wikipedia; and a clean text, a to z alone
    "enwik8": Published(
        "https://mattmahoney.net/dc/enwik8.zip", {"enwik8": "enwik8"},
        {"enwik8": "sha1:57b8363b814821dc9d47aa4d41f58733519076b2"}, 36 << 20, 100_000_000),
    "text8": Published(
        "https://mattmahoney.net/dc/text8.zip", {"text8": "text8"},
        {"text8": "md5:3bea1919949baf155f99411df5fada7e"}, 36 << 20, 100_000_000),
}
HELD_OUT_BYTES = 5_000_000  # of enwik8 and text8, for each of valid and test
STALL_SECONDS, SLOWEST = 20, 50_000  # the longest that a download may stand still, and the bytes per second that it must have
BREAK_BYTES = 1 << 16  # within which a text is cut at a line end, if there is one


def published(name: str, folder: Path) -> Corpus:
    """A published corpus from `folder`, downloaded into it where a file is missing.

    Raises:
      InputError: a file in `folder` is not the published one.
      Unreachable: no source delivers a file.
    """
    corpus = PUBLISHED[name]
    for file, expected in corpus.hashes.items():
        if (folder / file).exists() and _hash(folder / file, expected) != expected:
            raise InputError(f"{folder / file} is not {name} as published: delete it to download it again, "
                             f"or use it as your own text with --input_dir or --input_text")
    _download(name, folder, [file for file in corpus.members if not (folder / file).exists()])
    if len(corpus.members) == len(SPLITS):
        return Corpus(name, {split: whole_file(folder / f"{split}.txt") for split in SPLITS})
    path = folder / name
    size = path.stat().st_size
    bounds = [0, *(_next_character(path, size - held_out * HELD_OUT_BYTES) for held_out in (2, 1)), size]
    parts = zip(SPLITS, bounds, bounds[1:])
    return Corpus(name, {split: Text(f"{split} part of {name}", [Part(path, start, end)]) for split, start, end in parts})


def _hash(path: Path, like: str) -> str:
    """The hash of a file, by the algorithm of another hash."""
    algorithm = like.split(":")[0]
    if algorithm == "git":
        header = f"blob {path.stat().st_size}\0".encode()
        return "git:" + files.digest(itertools.chain([header], files.blocks(path)), "sha1")
    return f"{algorithm}:{files.digest(files.blocks(path), algorithm)}"


def _download(name: str, folder: Path, missing: list[str]):
    """Downloads files: each by itself where it is to be had so, otherwise from the archive.

    Raises:
      Unreachable: one cannot be had.
    """
    corpus, reasons = PUBLISHED[name], []
    by_itself = {corpus.file_url.format(file=file): [file] for file in missing} if corpus.file_url else {}
    for source in (by_itself, {corpus.archive_url: missing}):
        try:
            for url, wanted in source.items():
                if wanted := [file for file in wanted if not (folder / file).exists()]:
                    _download_files(url, corpus, wanted, folder)
        except Exception as error:  # there is no list of what http.client and zipfile raise for bytes that are not what they should be
            reasons.append(f"{url}: {' '.join(str(error).split()) or type(error).__name__}")
    if not all((folder / file).exists() for file in missing):
        raise Unreachable(f"cannot download {name} ({'; '.join(reasons)})")


def _download_files(url: str, corpus: Published, wanted: list[str], folder: Path):
    """Downloads files of a corpus from one address: the one file, or an archive of all."""
    folder.mkdir(parents=True, exist_ok=True)
    archived = url == corpus.archive_url
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        received, content = Path(temporary, "received"), Path(temporary, "content")
        _fetch(url, corpus.archive_bytes if archived else corpus.file_bytes, received)
        for file in wanted:
            blocks = _member(received, corpus.members[file], corpus.file_bytes) if archived else files.blocks(received)
            with open(content, "wb") as opened:
                opened.writelines(blocks)
            if _hash(content, corpus.hashes[file]) != corpus.hashes[file]:
                raise OSError("not the published file")
            files.sync(content)
            content.replace(folder / file)


def _member(archive: Path, name: str, max_bytes: int) -> Iterator[bytes]:
    """The content of a member of an archive, up to about so many bytes."""
    with zipfile.ZipFile(archive) as opened, opened.open(name) as member:
        for _ in range(0, max_bytes + 1, files.BLOCK_BYTES):
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


def _names(split: str) -> tuple[str, ...]:
    return f"{split}.txt", f"wiki.{split}.tokens", f"wiki.{split}.raw"


def from_folder(folder: Path, valid_fraction: float = HELD_OUT, test_fraction: float = HELD_OUT) -> Corpus:
    """A folder with train, valid and test, as `.txt`, `wiki.*.tokens` or `wiki.*.raw`; or with any `.txt` files, which are split as
    one text, and of which it is told how many there are.

    Raises:
      InputError: it is no folder, a split is missing, or there is no text.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: --input_text takes files" if folder.exists() else f"there is no folder {folder}")
    name = _shown(folder.resolve().name)
    if is_to_split(folder):
        texts, others = _files_within(folder)
        left_out = f"{len(others)} other file(s) or hidden folder(s) left out" + (f", such as {_shown(others[0])}" if others else "")
        if not texts:
            raise InputError(f"{folder} holds no .txt files: {left_out}")
        print(f"{folder}: {len(texts)} text file(s), from {_shown(texts[0])} to {_shown(texts[-1])}; {left_out}")
        return _split(name, [folder / text for text in texts], valid_fraction, test_fraction)
    texts = {}
    for split in SPLITS:
        found = [folder / name for name in _names(split) if (folder / name).is_file()]
        if not found:
            raise InputError(f"{folder} holds no {', '.join(_names(split)[:-1])} or {_names(split)[-1]}")
        texts[split] = whole_file(found[0])
    return Corpus(name, texts)


def _files_within(folder: Path) -> tuple[list[str], list[str]]:
    """The `.txt` files of a folder and the folders within it, and the other files. Links are followed, and no file comes twice.

    Hidden files and folders, and those that macOS adds to archives, are no texts.
    """
    texts, others, seen = [], [], {folder.resolve()}
    for path, folders, names in os.walk(folder, followlinks=True):
        inside = Path(path).relative_to(folder)
        hidden = [name for name in folders if name.startswith(".") or name == "__MACOSX"]
        others += [f"{inside / name}/" for name in hidden]
        folders[:] = [name for name in sorted(set(folders) - set(hidden)) if _is_new(Path(path, name), seen)]
        for name in sorted(names):
            file = Path(path, name)
            is_text = name.lower().endswith(".txt") and not name.startswith(".") and file.is_file() and _is_new(file, seen)
            (texts if is_text else others).append(str(inside / name))
    return sorted(texts, key=_natural_order), sorted(others, key=_natural_order)


def _is_new(path: Path, seen: set[Path]) -> bool:
    """Whether what a path leads to is not in `seen`, where it is from now on."""
    before = len(seen)
    seen.add(path.resolve())
    return len(seen) > before


def _natural_order(path: str) -> list:
    """A key that sorts names with numbers by these: chapter 2 before chapter 10."""
    return [[int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", name)] for name in path.split("/")]


def from_file(path: Path, valid_fraction: float = HELD_OUT, test_fraction: float = HELD_OUT) -> Corpus:
    """One file, split contiguously into train, valid and test.

    Raises:
      InputError: it is missing, empty or a folder.
    """
    if not path.is_file():
        raise InputError(f"{path} is a folder: --input_dir takes folders" if path.is_dir() else f"{path} is missing")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty")
    return _split(_shown(path.stem), [path], valid_fraction, test_fraction)


def _split(name: str, paths: list[Path], valid_fraction: float, test_fraction: float) -> Corpus:
    """Files, one after another, split contiguously. A split begins at the next line end, or where lines are very long at the next
    space or character."""
    size = sum(path.stat().st_size for path in paths)
    bounds = [0, round(size * (1 - valid_fraction - test_fraction)), round(size * (1 - test_fraction)), size]
    whole = _shown(paths[0].name) if len(paths) == 1 else name
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
    if position in (0, path.stat().st_size):
        return position
    text = b"".join(files.blocks(path, position, position + BREAK_BYTES))
    for boundary in (rb"\n|\r(?=[^\n])", rb"\s"):
        if match := re.search(boundary, text):
            return position + match.end()
    return _next_character(path, position)


def _next_character(path: Path, position: int) -> int:
    """Where a UTF-8 character begins, from a position on; the position itself where the bytes are no UTF-8."""
    near = b"".join(files.blocks(path, position, position + 4))
    return position + next((offset for offset, byte in enumerate(near) if byte & 0xC0 != 0x80), 0)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing and reading


def choose(name: str, data: Path) -> Corpus:
    """`--corpus`: its name, or `auto`, which is WikiText-2, or pydocs where that cannot be had."""
    if name == "pydocs":
        return pydocs(data / "pydocs")
    if name != "auto":
        return published(name, data / name)
    try:
        return published("wikitext-2", data / "wikitext-2")
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


def blocks(text: Text, size: int) -> Iterator[bytes]:
    """The content of a text in blocks of about so many bytes, cut as `chunks` cuts. A byte order mark at the beginning of a file is
    left out, and a last line without an end gets one."""
    for part in text.parts:
        file_size = part.path.stat().st_size
        for path, start, end in chunks(part, size):
            block = b"".join(files.blocks(path, start, end))
            if start == 0:
                block = block.removeprefix(codecs.BOM_UTF8)
            if end == file_size and not block.endswith((b"\n", b"\r")):
                block += b"\n"
            yield block


def checked_sha256(text: Text) -> str:
    """The SHA-256 of the bytes of a text, in hexadecimal.

    Raises:
      InputError: they are not UTF-8; file, line and byte are named.
    """
    def checked_blocks():
        for part in text.parts:
            for path, start, end in chunks(part, files.BLOCK_BYTES):
                block = b"".join(files.blocks(path, start, end))
                try:
                    block.decode()
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, start + error.start) from None
                yield block

    return files.digest(checked_blocks())


def _not_utf8(path: Path, position: int) -> InputError:
    """What to say of a file that is no UTF-8 at a position."""
    beginning = next(files.blocks(path))
    for magic, program in COMPRESSED.items():
        if beginning.startswith(magic):
            return InputError(f"{path} is compressed: unpack it with {program}")
    before = b"".join(files.blocks(path, 0, position))
    number, byte = before.count(b"\n") + 1, position - before.rfind(b"\n")
    return InputError(f"{path} is not UTF-8: line {number}, byte {byte}; iconv converts")
