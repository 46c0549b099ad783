"""The user's own text: a file, or a folder of files."""

import os
import re
from pathlib import Path, PurePath

from support.corpora import SPLITS, Corpus, Part, Text, next_break, whole_file
from support.errors import InputError, printable

HELD_OUT = 0.05  # default share of validation, and of test
# The names of each split, in upper or lower case.
WORDS = {"train": "train", "valid": "valid|validation|val|dev", "test": "test"}
ANY_WORD = re.compile(rf"(?<![a-z])({'|'.join(WORDS.values())}|training|testing|eval)(?![a-z])")


def from_file(path: Path, valid_fraction: float = HELD_OUT,
              test_fraction: float = HELD_OUT) -> Corpus:
    """One file, cut into splits; InputError if it is missing, too short or not a file."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: use --input_dir")
    if not path.exists():
        raise InputError(f"{path} is missing")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file: save the text in a file first")
    return _split(printable(path.stem), [path], valid_fraction, test_fraction)


def from_folder(folder: Path, valid_fraction: float = HELD_OUT,
                test_fraction: float = HELD_OUT) -> Corpus:
    """A folder with train, valid and test: `.txt`, `wiki.*.tokens`, `wiki.*.raw`, or folders.

    Otherwise all `.txt` files are joined and cut into splits. Prints which files it uses and how
    many it leaves out.

    Raises:
      InputError: the folder is missing or not readable, has no text, lacks a split, or the split of
        a file is ambiguous.
    """
    if folder.is_file():
        raise InputError(f"{folder} is a file: use --input_text")
    if not folder.exists():
        raise InputError(f"{folder} is missing")
    name, splits = printable(folder.resolve().name), _splits_within(folder)
    if any(splits.values()):
        return Corpus(name, _texts_of(folder, splits))
    texts, others = _files_within(folder)
    if not texts:
        raise InputError(f"{folder} contains no .txt files: {_left_out(others)}")
    _check_no_splits(folder, texts)
    print(f"{folder}: {len(texts)} text file(s), from {printable(texts[0])} to "
          f"{printable(texts[-1])}; {_left_out(others)}")
    return _split(name, [folder / text for text in texts], valid_fraction, test_fraction)


def has_splits(folder: Path) -> bool:
    """Whether a folder has splits of its own."""
    return folder.is_dir() and any(_splits_within(folder).values())


def _splits_within(folder: Path) -> dict[str, list[str]]:
    """The files and folders of text that are named like each split."""
    _, folders, names = next(os.walk(folder, onerror=_refuse))
    found = {}
    for split, words in WORDS.items():
        is_file = re.compile(rf"({words})\.txt|wiki\.({words})\.(tokens|raw)", re.I).fullmatch
        is_folder = re.compile(words, re.I).fullmatch
        found[split] = sorted(
            [name for name in names if is_file(name)]
            + [name for name in folders if is_folder(name) and _files_within(folder / name)[0]])
    return found


def _texts_of(folder: Path, splits: dict[str, list[str]]) -> dict[str, Text]:
    """The text of each split in a folder; InputError if a split is missing or present twice."""
    for split, names in splits.items():
        if len(names) > 1:
            raise InputError(f"{folder} contains both {printable(names[0])} and "
                             f"{printable(names[1])}: keep one of them as {split}")
        if not names:
            there = next(names[0] for names in splits.values() if names)
            raise InputError(f"{folder} contains {there} but no {split}.txt: add it, or rename "
                             f"{there} if it is not a split")
    used, texts = [], {}
    others = [name for name in os.listdir(folder) if [name] not in splits.values()]
    for split, [name] in splits.items():
        if (folder / name).is_file():
            texts[split] = whole_file(folder / name)
            used.append(name)
            continue
        within, left_out = _files_within(folder / name)
        parts = [part for text in within for part in whole_file(folder / name / text).parts]
        texts[split] = Text(name, parts)
        used.append(f"{name}/ ({len(within)} text file(s))")
        others += [f"{name}/{other}" for other in left_out]
    print(f"{folder}: {', '.join(used)}; {_left_out(others)}")
    return texts


def _left_out(others: list[str]) -> str:
    """How many files are left out, with an example."""
    if not others:
        return "nothing left out"
    example = printable(min(others))
    return f"{len(others)} other file(s) or folder(s) left out, such as {example}"


def _is_text(name: str) -> bool:
    """Whether a file name is that of a text: not hidden, Word's lock file or our own output."""
    return (name.lower().endswith(".txt") and not name.startswith((".", "~$"))
            and name != "unigram_counts.txt")


def _check_no_splits(folder: Path, texts: list[str]):
    """Raises InputError if names of texts, or of their folders, differ only in a split's name."""
    alike = {}  # {name without words for splits: {its words: path}}
    for text in texts:
        for path in map(str, (PurePath(text), *PurePath(text).parents)):
            words = tuple(ANY_WORD.findall(path.lower()))
            rest = re.sub("[0-9]+", "0", ANY_WORD.sub("*", path.lower()))
            alike.setdefault(rest, {})[words] = path
    for paths in alike.values():
        if len(paths) > 1:
            one, other, *_ = map(printable, paths.values())
            raise InputError(
                f"{folder} contains {one} and {other}, which would be joined: name splits "
                "train.txt, valid.txt and test.txt, and pass the folder that contains them")


def _files_within(folder: Path) -> tuple[list[str], list[str]]:
    """The texts in a folder and its subfolders, and the other files and hidden folders.

    Links are followed. A folder that cannot be read raises InputError.
    """
    texts, others = [], []
    for path, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        inside = Path(path).relative_to(folder)
        hidden = [name for name in folders if name.startswith(".") or name == "__MACOSX"]
        others += [f"{inside / name}/" for name in hidden]
        folders[:] = [name for name in folders if name not in hidden]
        for name in names:
            is_text = _is_text(name) and Path(path, name).is_file()
            (texts if is_text else others).append(str(inside / name))
    return sorted(texts, key=_natural_order), others


def _refuse(error: OSError):
    raise InputError(f"{printable(error.filename)} cannot be read ({error.strerror}): "
                     "make it readable, or move it elsewhere") from None


def _natural_order(path: str) -> list:
    """A sort key that puts chapter2 before chapter10."""
    return [[int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
            for name in path.split("/")]


def _split(name: str, paths: list[Path], valid_fraction: float, test_fraction: float) -> Corpus:
    """Joins files and cuts them, as `next_break` cuts; InputError if a split would be empty."""
    size = sum(path.stat().st_size for path in paths)
    train_end = round(size * (1 - valid_fraction - test_fraction))
    valid_end = round(size * (1 - test_fraction))
    bounds = [0, train_end, valid_end, size]
    whole = printable(paths[0].name) if len(paths) == 1 else name
    texts = {split: Text(f"{split} part of {whole}", []) for split in SPLITS}
    start = 0  # of the file, in the joined text
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
