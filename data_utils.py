"""Text -> SentencePiece tokens -> context batches -> TFRecords, and back as tf.data.

B batch rows, T sequence length, V vocabulary, N tokens of a split. A split is one token stream, cut into B rows of equal
length; window s holds positions [s T, (s + 1) T] of every row: T inputs and, shifted by one, T targets. Memory that is
carried from window to window therefore always continues the same row.

TensorFlow is imported where it is used: the processes that tokenize do without it.
"""

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Iterator

import numpy as np
from absl import flags

import cli
import corpora
import files
import tokenization
from cli import InputError
from tokenization import PAD

TOKENIZER = (".model", ".vocab")  # its files
RECORD_FRAME = 16  # bytes that a TFRecord has beside its content: its length, and the checksums of both
METADATA = ("corpus", "batch_size", "seq_len", "vocab_size", "add_eos", "splits", "sha256")  # what the readers of metadata.json need


@functools.cache
def tensorflow():
    """TensorFlow, imported when it is first used."""
    with cli.quiet():
        import tensorflow as tf

    return tf


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
    for s in range(num_windows(len(stream), batch_size, seq_len)):
        yield _cut(stream, row_start + s * seq_len, row_end, seq_len)


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
        yield _cut(stream, (first + s) * seq_len, np.array(len(stream)), seq_len), (first == 0) | (s >= lead)


def _cut(stream, start, end, seq_len):
    """T + 1 tokens of a stream from each of `start` [B] on, and [PAD] from `end` on: [B, T + 1]."""
    position = start[:, None] + np.arange(seq_len + 1)  # [B, T + 1]
    return np.where(position < end[..., None], stream[np.minimum(position, len(stream) - 1)], PAD).astype("<i4")


def write_records(stream: np.ndarray, batch_size: int, seq_len: int, shards: int, folder: Path) -> list[Path]:
    """Writes the windows of a stream as TFRecords, one window a record; a shard holds consecutive windows."""
    tf = tensorflow()
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


def build(corpus: corpora.Corpus, output_dir: Path, vocab_size: int, lowercase: bool, add_eos: bool,
          sp_model_prefix: str | None, batch_size: int, seq_len: int, shards: int):
    """Makes a data folder: TFRecords per split, the tokenizer, unigram counts and metadata.json.

    Everything is written beside `output_dir` and renamed at the end, so that folder holds old data or new, never a mixture.

    Raises:
      InputError: a text is empty, not UTF-8 or too short, or the vocabulary does not suit it.
    """
    output_dir = output_dir.resolve()
    if foreign := _foreign_files(output_dir):
        raise InputError(f"{output_dir} holds files that were not made here ({foreign[0]}): choose another --output_dir")
    sha256 = {split: text.sha256() for split, text in corpus.texts.items()}
    tokenizer_sha256 = sp_model_prefix and files.sha256(Path(sp_model_prefix + ".model"))
    sizes = {split: [part.end - part.start for part in text.parts] for split, text in corpus.texts.items()}
    work = {"texts": sha256, "sizes": sizes, "tokenizer": tokenizer_sha256 or [vocab_size, lowercase], "add_eos": add_eos, "versions": versions()}
    with _workspace(output_dir, work) as workspace, tokenization.worker_processes() as processes:
        prefix, folder, splits = workspace / "tokenizer", workspace / "new", {}
        if not all(prefix.with_suffix(suffix).exists() for suffix in TOKENIZER):
            if sp_model_prefix:
                for suffix in TOKENIZER:
                    files.write_whole(prefix.with_suffix(suffix), Path(sp_model_prefix + suffix).read_bytes())
            else:
                print(f"training a tokenizer of {vocab_size:,} pieces")
                tokenization.train_tokenizer(corpus.texts["train"], prefix, vocab_size, lowercase)
        tokenizer = tokenization.load_tokenizer(prefix.with_suffix(".model"))
        folder.mkdir()
        for suffix in TOKENIZER:
            files.write_whole(folder / f"tokenizer{suffix}", prefix.with_suffix(suffix).read_bytes())
        for split, text in corpus.texts.items():
            words = tokenization.write_stream(text, tokenizer, add_eos, workspace / f"{split}.int32", processes)
            stream = tokenization.Stream(workspace / f"{split}.int32")
            needed = batch_size * (seq_len + 1)
            if len(stream) < needed:
                raise InputError(f"{text.name} is too short: {len(stream)} tokens, and one window of --batch_size={batch_size} rows "
                                 f"of --seq_len={seq_len} needs {needed}")
            if split == "train":
                files.write_whole(folder / "unigram_counts.txt", "".join(f"{count}\n" for count in stream.counts(tokenizer.vocab_size())).encode())
            records = write_records(stream, batch_size, seq_len, shards, folder / split)
            splits[split] = {
                "text": text.name, "text_sha256": sha256[split], "bytes": text.size, "words": words,
                "tokens": len(stream), "steps": num_windows(len(stream), batch_size, seq_len),
            }
            print(f"{split}: {words:,} words, {len(stream):,} tokens, {splits[split]['steps']:,} windows in {len(records)} file(s)")
        metadata = {
            "corpus": corpus.name, "batch_size": batch_size, "seq_len": seq_len, "vocab_size": tokenizer.vocab_size(),
            "lowercase": None if sp_model_prefix else lowercase, "add_eos": add_eos, "splits": splits,
            "sha256": {str(path.relative_to(folder)): files.sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()},
            "versions": versions(),
        }
        files.write_json(folder / "metadata.json", metadata)
        if output_dir.exists():
            output_dir.rename(workspace / "old")
        folder.rename(output_dir)


