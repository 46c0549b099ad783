"""Text -> SentencePiece tokens: a tokenizer, and the tokens of a text, by as many processes as there are cores.

V vocabulary, N tokens of a text. Memory is bounded, however long a text or its lines are, and work that was stopped goes on where
it was. TensorFlow is not imported, so that a process starts in a tenth of a second.
"""

import collections
import contextlib
import functools
import io
import itertools
import multiprocessing
import os
import re
import signal
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Iterator

import numpy as np
import sentencepiece

import cli
import corpora
import files
from cli import InputError
from corpora import Part, Text

PAD, BOS, EOS, UNK = 0, 1, 2, 3
MAX_CHARS = 4096  # longer lines are cut at a space: SentencePiece's time and memory stay bounded
LINES_AT_ONCE = 512
CHUNK_BYTES = 4 << 20  # of text, which a process tokenizes at once
SAMPLE_BYTES = 32 << 20  # of text, about, from which a tokenizer is trained


# ---------------------------------------------------------------------------------------------------------------------
# A tokenizer


def line_parts(part: Part) -> Iterator[tuple[str, bool]]:
    """A text line by line, long lines in pieces: at most `MAX_CHARS` characters, and whether the line ends with them."""
    for line, ended in corpora.lines(part):
        start = 0
        while len(line) - start > MAX_CHARS:
            before_last_word, *last_word = line[start:start + MAX_CHARS].rsplit(maxsplit=1)
            end = start + (len(before_last_word) if last_word else MAX_CHARS)
            yield line[start:end], False
            start = end
        yield line[start:], ended


