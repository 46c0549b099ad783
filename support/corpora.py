"""A corpus: its name, and of each split the parts of UTF-8 files that it is.

They are read in blocks that are cut between lines.
"""

import codecs
import re
from pathlib import Path
from typing import Iterator, NamedTuple

from support import files
from support.cli import InputError

SPLITS = ("train", "valid", "test")
COMPRESSED = {
    b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd",
    b"\x04\x22\x4d\x18": "unlz4", b"7z\xbc\xaf\x27\x1c": "7z x", b"Rar!": "unrar x",
}
# Files that are mistaken for text, by their first bytes.
NO_TEXTS = {
    b"PK\x03\x04": "a zip archive or an office document: unzip it, or save it as plain text",
    b"%PDF": "a PDF document: pdftotext converts it",
    b"PAR1": "a Parquet table: write its column of text to a .txt file",
    b"ARROW1": "an Arrow table: write its column of text to a .txt file",
    b"SQLite format 3": "an SQLite database: write its text to a .txt file",
    b"\x89HDF": "an HDF5 file: write its text to a .txt file",
    b"\x93NUMPY": "a NumPy array: write its text to a .txt file",
    b"\xd0\xcf\x11\xe0": "an office document: save it as plain text",
    b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"GIF8": "a picture",
    b"\x7fELF": "a program",
}
# Byte order marks of other encodings; that of UTF-32 begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}
BREAK_BYTES = 1 << 16  # within which a text is cut at a line end, if there is one


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
    return Text(shown(path.name), [Part(path, 0, path.stat().st_size)])


def shown(name: str) -> str:
    """A file's name in characters that can be printed and written as UTF-8: not every name can."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
                   for character in name)


def chunks(part: Part, size: int) -> Iterator[Part]:
    """A part of a file in smaller parts of about so many bytes.

    Each begins where a line does, if lines are not very long.
    """
    start = part.start
    while start < part.end:
        end = part.end
        if start + size < end:
            end = min(next_break(part.path, start + size), end)
        yield Part(part.path, start, end)
        start = end


def spans(text: Text, size: int) -> Iterator[Text]:
    """A text in smaller texts of about so many bytes: many small files, or a chunk of a large one.

    They are cut as `chunks` cuts.
    """
    parts, joined = [], 0  # of the next span, and its bytes
    for part in text.parts:
        for chunk in chunks(part, size):
            joined += chunk.end - chunk.start
            if parts and joined > size:
                yield Text(text.name, parts)
                parts, joined = [], chunk.end - chunk.start
            parts.append(chunk)
    if parts:
        yield Text(text.name, parts)


def blocks(text: Text, size: int) -> Iterator[tuple[bytes, int]]:
    """The content of a text in blocks of about so many bytes, cut as `spans` cuts.

    A line ends with \\n, and so does the last one of a file. A byte order mark at the beginning of
    a file is left out.

    Yields:
      A block; and how many bytes of the text it is: one for each line end, however the file writes
      it, and none for a byte order mark or a line end that a file lacks.
    """
    for span in spans(text, size):
        contents, sizes = zip(*map(_content, span.parts))
        yield b"".join(contents), sum(sizes)


def _content(part: Part) -> tuple[bytes, int]:
    """What a part of a file adds to a block, and to its bytes."""
    content = b"".join(files.blocks(*part))
    if part.start == 0:
        content = content.removeprefix(codecs.BOM_UTF8)
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lacks_end = part.end == part.path.stat().st_size and not content.endswith(b"\n")
    return content + b"\n" * lacks_end, len(content)


def checked_sha256(text: Text) -> str:
    """The SHA-256 of the bytes of a text, in hexadecimal.

    Raises:
      InputError: they are not UTF-8, or have a NUL, as no text has; file, line and byte are named,
        or what the file is instead.
    """
    def checked_blocks():
        for part in text.parts:
            for path, start, end in chunks(part, files.BLOCK_BYTES):
                block = b"".join(files.blocks(path, start, end))
                if (fault := _fault(block)) is not None:
                    raise _no_text(path, start + fault)
                yield block

    return files.digest(checked_blocks())


def _fault(block: bytes) -> int | None:
    """Where a block is no text: at the first byte that is not UTF-8, or a NUL."""
    try:
        block.decode()
    except UnicodeDecodeError as error:
        block = block[:error.start] + b"\0"
    position = block.find(b"\0")
    return None if position < 0 else position


def _no_text(path: Path, position: int) -> InputError:
    """What to say of a file that is no text at a position."""
    beginning = next(files.blocks(path))
    for magic, program in COMPRESSED.items():
        if beginning.startswith(magic):
            return InputError(f"{path} is compressed: unpack it with {program}")
    for magic, what in NO_TEXTS.items():
        if beginning.startswith(magic):
            return InputError(f"{path} is {what}")
    if encoding := _encoding(beginning):
        return InputError(f"{path} is {encoding}: iconv -f {encoding} -t UTF-8 converts it")
    before = b"".join(files.blocks(path, 0, position))
    line, byte = before.count(b"\n") + 1, position - before.rfind(b"\n")
    if next(files.blocks(path, position)).startswith(b"\0"):
        return InputError(f"{path} contains a NUL byte, so it is not plain text: line {line}, "
                          f"byte {byte}; tr -d '\\000' removes all")
    if b"\0" in beginning:
        return InputError(f"{path} is not a text file: line {line}, byte {byte} is not UTF-8, and "
                          "it has NULs: save it as plain text")
    return InputError(f"{path} is not UTF-8: line {line}, byte {byte}; iconv converts")


def _encoding(beginning: bytes) -> str | None:
    """UTF-16 or UTF-32, by a text's mark, or by a NUL in every other byte; None for neither."""
    for mark, encoding in MARKS.items():
        if beginning.startswith(mark):
            return encoding
    even, odd = beginning[::2].count(0), beginning[1::2].count(0)
    if max(even, odd) < len(beginning) / 4 or max(even, odd) < 4 * min(even, odd):
        return None
    return "UTF-16LE" if odd > even else "UTF-16BE"


def next_break(path: Path, position: int) -> int:
    """Where a file may be cut, from a position on: after a line, a word, or a UTF-8 character."""
    if position in (0, path.stat().st_size):
        return position
    text = b"".join(files.blocks(path, position, position + BREAK_BYTES))
    for boundary in (rb"\n|\r(?=[^\n])", rb"[^\S\r]"):
        if match := re.search(boundary, text):
            return position + match.end()
    return next_character(path, position)


def next_character(path: Path, position: int) -> int:
    """Where a UTF-8 character begins, or the file ends, from a position on.

    It is the position itself where the bytes are no UTF-8.
    """
    near = b"".join(files.blocks(path, position, position + 4))
    for offset, byte in enumerate(near):
        if byte & 0xC0 != 0x80:
            return position + offset
    return position + len(near) if len(near) < 4 else position
