"""Text -> SentencePiece tokens -> context batches -> TFRecords, and back as tf.data.

B batch rows, T sequence length, V vocabulary, N tokens of a split. A split is one token stream, cut into B rows as equal as
can be; window s holds positions [s T, (s + 1) T] of every row: T inputs and, shifted by one, T targets. Memory that is
carried from window to window therefore always continues the same row.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Iterator

import numpy as np
from absl import flags

import tokenization
from support import cli, corpora, files, own_text, published, pydocs
from support.cli import InputError
from support.corpora import Corpus, Text
from tokenization import PAD, Tokenizer

BLOCK_BYTES = 1 << 20  # of text, about, which are tokenized at once
WINDOWS_AT_ONCE = 16  # that are cut from a stream
RECORD_FRAME = 16  # bytes that a TFRecord has beside its content: its length, and the checksums of both
METADATA = ("corpus", "batch_size", "seq_len", "vocab_size", "add_eos", "tokenizer", "splits", "sha256")  # what the readers of metadata.json need


# ---------------------------------------------------------------------------------------------------------------------
# Text -> tokens


def token_blocks(text: Text, tokenizer: Tokenizer, add_eos: bool) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields the ids of a text, block after block: int32 [N], how many words they are, how many characters are unknown.

    All cores work, a few blocks ahead; memory is bounded, however long the text or its lines are.
    """
    tf = cli.tensorflow()
    blocks = tf.data.Dataset.from_generator(lambda: corpora.blocks(text, BLOCK_BYTES), output_signature=tf.TensorSpec([], tf.string))
    tokens = blocks.map(lambda block: tokenizer.tokenize(block, add_eos), num_parallel_calls=cli.CORES, deterministic=True)
    return tokens.prefetch(1).as_numpy_iterator()


class Stream:
    """The tokens of a text on disk, int32 [N], which are read where they are indexed: nothing of them stays in memory.

    Args:
      path: of the file to write.
      text, tokenizer, add_eos: as `token_blocks` takes them.

    Attributes:
      words, unknown_characters: how many the text has.

    Raises:
      InputError: the text is empty.
    """

    def __init__(self, path: Path, text: Text, tokenizer: Tokenizer, add_eos: bool):
        self._path, self._length, self.words, self.unknown_characters = path, 0, 0, 0
        is_long = text.size > 10 * BLOCK_BYTES
        with open(path, "wb") as file:
            for ids, words, unknown in token_blocks(text, tokenizer, add_eos):
                with files.named(path):
                    file.write(ids.tobytes())
                    file.flush()
                self._length += len(ids)
                self.words += int(words)
                self.unknown_characters += int(unknown)
                if is_long:
                    print(f"\r{text.name}: {self._length:,} tokens", end="", flush=True)
        if is_long:
            print()
        if not self.words:
            raise InputError(f"{text.name} is empty")

    def __len__(self):
        return self._length

    def __getitem__(self, positions):
        return np.memmap(self._path, np.int32, mode="r")[positions]

    def counts(self, vocab_size: int) -> np.ndarray:
        """How often each id occurs, int64 [V]."""
        return sum(np.bincount(self[part], minlength=vocab_size) for part in self._parts())

    def renumber(self, new_ids: np.ndarray):
        """Gives every id a new one, of `new_ids` [V]."""
        with open(self._path, "r+b") as file:
            for part in self._parts():
                renumbered = new_ids[self[part]].astype(np.int32)
                with files.named(self._path):
                    file.write(renumbered.tobytes())
                    file.flush()

    def _parts(self) -> Iterator[slice]:
        return (slice(start, start + (1 << 20)) for start in range(0, len(self), 1 << 20))


# ---------------------------------------------------------------------------------------------------------------------
# Tokens -> context batches -> TFRecords


