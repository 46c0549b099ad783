"""A corpus: its name and the text of each split.

A text is a list of parts of UTF-8 files. It is read in blocks that end at line ends.
"""

import codecs
import re
from pathlib import Path
from typing import Iterator, NamedTuple

from support import files
from support.errors import InputError, printable

SPLITS = ("train", "valid", "test")
BREAK_BYTES = 1 << 16  # a cut looks this far ahead for a line end
# Files that users mistake for plain text, by their first bytes.
NOT_TEXT = {
    b"\x1f\x8b": "compressed: unpack it with gunzip",
    b"\xfd7zXZ": "compressed: unpack it with unxz",
    b"PK\x03\x04": "a zip archive or an office document: unzip it, or save it as plain text",
    b"%PDF": "a PDF document: convert it with pdftotext",
    codecs.BOM_UTF16_LE: "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
}


class Part(NamedTuple):
    """Part of a UTF-8 file, in bytes."""

    path: Path
    start: int
    end: int


class Text(NamedTuple):
    """Parts of files, one after another."""

    name: str
    parts: list[Part]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.end - part.start for part in self.parts)


class Corpus(NamedTuple):
    name: str
    texts: dict[str, Text]  # by split


def whole_file(path: Path) -> Text:
    """The text of a file."""
    return Text(printable(path.name), [Part(path, 0, path.stat().st_size)])


def chunks(part: Part, size: int) -> Iterator[Part]:
    """Cuts a part into chunks of about `size` bytes, as `next_break` cuts."""
    start = part.start
    while start < part.end:
        end = part.end
        if start + size < end:
            end = min(next_break(part.path, start + size), end)
        yield Part(part.path, start, end)
        start = end


def spans(text: Text, size: int) -> Iterator[Text]:
    """Cuts a text into texts of about `size` bytes: small files, or a chunk of a large one."""
    parts, total = [], 0  # of the next span, and its bytes
    for part in text.parts:
        for chunk in chunks(part, size):
            chunk_bytes = chunk.end - chunk.start
            if parts and total + chunk_bytes > size:
                yield Text(text.name, parts)
                parts, total = [], 0
            parts.append(chunk)
            total += chunk_bytes
    if parts:
        yield Text(text.name, parts)


def blocks(text: Text, size: int) -> Iterator[tuple[bytes, int]]:
    """Reads a text in blocks of about `size` bytes.

    Every line ends with \\n, including the last one of a file. A byte order mark is left out.

    Yields:
      A block, and its size in bytes of the text. A line end counts as one byte, however the file
      encodes it. A byte order mark and an added line end count as none.
    """
    for span in spans(text, size):
        contents, sizes = zip(*map(_content, span.parts))
        yield b"".join(contents), sum(sizes)


def _content(part: Part) -> tuple[bytes, int]:
    content = b"".join(files.blocks(*part))
    if part.start == 0:
        content = content.removeprefix(codecs.BOM_UTF8)
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lacks_end = part.end == part.path.stat().st_size and not content.endswith(b"\n")
    return content + b"\n" * lacks_end, len(content)


def checked_sha256(text: Text) -> str:
    """The SHA-256 of a text.

    Raises:
      InputError: a file is not UTF-8 or contains a NUL byte. The message names the line and byte,
        or the format of the file.
    """
    def checked_blocks():
        for part in text.parts:
            for path, start, end in chunks(part, files.BLOCK_BYTES):
                block = b"".join(files.blocks(path, start, end))
                try:
                    block.decode()
                except UnicodeDecodeError as error:
                    raise _not_text(path, start + error.start, "is not UTF-8") from None
                if (position := block.find(b"\0")) >= 0:
                    raise _not_text(path, start + position, "contains a NUL byte")
                yield block

    return files.digest(checked_blocks())


def _not_text(path: Path, position: int, fault: str) -> InputError:
    """An error for a file with a fault at a position, in bytes."""
    beginning = next(files.blocks(path))
    for magic, kind in NOT_TEXT.items():
        if beginning.startswith(magic):
            return InputError(f"{path} is {kind}")
    before = b"".join(files.blocks(path, 0, position))
    line, byte = before.count(b"\n") + 1, position - before.rfind(b"\n")
    return InputError(f"{path} {fault}: line {line}, byte {byte}")


def next_break(path: Path, position: int) -> int:
    """The first place at or after a position where a file can be cut.

    That is after a line end or, if lines are very long, after a space or between characters.
    """
    if position in (0, path.stat().st_size):
        return position
    text = b"".join(files.blocks(path, position, position + BREAK_BYTES))
    for boundary in (rb"\n|\r(?=[^\n])", rb"[^\S\r]"):
        if match := re.search(boundary, text):
            return position + match.end()
    return next_character(path, position)


def next_character(path: Path, position: int) -> int:
    """The first place at or after a position where a UTF-8 character begins or the file ends."""
    near = b"".join(files.blocks(path, position, position + 4))
    for offset, byte in enumerate(near):
        if byte & 0xC0 != 0x80:
            return position + offset
    return position + len(near) if len(near) < 4 else position
