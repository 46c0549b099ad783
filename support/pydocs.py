"""pydocs: a corpus of the documentation of Python, numpy, keras and tensorflow.

Every machine that runs this project has this documentation. The corpus is about as large as
WikiText-2.
"""

import ast
import importlib.util
import sysconfig
from pathlib import Path
from typing import Iterator

from support import files
from support.corpora import SPLITS, Corpus, whole_file


def make(folder: Path) -> Corpus:
    """Writes the corpus into a folder: docstrings, 90/5/5, whole modules per split.

    Source files are parsed in a fixed order, never imported. Repeated texts are left out.
    """
    splits = {split: [] for split in SPLITS}
    for number, document in enumerate(_documents()):
        splits[{18: "valid", 19: "test"}.get(number % 20, "train")].append(document)
    for split, documents in splits.items():
        text = "".join(documents)
        files.write_whole(folder / f"{split}.txt", text.encode("utf-8", errors="ignore"))
    return Corpus("pydocs", {split: whole_file(folder / f"{split}.txt") for split in SPLITS})


def _documents() -> Iterator[str]:
    """The docstrings of one source file after another."""
    seen = set()
    for path in _source_files():
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # templates, parser tests
            continue
        new = [text for text in dict.fromkeys(_docstrings(tree)) if text and text not in seen]
        seen.update(new)
        if new:
            yield "\n".join(new) + "\n"


def _source_files() -> Iterator[Path]:
    library = Path(sysconfig.get_paths()["stdlib"])
    yield from (path for path in _python_files(library) if "site-packages" not in path.parts)
    for package in ("numpy", "keras", "tensorflow"):
        yield from _python_files(Path(importlib.util.find_spec(package).origin).parent)


def _python_files(folder: Path) -> list[Path]:
    paths = [path.relative_to(folder) for path in folder.rglob("*.py")]
    return [folder / path for path in sorted(paths) if not {"test", "tests"} & set(path.parts)]


def _docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""
