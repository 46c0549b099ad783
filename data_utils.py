"""Text -> SentencePiece tokens -> windows -> TFRecords, and back as tf.data.

    ./make_data.sh
    ./make_data.sh --input_text=my_book.txt --vocab_size=4000

B batch rows, T sequence length, V vocabulary, N tokens of a split. A split is one token stream, cut
into B rows whose lengths differ by at most one token. Window s holds positions s T to (s + 1) T of
every row: T inputs and, shifted by one, T targets. The memory carried from window to window
therefore always continues the same row.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Iterator

import numpy as np
from absl import flags

from support import (
    cli,
    console,
    corpora,
    files,
    output_folder,
    own_text,
    published,
    pydocs,
    tokenization,
)
from support.corpora import SPLITS, Corpus, Text
from support.errors import InputError
from support.tokenization import PAD, Tokenizer
from support.versions import versions

BLOCK_BYTES = 1 << 20  # approximate size of the text to tokenize at once
WINDOWS_AT_ONCE = 16  # to cut from a stream
RECORDS = "00000-of-00001.tfrecord"  # the windows of a split, in a folder of its name
METADATA = ("corpus", "batch_size", "seq_len", "vocab_size", "add_eos", "splits", "sha256")


# --------------------------------------------------------------------------------------------------
# Text -> tokens


def token_blocks(text: Text, tokenizer: Tokenizer,
                 add_eos: bool) -> Iterator[tuple[np.ndarray, int, int, int]]:
    """Tokenizes a text block by block, on all cores, in bounded memory.

    Yields:
      The ids of a block, int32 [N]; its numbers of words and of unknown characters; and its bytes
      in the text, as `corpora.blocks` counts them.
    """
    tf = cli.tensorflow()
    blocks = tf.data.Dataset.from_generator(
        lambda: corpora.blocks(text, BLOCK_BYTES),
        output_signature=(tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)))
    tokens = blocks.map(lambda block, num_bytes: (*tokenizer.tokenize(block, add_eos), num_bytes),
                        num_parallel_calls=cli.CORES, deterministic=True)
    return without_autotune(tokens.prefetch(1)).as_numpy_iterator()


class Stream:
    """The tokens of a text, int32 [N], kept in a file that is read when they are indexed.

    Attributes:
      words, unknown_characters, bytes: of the text, see `token_blocks`.

    Raises:
      InputError: the text is empty.
    """

    def __init__(self, path: Path, text: Text, tokenizer: Tokenizer, add_eos: bool):
        self._path, self._length = path, 0
        self.words, self.unknown_characters, self.bytes = 0, 0, 0
        with open(path, "wb") as file:
            for ids, words, unknown, num_bytes in token_blocks(text, tokenizer, add_eos):
                with files.named(path):
                    file.write(ids.tobytes())
                    file.flush()
                self._length += len(ids)
                self.words += int(words)
                self.unknown_characters += int(unknown)
                self.bytes += int(num_bytes)
                console.redraw(f"{text.name}: {self._length:,} tokens")
        console.redraw("\n")
        if not self.words:
            raise InputError(f"{text.name} is empty")

    @property
    def sizes(self) -> dict:
        return {"bytes": self.bytes, "words": self.words,
                "unknown_characters": self.unknown_characters, "tokens": len(self)}

    def __len__(self):
        return self._length

    def __getitem__(self, positions):
        return np.memmap(self._path, np.int32, mode="r")[positions]

    def counts(self, vocab_size: int) -> np.ndarray:
        """How often each id occurs, int64 [V]."""
        return sum(np.bincount(self[part], minlength=vocab_size) for part in self._parts())

    def renumber(self, new_ids: np.ndarray):
        """Replaces every id by its new id, `new_ids` [V]."""
        with open(self._path, "r+b") as file:
            for part in self._parts():
                renumbered = new_ids[self[part]].astype(np.int32)
                with files.named(self._path):
                    file.write(renumbered.tobytes())
                    file.flush()

    def _parts(self) -> Iterator[slice]:
        return (slice(start, start + (1 << 20)) for start in range(0, len(self), 1 << 20))


# --------------------------------------------------------------------------------------------------
# Tokens -> windows -> TFRecords


def num_windows(num_tokens: int, batch_size: int, seq_len: int) -> int:
    """The number of windows of a stream: ceil((row length - 1) / T)."""
    row_length = -(-num_tokens // batch_size)
    return -(-(row_length - 1) // seq_len)


def windows(stream: np.ndarray, batch_size: int, seq_len: int) -> Iterator[np.ndarray]:
    """Yields the windows [B, T + 1] of a stream [N] in B rows, in order.

    Consecutive windows share one token, so each token after the first of its row is a target once.
    [PAD] fills the windows after the end of a row.
    """
    shortest, longer = divmod(len(stream), batch_size)
    row = np.arange(batch_size)  # [B]
    row_start = row * shortest + np.minimum(row, longer)
    row_end = row_start + shortest + (row < longer)
    steps = np.arange(num_windows(len(stream), batch_size, seq_len))
    for first in steps[::WINDOWS_AT_ONCE]:
        s = steps[first:first + WINDOWS_AT_ONCE, None]
        yield from _cut(stream, row_start + s * seq_len, row_end, seq_len)


def scoring_windows(stream: np.ndarray, batch_size: int, seq_len: int,
                    lead: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The windows of a stream [N] in B rows that overlap by `lead` windows.

    A row reads `lead` windows before it is scored; the first row is scored from the start. If
    `lead` windows fill every memory, the scores are those of a single long row. Each token after
    the first of the stream is scored once.

    Yields:
      A window [B, T + 1], with [PAD] after the end of the stream, and which of its rows to score,
      boolean [B].
    """
    own = max(1, -(-(num_windows(len(stream), 1, seq_len) - lead) // batch_size))
    first = np.arange(batch_size) * own  # [B], the first window of each row
    for s in range(lead + own):
        yield _cut(stream, (first + s) * seq_len, len(stream), seq_len), (first == 0) | (s >= lead)


def _cut(stream, start, end, seq_len):
    """T + 1 tokens of a stream from each `start` [..., B]: [..., B, T + 1].

    [PAD] follows `end`, an integer or [B].
    """
    position = start[..., None] + np.arange(seq_len + 1)  # [..., B, T + 1]
    is_token = position < np.reshape(end, [-1, 1])
    return np.where(is_token, stream[np.minimum(position, len(stream) - 1)], PAD).astype("<i4")


def write_records(stream: np.ndarray, batch_size: int, seq_len: int, folder: Path):
    """Writes the windows of a stream to a TFRecord file, one window per record."""
    tf = cli.tensorflow()
    folder.mkdir()
    path = folder / RECORDS
    with files.named(path), tf.io.TFRecordWriter(str(path)) as writer:
        for window in windows(stream, batch_size, seq_len):
            writer.write(window.tobytes())


# --------------------------------------------------------------------------------------------------
# The data folder: replaced as a whole, read by training


def build(corpus: Corpus, output_dir: Path, tokenizer: tokenization.TokenizerSettings | Path,
          batch_size: int, seq_len: int, add_eos: bool = False):
    """Writes a data folder: TFRecords per split, the tokenizer, unigram counts, metadata.json.

    Older data are replaced as a whole or not at all. The tokenizer is the path of a trained model,
    or settings to train one with.

    Raises:
      InputError: a text is empty, not UTF-8 or too short, the vocabulary size does not fit it, or
        `output_dir` cannot be replaced.
      files.NotWritten: the disk is full or read-only.
    """
    output_folder.check_replaceable(output_dir, record="metadata.json")
    cli.tensorflow_text()  # fails before the work if it cannot be loaded
    sha256 = {split: corpora.checked_sha256(text) for split, text in corpus.texts.items()}
    with output_folder.replaced(output_dir) as workspace:
        folder = workspace / "new"
        streams = _write_streams(corpus, tokenizer, add_eos, workspace)
        for split, stream in streams.items():
            needed = batch_size * (seq_len + 1)
            if len(stream) < needed:
                raise InputError(
                    f"{corpus.texts[split].name} is too short: it has {len(stream)} tokens, but "
                    f"one window of --batch_size={batch_size} rows of --seq_len={seq_len} needs "
                    f"{needed}: lower one of the two")
        splits = {}
        for split, text in corpus.texts.items():
            stream = streams[split]
            splits[split] = {
                "text": text.name, "text_sha256": sha256[split], **stream.sizes,
                "steps": num_windows(len(stream), batch_size, seq_len)}
            write_records(stream, batch_size, seq_len, folder / split)
            print(_summary(split, splits[split]))
        is_path = isinstance(tokenizer, Path)
        files.write_json(folder / "metadata.json", {
            "corpus": corpus.name, "batch_size": batch_size, "seq_len": seq_len,
            "add_eos": add_eos, "splits": splits,
            "vocab_size": Tokenizer(folder / "tokenizer.model").vocab_size,
            "tokenizer": str(tokenizer) if is_path else dataclasses.asdict(tokenizer),
            "sha256": output_folder.hashes(folder),
            "versions": versions(),
        })


def _summary(split: str, entry: dict) -> str:
    """The sizes of a split in one line."""
    unknown = ""
    if entry["unknown_characters"]:
        unknown = f", {entry['unknown_characters']:,} characters unknown to the tokenizer"
    return (f"{split}: {entry['words']:,} words, {entry['tokens']:,} tokens{unknown}, "
            f"{entry['steps']:,} windows")


def _write_streams(corpus: Corpus, settings: tokenization.TokenizerSettings | Path, add_eos: bool,
                   workspace: Path) -> dict[str, Stream]:
    """The stream of each split, in `workspace`; writes tokenizer and unigram counts to its `new`.

    A tokenizer trained here numbers its ids by decreasing count in the training split.
    """
    model = workspace / "new" / "tokenizer.model"
    if isinstance(settings, Path):
        files.write_whole(model, settings.read_bytes())
    else:
        size = settings.vocab_size
        pieces = f"{size:,} pieces" if size else f"all {settings.model_type}s"
        print(f"training a tokenizer of {pieces}")
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
    lines = "".join(f"{count}\n" for count in counts)
    files.write_whole(model.with_name("unigram_counts.txt"), lines.encode())
    streams = {"train": train}
    for split in ("valid", "test"):
        path = workspace / f"{split}.int32"
        streams[split] = Stream(path, corpus.texts[split], tokenizer, add_eos)
    return streams


def read_metadata(data_dir: Path) -> dict:
    """The metadata of a data folder; InputError names a file that is missing or damaged."""
    try:
        metadata = files.read_json(data_dir / "metadata.json", METADATA)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no data in {data_dir.resolve()}: run ./make_data.sh first, "
                         "or give the folder of the data with --data_dir") from None
    except InputError as error:
        raise InputError(f"{error}: delete {data_dir} and run ./make_data.sh again") from None
    sha256 = metadata["sha256"]
    for name in sorted(sha256.keys() | {f"{split}/{RECORDS}" for split in SPLITS}):
        if not (data_dir / name).is_file() or files.sha256(data_dir / name) != sha256.get(name):
            raise InputError(f"{data_dir / name} is missing or damaged: run ./make_data.sh again")
    return metadata


def check_unchanged(data_dir: Path, metadata: dict):
    """Raises InputError if the data were replaced after their metadata had been read."""
    try:
        same = files.read_json(data_dir / "metadata.json") == metadata
    except (OSError, InputError):
        same = False
    if not same:
        raise InputError(f"{data_dir} was replaced while it was in use: stopped; "
                         "the last checkpoint was saved before that")


def load_windows(data_dir: Path, split: str, metadata: dict):
    """A tf.data.Dataset of the windows of a split, in order, int32 [B, T + 1]."""
    tf = cli.tensorflow()
    shape = [metadata["batch_size"], metadata["seq_len"] + 1]

    def window(record):
        return tf.reshape(tf.io.decode_raw(record, tf.int32), shape)

    records = tf.data.TFRecordDataset(str(data_dir / split / RECORDS))
    return without_autotune(records.map(window))


def without_autotune(dataset):
    """A tf.data.Dataset whose iterators end at once.

    The autotuning thread of TensorFlow 2.21 sleeps longer and longer. An iterator waits for it at
    its end, and delays the end of the program by 5 to 38 seconds.
    """
    options = cli.tensorflow().data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def load_stream(data_dir: Path, split: str, metadata: dict) -> np.ndarray:
    """The token stream of a split, int32 [N]."""
    pieces = list(load_windows(data_dir, split, metadata).as_numpy_iterator())
    pieces = np.stack(pieces)  # [steps, B, T + 1]
    rows = np.concatenate([pieces[0, :, :1], *pieces[:, :, 1:]], axis=1)  # [B, steps T + 1]
    return rows[rows != PAD]


def read_counts(path: Path) -> np.ndarray:
    """How often each id occurs, [V], from a file with one count per line; else InputError."""
    if not path.is_file():
        raise InputError(f"no counts in {path}: run ./make_data.sh first")
    try:
        counts = np.array([float(line) for line in path.read_text().splitlines()])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if not np.isfinite(counts).all() or (counts < 0).any() or not counts.sum():
        raise InputError(f"{path} must hold one count per line, none negative and not all zero")
    return counts


def tokenizer_sha256(metadata: dict) -> str:
    """The SHA-256 of the tokenizer of a data folder, which identifies it."""
    return metadata["sha256"]["tokenizer.model"]


# --------------------------------------------------------------------------------------------------
# The command


def choose_corpus(name: str, data: Path) -> Corpus:
    """The corpus of `--corpus`, from a folder in `data`."""
    if name == "pydocs":
        return pydocs.make(data / "pydocs")
    if name != "auto":
        return published.get(name, data / name)
    try:
        return published.get("wikitext-2", data / "wikitext-2")
    except published.Unreachable as error:
        stars = "*" * 100
        print(f"{error}\n\n{stars}\n"
              "This is NOT WikiText-2, which cannot be downloaded: the corpus is 'pydocs', "
              "documentation found on this machine.\n"
              f"Its perplexities cannot be compared with published ones.\n{stars}\n",
              file=sys.stderr)
        return pydocs.make(data / "pydocs")


def define_flags():
    flags.DEFINE_enum(
        "corpus", "auto", ["auto", *published.PUBLISHED, "pydocs"], "auto is wikitext-2, or pydocs "
        "(documentation found on this machine) if that cannot be downloaded")
    cli.define_path("input_text", None, "your own text: one UTF-8 file, cut into splits")
    cli.define_path(
        "input_dir", None, "your own text: a folder with train, valid and test as .txt, "
        "wiki.*.tokens, wiki.*.raw or folders of .txt files; or a folder of any .txt files, which "
        "are joined in the order of their names and cut into splits")
    flags.DEFINE_float("valid_fraction", own_text.HELD_OUT, "share of your own text for "
                       "validation, if it has no splits", lower_bound=0, upper_bound=1)
    flags.DEFINE_float("test_fraction", own_text.HELD_OUT, "share of your own text for the "
                       "test split, if it has no splits", lower_bound=0, upper_bound=1)
    flags.DEFINE_enum("model_type", "unigram", tokenization.MODEL_TYPES, "SentencePiece's type of "
                      "tokenizer; char keeps white space and, with --add_eos, line ends")
    flags.DEFINE_integer("vocab_size", None, "number of pieces (default: 12,000; all for char "
                         "and word)", lower_bound=tokenization.RESERVED + 1, upper_bound=10_000_000)
    flags.DEFINE_enum("normalization_rule_name", "nfkc_cf", tokenization.NORMALIZATIONS,
                      "nfkc_cf folds case, nfkc keeps it, identity changes no character")
    flags.DEFINE_float(
        "character_coverage", None, "share of characters that get a piece; the rarest "
        "characters become bytes (default: 0.9995; 1 for char and word)", lower_bound=0.98,
        upper_bound=1)
    flags.DEFINE_boolean("add_eos", False, "add an [EOS] token at every line end")
    cli.define_path(
        "sp_model_prefix", None, "use the tokenizer PREFIX.model instead of training one")
    flags.DEFINE_integer("batch_size", 32, "B, rows of a window", lower_bound=1)
    flags.DEFINE_integer("seq_len", 32, "T, tokens per row and window", lower_bound=1)
    cli.define_path(
        "output_dir", "data/tfrecords", "the folder to write; older data in it are replaced")
    flags.register_multi_flags_validator(
        ["input_text", "input_dir"], lambda given: not all(given.values()),
        "use --input_text or --input_dir, not both")
    flags.register_multi_flags_validator(
        ["valid_fraction", "test_fraction"],
        lambda given: min(given.values()) > 0 and sum(given.values()) < 1,
        "--valid_fraction and --test_fraction must be positive and sum to less than 1")


def tokenizer_of_flags() -> tokenization.TokenizerSettings | Path:
    """The settings of the tokenizer to train, or the path of a trained one, which is checked."""
    FLAGS = flags.FLAGS
    if FLAGS.sp_model_prefix:
        path = Path(f"{FLAGS.sp_model_prefix}.model")
        Tokenizer(path)
        return path
    vocab_size = FLAGS.vocab_size
    if vocab_size is None and FLAGS.model_type in ("unigram", "bpe"):
        vocab_size = 12_000
    return tokenization.TokenizerSettings(
        FLAGS.model_type, vocab_size, FLAGS.normalization_rule_name, FLAGS.character_coverage)


def main(_):
    FLAGS = flags.FLAGS
    output_dir = Path(FLAGS.output_dir)
    input_text = FLAGS.input_text and Path(FLAGS.input_text)
    input_dir = FLAGS.input_dir and Path(FLAGS.input_dir)
    refused = {}
    if FLAGS.sp_model_prefix:
        refused["--sp_model_prefix names a trained tokenizer"] = [
            "model_type", "vocab_size", "normalization_rule_name", "character_coverage"]
    if input_text or input_dir:
        refused["your own text is the corpus"] = ["corpus"]
    if not input_text and (not input_dir or own_text.has_splits(input_dir)):
        refused["the corpus already has splits"] = ["valid_fraction", "test_fraction"]
    for reason, names in refused.items():
        if given := [f"--{name}" for name in names if FLAGS[name].present]:
            raise InputError(f"{reason}: omit {' and '.join(given)}")
    tokenizer = tokenizer_of_flags()
    if input_text:
        corpus = own_text.from_file(input_text, FLAGS.valid_fraction, FLAGS.test_fraction)
    elif input_dir:
        corpus = own_text.from_folder(input_dir, FLAGS.valid_fraction, FLAGS.test_fraction)
    else:
        corpus = choose_corpus(FLAGS.corpus, Path("data"))
    print(f"corpus {corpus.name}")
    build(corpus, output_dir, tokenizer, FLAGS.batch_size, FLAGS.seq_len, FLAGS.add_eos)
    print(f"wrote {output_dir}")


if __name__ == "__main__":
    cli.begin(__name__, define_flags)
    cli.run(main)