def sample(text: Text) -> Iterator[str]:
    """About `SAMPLE_BYTES` of the lines of a text, evenly spread over it; all of it if it is no longer."""
    every = max(1, -(-text.size // SAMPLE_BYTES))
    pieces = (piece for part in text.parts for chunk in corpora.chunks(part, CHUNK_BYTES) for piece, _ in line_parts(chunk))
    return itertools.islice(filter(str.strip, pieces), 0, None, every) if every > 1 else pieces


def train_tokenizer(text: Text, prefix: Path, vocab_size: int, lowercase: bool):
    """Trains a unigram SentencePiece model on a sample of a text and writes `prefix`.model and `prefix`.vocab.

    After the special ids, pieces are numbered by falling probability, the order that the adaptive softmax builds on. The same
    text gives the same bytes, whatever the folder and the number of cores.

    Raises:
      InputError: the text is empty, or `vocab_size` is more or less than it supports.
    """
    pieces = list(sample(text))
    if not any(piece.strip() for piece in pieces):
        raise InputError(f"{text.name} is empty")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(pieces),
            model_writer=model,  # a file's name would be part of the model
            model_type="unigram",
            vocab_size=vocab_size,
            normalization_rule_name="nfkc_cf" if lowercase else "nfkc",
            user_defined_symbols=["@-@"],  # how WikiText-2 writes the hyphen within a word
            pad_id=PAD, bos_id=BOS, eos_id=EOS, unk_id=UNK,
            pad_piece="[PAD]", bos_piece="[BOS]", eos_piece="[EOS]", unk_piece="[UNK]",  # "<unk>" is a word of WikiText-2
            max_sentence_length=4 * MAX_CHARS,  # in bytes; longer ones would be left out
            num_threads=16,  # the order of sums, and so every byte, depends on it
            minloglevel=2,
        )
    except RuntimeError as error:
        most = re.search(r"set it to a value <= (\d+)", str(error))
        reason = f"it supports at most {most[1]} pieces" if most else str(error).splitlines()[-1]
        raise InputError(f"--vocab_size={vocab_size} does not suit {text.name}: {reason}") from None
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = "".join(f"{trained.id_to_piece(i)}\t{trained.get_score(i):g}\n" for i in range(trained.vocab_size()))
    files.write_whole(prefix.with_name(prefix.name + ".model"), model.getvalue())
    files.write_whole(prefix.with_name(prefix.name + ".vocab"), vocabulary.encode())


def load_tokenizer(model: Path) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer of a SentencePiece model file.

    Raises:
      InputError: the file is no model with this project's special ids.
    """
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (RuntimeError, OSError):
        raise InputError(f"{model} is not a SentencePiece model") from None
    if (pieces.pad_id(), pieces.eos_id()) != (PAD, EOS):
        raise InputError(f"{model} has pad id {pieces.pad_id()} and eos id {pieces.eos_id()}; they must be {PAD} and {EOS}")
    return pieces


# ---------------------------------------------------------------------------------------------------------------------
# The tokens of a text


@functools.lru_cache(maxsize=1)
def _tokenizer(proto: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=proto)


def encode(part: Part, proto: bytes, add_eos: bool) -> tuple[np.ndarray, int]:
    """The tokens of a part of a text, int32 [N], and how many words it has, which white space parts: where a very long line without
    any is cut, each piece is one.

    Args:
      part: of a UTF-8 file.
      proto: the content of a SentencePiece model file.
      add_eos: put [EOS] where a line ends; otherwise a line end leaves no token.
    """
    pieces, tokens, words = _tokenizer(proto), [], 0
    parts = line_parts(part)
    while batch := list(itertools.islice(parts, LINES_AT_ONCE)):
        ids = pieces.encode([line for line, _ in batch])
        ends = [EOS] if add_eos else []
        tokens.append(np.fromiter(itertools.chain.from_iterable(line + ends * ended for line, (_, ended) in zip(ids, batch)), np.int32))
        words += sum(len(line.split()) for line, _ in batch)
    return np.concatenate(tokens or [np.zeros(0, np.int32)]), words


def write_stream(text: Text, tokenizer, add_eos: bool, stream: Path, processes: Executor | None = None) -> int:
    """Tokenizes a text into one stream of int32 on disk. What an earlier call wrote of the same text stays, and is gone on with.

    Args:
      text: of UTF-8 files.
      tokenizer: what `load_tokenizer` gives.
      add_eos: as `encode` takes it.
      stream: the file to write; beside it, one that ends in .json tells how far it is.
      processes: which share the work; None does it here.

    Returns:
      How many words the text has.

    Raises:
      InputError: the text is empty or not UTF-8.
    """
    progress = stream.with_suffix(".json")
    done = files.read_json(progress) if progress.exists() else {"chunks": 0, "tokens": 0, "words": 0}
    chunks = [chunk for part in text.parts for chunk in corpora.chunks(part, CHUNK_BYTES)]
    arguments = [(chunk, tokenizer.serialized_model_proto(), add_eos) for chunk in chunks[done["chunks"]:]]
    start, before = time.monotonic(), done["tokens"]
    with files.named(stream), open(stream, "ab") as file:
        file.truncate(4 * before)
    for tokens, words in _in_order(processes, encode, arguments):
        with files.named(stream), open(stream, "ab") as file:
            file.write(tokens.tobytes())
        done = {"chunks": done["chunks"] + 1, "tokens": done["tokens"] + len(tokens), "words": done["words"] + words}
        if len(chunks) > 1:
            files.sync(stream)
            files.write_json(progress, done)
            speed = (done["tokens"] - before) / (time.monotonic() - start)
            print(f"\r{text.name}: {done['chunks'] / len(chunks):.0%}, {done['tokens']:,} tokens, {speed:,.0f} tokens/s", end="", flush=True)
    if len(chunks) > 1:
        print()
    if not done["words"]:
        raise InputError(f"{text.name} is empty")
    return done["words"]


def _in_order(processes: Executor | None, function, arguments: list[tuple]) -> Iterator:
    """The results of a function for each arguments, in their order, while some of the next are computed."""
    if not processes or len(arguments) == 1:
        yield from itertools.starmap(function, arguments)
        return
    waiting = collections.deque()
    for each in arguments:
        waiting.append(processes.submit(function, *each))
        if len(waiting) > 2 * cli.CORES:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextlib.contextmanager
def worker_processes() -> Iterator[Executor]:
    """A process for each core, none of which outlives this one."""
    with ProcessPoolExecutor(cli.CORES, multiprocessing.get_context("spawn"), _prepare_worker) as processes:
        try:
            yield processes
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            raise


def _prepare_worker():
    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    threading.Thread(target=end_with_parent, daemon=True).start()


class Stream:
    """A stream of tokens on disk, int32 [N], that is read where it is indexed: nothing of it stays in memory."""

    def __init__(self, path: Path):
        self._path, self._length = path, path.stat().st_size // 4

    def __len__(self):
        return self._length

    def __getitem__(self, positions):
        return np.memmap(self._path, np.int32, mode="r")[positions]

    def counts(self, vocab_size: int) -> np.ndarray:
        """How often each id occurs, int64 [V]."""
        counts = np.zeros(vocab_size, np.int64)
        for start in range(0, len(self), 1 << 20):
            counts += np.bincount(self[start:start + (1 << 20)], minlength=vocab_size)
        return counts
