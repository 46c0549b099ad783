"""The tokenizer, held against the sentencepiece package: what goes in is known and comes out."""

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
from support import cli, corpora, model_proto, tokenization
from support.cli import InputError
from support.tokenization import EOS, UNK, Settings, Tokenizer

# What an editor, a PDF or a web page leaves in a text.
ODD = "a\tb\vc\fd\x1ce\x85f\xa0g\u2028h\u2029i\u3000j k\u00adl\u200bm\ufeffn \t o ▁p▁▁q"
STRANGE = [
    "who was the king? é 红 ☃😀",
    "\0",
    "a\0b",
    "e\u0301\u0302 \u0301",
    "👩‍👩‍👧‍👦 🇩🇪",
    "\ue000 \uffff \U0010ffff",
    "<0x41> [PAD] [UNK] <unk> <s>",
    "ﷺ ﬃ ½ ﷽",
    "\u202eabc\u202c",
    " " * 5000 + "a" + "\t" * 5000,
    "x" * 20_000,
    ODD,
]
CHARACTERS = st.characters(exclude_categories=["Cs"])


@pytest.fixture(scope="module")
def tokenizers(corpus_dir, tmp_path_factory):
    """A tokenizer of each kind."""
    folder, text = (
        tmp_path_factory.mktemp("tokenizers"),
        corpora.whole_file(corpus_dir / "train.txt"),
    )
    for kind in tokenization.MODEL_TYPES:
        size = VOCAB_SIZE if kind in ("unigram", "bpe") else None
        (folder / f"{kind}.model").write_bytes(
            tokenization.train_tokenizer(text, Settings(kind, size))
        )
    (folder / "unfolded.model").write_bytes(
        tokenization.train_tokenizer(text, Settings("unigram", VOCAB_SIZE, "nfkc"))
    )
    (folder / "identity.model").write_bytes(
        tokenization.train_tokenizer(text, Settings("word", None, "identity"))
    )
    return {
        path.stem: (Tokenizer(path), sentencepiece.SentencePieceProcessor(model_file=str(path)))
        for path in folder.iterdir()
    }


def lines_of(text, kind):
    """What SentencePiece should see of a text, line by line, in Python's own terms."""
    lines = re.split("\r\n|\r|\n", text)
    if kind == "char":
        return lines
    if kind != "identity":
        lines = [re.sub("[\u00ad\u200b\ufeff]", "", line) for line in lines]
    return [" ".join(line.replace("▁", " ").split()) for line in lines]


def decoded(tokenizer, ids):
    return "".join(tokenizer.decode(ids))


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
    assert (
        ids == [token for line in lines for token in [*package.encode(line), EOS]][:-1]
        and UNK not in ids
    )
    assert ids_of(tokenizer, text, False).tolist() == [
        token for line in lines for token in package.encode(line)
    ]
    normalised = [package.normalize(line).replace("▁", " ") for line in lines]
    assert decoded(tokenizer, ids) == "\n".join(
        normalised if kind == "char" else [line.removeprefix(" ") for line in normalised]
    )


def test_text_appears_as_soon_as_its_bytes_do(tokenizers):
    tokenizer, _ = tokenizers["unigram"]
    ids = ids_of(tokenizer, "ab ☃😀", False)
    parts = list(tokenizer.decode(ids))
    assert (
        "".join(parts) == "ab ☃😀"
        and parts[-1] == ""
        and "☃" in parts
        and "😀" in parts
        and "\ufffd" not in "".join(parts)
    )
    assert "".join(tokenizer.decode(ids, within_line=True)) == " ab ☃😀"
    assert "".join(tokenizer.decode(ids[:-1])) == "ab ☃\ufffd"  # half a character
    assert "".join(tokenizer.decode([*ids, EOS, *ids], within_line=True)) == " ab ☃😀\nab ☃😀"


@pytest.mark.parametrize(
    "end, kept",
    [
        (" ", ""),
        ("\t", ""),
        ("\u3000 \xa0▁", ""),
        (" \u200b", ""),
        ("\n", "\n"),
        (" \r\n\t", " \r\n"),
        (".", "."),
    ],
    ids=ascii,
)
def test_what_continues_a_prompt_brings_the_only_space(end, kept, tokenizers):
    for kind in ("unigram", "bpe", "word"):
        tokenizer, _ = tokenizers[kind]
        assert tokenizer.shown(f"a b{end}").numpy().decode() == f"a b{kept}"
    invisible, _ = tokenizers["identity"]
    if "\u200b" in end:  # a piece of its own
        kept = end
    assert invisible.shown(f"a b{end}").numpy().decode() == f"a b{kept}"
    assert tokenizers["char"][0].shown(f"a b{end}") == f"a b{end}"


