"""The software that a result depends on."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from support import cli


def versions() -> dict:
    """The commit of this project, and the versions of Python and of the main packages."""
    packages = ("tensorflow-text", "keras", "sentencepiece", "numpy")
    return {
        "commit": commit(Path(__file__).parent.parent), "python": platform.python_version(),
        "tensorflow": cli.tensorflow().__version__,  # the package may be tensorflow-cpu
    } | {name: importlib.metadata.version(name) for name in packages}


def commit(project: Path) -> str | None:
    """The commit of a folder, with -dirty if files differ from it; None without git."""
    git = ["git", f"--git-dir={project / '.git'}", f"--work-tree={project}"]
    describe = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run([*git, *describe], capture_output=True, text=True)
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() or None
