"""A folder that appears as a whole, in place of one that this program made before.

It holds a JSON file, its record, with the SHA-256 of every other file.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Iterator

from support import files
from support.cli import InputError

MARK = "workspace"  # the name of a file that marks a folder as made by `replaced`


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by its path there."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): files.sha256(path) for path in paths}


@contextlib.contextmanager
def replaced(output_dir: Path) -> Iterator[Path]:
    """A folder beside `output_dir` to work in.

    There is a folder `new` in it, which takes the place of `output_dir` at the end of the block.
    What a build that was killed has left is removed; where it had moved the old data aside already,
    they come back.

    Raises:
      InputError: another process makes `output_dir`, or the folder to work in is somebody else's.
    """
    output_dir = Path(os.path.realpath(output_dir))
    workspace = output_dir.with_name(f".{output_dir.name}.partial")
    new, old = workspace / "new", workspace / "old"
    with files.named(workspace):
        if workspace.is_symlink() or workspace.exists() and not _is_workspace(workspace):
            raise InputError(f"{workspace} is there, and was not made by this program: "
                             "rename it, or choose another --output_dir")
        workspace.mkdir(parents=True, exist_ok=True)
        (workspace / MARK).touch()
    descriptor = os.open(workspace, os.O_RDONLY)
    if not files.lock(descriptor):
        raise InputError(f"{output_dir} is being made by another process")
    try:
        if old.exists() and not output_dir.exists():
            old.rename(output_dir)
        _empty(workspace)
        new.mkdir()
        yield workspace
        if output_dir.exists():
            output_dir.rename(old)
        new.rename(output_dir)
    finally:
        if old.exists() and not output_dir.exists():
            old.rename(output_dir)
        with contextlib.suppress(OSError):
            _empty(workspace)
        shutil.rmtree(workspace, ignore_errors=True)
        os.close(descriptor)


def _empty(workspace: Path):
    """Removes all but the mark, which goes last: a process may be killed at any moment."""
    for rest in set(workspace.iterdir()) - {workspace / MARK}:
        if rest.is_dir() and not rest.is_symlink():
            shutil.rmtree(rest)
        else:
            rest.unlink()


def _is_workspace(folder: Path) -> bool:
    """Whether a folder was made by `replaced`, or has nothing in it that could be lost."""
    return (folder / MARK).is_file() or folder.is_dir() and not any(folder.iterdir())


def check_replaceable(output_dir: Path, record: str):
    """Raises InputError where a folder cannot take the place of `output_dir`, or must not."""
    output_dir = Path(os.path.realpath(output_dir))
    if output_dir.is_symlink():
        raise InputError(f"{output_dir} is a link that leads to itself: "
                         "choose another --output_dir")
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file: choose another --output_dir")
    if os.path.ismount(output_dir):
        raise InputError(f"{output_dir} is a mount point, which cannot be replaced as a whole: "
                         "name a folder within it as --output_dir")
    if foreign := _foreign_files(output_dir, record):
        raise InputError(f"{output_dir} holds files that were not made here ({foreign[0]}): "
                         "choose another --output_dir")


def _foreign_files(folder: Path, record: str) -> list[str]:
    """The files in a folder that its record does not list."""
    try:
        made = {record, *files.read_json(folder / record, ["sha256"])["sha256"]}
    except (OSError, InputError, TypeError):
        made = set()
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return sorted(there - made)