@pytest.mark.parametrize("kind", ["unigram", "bpe", "word"])
def test_white_space_is_one_space_and_what_is_invisible_is_nothing(kind, tokenizers):
    tokenizer, _ = tokenizers[kind]
    clean = "a b c d e f g h i j klmn o p q"
    assert (
        ids_of(tokenizer, ODD, False).tolist() == ids_of(tokenizer, clean, False).tolist()
        and decoded(tokenizer, ids_of(tokenizer, ODD, False)) == clean
    )


def test_ids_fall_by_count_and_cut_texts_as_before(corpus_dir, data_dir, tmp_path):
    text, settings = corpora.whole_file(corpus_dir / "train.txt"), Settings(vocab_size=VOCAB_SIZE)
    model = tokenization.train_tokenizer(text, settings)
    before = sentencepiece.SentencePieceProcessor(model_proto=model)
    after = sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "tokenizer.model"))
    lines = [
        line
        for split in corpora.SPLITS
        for line in (corpus_dir / f"{split}.txt").read_text().splitlines()
    ] + STRANGE
    assert before.encode(lines, out_type=str) == after.encode(
        lines, out_type=str
    ) and before.encode(lines) != after.encode(lines)
    counts = np.loadtxt(data_dir / "unigram_counts.txt")
    assert (
        len(counts) == VOCAB_SIZE
        and np.all(np.diff(counts[4:]) <= 0)
        and counts[4] > counts[50] > 0 == counts[-1]
    )
    assert {after.id_to_piece(i) for i in range(VOCAB_SIZE)} == {
        before.id_to_piece(i) for i in range(VOCAB_SIZE)
    }
    assert [after.id_to_piece(i) for i in range(4)] == ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    listed = [
        line.split("\t")[0] for line in (data_dir / "tokenizer.vocab").read_text().splitlines()
    ]
    assert listed == [after.id_to_piece(i) for i in range(VOCAB_SIZE)]


def test_new_ids_by_hand():
    counts = np.array([9, 0, 0, 9, 2, 7, 0, 7, 1])
    assert tokenization.ids_by_count(counts).tolist() == [0, 1, 2, 3, 6, 4, 8, 5, 7]


def test_a_model_that_is_read_and_written_keeps_what_we_do_not_know(tmp_path):
    (tmp_path / "text.txt").write_text("The red cat sat\n" * 30)
    text = corpora.whole_file(tmp_path / "text.txt")
    content = tokenization.train_tokenizer(text, Settings("unigram", 270, "nfkc"))
    theirs = sentencepiece_model_pb2.ModelProto.FromString(content)
    ours = model_proto.ModelProto.FromString(content)
    assert [(piece.piece, piece.score, piece.type) for piece in ours.pieces] == [
        (piece.piece, piece.score, piece.type) for piece in theirs.pieces]
    assert ours.trainer_spec.byte_fallback and ours.normalizer_spec.name == "nfkc"
    assert ours.normalizer_spec.remove_extra_whitespaces
    again = sentencepiece_model_pb2.ModelProto.FromString(ours.SerializeToString())
    assert again == theirs
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    assert (model_proto.UNKNOWN, model_proto.CONTROL, model_proto.BYTE) == (
        kinds.UNKNOWN, kinds.CONTROL, kinds.BYTE)


