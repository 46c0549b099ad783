"""Files that are written as a whole or not at all, with checksums that show changes."""

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

from support import errors
from support.errors import InputError

BLOCK_BYTES = 1 << 20


class NotWritten(OSError):
    """A file or folder cannot be written; the message names it."""


def blocks(path: Path, start: int = 0, end: float = math.inf) -> Iterator[bytes]:
    """Reads a file, or the bytes from `start` to `end`, block by block."""
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(int(min(BLOCK_BYTES, end - file.tell()))):
            yield block


def digest(content: Iterable[bytes], name: str = "sha256") -> str:
    """The hash of a sequence of blocks, in hexadecimal."""
    hasher = hashlib.new(name)
    for block in content:
        hasher.update(block)
    return hasher.hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; InputError for a device, a pipe or a folder."""
    check_regular(path)
    return digest(blocks(path))


def check_regular(path: Path):
    """Raises InputError if a path is a device, a pipe or a folder: opening one may block."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path} is not a regular file")


def write_whole(path: Path, content: bytes):
    """Writes a file as a whole or not at all, and creates the folders above it.

    Raises:
      NotWritten: it cannot be written. An older file is still there.
    """
    partial = path.with_name(path.name + ".partial")
    with named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.unlink(missing_ok=True)
            with open(partial, "xb") as file:  # never through a link
                file.write(content)
            sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: dict):
    """Writes a JSON file as a whole, with a checksum of its content."""
    text = json.dumps(content | {"checksum": _checksum(content)}, indent=2) + "\n"
    write_whole(path, text.encode())


def read_json(path: Path, needed: Iterable[str] = ()) -> dict:
    """Reads a file of `write_json`, without the checksum.

    Raises:
      FileNotFoundError: the file is missing.
      InputError: it is damaged, or lacks a key that is `needed`.
    """
    check_regular(path)
    try:
        content = json.loads(path.read_bytes())
        if content.pop("checksum", None) != _checksum(content):
            raise ValueError("wrong checksum")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error})") from None
    if missing := set(needed) - content.keys():
        raise InputError(f"{path} was written by another program, or another version of this one: "
                         f"it lacks {min(missing)}")
    return content


def _checksum(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def refuse_links(folder: Path):
    """Raises InputError if a folder contains a symbolic link: writing could leave the folder."""
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            if os.path.islink(path := os.path.join(parent, name)):
                raise InputError(f"{path} is a symbolic link: links are not allowed in {folder}")


def check_no_pattern(path: Path):
    """Raises InputError if TensorFlow would read a path as a glob pattern."""
    if found := set(str(path)) & set("*?[]\\"):
        raise InputError(f"{path} cannot be used: TensorFlow reads {min(found)} as part of a "
                         "pattern; rename the folder")


def sync(path: Path):
    """Waits until a file is on disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def lock(descriptor: int) -> bool:
    """Locks an open file or folder until it is closed; returns False if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        pass
    return True


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Turns OSError and TensorFlow's errors in a block into NotWritten, which names the path."""
    try:
        yield
    except Exception as error:
        tensorflow = sys.modules.get("tensorflow")
        if not isinstance(error, (OSError, tensorflow.errors.OpError) if tensorflow else OSError):
            raise
        reason = getattr(error, "strerror", None) or errors.reason(error)
        raise NotWritten(f"cannot write {path}: {reason}") from None
