"""The tokenizer: a SentencePiece model that turns text into ids and ids into text.

V vocabulary, L lines, N tokens. Tokenizers trained here have a piece for every byte, so no
character is unknown, and decoding restores the normalized text. Training text, prompts and text to
score all pass through `Tokenizer.tokenize`.
"""

import codecs
import hashlib
import io
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np
import sentencepiece

from support import cli, corpora
from support.corpora import Text
from support.errors import InputError

PAD, BOS, EOS, UNK = range(4)
MODEL_TYPES = ("unigram", "bpe", "char", "word")  # SentencePiece's names
NORMALIZATIONS = ("nfkc_cf", "nfkc", "identity")
RESERVED = UNK + 1 + 256  # ids: special pieces and bytes
SAMPLE_BYTES = 24 << 20  # approximate size of the text to train a tokenizer on
SENTENCE_BYTES = 16 << 10  # the sample consists of passages of about this size
# A hyphen, separators within a number, a rare word: one piece each if the text contains them.
WIKITEXT_WORDS = ("@-@", "@,@", "@.@", "<unk>")
SPACE = "▁"  # SentencePiece's sign for a space

# White space of Python's str.split except line ends, and SentencePiece's sign for a space.
WHITE_SPACE = (r"[\t\v\f\x1c-\x1f\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}"
               r"\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{2581}]")
# Soft hyphen, zero-width space, byte order mark.
INVISIBLE = r"[\x{ad}\x{200b}\x{feff}]"


def split_lines(text, keep_white_space: bool, keep_invisible: bool):
    """Splits a text into lines and cleans it for SentencePiece.

    White space becomes spaces and invisible characters are removed, unless they are to be kept.

    Args:
      text: UTF-8, a scalar string tensor. A line ends with \\n, \\r\\n or \\r.

    Returns:
      Strings [L]. The last one follows the last line end and is often empty.
    """
    tf = cli.tensorflow()
    text = tf.strings.regex_replace(text, r"\r\n?", "\n")
    if not keep_white_space:
        text = tf.strings.regex_replace(text, WHITE_SPACE, " ")
    if not (keep_white_space or keep_invisible):
        text = tf.strings.regex_replace(text, INVISIBLE, "")
    return tf.strings.split(text, "\n")


# --------------------------------------------------------------------------------------------------
# Training


@dataclass(frozen=True)
class TokenizerSettings:
    """How to train a tokenizer, with SentencePiece's names for the settings."""

    # unigram (Kudo 2018, arXiv 1804.10959), bpe (Sennrich et al. 2016, arXiv 1508.07909), char or
    # word
    model_type: str = "unigram"
    # number of pieces, with special ids and bytes; None: all characters or words
    vocab_size: int | None = None
    # nfkc_cf folds case, nfkc keeps it, identity changes no character
    normalization_rule_name: str = "nfkc_cf"
    # share of the text's characters that get a piece, the others become bytes; None: 0.9995
    # (SentencePiece's default), 1 for char and word
    character_coverage: float | None = None


def train_tokenizer(text: Text, settings: TokenizerSettings) -> bytes:
    """The content of a SentencePiece model trained on a sample of a text: the same each time.

    Raises:
      InputError: the text is empty, or the vocabulary size is too large or too small for it.
    """
    keep_white_space = settings.model_type == "char"
    cuts_words = settings.model_type in ("unigram", "bpe")
    keep_invisible = settings.normalization_rule_name == "identity"
    lines = _sample(text, keep_white_space, keep_invisible)
    if not any(map(bytes.strip, lines)):
        raise InputError(f"{text.name} is empty")
    sample = b"\n".join(lines)
    words = []
    if cuts_words:
        words = [SPACE + word for word in WIKITEXT_WORDS if f" {word}".encode() in sample]
    coverage = settings.character_coverage or (0.9995 if cuts_words else 1.0)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,  # a file name would become part of the model
            **asdict(settings) | {
                "vocab_size": settings.vocab_size or 1 << 30,
                "character_coverage": coverage,
            },
            use_all_vocab=not settings.vocab_size,
            remove_extra_whitespaces=not keep_white_space,
            add_dummy_prefix=not keep_white_space,
            byte_fallback=True,
            user_defined_symbols=words,
            pad_id=PAD, bos_id=BOS, eos_id=EOS, unk_id=UNK,
            pad_piece="[PAD]", bos_piece="[BOS]", eos_piece="[EOS]",
            unk_piece="[UNK]",  # "<unk>" is a word of WikiText-2
            # SentencePiece drops longer lines.
            max_sentence_length=2 * (SENTENCE_BYTES + corpora.BREAK_BYTES),
            num_threads=16,  # it changes the order of sums, and so the model
            minloglevel=2,
        )
        with cli.quiet():  # it warns about `identity`
            sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    except RuntimeError as error:
        raise InputError(_training_fault(str(error), text.name, settings)) from None
    return model.getvalue()


