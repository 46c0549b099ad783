"""The tokenizer against the sentencepiece package: any text is known and comes back."""

import re
import sys

import numpy as np
import pytest
import sentencepiece
from commands import one_line, run_command
from conftest import VOCAB_SIZE, ids_of, make_data
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

import data_utils
from support import cli, corpora, tokenization
from support.errors import InputError
from support.tokenization import EOS, UNK, Tokenizer, TokenizerSettings

# Remains of editors, PDFs and web pages.
ODD = "a\tb\vc\fd\x1ce\x85f\xa0g\u2028h\u2029i\u3000j k\u00adl\u200bm\ufeffn \t o ▁p▁▁q"
STRANGE = [
    "who was the king? é 红 ☃😀", "\0", "a\0b", "e\u0301\u0302 \u0301", "👩‍👩‍👧‍👦 🇩🇪",
    "\ue000 \uffff \U0010ffff", "<0x41> [PAD] [UNK] <unk> <s>", "ﷺ ﬃ ½ ﷽", "\u202eabc\u202c",
    " " * 5000 + "a" + "\t" * 5000, "x" * 20_000, ODD]
CHARACTERS = st.characters(exclude_categories=["Cs"])


def text_of(path, content):
    path.write_text(content)
    return corpora.whole_file(path)


def pieces_of(text, *settings):
    model = tokenization.train_tokenizer(text, TokenizerSettings(*settings))
    return [piece.piece for piece in sentencepiece_model_pb2.ModelProto.FromString(model).pieces]


@pytest.fixture(scope="module")
def tokenizers(corpus_dir, tmp_path_factory):
    """A tokenizer of each type and normalization, and the same of the sentencepiece package."""
    folder = tmp_path_factory.mktemp("tokenizers")
    text = corpora.whole_file(corpus_dir / "train.txt")
    kinds = {kind: TokenizerSettings(kind, VOCAB_SIZE) for kind in ("unigram", "bpe")}
    kinds |= {kind: TokenizerSettings(kind) for kind in ("char", "word")}
    kinds |= {"unfolded": TokenizerSettings("unigram", VOCAB_SIZE, "nfkc"),
              "identity": TokenizerSettings("word", None, "identity")}
    made = {}
    for kind, of_kind in kinds.items():
        path = folder / f"{kind}.model"
        path.write_bytes(tokenization.train_tokenizer(text, of_kind))
        package = sentencepiece.SentencePieceProcessor(model_file=str(path))
        made[kind] = Tokenizer(path), package
    return made


def lines_of(text, kind):
    """The lines that SentencePiece should see, in Python's own terms."""
    lines = re.split("\r\n|\r|\n", text)
    if kind == "char":
        return lines
    if kind != "identity":
        lines = [re.sub("[\u00ad\u200b\ufeff]", "", line) for line in lines]
    return [" ".join(line.replace("▁", " ").split()) for line in lines]


def decoded(tokenizer, ids, **settings):
    return "".join(tokenizer.decode(ids, **settings))


@pytest.mark.parametrize("kind", [*tokenization.MODEL_TYPES, "unfolded", "identity"])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(text=st.text(CHARACTERS, max_size=60) | st.text(CHARACTERS, min_size=40, max_size=60))
@example(text="\n".join(STRANGE))
@example(text="one\rtwo\r\nthree\n\rfour")
@example(text="")
def test_any_text_comes_back_as_it_is_normalised(kind, tokenizers, text):
    tokenizer, package = tokenizers[kind]
    lines = lines_of(text, kind)
    ids = ids_of(tokenizer, text, True).tolist()
    assert ids == [token for line in lines for token in [*package.encode(line), EOS]][:-1]
    assert UNK not in ids
    without_eos = [token for line in lines for token in package.encode(line)]
    assert ids_of(tokenizer, text, False).tolist() == without_eos
    normalised = [package.normalize(line).replace("▁", " ") for line in lines]
    if kind != "char":
        normalised = [line.removeprefix(" ") for line in normalised]
    assert decoded(tokenizer, ids) == "\n".join(normalised)


def test_text_appears_as_soon_as_its_bytes_do(tokenizers):
    tokenizer, _ = tokenizers["unigram"]
    ids = ids_of(tokenizer, "ab ☃😀", False)
    parts = list(tokenizer.decode(ids))
    assert "".join(parts) == "ab ☃😀" and {"☃", "😀"} <= set(parts) and parts[-1] == ""
    assert decoded(tokenizer, ids, within_line=True) == " ab ☃😀"
    assert decoded(tokenizer, ids[:-1]) == "ab ☃\ufffd"  # half a character
    assert decoded(tokenizer, [*ids, EOS, *ids], within_line=True) == " ab ☃😀\nab ☃😀"


