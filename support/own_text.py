"""The user's own text: a file, or a folder of files."""

import os
import re
from pathlib import Path, PurePath

from support.cli import InputError
from support.corpora import SPLITS, Corpus, Part, Text, next_break, shown, whole_file

HELD_OUT = 0.05  # of a text that has no splits, for each of the last two
# The names of each split; case is ignored.
WORDS = {"train": "train", "valid": "valid|validation|val|dev", "test": "test"}
ANY_WORD = re.compile(rf"(?<![a-z])({'|'.join(WORDS.values())}|training|testing|eval)(?![a-z])")


def is_to_split(folder: Path) -> bool:
    """Whether a folder has no splits of its own."""
    return not (folder.is_dir() and any(_splits_within(folder).values()))


def _splits_within(folder: Path) -> dict[str, list[str]]:
    """The names of what may be each split: files, and folders that hold texts."""
    _, folders, names = next(os.walk(folder, onerror=_refuse))
    found = {}
    for split, words in WORDS.items():
        is_file = re.compile(rf"({words})\.txt|wiki\.({words})\.(tokens|raw)", re.I).fullmatch
        is_folder = re.compile(words, re.I).fullmatch
        found[split] = sorted(
            [name for name in names if is_file(name) and (folder / name).is_file()]
            + [name for name in folders if is_folder(name) and _files_within(folder / name)[0]])
    return found


def from_folder(folder: Path, valid_fraction: float = HELD_OUT,
                test_fraction: float = HELD_OUT) -> Corpus:
    """A folder with train, valid and test: `.txt`, `wiki.*.tokens`, `wiki.*.raw`, or folders.

    Or it has any `.txt` files, which are split as one text. What is taken and how much is left out
    is printed.

    Raises:
      InputError: it is no folder, cannot be read as a whole, or has no text; or what its splits are
        is not clear.
    """
    if not folder.exists():
        raise InputError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: --input_text takes files")
    name = shown(folder.resolve().name)
    splits = _splits_within(folder)
    if any(splits.values()):
        return Corpus(name, _texts_of(folder, splits))
    texts, others = _files_within(folder)
    if not texts:
        raise InputError(f"{folder} holds no .txt files: {_left_out(others)}")
    _check_no_splits(folder, texts)
    print(f"{folder}: {len(texts)} text file(s), from {shown(texts[0])} to {shown(texts[-1])}; "
          f"{_left_out(others)}")
    return _split(name, [folder / text for text in texts], valid_fraction, test_fraction)


def _texts_of(folder: Path, splits: dict[str, list[str]]) -> dict[str, Text]:
    """The text of each split of a folder, of what `_splits_within` has found.

    Raises:
      InputError: a split is missing, or is there twice.
    """
    for split, names in splits.items():
        if len(names) > 1:
            raise InputError(f"{folder} holds both {shown(names[0])} and {shown(names[1])}: "
                             f"leave one of them there as {split}")
        if not names:
            there = shown(next(names[0] for names in splits.values() if names))
            raise InputError(f"{folder} contains {there} but no {split}.txt: add it, or rename "
                             f"{there} if it is not a split")
    taken, texts = [], {}
    others = [name for name in os.listdir(folder) if [name] not in splits.values()]
    for split, [name] in splits.items():
        if (folder / name).is_file():
            texts[split] = whole_file(folder / name)
            taken.append(name)
            continue
        within, left_out = _files_within(folder / name)
        parts = [part for text in within for part in whole_file(folder / name / text).parts]
        texts[split] = Text(shown(name), parts)
        taken.append(f"{name}/ ({len(within)} text file(s))")
        others += [f"{name}/{other}" for other in left_out]
    print(f"{folder}: {shown(', '.join(taken))}; {_left_out(others)}")
    return texts


def _left_out(others: list[str]) -> str:
    """What is said of files that are no part of a text; of `.txt` files rather than of others."""
    left_out = f"{len(others)} other file(s) or folder(s) left out"
    if others:
        first = min(others, key=lambda name: (not _is_text(name), _natural_order(name)))
        left_out += f", such as {shown(first)}"
    return left_out


def _is_text(name: str) -> bool:
    """Whether a file's name is that of a text; hidden files and Word's locks are none."""
    return name.lower().endswith(".txt") and not name.startswith((".", "~$"))


def _check_no_splits(folder: Path, texts: list[str]):
    """Raises InputError where texts to be joined are splits, by names that differ in this alone."""
    named = {}  # {where, and the rest of the name: {word for a split: path}}
    for text in texts:
        for path in (PurePath(text), *PurePath(text).parents):
            if match := ANY_WORD.search(name := path.name.lower()):
                rest = re.sub("[0-9]+", "0", name[:match.start()] + "/" + name[match.end():])
                named.setdefault((path.parent, rest), {})[match[0]] = path
    for paths in named.values():
        if len(paths) > 1:
            one, other, *_ = map(str, paths.values())
            raise InputError(
                f"{folder} holds {shown(one)} and {shown(other)}, which would be joined: name "
                "splits train.txt, valid.txt and test.txt, and give the folder that they are in")


def _files_within(folder: Path) -> tuple[list[str], list[str]]:
    """The `.txt` files of a folder and the folders within it, and the other files.

    Links are followed, and no file comes twice. Hidden files and folders, those that macOS adds to
    archives, what Word writes beside an open file, and data that were made here are no texts.

    Raises:
      InputError: a folder cannot be read.
    """
    texts, others, seen = [], [], {folder.resolve()}
    for path, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
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
            is_text = _is_text(name) and file.is_file() and _is_new(file, seen)
            (texts if is_text else others).append(str(inside / name))
    return sorted(texts, key=_natural_order), sorted(others, key=_natural_order)


def _refuse(error: OSError):
    raise InputError(f"{shown(error.filename)} cannot be read ({error.strerror}): "
                     "make it readable, or move it elsewhere") from None


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
