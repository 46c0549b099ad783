"""Files that appear as a whole or not at all, and that tell when they have been changed."""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import stat
import sys
from pathlib import Path
from typing import Iterable, Iterator

from support import cli
from support.cli import InputError

BLOCK_BYTES = 1 << 20
MOST_JSON = 1 << 26  # bytes of a JSON file


class NotWritten(OSError):
    """A file or folder cannot be written; the message names it."""


def blocks(path: Path, start: int = 0, end: float = math.inf) -> Iterator[bytes]:
    """The content of a file, or of a part of it in bytes, a block at once."""
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(int(min(BLOCK_BYTES, end - file.tell()))):
            yield block


def digest(content: Iterable[bytes], name: str = "sha256") -> str:
    """A hash of blocks of bytes, one after another, in hexadecimal."""
    hasher = hashlib.new(name)
    for block in content:
        hasher.update(block)
    return hasher.hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Raises:
      InputError: it is no file, but a device or a pipe.
    """
    check_regular(path)
    return digest(blocks(path))


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file that may be a stranger's.

    Raises:
      InputError: it is no file, but a device or a pipe, or has more than `most` bytes.
    """
    check_regular(path)
    if path.stat().st_size > most:
        raise InputError(f"{path} is larger than {most:,} bytes")
    return path.read_bytes()


def check_regular(path: Path):
    """Raises InputError if a path is a device, a pipe or a folder, which may block who opens it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path} is not a regular file")


def write_whole(path: Path, content: bytes):
    """Writes a file, and the folders above it, so that it appears complete or not at all.

    Raises:
      OSError: it cannot be written; it is named, and what was there before still is.
    """
    partial = path.with_name(path.name + ".partial")
    with named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.unlink(missing_ok=True)
            with open(partial, "xb") as file:  # a new file, not one that a link leads to
                file.write(content)
            sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict):
    """Writes a JSON file as a whole, with a checksum of all the rest."""
    text = json.dumps(content | {"checksum": _checksum(content)}, indent=2) + "\n"
    write_whole(path, text.encode())


def read_json(path: Path, needed: Iterable[str] = ()) -> dict:
    """What `write_json` wrote, without the checksum.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is not what was written, or is another file's content, without the keys that
        are `needed`.
    """
    try:
        content = json.loads(read_bytes(path, MOST_JSON))
        if content.pop("checksum", None) != _checksum(content):
            raise ValueError("its checksum is of another content")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error})") from None
    if missing := set(needed) - content.keys():
        raise InputError(f"{path} was written by another program, or another version of this one: "
                         f"it lacks {min(missing)}")
    return content


def _checksum(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def refuse_links(folder: Path):
    """Raises InputError if a link in a folder would lead what is written there out of it."""
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            if os.path.islink(path := os.path.join(parent, name)):
                raise InputError(f"{path} is a symbolic link: links are not allowed in {folder}")


def check_no_pattern(path: Path):
    """Raises InputError if TensorFlow would read a path as a pattern of names."""
    if found := set(str(path)) & set("*?[]\\"):
        raise InputError(f"{path} cannot be used: TensorFlow reads {min(found)} as part of a "
                         "pattern; rename the folder")


def sync(path: Path):
    """Waits until a file is on the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def lock(descriptor: int) -> bool:
    """Locks an open file or folder for this process, until it ends or closes it.

    Returns:
      False where another process has locked it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        pass
    return True


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Gives the errors of a block that writes the name of what could not be written.

    TensorFlow's errors get it too.
    """
    try:
        yield
    except Exception as error:
        tensorflow = sys.modules.get("tensorflow")
        if not isinstance(error, (OSError, tensorflow.errors.OpError) if tensorflow else OSError):
            raise
        reason = getattr(error, "strerror", None) or cli.reason(error)
        raise NotWritten(f"cannot write {path}: {reason}") from None