@pytest.mark.parametrize("end, kept", [
    (" ", ""), ("\t", ""), ("\u3000 \xa0▁", ""), (" \u200b", ""), ("\n", "\n"),
    (" \r\n\t", " \r\n"), (".", ".")], ids=ascii)
def test_a_prompt_ends_without_space(end, kept, tokenizers):
    for kind, (tokenizer, _) in tokenizers.items():
        expected = kept
        if kind == "char" or kind == "identity" and "\u200b" in end:  # a piece of its own
            expected = end
        shown = tokenizer.shown(f"a b{end}")
        assert (shown if kind == "char" else shown.numpy().decode()) == f"a b{expected}"


def test_ids_fall_by_count_and_split_text_as_before(corpus_dir, data_dir):
    text = corpora.whole_file(corpus_dir / "train.txt")
    settings = TokenizerSettings(vocab_size=VOCAB_SIZE)
    model = tokenization.train_tokenizer(text, settings)
    before = sentencepiece.SentencePieceProcessor(model_proto=model)
    after = sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "tokenizer.model"))
    lines = STRANGE.copy()
    for split in corpora.SPLITS:
        lines += (corpus_dir / f"{split}.txt").read_text().splitlines()
    assert before.encode(lines, out_type=str) == after.encode(lines, out_type=str)
    assert before.encode(lines) != after.encode(lines)
    counts = np.loadtxt(data_dir / "unigram_counts.txt")
    assert len(counts) == VOCAB_SIZE and np.all(np.diff(counts[4:]) <= 0)
    assert counts[4] > counts[50] > 0 == counts[-1]
    pieces = [after.id_to_piece(i) for i in range(VOCAB_SIZE)]
    assert pieces[:4] == ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    assert set(pieces) == {before.id_to_piece(i) for i in range(VOCAB_SIZE)}
    listed = (data_dir / "tokenizer.vocab").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == pieces


def test_new_ids_by_hand():
    counts = np.array([9, 0, 0, 9, 2, 7, 0, 7, 1])
    assert tokenization.ids_by_count(counts).tolist() == [0, 1, 2, 3, 6, 4, 8, 5, 7]


def test_pieces_are_those_of_the_settings(tmp_path):
    text = text_of(tmp_path / "text.txt",
                   "The cat's a @-@ café ☃\n" * 30 + "the red dog sat\n" * 30 + "rare ☂\n")
    assert {"▁@-@", "☂"} <= set(pieces_of(text, "unigram", 279, "nfkc_cf", 1.0))
    assert "☂" not in pieces_of(text, "unigram", 278, "nfkc_cf", 0.99)
    assert not {"▁@,@", "▁@.@", "▁<unk>"} & set(pieces_of(text, "unigram", 278))
    words = pieces_of(text, "word", None, "identity")
    assert {"▁The", "▁cat's", "▁café", "▁@-@", "▁☂"} <= set(words)
    assert len(pieces_of(text, "word")) == 4 + 256 + 11 and len(pieces_of(text, "word", 265)) == 265
    characters = pieces_of(text, "char")
    assert all(len(piece) == 1 for piece in characters[4 + 256:]) and "T" not in characters
    assert "T" in pieces_of(text, "char", None, "nfkc")
    text = text_of(tmp_path / "text.txt", "no hyphen here " * 99)
    assert "▁@-@" not in pieces_of(text, "unigram", 270) + pieces_of(text, "bpe", 270)


LONG_WORD = "漢字かな交じり文" * 500 + " end\n"
LETTERS = "".join(f"{letter}{letter} " for letter in "abcdefghijklmnopqrstuvw") * 9


@pytest.mark.parametrize("content, settings, message", [
    (LETTERS, ("unigram", 100_000), "size=100000 is too large for text.txt: at most 285 pieces"),
    (LETTERS, ("bpe", 100_000), "size=100000 is too large for text.txt: at most 3.. pieces"),
    (LETTERS, ("unigram", 270), "size=270 is too small for text.txt: .* 284; a lower --character"),
    ("\0\n" * 99, ("unigram", 300), "text.txt"),
    ("\0\n" * 99, ("char", None), "text.txt"),
    (LONG_WORD, ("word", None), "--model_type=word on text.txt: .* too long"),
    (LONG_WORD, ("word", 262), "--model_type=word on text.txt"),
    (" \n\t\n", ("unigram", 300), "text.txt is empty")])
def test_a_text_that_cannot_be_learned_is_named_in_one_line(content, settings, message, tmp_path):
    text = text_of(tmp_path / "text.txt", content)
    with pytest.raises(InputError, match=message) as error:
        tokenization.train_tokenizer(text, TokenizerSettings(*settings))
    assert "\n" not in str(error.value)


