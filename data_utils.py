"""Text -> SentencePiece tokens -> context batches -> TFRecords, and back as tf.data.

B batch rows, T sequence length, V vocabulary, N tokens of a split. A split is one token stream, cut into B rows of equal
length; window s holds positions [s T, (s + 1) T] of every row: T inputs and, shifted by one, T targets. Memory that is
carried from window to window therefore always continues the same row.
"""

import contextlib
import importlib.metadata
import io
import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import Iterator

import numpy as np
import sentencepiece
from absl import flags

import cli

with cli.quiet():
    import tensorflow as tf

import corpora
import files
from cli import InputError

PAD, BOS, EOS, UNK = 0, 1, 2, 3
LINES_PER_BATCH = 512
RECORD_FRAME = 16  # bytes that a TFRecord has beside its content: its length, and the checksums of both
METADATA = ("corpus", "batch_size", "seq_len", "vocab_size", "add_eos", "splits", "sha256")  # what the readers of metadata.json need
MAX_CHARS = 4096  # longer lines are cut at a space: SentencePiece's time and memory stay bounded


# ---------------------------------------------------------------------------------------------------------------------
# Text -> tokens


def line_parts(path: Path) -> Iterator[tuple[str, bool]]:
    """A text line by line, long lines in parts: at most `MAX_CHARS` characters, and whether the line ends with them."""
    for line in corpora.lines(path):
        start = 0
        while len(line) - start > MAX_CHARS:
            space = line.rfind(" ", start + 1, start + MAX_CHARS)
            end = start + MAX_CHARS if space < 0 else space
            yield line[start:end], False
            start = end
        yield line[start:], True


