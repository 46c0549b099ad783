"""The user's own text: a file, or a folder of files."""

import os
import re
from pathlib import Path

from support.cli import InputError
from support.corpora import SPLITS, Corpus, Part, Text, next_break, shown, whole_file

HELD_OUT = 0.05  # of a text that has no splits, for each of the last two


def is_to_split(folder: Path) -> bool:
    """Whether a folder has no splits of its own."""
    return not any((folder / name).is_file() for split in SPLITS for name in _names(split))


def _names(split: str) -> tuple[str, ...]:
    return f"{split}.txt", f"wiki.{split}.tokens", f"wiki.{split}.raw"


def from_folder(folder: Path, valid_fraction: float = HELD_OUT,
                test_fraction: float = HELD_OUT) -> Corpus:
    """A folder with train, valid and test, as `.txt`, `wiki.*.tokens` or `wiki.*.raw`.

    Or it has any `.txt` files, which are split as one text, and of which it is told how many there
    are.

    Raises:
      InputError: it is no folder, a split is missing, or there is no text.
    """
    if not folder.exists():
        raise InputError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: --input_text takes files")
    name = shown(folder.resolve().name)
    if is_to_split(folder):
        texts, others = _files_within(folder)
        left_out = f"{len(others)} other file(s) or hidden folder(s) left out"
        if others:
            left_out += f", such as {shown(others[0])}"
        if not texts:
            raise InputError(f"{folder} holds no .txt files: {left_out}")
        print(f"{folder}: {len(texts)} text file(s), from {shown(texts[0])} to {shown(texts[-1])}; "
              f"{left_out}")
        return _split(name, [folder / text for text in texts], valid_fraction, test_fraction)
    texts = {}
    for split in SPLITS:
        *names, last = _names(split)
        found = [folder / name for name in _names(split) if (folder / name).is_file()]
        if not found:
            raise InputError(f"{folder} holds no {', '.join(names)} or {last}")
        texts[split] = whole_file(found[0])
    return Corpus(name, texts)


def _files_within(folder: Path) -> tuple[list[str], list[str]]:
    """The `.txt` files of a folder and the folders within it, and the other files.

    Links are followed, and no file comes twice. Hidden files and folders, those that macOS adds to
    archives, and data that were made here are no texts.
    """
    texts, others, seen = [], [], {folder.resolve()}
    for path, folders, names in os.walk(folder, followlinks=True):
        inside = Path(path).relative_to(folder)
        hidden = [name for name in folders if name.startswith(".") or name == "__MACOSX"]
        others += [f"{inside / name}/" for name in hidden]
        visible = sorted(set(folders) - set(hidden))
        folders[:] = [name for name in visible if _is_new(Path(path, name), seen)]
        if {"metadata.json", "tokenizer.model"} <= set(names):
            others.append(f"{inside}/")
            folders.clear()
            continue
        for name in sorted(names):
            file = Path(path, name)
            has_name = name.lower().endswith(".txt") and not name.startswith(".")
            is_text = has_name and file.is_file() and _is_new(file, seen)
            (texts if is_text else others).append(str(inside / name))
    return sorted(texts, key=_natural_order), sorted(others, key=_natural_order)


def _is_new(path: Path, seen: set[Path]) -> bool:
    """Whether what a path leads to is not in `seen`, where it is from now on."""
    before = len(seen)
    seen.add(path.resolve())
    return len(seen) > before


def _natural_order(path: str) -> list:
    """A key that sorts names with numbers by these: chapter 2 before chapter 10."""
    key = []
    for name in path.split("/"):
        parts = re.split("([0-9]+)", name)
        key.append([int(part) if part.isdecimal() else part for part in parts])
    return key


def from_file(path: Path, valid_fraction: float = HELD_OUT,
              test_fraction: float = HELD_OUT) -> Corpus:
    """One file, split contiguously into train, valid and test.

    Raises:
      InputError: it is missing, empty or a folder.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: --input_dir takes folders")
    if not path.exists():
        raise InputError(f"{path} is missing")
    if not path.is_file():
        raise InputError(f"{path} is no regular file: save it as one first")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty")
    return _split(shown(path.stem), [path], valid_fraction, test_fraction)


def _split(name: str, paths: list[Path], valid_fraction: float, test_fraction: float) -> Corpus:
    """Files, one after another, split contiguously.

    A split begins at the next line end, or where lines are very long at the next space or
    character.
    """
    size = sum(path.stat().st_size for path in paths)
    train_end = round(size * (1 - valid_fraction - test_fraction))
    valid_end = round(size * (1 - test_fraction))
    bounds = [0, train_end, valid_end, size]
    whole = shown(paths[0].name) if len(paths) == 1 else name
    texts = {split: Text(f"{split} part of {whole}", []) for split in SPLITS}
    start = 0  # of the file, in the whole text
    for path in paths:
        end = path.stat().st_size
        cuts = [next_break(path, min(max(bound - start, 0), end)) for bound in bounds]
        for split, *part in zip(SPLITS, cuts, cuts[1:]):
            if part[0] < part[1]:
                texts[split].parts.append(Part(path, *part))
        start += end
    for split, text in texts.items():
        if not text.size:
            raise InputError(f"{whole} is too short to be split: nothing is left for {split} "
                             "(--valid_fraction, --test_fraction)")
    return Corpus(name, texts)