@contextlib.contextmanager
def _workspace(output_dir: Path, work: dict) -> Iterator[Path]:
    """A folder beside `output_dir` to work in. A build that is killed leaves it, and the next one that has the same work to do
    finds there what is done; otherwise it is removed in the end. Where the old data were not yet replaced, they come back."""
    workspace = output_dir.with_name(f".{output_dir.name}.partial")

    def clear():
        if (workspace / "old").exists() and not output_dir.exists():  # stopped between the two renames
            (workspace / "old").rename(output_dir)
        for rest in ("old", "new"):
            shutil.rmtree(workspace / rest, ignore_errors=True)

    with files.named(workspace):
        workspace.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(workspace, os.O_RDONLY)
    if not files.lock(descriptor):
        raise InputError(f"{output_dir} is being made by another process")
    clear()
    try:
        same = files.read_json(workspace / "work.json") == work
    except (OSError, InputError):
        same = False
    if not same:
        for path in workspace.iterdir():
            path.unlink()
        files.write_json(workspace / "work.json", work)
    killed = True
    try:
        yield workspace
        killed = False
    except (InputError, OSError):
        killed = False
        raise
    finally:
        clear()
        if not killed:
            shutil.rmtree(workspace, ignore_errors=True)
        os.close(descriptor)


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
    tf = tensorflow()
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
    packages = ("tensorflow", "keras", "sentencepiece", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


# ---------------------------------------------------------------------------------------------------------------------
# The command


def define_flags():
    flags.DEFINE_enum("corpus", "auto", ["auto", "wikitext-2", "wikitext-103", "pydocs"],
                      "auto is wikitext-2, or pydocs (documentation found on this machine) where that cannot be downloaded")
    flags.DEFINE_string("input_text", None, "your own text: one UTF-8 file, split contiguously")
    flags.DEFINE_string("input_dir", None, "your own text: a folder with train, valid and test as .txt or wiki.*.tokens; or with any .txt files, "
                        "also in folders within it, which are split as one text in the order of their names")
    flags.DEFINE_float("valid_fraction", corpora.HELD_OUT, "share of your own text for validation, where it is split", lower_bound=0, upper_bound=1)
    flags.DEFINE_float("test_fraction", corpora.HELD_OUT, "and for test", lower_bound=0, upper_bound=1)
    flags.DEFINE_integer("vocab_size", 12_000, "SentencePiece pieces", lower_bound=1)
    flags.DEFINE_boolean("lowercase", True, "fold case (nfkc_cf); otherwise nfkc")
    flags.DEFINE_boolean("add_eos", False, "a token [EOS] at every line end")
    flags.DEFINE_string("sp_model_prefix", None, "use the tokenizer PREFIX.model, PREFIX.vocab instead of training one")
    flags.DEFINE_integer("batch_size", 32, "rows of a window", lower_bound=1)
    flags.DEFINE_integer("seq_len", 32, "tokens of a row of a window", lower_bound=1)
    flags.DEFINE_integer("shards", 1, "TFRecord files per split", lower_bound=1)
    flags.DEFINE_string("output_dir", "data/tfrecords", "where the data go; data made earlier are replaced")
    flags.register_multi_flags_validator(["input_text", "input_dir"], lambda given: not all(given.values()),
                                         "--input_text and --input_dir exclude each other")
    flags.register_multi_flags_validator(["valid_fraction", "test_fraction"], lambda given: min(given.values()) > 0 and sum(given.values()) < 1,
                                         "--valid_fraction and --test_fraction must be positive and leave something to train on")


def main(_):
    FLAGS = flags.FLAGS
    output_dir = Path(FLAGS.output_dir)
    splits_given = not FLAGS.input_text and not (FLAGS.input_dir and corpora.is_to_split(Path(FLAGS.input_dir)))
    refused = {
        "--sp_model_prefix brings its own vocabulary and case": ["vocab_size", "lowercase"] if FLAGS.sp_model_prefix else [],
        "your own text is the corpus": ["corpus"] if FLAGS.input_text or FLAGS.input_dir else [],
        "the corpus has its splits": ["valid_fraction", "test_fraction"] if splits_given else [],
    }
    for reason, names in refused.items():
        if given := [f"--{name}" for name in names if FLAGS[name].present]:
            raise InputError(f"{reason}: leave {' and '.join(given)} out")
    if FLAGS.sp_model_prefix:
        tokenization.load_tokenizer(Path(FLAGS.sp_model_prefix + ".model"))
    if FLAGS.input_text:
        corpus = corpora.from_file(Path(FLAGS.input_text), FLAGS.valid_fraction, FLAGS.test_fraction)
    elif FLAGS.input_dir:
        corpus = corpora.from_folder(Path(FLAGS.input_dir), FLAGS.valid_fraction, FLAGS.test_fraction)
    else:
        corpus = corpora.choose(FLAGS.corpus, Path("data"))
    print(f"corpus {corpus.name}")
    build(corpus, output_dir, FLAGS.vocab_size, FLAGS.lowercase, FLAGS.add_eos, FLAGS.sp_model_prefix, FLAGS.batch_size, FLAGS.seq_len, FLAGS.shards)
    print(f"wrote {output_dir}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