def test_what_is_trained_is_what_is_asked_for(tmp_path):
    (tmp_path / "text.txt").write_text(
        "The cat's a @-@ café ☃\n" * 30 + "the red dog sat\n" * 30 + "rare ☂\n"
    )
    text = corpora.whole_file(tmp_path / "text.txt")

    def pieces(*settings):
        model = sentencepiece_model_pb2.ModelProto.FromString(
            tokenization.train_tokenizer(text, Settings(*settings))
        )
        return [piece.piece for piece in model.pieces]

    assert {"▁@-@", "☂"} <= set(pieces("unigram", 279, "nfkc_cf", 1.0)) and "☂" not in pieces(
        "unigram", 278, "nfkc_cf", 0.99
    )
    assert not {"▁@,@", "▁@.@", "▁<unk>"} & set(pieces("unigram", 278))
    assert {"▁The", "▁cat's", "▁café", "▁@-@", "▁☂"} <= set(
        pieces("word", None, "identity")
    ) and len(pieces("word")) == 4 + 256 + 11
    assert (
        len(pieces("word", 265)) == 265
        and "T" in pieces("char", None, "nfkc")
        and "T" not in pieces("char")
    )
    assert all(len(piece) == 1 for piece in pieces("char")[4 + 256 :])
    (tmp_path / "text.txt").write_text("no hyphen here " * 99)
    assert "▁@-@" not in pieces("unigram", 270) and "▁@-@" not in pieces("bpe", 270)


@pytest.mark.parametrize(
    "settings, message",
    [
        (Settings("unigram", 100_000), "it supports at most [0-9]+ pieces"),
        (Settings("bpe", 100_000), "--vocab_size=100000 does not suit text.txt"),
        (
            Settings("unigram", 270),
            "its characters, 256 bytes and the special ids need 28[0-9] already; "
            "a lower --character_coverage",
        ),
        *(
            (
                Settings(kind, size),
                f"--vocab_size={size} does not suit text.txt: "
                "the special ids and the bytes are 260 already",
            )
            for kind in tokenization.MODEL_TYPES
            for size in (1, 3, 200)
        ),
    ],
)
def test_a_vocabulary_that_does_not_suit_the_text_is_told_in_one_line(settings, message, tmp_path):
    (tmp_path / "text.txt").write_text(
        "".join(f"{letter}{letter} " for letter in "abcdefghijklmnopqrstuvw") * 9
    )
    with pytest.raises(InputError, match=message) as error:
        tokenization.train_tokenizer(corpora.whole_file(tmp_path / "text.txt"), settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["unigram", "bpe", "char"])
def test_a_text_that_sentencepiece_leaves_out_is_told_in_one_line(kind, tmp_path):
    (tmp_path / "text.txt").write_text("\0\n" * 99)
    size = 300 if kind in ("unigram", "bpe") else None
    with pytest.raises(InputError, match="text.txt") as error:
        tokenization.train_tokenizer(
            corpora.whole_file(tmp_path / "text.txt"), Settings(kind, size)
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [None, 262])
def test_words_that_are_too_long_for_a_tokenizer_are_told_in_one_line(size, tmp_path):
    (tmp_path / "text.txt").write_text("漢字かな交じり文" * 500 + " end\n")
    text = corpora.whole_file(tmp_path / "text.txt")
    message = "--model_type=word does not suit text.txt: .* too long for a piece; choose unigram"
    with pytest.raises(InputError, match=message):
        tokenization.train_tokenizer(text, Settings("word", size))