def train_tokenizer(text: Path, prefix: Path, vocab_size: int, lowercase: bool):
    """Trains a unigram SentencePiece model on a text and writes `prefix`.model and `prefix`.vocab.

    After the special ids, pieces are numbered by falling probability, the order that the adaptive softmax builds on. The same
    text gives the same bytes, whatever the folder and the number of cores.

    Raises:
      InputError: `vocab_size` is more or less than the text supports.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(part for part, _ in line_parts(text)),
            model_writer=model,  # a file's name would be part of the model
            model_type="unigram",
            vocab_size=vocab_size,
            normalization_rule_name="nfkc_cf" if lowercase else "nfkc",
            user_defined_symbols=["@-@"],  # how WikiText-2 writes the hyphen within a word
            pad_id=PAD, bos_id=BOS, eos_id=EOS, unk_id=UNK,
            pad_piece="[PAD]", bos_piece="[BOS]", eos_piece="[EOS]", unk_piece="[UNK]",  # "<unk>" is a word of WikiText-2
            max_sentence_length=4 * MAX_CHARS,  # in bytes; longer ones would be left out
            num_threads=16,  # of which the sums over the text are made
            minloglevel=2,
        )
    except RuntimeError as error:
        most = re.search(r"set it to a value <= (\d+)", str(error))
        reason = f"it supports at most {most[1]} pieces" if most else str(error).splitlines()[-1]
        raise InputError(f"--vocab_size={vocab_size} does not suit {text.name}: {reason}") from None
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = "".join(f"{pieces.id_to_piece(i)}\t{pieces.get_score(i):g}\n" for i in range(pieces.vocab_size()))
    files.write_whole(prefix.with_name(prefix.name + ".model"), model.getvalue())
    files.write_whole(prefix.with_name(prefix.name + ".vocab"), vocabulary.encode())


def load_tokenizer(model: Path):
    """The tensorflow-text tokenizer of a SentencePiece model file.

    Raises:
      InputError: tensorflow-text does not fit TensorFlow, or the file is no model with this project's special ids.
    """
    try:
        import tensorflow_text
    except (ImportError, tf.errors.NotFoundError) as error:  # most often an undefined symbol
        minor = ".".join(tf.__version__.split(".")[:2])
        raise InputError(f"tensorflow-text does not fit TensorFlow {tf.__version__}; install tensorflow-text=={minor}.* "
                         f"({str(error).splitlines()[0]})") from None
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (RuntimeError, OSError):
        raise InputError(f"{model} is not a SentencePiece model") from None
    if (pieces.pad_id(), pieces.eos_id()) != (PAD, EOS):
        raise InputError(f"{model} has pad id {pieces.pad_id()} and eos id {pieces.eos_id()}; they must be {PAD} and {EOS}")
    return tensorflow_text.SentencepieceTokenizer(model.read_bytes())


def write_stream(text: Path, tokenizer, add_eos: bool, stream: Path) -> np.ndarray:
    """Tokenizes a text into one stream of int32 on disk.

    Args:
      text: a UTF-8 file.
      tokenizer: what `load_tokenizer` gives.
      add_eos: put [EOS] where a line ends; otherwise a line end leaves no token.
      stream: the file to write.

    Returns:
      How often each id occurs, int64 [V].
    """
    def batches():
        parts, line_ends = [], []
        for part, line_end in line_parts(text):
            parts.append(part)
            line_ends.append(line_end)
            if len(parts) == LINES_PER_BATCH:
                yield parts, line_ends
                parts, line_ends = [], []
        if parts:
            yield parts, line_ends

    def tokenize(parts, line_ends):
        tokens = tokenizer.tokenize(parts)  # [parts, (tokens)]
        if add_eos:
            ends = tf.RaggedTensor.from_row_lengths(tf.fill([tf.math.count_nonzero(line_ends)], EOS), tf.cast(line_ends, tf.int64))
            tokens = tf.concat([tokens, ends], axis=1)
        return tokens.flat_values

    signature = (tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.bool))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    dataset = dataset.map(tokenize, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    counts = np.zeros(int(tokenizer.vocab_size()), np.int64)
    with files.named(stream), open(stream, "wb") as file:
        for tokens in dataset.as_numpy_iterator():
            file.write(tokens.tobytes())
            counts += np.bincount(tokens, minlength=len(counts))
    return counts


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
    words = {split: count_words(path) for split, path in corpus.paths.items()}
    with _workspace(output_dir) as workspace:
        folder = workspace / "new"
        folder.mkdir()
        if sp_model_prefix:
            for suffix in (".model", ".vocab"):
                files.write_whole(folder / f"tokenizer{suffix}", Path(sp_model_prefix + suffix).read_bytes())
        else:
            print(f"training a tokenizer of {vocab_size:,} pieces")
            train_tokenizer(corpus.paths["train"], folder / "tokenizer", vocab_size, lowercase)
        tokenizer = load_tokenizer(folder / "tokenizer.model")
        splits = {}
        for split, text in corpus.paths.items():
            stream_path = workspace / f"{split}.int32"
            counts = write_stream(text, tokenizer, add_eos, stream_path)
            needed = batch_size * (seq_len + 1)
            if counts.sum() < needed:
                raise InputError(f"{text.name} is too short: {counts.sum()} tokens, and one window of --batch_size={batch_size} rows "
                                 f"of --seq_len={seq_len} needs {needed}")
            if split == "train":
                files.write_whole(folder / "unigram_counts.txt", "".join(f"{count}\n" for count in counts).encode())
            stream = np.memmap(stream_path, np.int32, mode="r")
            records = write_records(stream, batch_size, seq_len, shards, folder / split)
            splits[split] = {
                "text": text.name, "text_sha256": files.sha256(text), "bytes": text.stat().st_size, "words": words[split],
                "tokens": len(stream), "steps": num_windows(len(stream), batch_size, seq_len),
            }
            print(f"{split}: {words[split]:,} words, {len(stream):,} tokens, {splits[split]['steps']:,} windows in {len(records)} file(s)")
        metadata = {
            "corpus": corpus.name, "batch_size": batch_size, "seq_len": seq_len, "vocab_size": len(counts),
            "lowercase": None if sp_model_prefix else lowercase, "add_eos": add_eos, "splits": splits,
            "sha256": {str(path.relative_to(folder)): files.sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()},
            "versions": versions(),
        }
        files.write_json(folder / "metadata.json", metadata)
        if output_dir.exists():
            output_dir.rename(workspace / "old")
        folder.rename(output_dir)


@contextlib.contextmanager
def _workspace(output_dir: Path) -> Iterator[Path]:
    """An empty folder beside `output_dir`, removed afterwards; first, what a killed run left there is cleared up."""
    workspace = output_dir.with_name(f".{output_dir.name}.partial")

    def clear():
        if (workspace / "old").exists() and not output_dir.exists():  # stopped between the two renames
            (workspace / "old").rename(output_dir)
        shutil.rmtree(workspace, ignore_errors=True)

    clear()
    with files.named(workspace):
        workspace.mkdir(parents=True)
    try:
        yield workspace
    finally:
        clear()


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


def _records(data_dir: Path, split: str, metadata: dict) -> list[Path]:
    return sorted(data_dir / name for name in metadata["sha256"] if name.startswith(f"{split}/"))


def load_windows(data_dir: Path, split: str, metadata: dict, first_row: int = 0, num_rows: int | None = None) -> tf.data.Dataset:
    """The windows of a split in order, int32 [B, T + 1]; or of each only `num_rows` rows from one on."""
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


def count_words(text: Path) -> int:
    """The words of a text, which white space parts.

    Raises:
      InputError: there is none.
    """
    words = sum(len(line.split()) for line in corpora.lines(text))
    if not words:
        raise InputError(f"{text.name} is empty")
    return words


# ---------------------------------------------------------------------------------------------------------------------
# The command


def define_flags():
    flags.DEFINE_enum("corpus", "auto", ["auto", "wikitext-2", "pydocs"],
                      "auto is wikitext-2, or pydocs (documentation found on this machine) where that cannot be downloaded")
    flags.DEFINE_string("input_text", None, "your own text: one UTF-8 file, split contiguously")
    flags.DEFINE_string("input_dir", None, "your own text: a folder with train, valid and test as .txt or wiki.*.tokens")
    flags.DEFINE_float("valid_fraction", 0.05, "share of --input_text for validation", lower_bound=0, upper_bound=1)
    flags.DEFINE_float("test_fraction", 0.05, "share of --input_text for test", lower_bound=0, upper_bound=1)
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
    refused = {
        "--sp_model_prefix brings its own vocabulary and case": ["vocab_size", "lowercase"] if FLAGS.sp_model_prefix else [],
        "your own text is the corpus": ["corpus"] if FLAGS.input_text or FLAGS.input_dir else [],
        "only --input_text is split": [] if FLAGS.input_text else ["valid_fraction", "test_fraction"],
    }
    for reason, names in refused.items():
        if given := [f"--{name}" for name in names if FLAGS[name].present]:
            raise InputError(f"{reason}: leave {' and '.join(given)} out")
    if FLAGS.sp_model_prefix:
        load_tokenizer(Path(FLAGS.sp_model_prefix + ".model"))
    with tempfile.TemporaryDirectory() as temporary:
        if FLAGS.input_text:
            corpus = corpora.from_file(Path(FLAGS.input_text), FLAGS.valid_fraction, FLAGS.test_fraction, Path(temporary))
        elif FLAGS.input_dir:
            corpus = corpora.from_folder(Path(FLAGS.input_dir))
        else:
            corpus = corpora.choose(FLAGS.corpus, Path("data"))
        print(f"corpus {corpus.name}")
        build(corpus, output_dir, FLAGS.vocab_size, FLAGS.lowercase, FLAGS.add_eos, FLAGS.sp_model_prefix, FLAGS.batch_size,
              FLAGS.seq_len, FLAGS.shards)
    print(f"wrote {output_dir}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