def sample_of(text):
    return [line.decode() for line in tokenization._sample(text, False, "nfkc") if line]


def test_a_tokenizer_learns_from_a_sample_of_a_long_text(tmp_path, monkeypatch):
    lines = [f"line {i} of a text" for i in range(1000)]
    text = text_of(tmp_path / "text.txt", "\n".join(lines))
    assert sample_of(text) == lines
    monkeypatch.setattr(tokenization, "SENTENCE_BYTES", 100)
    monkeypatch.setattr(corpora, "BREAK_BYTES", 30)
    assert sample_of(text) == lines
    monkeypatch.setattr(tokenization, "SAMPLE_BYTES", text.size // 10 + 1)
    sample = [int(line.split()[1]) for line in sample_of(text)]
    assert 80 < len(sample) < 120 and sample == sorted(set(sample))
    assert max(np.diff(sample)) < 60 and sample[0] == 0 and sample[-1] > 940


def test_a_sample_of_many_small_files_costs_no_call_for_each(tmp_path, monkeypatch):
    parts = []
    for number in range(1000):
        parts += text_of(tmp_path / f"{number}.txt", f"file {number}").parts
    text, calls, split_lines = corpora.Text("many", parts), [], tokenization.split_lines
    monkeypatch.setattr(
        tokenization, "split_lines", lambda *given: calls.append(1) or split_lines(*given))
    assert len(sample_of(text)) == 1000 and len(calls) == 1
    monkeypatch.setattr(tokenization, "SENTENCE_BYTES", 100)
    monkeypatch.setattr(tokenization, "SAMPLE_BYTES", text.size // 10 + 1)
    sample = sample_of(text)
    assert 80 < len(sample) < 120 and sample[0] == "file 0"
    assert int(sample[-1].split()[1]) > 880  # a tenth of each span of some 110 files


# --------------------------------------------------------------------------------------------------
# Other tokenizers


def foreign(corpus_dir, path, **ids):
    """A model of another program, without bytes."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus_dir / "train.txt"), model_prefix=str(path.with_suffix("")), vocab_size=60,
        character_coverage=1.0, minloglevel=2,
        **{"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3} | ids)
    return path


def test_a_file_that_is_no_tokenizer_of_this_project_is_refused(corpus_dir, tmp_path):
    (tmp_path / "noise.model").write_bytes(b"noise")
    with pytest.raises(InputError, match="noise.model is not a SentencePiece model"):
        Tokenizer(tmp_path / "noise.model")
    other = foreign(corpus_dir, tmp_path / "other.model", pad_id=-1, unk_id=0)
    message = "has the special ids pad -1, bos 1, eos 2, unk 0; they must be 0, 1, 2, 3"
    with pytest.raises(InputError, match=message):
        Tokenizer(other)


def test_unknown_characters_are_counted(corpus_dir, tmp_path, capsys):
    path = foreign(corpus_dir, tmp_path / "other.model")
    tokenizer, text = Tokenizer(path), "abc ☃☃ é x红楼梦y\n\nab c ☃ ab\n"
    ids, words, unknown = (value.numpy() for value in tokenizer.tokenize(text, add_eos=True))
    package = sentencepiece.SentencePieceProcessor(model_file=str(path))
    expected = [token for line in text.splitlines() for token in [*package.encode(line), EOS]]
    assert ids.tolist() == expected and UNK in ids
    assert (words, unknown) == (8, len("☃☃é红楼梦☃"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split in corpora.SPLITS:
        content = (corpus_dir / f"{split}.txt").read_text()
        (folder / f"{split}.txt").write_text(content + ("☃☃\n" if split == "test" else ""))
    make_data(folder, tmp_path / "data", path)
    said = [line for line in capsys.readouterr().out.splitlines() if "unknown to" in line]
    assert len(said) == 1 and re.match("test: .* tokens, 2 characters unknown to the tok", said[0])


@pytest.mark.parametrize("content, message", [
    ("raise ImportError('undefined symbol: _ZN10tensorflow')", "undefined symbol: _ZN10tensorflow"),
    (None, "")])
def test_tensorflow_text_that_does_not_load_is_named_with_its_repair(
        content, message, corpus_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    if content:
        monkeypatch.delitem(sys.modules, "tensorflow_text")
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "tensorflow_text.py").write_text(content)
    version = cli.tensorflow().__version__
    cli.tensorflow_text.cache_clear()
    expected = (
        rf"error: tensorflow-text \S+ does not load with TensorFlow {version} \(.*{message}.*\): "
        rf".* -m pip install 'tensorflow-text=={version[:4]}")
    assert re.match(expected, one_line(run_command(data_utils, f"--input_dir={corpus_dir}")))
