"""Text -> SentencePiece tokens -> context batches -> TFRecords, and back as tf.data.

    ./make_data.sh
    ./make_data.sh --input_text=my_book.txt --vocab_size=4000

B batch rows, T sequence length, V vocabulary, N tokens of a split. A split is one token stream, cut
into B rows as equal as can be; window s holds positions [s T, (s + 1) T] of every row: T inputs
and, shifted by one, T targets. Memory that is carried from window to window therefore always
continues the same row.
"""

import dataclasses
import importlib.metadata
import platform
import subprocess
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
from support.cli import InputError
from support.corpora import Corpus, Text
from support.tokenization import PAD, Tokenizer

BLOCK_BYTES = 1 << 20  # of text, about, which are tokenized at once
WINDOWS_AT_ONCE = 16  # that are cut from a stream
RECORD_FRAME = 16  # bytes of a TFRecord beside its content: its length, and the checksums of both
# What the readers of metadata.json need.
METADATA = ("corpus", "batch_size", "seq_len", "vocab_size", "add_eos", "splits", "sha256")


# --------------------------------------------------------------------------------------------------
# Text -> tokens


def token_blocks(text: Text, tokenizer: Tokenizer,
                 add_eos: bool) -> Iterator[tuple[np.ndarray, int, int, int]]:
    """The ids of a text, block after block.

    All cores work, a few blocks ahead; memory is bounded, however long the text or its lines are.

    Yields:
      The ids of a block, int32 [N]; how many words they are; how many characters are unknown;
      how many bytes of the text the block is, as `corpora.blocks` counts them.
    """
    tf = cli.tensorflow()
    blocks = tf.data.Dataset.from_generator(
        lambda: corpora.blocks(text, BLOCK_BYTES),
        output_signature=(tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int64)))
    tokens = blocks.map(lambda block, num_bytes: (*tokenizer.tokenize(block, add_eos), num_bytes),
                        num_parallel_calls=cli.CORES, deterministic=True)
    return without_autotune(tokens.prefetch(1)).as_numpy_iterator()


class Stream:
    """The tokens of a text on disk, int32 [N].

    They are read where they are indexed: nothing of them stays in memory.

    Args:
      path: of the file to write.
      text, tokenizer, add_eos: as `token_blocks` takes them.

    Attributes:
      words, unknown_characters, bytes: how many the text has, as `token_blocks` counts them.

    Raises:
      InputError: the text is empty.
    """

    def __init__(self, path: Path, text: Text, tokenizer: Tokenizer, add_eos: bool):
        self._path, self._length = path, 0
        self.words, self.unknown_characters, self.bytes = 0, 0, 0
        is_long = text.size > 10 * BLOCK_BYTES
        with open(path, "wb") as file:
            for ids, words, unknown, num_bytes in token_blocks(text, tokenizer, add_eos):
                with files.named(path):
                    file.write(ids.tobytes())
                    file.flush()
                self._length += len(ids)
                self.words += int(words)
                self.unknown_characters += int(unknown)
                self.bytes += int(num_bytes)
                if is_long:
                    console.redraw(f"{text.name}: {self._length:,} tokens")
        if is_long:
            console.redraw("\n")
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


# --------------------------------------------------------------------------------------------------
# Tokens -> context batches -> TFRecords