def test_a_tokenizer_learns_from_a_sample_of_a_long_text(tmp_path, monkeypatch):
    lines = [f"line {i} of a text" for i in range(1000)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    text = corpora.whole_file(tmp_path / "text.txt")
    assert [line.decode() for line in tokenization._sample(text, False, "nfkc") if line] == lines
    monkeypatch.setattr(tokenization, "SENTENCE_BYTES", 100)
    monkeypatch.setattr(corpora, "BREAK_BYTES", 30)
    assert [line.decode() for line in tokenization._sample(text, False, "nfkc") if line] == lines
    monkeypatch.setattr(tokenization, "SAMPLE_BYTES", text.size // 10 + 1)
    sample = [int(line.split()[1]) for line in tokenization._sample(text, False, "nfkc") if line]
    assert (
        80 < len(sample) < 120
        and sample == sorted(set(sample))
        and max(np.diff(sample)) < 60
        and sample[0] == 0
        and sample[-1] > 940
    )


def test_a_sample_of_many_small_files_is_no_larger_and_costs_no_call_for_each(
    tmp_path, monkeypatch
):
    parts = []
    for number in range(1000):
        (tmp_path / f"{number}.txt").write_text(f"file {number}")
        parts += corpora.whole_file(tmp_path / f"{number}.txt").parts
    text, calls, split_lines = corpora.Text("many", parts), [], tokenization.split_lines
    monkeypatch.setattr(
        tokenization, "split_lines", lambda *given: calls.append(1) or split_lines(*given)
    )
    sample = [line for line in tokenization._sample(text, False, "nfkc") if line]
    assert len(sample) == 1000 and len(calls) == 1
    monkeypatch.setattr(tokenization, "SENTENCE_BYTES", 100)
    monkeypatch.setattr(tokenization, "SAMPLE_BYTES", text.size // 10 + 1)
    sample = [line for line in tokenization._sample(text, False, "nfkc") if line]
    assert 80 < len(sample) < 120 and sample[0] == b"file 0"
    assert int(sample[-1].split()[1]) > 880  # a tenth of each span of some 110 files


FOREIGN = dict(pad_id=0, bos_id=1, eos_id=2, unk_id=3, character_coverage=1.0, minloglevel=2)


@pytest.mark.parametrize(
    "ids, message",
    [
        (
            dict(pad_id=-1, bos_id=1, eos_id=2, unk_id=0),
            "has the special ids pad -1, bos 1, eos 2, unk 0; they must be 0, 1, 2, 3",
        ),
        (dict(pad_id=0, bos_id=3, eos_id=2, unk_id=1), "unk 1; they must be"),
    ],
)
def test_a_tokenizer_of_other_special_ids_is_refused(ids, message, corpus_dir, tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus_dir / "train.txt"),
        model_prefix=str(tmp_path / "other"),
        vocab_size=60,
        **FOREIGN | ids,
    )
    with pytest.raises(InputError, match=message):
        Tokenizer(tmp_path / "other.model")


def test_what_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "noise.model").write_bytes(b"noise")
    with pytest.raises(InputError, match="noise.model is not a SentencePiece model"):
        Tokenizer(tmp_path / "noise.model")


def test_what_another_tokenizer_does_not_know_is_counted_in_characters(
    corpus_dir, tmp_path, capsys
):
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus_dir / "train.txt"),
        model_prefix=str(tmp_path / "other"),
        vocab_size=60,
        **FOREIGN,
    )
    tokenizer = Tokenizer(tmp_path / "other.model")
    text = "abc ☃☃ é x红楼梦y\n\nab c ☃ ab\n"
    ids, words, unknown = (value.numpy() for value in tokenizer.tokenize(text, add_eos=True))
    package = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "other.model"))
    assert (
        ids.tolist()
        == [token for line in text.splitlines() for token in [*package.encode(line), EOS]]
        and UNK in ids
    )
    assert (words, unknown) == (8, len("☃☃é红楼梦☃"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split in corpora.SPLITS:
        (folder / f"{split}.txt").write_text(
            (corpus_dir / f"{split}.txt").read_text() + ("☃☃\n" if split == "test" else "")
        )
    make_data(folder, tmp_path / "data", tmp_path / "other.model")
    assert [
        ", 2 characters unknown to the tokenizer" in line
        for line in capsys.readouterr().out.splitlines()[-3:]
    ] == [False, False, True]


@pytest.mark.parametrize(
    "content, message",
    [
        (
            "raise ImportError('undefined symbol: _ZN10tensorflow')",
            "undefined symbol: _ZN10tensorflow",
        ),
        (None, "No module named 'tensorflow_text'"),
    ],
)
def test_tensorflow_text_that_does_not_load_is_named_with_what_mends_it(
    content, message, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    if content:
        monkeypatch.delitem(sys.modules, "tensorflow_text")
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "tensorflow_text.py").write_text(content)
    version = cli.tensorflow().__version__
    why = "" if content is None else message
    expected = (
        rf"tensorflow-text \S+ does not load with TensorFlow {version} \(.*{why}.*\): "
        rf".* -m pip install 'tensorflow-text=={version[:4]}"
    )
    with pytest.raises(InputError, match=expected) as error:
        cli.tensorflow_text.__wrapped__()
    assert "\n" not in str(error.value)


def test_a_command_that_cannot_start_is_told_in_one_line(tmp_path, corpus_dir, monkeypatch):
    (tmp_path / "tensorflow_text.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.delitem(sys.modules, "tensorflow_text")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    cli.tensorflow_text.cache_clear()
    told = one_line(run_command(data_utils, f"--input_dir={corpus_dir}"))
    assert re.fullmatch(r"error: tensorflow-text \S+ does not load .*\n", told)