def _sample(text: Text, keep_white_space: bool, keep_invisible: bool) -> list[bytes]:
    """The lines of about `SAMPLE_BYTES` of a text, spread evenly over it, or of all of it."""
    every = -(-text.size // SAMPLE_BYTES)
    lines = []
    for span in corpora.spans(text, every * SENTENCE_BYTES):
        block, _ = next(corpora.blocks(span, SENTENCE_BYTES))
        lines.extend(split_lines(block, keep_white_space, keep_invisible).numpy())
    return lines


def _training_fault(error: str, name: str, settings: TokenizerSettings) -> str:
    """SentencePiece's error as one line in terms of our flags."""
    size = f"--vocab_size={settings.vocab_size}"
    if most := re.search(r"set it to a value <= (\d+)", error):
        return f"{size} is too large for {name}: at most {most[1]} pieces"
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return (f"{size} is too small for {name}: its characters and the {RESERVED} special ids "
                f"and bytes need {least[1]}; a lower --character_coverage needs less")
    return (f"SentencePiece cannot train --model_type={settings.model_type} on {name}: "
            f"{error.splitlines()[-1]}")


def ids_by_count(counts: np.ndarray) -> np.ndarray:
    """The new id of each id, [V]: special ids unchanged, the others in order of decreasing count.

    The adaptive softmax expects this order.
    """
    others = UNK + 1 + np.argsort(-counts[UNK + 1:], kind="stable")
    order = np.concatenate([np.arange(UNK + 1), others])  # [V]
    new_ids = np.empty_like(order)
    new_ids[order] = np.arange(len(order))
    return new_ids


def renumbered(model: bytes, new_ids: np.ndarray) -> bytes:
    """A SentencePiece model that splits text in the same way, but with ids `new_ids` [V]."""
    # Field 1 of a model repeats its pieces, as that of BytesList repeats bytes; other fields are
    # preserved. sentencepiece's own description of a model loads with only one version of protobuf.
    proto = cli.tensorflow().train.BytesList.FromString(model)
    proto.value[:] = [proto.value[old] for old in np.argsort(new_ids)]
    return proto.SerializeToString()


# --------------------------------------------------------------------------------------------------
# Use


class Tokenizer:
    """Text -> ids -> text, by a SentencePiece model.

    Attributes:
      vocab_size: V.
      vocabulary: the content of a .vocab file: a line per piece, with its score.
      has_bytes: whether other characters become bytes. If not, they are unknown and counted.
      keeps_white_space: whether white space is unchanged. If not, a run of it becomes one space,
        and white space at the ends of a line is dropped.
      sentencepiece: tensorflow-text's tokenizer, part of a SavedModel.

    Raises:
      InputError: the file is not a SentencePiece model, or has other special ids.
    """

    def __init__(self, path: Path):
        model = path.read_bytes()
        try:
            with cli.quiet():  # it warns about `identity`
                pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise InputError(f"{path} is not a SentencePiece model") from None
        special = pieces.pad_id(), pieces.bos_id(), pieces.eos_id(), pieces.unk_id()
        if special != (PAD, BOS, EOS, UNK):
            raise InputError(
                f"{path} has the special ids pad {special[0]}, bos {special[1]}, "
                f"eos {special[2]}, unk {special[3]}; they must be {PAD}, {BOS}, {EOS}, {UNK}")
        self.vocab_size = pieces.vocab_size()
        ids = range(self.vocab_size)
        self.has_bytes = any(map(pieces.is_byte, ids))
        self.vocabulary = "".join(
            f"{pieces.id_to_piece(i)}\t{pieces.get_score(i):g}\n" for i in ids)
        self.keeps_white_space = bool(pieces.normalize(" "))
        self._keeps_invisible = "Ａ" in pieces.normalize("Ａ")  # NFKC makes it an A
        self._bytes = [_piece_bytes(pieces, i) for i in ids]
        self._bytes[EOS] = b"\n"
        self.sentencepiece = _sentencepiece(model)

    def tokenize(self, text, add_eos: bool):
        """Converts a text to ids, line by line.

        Args:
          text: UTF-8, a scalar string tensor. A line ends with \\n, \\r\\n or \\r.
          add_eos: a line end becomes [EOS]. Otherwise it leaves no token.

        Returns:
          The ids, int32 [N]; the number of words, separated by white space; and the number of
          unknown characters.
        """
        tf = cli.tensorflow()
        lines = split_lines(text, self.keeps_white_space, self._keeps_invisible)  # [L]
        words = tf.size(tf.strings.split(tf.strings.regex_replace(text, WHITE_SPACE, " ")))
        if self.has_bytes:
            ids, unknown = self.sentencepiece.tokenize(lines), tf.constant(0)  # [L, ragged]
        else:
            ids, *offsets = self.sentencepiece.tokenize_with_offsets(lines)  # [L, ragged]
            unknown = _unknown_characters(lines, ids, *offsets)
        if add_eos:  # not after the last line, which has no line end
            ends = tf.fill([tf.size(lines) - 1, 1], EOS)  # [L - 1, 1]
            ids = tf.concat([tf.concat([ids[:-1], ends], axis=1), ids[-1:]], axis=0)  # [L, ragged]
        return ids.flat_values, words, unknown

    def decode(self, ids: Iterable[int], within_line: bool = False) -> Iterator[str]:
        """Yields the text of each id, as soon as the bytes of a character are complete.

        The tokenizer's own space at the start of a line is removed; `within_line` says that the ids
        continue a line.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        at_start = not within_line
        for token in ids:
            text = decoder.decode(self._bytes[token]).replace(SPACE, " ")
            if at_start and text and not self.keeps_white_space:
                text = text.removeprefix(" ")
                at_start = False
            at_start = at_start or token == EOS
            yield text
        yield decoder.decode(b"", final=True)

    def detokenize(self, ids, within_line):
        """Converts ids, int32 [N], to a scalar string tensor, UTF-8, like `decode`."""
        tf = cli.tensorflow()
        pieces = tf.gather(tf.constant(self._bytes), ids)  # [N]
        if not self.keeps_white_space:
            starts_line = tf.concat([[~within_line], ids == EOS], axis=0)[:tf.size(ids)]  # [N]
            without_space = tf.strings.regex_replace(pieces, f"^[ {SPACE}]", "")  # [N]
            pieces = tf.where(starts_line, without_space, pieces)
        text = tf.strings.unicode_transcode(
            tf.strings.reduce_join(pieces), "UTF-8", "UTF-8", errors="replace")
        return tf.strings.regex_replace(text, SPACE, " ")

    def shown(self, prompt):
        """A prompt without trailing white space: the next piece brings its own space."""
        if self.keeps_white_space:
            return prompt
        unseen = "" if self._keeps_invisible else f"|{INVISIBLE}"
        return cli.tensorflow().strings.regex_replace(prompt, f"( |{WHITE_SPACE}{unseen})+$", "")


def _sentencepiece(model: bytes):
    """tensorflow-text's tokenizer for a model.

    Its resource is named after the hash of the model. An unnamed one is lost when the seed of
    TensorFlow or Keras is set, which clears the cache of kernels. No public argument of
    tensorflow-text sets the name.
    """
    text = cli.tensorflow_text()
    from tensorflow_text.python.ops import sentencepiece_tokenizer as module

    name = hashlib.sha256(model).hexdigest()

    class NamedResource(module._SentencepieceModelResource):
        def _create_resource(self):
            return module.gen_sentencepiece_tokenizer.sentencepiece_op(
                model=model, shared_name=name)

    with cli.quiet():
        tokenizer = text.SentencepieceTokenizer(model=model)
        tokenizer._model_resource = NamedResource(model, None)
    return tokenizer


def _piece_bytes(pieces: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    """The UTF-8 text of a piece. Control pieces have none."""
    piece = pieces.id_to_piece(token)
    if pieces.is_byte(token):
        return bytes([int(piece[1:-1], 16)])  # <0x41>
    if pieces.is_unknown(token):
        return " \N{DOUBLE QUESTION MARK} ".encode()  # as SentencePiece writes it
    return b"" if pieces.is_control(token) else piece.encode()


def _unknown_characters(lines, ids, starts, ends):
    """The number of characters of the unknown tokens in lines [L].

    `ids` and the byte offsets of tokens are ragged, [L, tokens].
    """
    tf = cli.tensorflow()
    unknown = ids.flat_values == UNK  # [tokens]
    line = tf.gather(lines, ids.value_rowids()[unknown])
    start, end = starts.flat_values[unknown], ends.flat_values[unknown]
    token = tf.strings.strip(tf.strings.substr(line, start, end - start))
    return tf.reduce_sum(tf.strings.length(token, "UTF8_CHAR"))
