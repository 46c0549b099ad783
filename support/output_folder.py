"""An output folder that is replaced as a whole or not at all.

Its record, a JSON file, lists the SHA-256 of every other file.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Iterator

from support import files
from support.errors import InputError


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by its path in the folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): files.sha256(path) for path in paths}


@contextlib.contextmanager
def replaced(output_dir: Path) -> Iterator[Path]:
    """Yields a workspace next to `output_dir`; its folder `new` replaces `output_dir` at the end.

    If an earlier build was killed, its files are removed. If it had already moved the
    old output away, that is moved back first.

    Raises:
      InputError: another process is building `output_dir`.
      files.NotWritten: the workspace cannot be made.
    """
    output_dir = Path(os.path.realpath(output_dir))
    workspace = output_dir.with_name(f".{output_dir.name}.partial")
    new, old = workspace / "new", workspace / "old"
    with files.named(workspace):
        workspace.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(workspace, os.O_RDONLY)
    if not files.lock(descriptor):
        raise InputError(f"{output_dir} is being made by another process")
    try:
        _restore(old, output_dir)
        for leftover in workspace.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        new.mkdir()
        yield workspace
        if output_dir.exists():
            output_dir.rename(old)
        new.rename(output_dir)
    finally:
        _restore(old, output_dir)
        shutil.rmtree(workspace, ignore_errors=True)
        os.close(descriptor)


def _restore(old: Path, output_dir: Path):
    if old.exists() and not output_dir.exists():
        old.rename(output_dir)


def check_replaceable(output_dir: Path, record: str):
    """Raises InputError if `output_dir` cannot be replaced or contains files of the user."""
    output_dir = Path(os.path.realpath(output_dir))
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file: choose another --output_dir")
    if os.path.ismount(output_dir):
        raise InputError(f"{output_dir} is a mount point and cannot be replaced: "
                         "choose a folder inside it as --output_dir")
    try:
        made = {record, *files.read_json(output_dir / record, ["sha256"])["sha256"]}
    except (OSError, InputError):
        made = set()
    there = {str(path.relative_to(output_dir))
             for path in output_dir.rglob("*") if not path.is_dir()}
    if foreign := sorted(there - made):
        raise InputError(f"{output_dir} contains files that this program did not write "
                         f"({foreign[0]}): choose another --output_dir")