def num_windows(num_tokens: int, batch_size: int, seq_len: int) -> int:
    """How many windows hold every token after the first of its row as a target.

    That is ceil((row length - 1) / T).
    """
    row_length = -(-num_tokens // batch_size)
    return -(-(row_length - 1) // seq_len)


def windows(stream: np.ndarray, batch_size: int, seq_len: int) -> Iterator[np.ndarray]:
    """Context batches: the windows [B, T + 1] of a stream [N] that is cut into B rows, in order.

    Rows differ by at most one token. Consecutive windows share one token, so each token after the
    first of its row is a target once; past the end of a row stands [PAD].
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
    """The windows of a stream [N] in B rows, each with the `lead` windows before its own.

    A row first reads those `lead` windows, which are not scored. The first row begins where the
    text begins: it is scored from its first window on. Where `lead` windows fill every memory, the
    other rows score what one long row would. Each token after the first of the
    stream is scored once.

    Yields:
      A window [B, T + 1], past the end of the stream [PAD]; and which of its rows are to be scored,
      boolean [B].
    """
    own = max(1, -(-(num_windows(len(stream), 1, seq_len) - lead) // batch_size))
    first = np.arange(batch_size) * own  # [B], the first window of each row
    for s in range(lead + own):
        yield _cut(stream, (first + s) * seq_len, len(stream), seq_len), (first == 0) | (s >= lead)


def _cut(stream, start, end, seq_len):
    """T + 1 tokens of a stream from each of `start` [..., B] on: [..., B, T + 1].

    From `end` on, one or [B], stands [PAD].
    """
    position = start[..., None] + np.arange(seq_len + 1)  # [..., B, T + 1]
    is_token = position < np.reshape(end, [-1, 1])
    return np.where(is_token, stream[np.minimum(position, len(stream) - 1)], PAD).astype("<i4")


def write_records(stream: np.ndarray, batch_size: int, seq_len: int, shards: int,
                  folder: Path) -> list[Path]:
    """Writes the windows of a stream as TFRecords, one window a record.

    A shard holds consecutive windows.
    """
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


# --------------------------------------------------------------------------------------------------
# The data folder: written as a whole, read by training


def build(corpus: Corpus, output_dir: Path, tokenizer: tokenization.Settings | Path,
          batch_size: int, seq_len: int, add_eos: bool = False, shards: int = 1):
    """Makes a data folder: TFRecords per split, the tokenizer, unigram counts and metadata.json.

    Everything is written beside `output_dir` and renamed at the end, so that folder holds old data
    or new, never a mixture.

    Args:
      corpus: the texts.
      output_dir: what is replaced, if it was made here.
      tokenizer: what to train one for; or the path of a model that is taken as it is.
      batch_size, seq_len, shards: as `write_records` takes them.
      add_eos: as `Tokenizer.tokenize` takes it.

    Raises:
      InputError: a text is empty, not UTF-8 or too short, or the vocabulary does not suit it; or
        `output_dir` cannot be replaced.
    """
    output_folder.check_replaceable(output_dir, record="metadata.json")
    cli.tensorflow_text()  # or say before all work why it cannot be had
    sha256 = {split: corpora.checked_sha256(text) for split, text in corpus.texts.items()}
    for text in corpus.texts.values():
        if not text.size:
            raise InputError(f"{text.name} is empty")
    with output_folder.replaced(output_dir) as workspace:
        folder = workspace / "new"
        streams = _write_streams(corpus, tokenizer, add_eos, workspace)
        for split, stream in streams.items():
            needed = batch_size * (seq_len + 1)
            if len(stream) < needed:
                raise InputError(
                    f"{corpus.texts[split].name} is too short: {len(stream)} tokens, and one "
                    f"window of --batch_size={batch_size} rows of --seq_len={seq_len} needs "
                    f"{needed}: lower them")
        splits = {}
        for split, text in corpus.texts.items():
            stream = streams[split]
            splits[split] = {
                "text": text.name, "text_sha256": sha256[split], "bytes": stream.bytes,
                "words": stream.words, "unknown_characters": stream.unknown_characters,
                "tokens": len(stream), "steps": num_windows(len(stream), batch_size, seq_len),
            }
            records = write_records(stream, batch_size, seq_len, shards, folder / split)
            print(_size_of_split(split, splits[split], len(records)))
        is_path = isinstance(tokenizer, Path)
        files.write_json(folder / "metadata.json", {
            "corpus": corpus.name, "batch_size": batch_size, "seq_len": seq_len,
            "add_eos": add_eos, "splits": splits,
            "vocab_size": Tokenizer(folder / "tokenizer.model").vocab_size,
            "tokenizer": str(tokenizer) if is_path else dataclasses.asdict(tokenizer),
            "sha256": output_folder.hashes(folder),
            "versions": versions(),
        })


def _size_of_split(split: str, entry: dict, num_files: int) -> str:
    """What the metadata say of a split, in one line."""
    unknown = ""
    if entry["unknown_characters"]:
        unknown = f", {entry['unknown_characters']:,} characters unknown to the tokenizer"
    return (f"{split}: {entry['words']:,} words, {entry['tokens']:,} tokens{unknown}, "
            f"{entry['steps']:,} windows in {num_files} file(s)")


def _write_streams(corpus: Corpus, settings: tokenization.Settings | Path, add_eos: bool,
                   workspace: Path) -> dict[str, Stream]:
    """Writes the tokenizer and unigram counts into `workspace`/new, and the streams beside it.

    The ids of a tokenizer that is trained here fall by their count in the training split.

    Returns:
      The stream of each split.
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
    for split, text in corpus.texts.items():
        if split != "train":
            streams[split] = Stream(workspace / f"{split}.int32", text, tokenizer, add_eos)
    return streams


def read_metadata(data_dir: Path) -> dict:
    """The metadata of a data folder.

    Every file is held against its hash, and the windows against their number.

    Raises:
      InputError: there is no data, or a file is missing, changed or does not belong there; it is
        named.
    """
    try:
        metadata = files.read_json(data_dir / "metadata.json", METADATA)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no data in {data_dir.resolve()}: run ./make_data.sh first, "
                         "or say where they are with --data_dir") from None
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
            raise InputError(f"{data_dir / split} does not hold the {entry['steps']:,} windows "
                             "that metadata.json tells of: run ./make_data.sh again")
    return metadata


def check_unchanged(data_dir: Path, metadata: dict):
    """Raises InputError where the data are no longer those that this metadata was read from."""
    try:
        same = files.read_json(data_dir / "metadata.json") == metadata
    except (OSError, InputError):
        same = False
    if not same:
        raise InputError(f"{data_dir} has been made anew while it was in use: stopped; "
                         "the last checkpoint is from before")


def _records(data_dir: Path, split: str, metadata: dict) -> list[Path]:
    return sorted(data_dir / name for name in metadata["sha256"] if name.startswith(f"{split}/"))


def load_windows(data_dir: Path, split: str, metadata: dict):
    """A tf.data.Dataset: the windows of a split in order, int32 [B, T + 1]."""
    tf = cli.tensorflow()
    shape = [metadata["batch_size"], metadata["seq_len"] + 1]
    paths = [str(path) for path in _records(data_dir, split, metadata)]

    def window(record):
        return tf.reshape(tf.io.decode_raw(record, tf.int32), shape)

    return without_autotune(tf.data.TFRecordDataset(paths).map(window))


def without_autotune(dataset):
    """A tf.data.Dataset whose iterators end at once.

    The autotuning of TensorFlow 2.21 sleeps longer and longer, and an iterator that ends waits for
    it, and with it the program: 5 to 38 seconds were seen.
    """
    options = cli.tensorflow().data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def load_stream(data_dir: Path, split: str, metadata: dict) -> np.ndarray:
    """The tokens of a split as the one stream that its windows were cut from, int32 [N]."""
    pieces = list(load_windows(data_dir, split, metadata).as_numpy_iterator())
    pieces = np.stack(pieces)  # [steps, B, T + 1]
    rows = np.concatenate([pieces[0, :, :1], *pieces[:, :, 1:]], axis=1)  # [B, steps T + 1]
    return rows[rows != PAD]


def read_counts(path: Path) -> np.ndarray:
    """How often each id occurs, [V], one count per line.

    Raises:
      InputError: the file is missing, or holds something else than counts.
    """
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
    """What tells the tokenizer of a data folder from others."""
    return metadata["sha256"]["tokenizer.model"]


def versions() -> dict:
    """The commit of this program, and the versions of all else that results depend on."""
    packages = ("tensorflow-text", "keras", "sentencepiece", "numpy")
    of_packages = {name: importlib.metadata.version(name) for name in packages}
    return {"commit": commit(Path(__file__).parent), "python": platform.python_version(),
            "tensorflow": cli.tensorflow().__version__} | of_packages  # maybe of tensorflow-cpu


def commit(project: Path) -> str | None:
    """The commit of a folder, with -dirty where its files differ; None where git cannot say."""
    git = ["git", f"--git-dir={project / '.git'}", f"--work-tree={project}"]
    describe = ["describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        done = subprocess.run([*git, *describe], capture_output=True, text=True)
    except OSError:  # there is no git
        return None
    return done.stdout.strip() or None


# --------------------------------------------------------------------------------------------------
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
        stars = "*" * 100
        print(f"{error}\n\n{stars}\n"
              "This is NOT WikiText-2, which cannot be had: the corpus is 'pydocs', "
              "documentation found on this machine.\n"
              f"Its perplexities compare with nothing published.\n{stars}\n", file=sys.stderr)
        return pydocs.make(data / "pydocs")


def define_flags():
    flags.DEFINE_enum(
        "corpus", "auto", ["auto", *published.PUBLISHED, "pydocs"], "auto is wikitext-2, or pydocs "
        "(documentation found on this machine) where that cannot be downloaded")
    cli.define_path("input_text", None, "your own text: one UTF-8 file, split contiguously")
    cli.define_path(
        "input_dir", None, "your own text: a folder with train, valid and test as .txt, "
        "wiki.*.tokens, wiki.*.raw or folders of .txt files; or with any .txt files, also in "
        "folders within it, which are split as one text in the order of their names, numbers by "
        "their size")
    flags.DEFINE_float("valid_fraction", own_text.HELD_OUT, "share of your own text for "
                       "validation, where it is split", lower_bound=0, upper_bound=1)
    flags.DEFINE_float("test_fraction", own_text.HELD_OUT, "share of your own text for the "
                       "test, where it is split",
                       lower_bound=0, upper_bound=1)
    flags.DEFINE_enum("model_type", "unigram", tokenization.MODEL_TYPES, "SentencePiece's kind of "
                      "tokenizer; char keeps white space as it is, and line ends with --add_eos")
    flags.DEFINE_integer("vocab_size", None, "SentencePiece pieces (default: 12,000; all that "
                         "there are of char and word)", lower_bound=1, upper_bound=10_000_000)
    flags.DEFINE_enum("normalization_rule_name", "nfkc_cf", tokenization.NORMALIZATIONS,
                      "nfkc_cf folds case, nfkc keeps it, identity changes no letter")
    flags.DEFINE_float(
        "character_coverage", None, "share of the text whose characters are pieces; the rarest "
        "others become bytes (default: 0.9995; 1 of char and word)",
        lower_bound=0.98, upper_bound=1)
    flags.DEFINE_boolean("add_eos", False, "a token [EOS] at every line end")
    cli.define_path(
        "sp_model_prefix", None, "use the tokenizer PREFIX.model instead of training one")
    flags.DEFINE_integer("batch_size", 32, "rows of a window", lower_bound=1)
    flags.DEFINE_integer("seq_len", 32, "tokens of a row of a window", lower_bound=1)
    flags.DEFINE_integer("shards", 1, "TFRecord files per split", lower_bound=1,
                         upper_bound=99_999)
    cli.define_path(
        "output_dir", "data/tfrecords", "where the data go; data made earlier are replaced")
    flags.register_multi_flags_validator(
        ["input_text", "input_dir"], lambda given: not all(given.values()),
        "--input_text and --input_dir exclude each other")
    flags.register_multi_flags_validator(
        ["valid_fraction", "test_fraction"],
        lambda given: min(given.values()) > 0 and sum(given.values()) < 1,
        "--valid_fraction and --test_fraction must be positive and leave something to train on")


def tokenizer_settings() -> tokenization.Settings:
    """What to train a tokenizer for, by the flags."""
    FLAGS = flags.FLAGS
    vocab_size = FLAGS.vocab_size
    if vocab_size is None and FLAGS.model_type in ("unigram", "bpe"):
        vocab_size = 12_000
    return tokenization.Settings(FLAGS.model_type, vocab_size, FLAGS.normalization_rule_name,
                                 FLAGS.character_coverage)


def main(_):
    FLAGS = flags.FLAGS
    output_dir = Path(FLAGS.output_dir)
    input_text = FLAGS.input_text and Path(FLAGS.input_text)
    input_dir = FLAGS.input_dir and Path(FLAGS.input_dir)
    refused = {}
    if FLAGS.sp_model_prefix:
        refused["--sp_model_prefix names a tokenizer as it is"] = [
            "model_type", "vocab_size", "normalization_rule_name", "character_coverage"]
    if input_text or input_dir:
        refused["your own text is the corpus"] = ["corpus"]
    if not input_text and not (input_dir and own_text.is_to_split(input_dir)):
        refused["the corpus has its splits"] = ["valid_fraction", "test_fraction"]
    for reason, names in refused.items():
        if given := [f"--{name}" for name in names if FLAGS[name].present]:
            raise InputError(f"{reason}: leave {' and '.join(given)} out")
    if FLAGS.sp_model_prefix:
        tokenizer = Path(f"{FLAGS.sp_model_prefix}.model")
        Tokenizer(tokenizer)  # or say at once what is wrong with it
    else:
        tokenizer = tokenizer_settings()
    if input_text:
        corpus = own_text.from_file(input_text, FLAGS.valid_fraction, FLAGS.test_fraction)
    elif input_dir:
        corpus = own_text.from_folder(input_dir, FLAGS.valid_fraction, FLAGS.test_fraction)
    else:
        corpus = choose_corpus(FLAGS.corpus, Path("data"))
    print(f"corpus {corpus.name}")
    build(corpus, output_dir, tokenizer, FLAGS.batch_size, FLAGS.seq_len, FLAGS.add_eos,
          FLAGS.shards)
    print(f"wrote {output_dir}")


if __name__ == "__main__":
    cli.begin(__name__, define_flags)
    cli.run(main)
