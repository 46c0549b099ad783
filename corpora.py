"""The raw text of a corpus, one UTF-8 file per split: WikiText-2, the documentation on this machine, or the user's own.

Every function here ends in a `Corpus`: a name, which all logs and pictures of a run show, and the path of each split.
"""

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import io
import re
import signal
import sys
import sysconfig
import urllib.request
import zipfile
from pathlib import Path
from typing import Iterator, NamedTuple

import files
from cli import InputError

SPLITS = ("train", "valid", "test")


class Corpus(NamedTuple):
    name: str
    paths: dict[str, Path]  # split -> UTF-8 text


class Unreachable(InputError):
    """No source delivers the corpus."""


# ---------------------------------------------------------------------------------------------------------------------
# WikiText-2 (Merity et al. 2016, arXiv 1609.07843)

# The published files: size in bytes, and git's name for the content, SHA-1 of "blob <size>\0" + content.
WIKITEXT2 = {
    "train": (10_797_148, "2d84b35af79e411d73ea7cae83c73964c6ac83b4"),
    "valid": (1_121_681, "eec944eb2d9e46061cd34a6913528797db6842fc"),
    "test": (1_256_449, "6f3fc88e4cd88456ea892971f9f12243e8428624"),
}
FILES_URL = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/{split}.txt"
ARCHIVE_URL = "https://wikitext.smerity.com/wikitext-2-v1.zip"
ARCHIVE_BYTES = 8 << 20  # more than the archive has (4.5 MB)
STALL_SECONDS, DOWNLOAD_SECONDS = 20, 600  # the longest that a download may stand still, and may take


def wikitext2(folder: Path) -> Corpus:
    """WikiText-2 from `folder`, downloaded into it where a file is missing.

    Raises:
      InputError: a file in `folder` is not the published one.
      Unreachable: no source delivers a file.
    """
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if path.exists():
            if not _is_published(split, path.read_bytes()):
                raise InputError(f"{path} is not WikiText-2 as published: delete it to download it again, "
                                 f"or use the folder as your own text with --input_dir={folder}")
        else:
            files.write_whole(path, _download_split(split))
    return Corpus("wikitext-2", {split: folder / f"{split}.txt" for split in SPLITS})


def _is_published(split: str, content: bytes) -> bool:
    size, blob_id = WIKITEXT2[split]
    return len(content) == size and hashlib.sha1(b"blob %d\0" % size + content).hexdigest() == blob_id


def _download_split(split: str) -> bytes:
    size, _ = WIKITEXT2[split]
    reasons = []
    for url, extract in ((FILES_URL.format(split=split), bytes), (ARCHIVE_URL, lambda content: _member(content, split))):
        try:
            content = extract(_fetch(url, size if extract is bytes else ARCHIVE_BYTES))
        except Exception as error:  # there is no list of what http.client and zipfile raise for bytes that are not what they should be
            reasons.append(f"{url}: {' '.join(str(error).split()) or type(error).__name__}")
            continue
        if _is_published(split, content):
            return content
        reasons.append(f"{url}: not the published file")
    raise Unreachable(f"cannot download WikiText-2 ({'; '.join(reasons)})")


def _fetch(url: str, max_bytes: int) -> bytes:
    """The content at `url`, over HTTPS alone, also where it redirects, read with a progress line.

    Raises:
      OSError: it cannot be had, has more than `max_bytes`, stands still or takes too long.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPSHandler, urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
                    urllib.request.HTTPDefaultErrorHandler, urllib.request.UnknownHandler):  # none for any other protocol
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})  # the archive's host refuses Python's own
    content = bytearray()
    with _deadline(DOWNLOAD_SECONDS), opener.open(request, timeout=STALL_SECONDS) as response:
        try:
            while block := response.read(1 << 16):
                content += block
                if len(content) > max_bytes:
                    raise OSError(f"more than {max_bytes:,} bytes")
                print(f"\r{url}: {len(content) / 1e6:.1f} MB", end="", flush=True)
        finally:
            print()
    return bytes(content)


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


def _member(content: bytes, split: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(f"wikitext-2/wiki.{split}.tokens") as member:
        return member.read(WIKITEXT2[split][0] + 1)


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
    return Corpus("pydocs", {split: folder / f"{split}.txt" for split in SPLITS})


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


def from_folder(folder: Path) -> Corpus:
    """A folder with train, valid and test, as `.txt` or `wiki.*.tokens`.

    Raises:
      InputError: a split is missing.
    """
    paths = {}
    for split in SPLITS:
        names = (f"{split}.txt", f"wiki.{split}.tokens")
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            raise InputError(f"{folder} holds neither {names[0]} nor {names[1]}")
        paths[split] = found[0]
    return Corpus(folder.resolve().name, paths)


def from_file(path: Path, valid_fraction: float, test_fraction: float, folder: Path) -> Corpus:
    """One file, split contiguously into train, valid and test, which are written to `folder`.

    A split begins at the next line end, or where lines are very long at the next space or character.

    Raises:
      InputError: the file is missing, empty or not UTF-8.
    """
    if not path.is_file() or not path.stat().st_size:
        raise InputError(f"{path} is missing or empty")
    for _ in lines(path):  # not UTF-8 is told of the file itself, not of a part
        pass
    text = path.read_bytes()
    valid = _next_break(text, round(len(text) * (1 - valid_fraction - test_fraction)))
    test = _next_break(text, round(len(text) * (1 - test_fraction)))
    paths = {split: folder / f"{split} part of {path.name}" for split in SPLITS}
    for split, part in zip(SPLITS, (text[:valid], text[valid:test], text[test:])):
        files.write_whole(paths[split], part)
    return Corpus(path.stem, paths)


def _next_break(text: bytes, position: int) -> int:
    for boundary in (rb"\n", rb"\s", rb"(?=[^\x80-\xbf])"):  # a line, a word, a UTF-8 character
        if match := re.compile(boundary).search(text, position, position + (1 << 16)):
            return match.end()
    return len(text)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing and reading


def choose(name: str, data: Path) -> Corpus:
    """`--corpus`: `wikitext-2`, `pydocs`, or `auto`, which is the first unless it cannot be had."""
    if name == "pydocs":
        return pydocs(data / "pydocs")
    try:
        return wikitext2(data / "wikitext-2")
    except Unreachable as error:
        if name == "wikitext-2":
            raise
        print(f"{error}\n\n{'*' * 100}\nThis is NOT WikiText-2: no network, so the corpus is 'pydocs', documentation found "
              f"on this machine.\nIts perplexities compare with nothing published.\n{'*' * 100}\n", file=sys.stderr)
        return pydocs(data / "pydocs")


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, without their ends and without a byte order mark.

    Raises:
      InputError: the text is not UTF-8; file, line and byte are named.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(f"{path} is not UTF-8: line {number}, byte {error.start + 1}; iconv converts") from None
