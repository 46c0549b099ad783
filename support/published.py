"""Published corpora: downloaded once, checked against their published SHA-1."""

import functools
import hashlib
import io
import urllib.request
import zipfile
from pathlib import Path
from typing import Iterator, NamedTuple

from support import console, files
from support.corpora import SPLITS, Corpus, Part, Text, next_character, whole_file
from support.errors import InputError, reason

STALL_SECONDS = 20  # a download that receives nothing for this long fails


class Unreachable(InputError):
    """No source delivers the corpus."""


class Published(NamedTuple):
    """A corpus of one file per split, or of one file that is cut into splits.

    The hashes of WikiText and text8 are those in GluonNLP, that of enwik8 is Mahoney's. Sources are
    tried in order. `{split}` stands for the name of a file without its ending. A # separates the
    URL of a zip archive from the name of the member.
    """

    sha1: dict[str, str]  # by file name
    sources: list[str]
    cuts: tuple[int, ...] = ()  # where valid and test begin in the only file, in bytes


PUBLISHED = {
    # Merity et al. 2016, arXiv 1609.07843
    "wikitext-2": Published(
        {"train.txt": "863f29c46ef9d167fff4940ec821195882fe29d1",
         "valid.txt": "0418625c8b4da6e4b5c7a0b9e78d4ae8f7ee5422",
         "test.txt": "c7b8ce0aa086fb34dab808c5c49224211eb2b172"},
        ["https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/"
         "wikitext-2/{split}.txt",
         "https://wikitext.smerity.com/wikitext-2-v1.zip#wikitext-2/wiki.{split}.tokens"]),
    "wikitext-103": Published(
        {"train.txt": "b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",
         "valid.txt": "c326ac59dc587676d58c422eb8a03e119582f92b",
         "test.txt": "8a5befc548865cec54ed4273cf87dbbad60d1e47"},
        ["https://wikitext.smerity.com/wikitext-103-v1.zip#wikitext-103/wiki.{split}.tokens"]),
    # Mahoney 2006, Large Text Compression Benchmark: 10^8 bytes of Wikipedia, and a cleaned version
    # of such a text with only the letters a to z. Usual splits: 90, 5 and 5 million bytes.
    "enwik8": Published(
        {"enwik8": "57b8363b814821dc9d47aa4d41f58733519076b2"},
        ["https://mattmahoney.net/dc/enwik8.zip#enwik8"], (90_000_000, 95_000_000)),
    "text8": Published(
        {"text8": "0dc3edebc970dcc96137e7deda4d9995af9d93de"},
        ["https://mattmahoney.net/dc/text8.zip#text8"], (90_000_000, 95_000_000)),
}


def get(name: str, folder: Path) -> Corpus:
    """Reads a published corpus from a folder, after downloading missing files into it.

    Raises:
      InputError: a file in the folder differs from the published one.
      Unreachable: no source delivers a file.
      files.NotWritten: the folder cannot be written.
    """
    corpus, missing = PUBLISHED[name], []
    for file, sha1 in corpus.sha1.items():
        if not (folder / file).exists():
            missing.append(file)
        elif files.digest(files.blocks(folder / file), "sha1") != sha1:
            raise InputError(
                f"{folder / file} differs from the published {name}: delete it to download it "
                "again, or use it as your own text with --input_dir or --input_text")
    for file, content in _download(name, missing):
        files.write_whole(folder / file, content)
    if not corpus.cuts:
        return Corpus(name, {split: whole_file(folder / f"{split}.txt") for split in SPLITS})
    path = folder / name
    bounds = [0, *(next_character(path, cut) for cut in corpus.cuts), path.stat().st_size]
    texts = {split: Text(f"{split} part of {name}", [Part(path, *part)])
             for split, *part in zip(SPLITS, bounds, bounds[1:])}
    return Corpus(name, texts)


def _download(name: str, missing: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each `missing` file; Unreachable if no source delivers one."""
    corpus, reasons = PUBLISHED[name], []
    for source in corpus.sources:
        fetch = functools.cache(_fetch)  # an archive only once for all its members
        for file in list(missing):
            url, _, member = source.format(split=Path(file).stem).partition("#")
            try:
                content = fetch(url)
                if member:
                    content = zipfile.ZipFile(io.BytesIO(content)).read(member)
                if hashlib.sha1(content).hexdigest() != corpus.sha1[file]:
                    raise InputError("not the published file")
            except Exception as error:  # http.client and zipfile do not document what they raise
                reasons.append(f"{url}: {reason(error) or type(error).__name__}")
                break
            missing.remove(file)
            yield file, content
    if missing:
        raise Unreachable(f"cannot download {name} ({'; '.join(reasons)})")


def _fetch(url: str) -> bytes:
    print(f"downloading {url}")
    # wikitext.smerity.com refuses Python's own User-Agent.
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})
    blocks, received = [], 0
    try:
        with urllib.request.urlopen(request, timeout=STALL_SECONDS) as response:
            while block := response.read(1 << 16):
                blocks.append(block)
                received += len(block)
                console.redraw(f"{received / 1e6:.1f} MB")
    finally:
        console.redraw("\n")
    return b"".join(blocks)