def num_windows(num_tokens: int, batch_size: int, seq_len: int) -> int:
    """Windows that hold every token after the first of its row as a target: ceil((row length - 1) / T)."""
    row_length = -(-num_tokens // batch_size)
    return -(-(row_length - 1) // seq_len)


def windows(stream: np.ndarray, batch_size: int, seq_len: int) -> Iterator[np.ndarray]:
    """Context batches: the windows [B, T + 1] of a stream [N] that is cut into B rows, in order.

    Rows differ by at most one token. Consecutive windows share one token, so each token after the first of its row is a
    target once; past the end of a row stands [PAD].
    """
    shortest, longer = divmod(len(stream), batch_size)
    row = np.arange(batch_size)  # [B]
    row_start = row * shortest + np.minimum(row, longer)
    row_end = row_start + shortest + (row < longer)
    steps = np.arange(num_windows(len(stream), batch_size, seq_len))
    for first in steps[::WINDOWS_AT_ONCE]:
        s = steps[first:first + WINDOWS_AT_ONCE, None]
        yield from _cut(stream, row_start + s * seq_len, row_end, seq_len)


def scoring_windows(stream: np.ndarray, batch_size: int, seq_len: int, lead: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The windows of a stream [N] in B rows, each of which first reads the `lead` windows before its own, which are not scored.

    The first row begins where the text begins: it is scored from its first window on. Where `lead` windows fill every memory,
    the others score their own windows as if they had begun there too. Each token after the first of the stream is scored once.

    Yields:
      A window [B, T + 1], past the end of the stream [PAD], and which of its rows are to be scored, boolean [B].
    """
    own = max(1, -(-(num_windows(len(stream), 1, seq_len) - lead) // batch_size))
    first = np.arange(batch_size) * own  # [B], the first window of each row
    for s in range(lead + own):
        yield _cut(stream, (first + s) * seq_len, len(stream), seq_len), (first == 0) | (s >= lead)


def _cut(stream, start, end, seq_len):
    """T + 1 tokens of a stream from each of `start` [..., B] on, and [PAD] from `end` on, one or [B]: [..., B, T + 1]."""
    position = start[..., None] + np.arange(seq_len + 1)  # [..., B, T + 1]
    is_token = position < np.reshape(end, [-1, 1])
    return np.where(is_token, stream[np.minimum(position, len(stream) - 1)], PAD).astype("<i4")


def write_records(stream: np.ndarray, batch_size: int, seq_len: int, shards: int, folder: Path) -> list[Path]:
    """Writes the windows of a stream as TFRecords, one window a record; a shard holds consecutive windows."""
    tf = cli.tensorflow()
    folder.mkdir()
    steps = num_windows(len(stream), batch_size, seq_len)
    shards = min(shards, steps)
    window = windows(stream, batch_size, seq_len)
    paths = [folder / f"{shard:05d}-of-{shards:05d}.tfrecord" for shard in range(shards)]
    for path, shard_steps in zip(paths, np.array_split(range(steps), shards)):
        with files.named(path), tf.io.TFRecordWriter(str(path)) as writer:
            for _ in shard_steps:
                writer.write(next(window).tobytes())
    return paths


# ---------------------------------------------------------------------------------------------------------------------
# The data folder: written as a whole, read by training


def build(corpus: Corpus, output_dir: Path, tokenizer: tokenization.Settings | Path, batch_size: int, seq_len: int,
          add_eos: bool = False, shards: int = 1):
    """Makes a data folder: TFRecords per split, the tokenizer, unigram counts and metadata.json.

    Everything is written beside `output_dir` and renamed at the end, so that folder holds old data or new, never a mixture.

    Args:
      corpus: the texts.
      output_dir: what is replaced, if it was made here.
      tokenizer: what to train one for; or the path of a model that is taken as it is.
      batch_size, seq_len, shards: as `write_records` takes them.
      add_eos: as `Tokenizer.tokenize` takes it.

    Raises:
      InputError: a text is empty, not UTF-8 or too short, or the vocabulary does not suit it; or `output_dir` cannot be replaced.
    """
    output_dir = Path(os.path.realpath(output_dir))
    _check_replaceable(output_dir)
    cli.tensorflow_text()  # or say before all work why it cannot be had
    sha256 = {split: corpora.checked_sha256(text) for split, text in corpus.texts.items()}
    for text in corpus.texts.values():
        if not text.size:
            raise InputError(f"{text.name} is empty")
    with _workspace(output_dir) as workspace:
        folder = workspace / "new"
        streams = _write_streams(corpus, tokenizer, add_eos, workspace)
        for split, stream in streams.items():
            needed = batch_size * (seq_len + 1)
            if len(stream) < needed:
                raise InputError(f"{corpus.texts[split].name} is too short: {len(stream)} tokens, and one window of "
                                 f"--batch_size={batch_size} rows of --seq_len={seq_len} needs {needed}: lower them")
        splits = {split: {
            "text": text.name, "text_sha256": sha256[split], "bytes": text.size, "words": streams[split].words,
            "unknown_characters": streams[split].unknown_characters, "tokens": len(streams[split]),
            "steps": num_windows(len(streams[split]), batch_size, seq_len),
        } for split, text in corpus.texts.items()}
        for split, entry in splits.items():
            records = write_records(streams[split], batch_size, seq_len, shards, folder / split)
            unknown = f", {entry['unknown_characters']:,} characters unknown to the tokenizer" if entry["unknown_characters"] else ""
            print(f"{split}: {entry['words']:,} words, {entry['tokens']:,} tokens{unknown}, {entry['steps']:,} windows in {len(records)} file(s)")
        files.write_json(folder / "metadata.json", {
            "corpus": corpus.name, "batch_size": batch_size, "seq_len": seq_len, "add_eos": add_eos, "splits": splits,
            "vocab_size": Tokenizer(folder / "tokenizer.model").vocab_size,
            "tokenizer": str(tokenizer) if isinstance(tokenizer, Path) else dataclasses.asdict(tokenizer),
            "sha256": {str(path.relative_to(folder)): files.sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()},
            "versions": versions(),
        })


def _write_streams(corpus: Corpus, settings: tokenization.Settings | Path, add_eos: bool, workspace: Path) -> dict[str, Stream]:
    """Writes the tokenizer and unigram counts into `workspace`/new, and the stream of each split, which is returned, beside it.

    The ids of a tokenizer that is trained here fall by their count in the training split.
    """
    model = workspace / "new" / "tokenizer.model"
    if isinstance(settings, Path):
        files.write_whole(model, settings.read_bytes())
    else:
        print(f"training a tokenizer of {f'{settings.vocab_size:,} pieces' if settings.vocab_size else f'all {settings.model_type}s'}")
        files.write_whole(model, tokenization.train_tokenizer(corpus.texts["train"], settings))
    tokenizer = Tokenizer(model)
    train = Stream(workspace / "train.int32", corpus.texts["train"], tokenizer, add_eos)
    counts = train.counts(tokenizer.vocab_size)  # [V]
    if not isinstance(settings, Path):
        new_ids = tokenization.ids_by_count(counts)  # [V]
        train.renumber(new_ids)
        files.write_whole(model, tokenization.renumbered(model.read_bytes(), new_ids))
        tokenizer, counts = Tokenizer(model), counts[np.argsort(new_ids)]
    files.write_whole(model.with_suffix(".vocab"), tokenizer.vocabulary.encode())
    files.write_whole(model.with_name("unigram_counts.txt"), "".join(f"{count}\n" for count in counts).encode())
    held_out = {split: Stream(workspace / f"{split}.int32", text, tokenizer, add_eos)
                for split, text in corpus.texts.items() if split != "train"}
    return {"train": train, **held_out}


@contextlib.contextmanager
def _workspace(output_dir: Path) -> Iterator[Path]:
    """A folder beside `output_dir` to work in, with a folder `new` that takes the place of `output_dir` at the end of the block.
    What a build that was killed has left is removed; where it had moved the old data aside already, they come back."""
    workspace = output_dir.with_name(f".{output_dir.name}.partial")
    new, old = workspace / "new", workspace / "old"
    with files.named(workspace):
        workspace.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(workspace, os.O_RDONLY)
    if not files.lock(descriptor):
        raise InputError(f"{output_dir} is being made by another process")
    try:
        if old.exists() and not output_dir.exists():
            old.rename(output_dir)
        for rest in workspace.iterdir():
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
        new.mkdir()
        yield workspace
        if output_dir.exists():
            output_dir.rename(old)
        new.rename(output_dir)
    finally:
        if old.exists() and not output_dir.exists():
            old.rename(output_dir)
        shutil.rmtree(workspace, ignore_errors=True)
        os.close(descriptor)


def _check_replaceable(output_dir: Path):
    """Raises InputError where a folder cannot take the place of `output_dir`, or must not."""
    if output_dir.is_symlink():
        raise InputError(f"{output_dir} is a link that leads to itself: choose another --output_dir")
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file: choose another --output_dir")
    if os.path.ismount(output_dir):
        raise InputError(f"{output_dir} is a mount point, which cannot be replaced as a whole: name a folder within it as --output_dir")
    if foreign := _foreign_files(output_dir):
        raise InputError(f"{output_dir} holds files that were not made here ({foreign[0]}): choose another --output_dir")


def _foreign_files(folder: Path) -> list[str]:
    """The files in a folder that are not part of the data that its metadata lists."""
    try:
        made = {"metadata.json", *files.read_json(folder / "metadata.json", METADATA)["sha256"]}
    except (OSError, InputError):
        made = set()
    return sorted({str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()} - made)


def read_metadata(data_dir: Path) -> dict:
    """The metadata of a data folder, every file of which is held against its hash, and the windows against their number.

    Raises:
      InputError: there is no data, or a file is missing, changed or does not belong there; it is named.
    """
    try:
        metadata = files.read_json(data_dir / "metadata.json", METADATA)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no data in {data_dir.resolve()}: run ./make_data.sh first, or say where they are with --data_dir") from None
    except InputError as error:
        raise InputError(f"{error}: delete {data_dir} and run ./make_data.sh again") from None
    for name, sha256 in metadata["sha256"].items():
        if not (data_dir / name).is_file() or files.sha256(data_dir / name) != sha256:
            raise InputError(f"{data_dir / name} is missing or damaged: run ./make_data.sh again")
    record_bytes = 4 * metadata["batch_size"] * (metadata["seq_len"] + 1) + RECORD_FRAME
    for split, entry in metadata["splits"].items():
        paths = _records(data_dir, split, metadata)
        if foreign := set((data_dir / split).iterdir()) - set(paths):
            raise InputError(f"{min(foreign)} does not belong there: delete it")
        if sum(path.stat().st_size for path in paths) != entry["steps"] * record_bytes:
            raise InputError(f"{data_dir / split} does not hold the {entry['steps']:,} windows that metadata.json tells of: run ./make_data.sh again")
    return metadata


def check_unchanged(data_dir: Path, metadata: dict):
    """Raises InputError where the data are no longer those of which `read_metadata` gave this metadata."""
    try:
        same = files.read_json(data_dir / "metadata.json") == metadata
    except (OSError, InputError):
        same = False
    if not same:
        raise InputError(f"{data_dir} has been made anew while it was in use: stopped; the last checkpoint is from before")


def _records(data_dir: Path, split: str, metadata: dict) -> list[Path]:
    return sorted(data_dir / name for name in metadata["sha256"] if name.startswith(f"{split}/"))


def load_windows(data_dir: Path, split: str, metadata: dict, first_row: int = 0, num_rows: int | None = None):
    """A tf.data.Dataset: the windows of a split in order, int32 [B, T + 1]; or of each only `num_rows` rows from one on."""
    tf = cli.tensorflow()
    width, rows = metadata["seq_len"] + 1, num_rows or metadata["batch_size"]
    paths = [str(path) for path in _records(data_dir, split, metadata)]

    def window(record):
        return tf.reshape(tf.io.decode_raw(tf.strings.substr(record, 4 * width * first_row, 4 * width * rows), tf.int32), [rows, width])

    return tf.data.TFRecordDataset(paths).map(window)


def load_stream(data_dir: Path, split: str, metadata: dict) -> np.ndarray:
    """The tokens of a split as the one stream that its windows were cut from, int32 [N]."""
    pieces = np.stack(list(load_windows(data_dir, split, metadata).as_numpy_iterator()))  # [steps, B, T + 1]
    rows = np.concatenate([pieces[0, :, :1], *pieces[:, :, 1:]], axis=1)  # [B, steps T + 1]
    return rows[rows != PAD]


def tokenizer_sha256(metadata: dict) -> str:
    """What tells the tokenizer of a data folder from others."""
    return metadata["sha256"]["tokenizer.model"]


def versions() -> dict:
    """The versions of Python and of the packages that results depend on."""
    packages = ("tensorflow", "tensorflow-text", "keras", "sentencepiece", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


# ---------------------------------------------------------------------------------------------------------------------
# The command


def choose_corpus(name: str, data: Path) -> Corpus:
    """`--corpus`: its name, or `auto`, which is WikiText-2, or pydocs where that cannot be had."""
    if name == "pydocs":
        return pydocs.make(data / "pydocs")
    if name != "auto":
        return published.get(name, data / name)
    try:
        return published.get("wikitext-2", data / "wikitext-2")
    except published.Unreachable as error:
        print(f"{error}\n\n{'*' * 100}\nThis is NOT WikiText-2, which cannot be had: the corpus is 'pydocs', documentation found "
              f"on this machine.\nIts perplexities compare with nothing published.\n{'*' * 100}\n", file=sys.stderr)
        return pydocs.make(data / "pydocs")


def define_flags():
    flags.DEFINE_enum("corpus", "auto", ["auto", *published.PUBLISHED, "pydocs"],
                      "auto is wikitext-2, or pydocs (documentation found on this machine) where that cannot be downloaded")
    cli.define_path("input_text", None, "your own text: one UTF-8 file, split contiguously")
    cli.define_path("input_dir", None, "your own text: a folder with train, valid and test as .txt, wiki.*.tokens or wiki.*.raw; or with any "
                    ".txt files, also in folders within it, which are split as one text in the order of their names, numbers by their size")
    flags.DEFINE_float("valid_fraction", own_text.HELD_OUT, "share of your own text for validation, where it is split", lower_bound=0, upper_bound=1)
    flags.DEFINE_float("test_fraction", own_text.HELD_OUT, "and for test", lower_bound=0, upper_bound=1)
    flags.DEFINE_enum("model_type", "unigram", tokenization.MODEL_TYPES, "SentencePiece's kind of tokenizer; char keeps white space as it is, and line ends with --add_eos")
    flags.DEFINE_integer("vocab_size", None, "SentencePiece pieces (default: 12,000; all that there are of char and word)",
                         lower_bound=1, upper_bound=10_000_000)
    flags.DEFINE_enum("normalization_rule_name", "nfkc_cf", tokenization.NORMALIZATIONS,
                      "nfkc_cf folds case, nfkc keeps it, identity changes no letter")
    flags.DEFINE_float("character_coverage", None, "share of the text whose characters are pieces; the rarest others become bytes "
                       "(default: 0.9995; 1 of char and word)", lower_bound=0.98, upper_bound=1)
    flags.DEFINE_boolean("add_eos", False, "a token [EOS] at every line end")
    cli.define_path("sp_model_prefix", None, "use the tokenizer PREFIX.model instead of training one")
    flags.DEFINE_integer("batch_size", 32, "rows of a window", lower_bound=1)
    flags.DEFINE_integer("seq_len", 32, "tokens of a row of a window", lower_bound=1)
    flags.DEFINE_integer("shards", 1, "TFRecord files per split", lower_bound=1)
    cli.define_path("output_dir", "data/tfrecords", "where the data go; data made earlier are replaced")
    flags.register_multi_flags_validator(["input_text", "input_dir"], lambda given: not all(given.values()),
                                         "--input_text and --input_dir exclude each other")
    flags.register_multi_flags_validator(["valid_fraction", "test_fraction"], lambda given: min(given.values()) > 0 and sum(given.values()) < 1,
                                         "--valid_fraction and --test_fraction must be positive and leave something to train on")


def main(_):
    FLAGS = flags.FLAGS
    output_dir = Path(FLAGS.output_dir)
    splits_given = not FLAGS.input_text and not (FLAGS.input_dir and own_text.is_to_split(Path(FLAGS.input_dir)))
    of_the_tokenizer = ["model_type", "vocab_size", "normalization_rule_name", "character_coverage"]
    refused = {
        "--sp_model_prefix names a tokenizer as it is": of_the_tokenizer if FLAGS.sp_model_prefix else [],
        "your own text is the corpus": ["corpus"] if FLAGS.input_text or FLAGS.input_dir else [],
        "the corpus has its splits": ["valid_fraction", "test_fraction"] if splits_given else [],
    }
    for reason, names in refused.items():
        if given := [f"--{name}" for name in names if FLAGS[name].present]:
            raise InputError(f"{reason}: leave {' and '.join(given)} out")
    model = FLAGS.sp_model_prefix and Path(f"{FLAGS.sp_model_prefix}.model")
    if model:
        Tokenizer(model)  # or say at once what is wrong with it
    if FLAGS.input_text:
        corpus = own_text.from_file(Path(FLAGS.input_text), FLAGS.valid_fraction, FLAGS.test_fraction)
    elif FLAGS.input_dir:
        corpus = own_text.from_folder(Path(FLAGS.input_dir), FLAGS.valid_fraction, FLAGS.test_fraction)
    else:
        corpus = choose_corpus(FLAGS.corpus, Path("data"))
    print(f"corpus {corpus.name}")
    if model:
        tokenizer = model
    else:
        vocab_size = FLAGS.vocab_size or (12_000 if FLAGS.model_type in ("unigram", "bpe") else None)
        tokenizer = tokenization.Settings(FLAGS.model_type, vocab_size, FLAGS.normalization_rule_name, FLAGS.character_coverage)
    build(corpus, output_dir, tokenizer, FLAGS.batch_size, FLAGS.seq_len, FLAGS.add_eos, FLAGS.shards)
    print(f"wrote {output_dir}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
