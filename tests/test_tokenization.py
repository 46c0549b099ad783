import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

import cli
import corpora
import tokenization
from cli import InputError
from conftest import PROJECT, VOCAB_SIZE
from tokenization import EOS, UNK


@pytest.mark.parametrize("add_eos", [False, True])
def test_stream_equals_the_sentencepiece_package(add_eos, data_dir, tmp_path):
    text = tmp_path / "text.txt"
    long_line = "word " * 3000
    text.write_text(f"The first line @-@ here\n\n  {long_line}\nlast, without an end; unknown: ☃")
    words = tokenization.write_stream(corpora.whole_file(text), tokenization.load_tokenizer(data_dir / "tokenizer.model"), add_eos, tmp_path / "stream")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "tokenizer.model"))
    expected = [token for line in text.read_text().split("\n") for token in pieces.encode(line) + [EOS] * add_eos]
    stream = tokenization.Stream(tmp_path / "stream")
    assert stream[:].tolist() == expected and UNK in expected and len(stream) == len(expected) and words == len(text.read_text().split())
    assert stream.counts(VOCAB_SIZE).tolist() == np.bincount(expected, minlength=VOCAB_SIZE).tolist()


def test_long_lines_are_cut_at_spaces_and_nowhere_else(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("short\n" + "word " * 3000 + "\n" + "x" * 10_000)
    parts = list(tokenization.line_parts(*corpora.whole_file(text).parts))
    lines, line = [], ""
    for part, line_end in parts:
        assert len(part) <= tokenization.MAX_CHARS
        line += part
        if line_end:
            lines.append(line)
            line = ""
    assert "\n".join(lines) == text.read_text()
    assert all(part.strip().startswith("word") and part.strip().endswith("word") for part, _ in parts[1:5])


def test_the_tokenizer_folds_case_and_knows_its_special_ids(data_dir):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(data_dir / "tokenizer.model"))
    assert (pieces.pad_id(), pieces.bos_id(), pieces.eos_id(), pieces.unk_id()) == (0, 1, 2, 3)
    assert pieces.encode("ABC") == pieces.encode("abc")
    assert "@-@" in pieces.encode("a @-@ b", out_type=str)


def test_a_foreign_tokenizer_is_refused(corpus_dir, tmp_path):
    sentencepiece.SentencePieceTrainer.train(input=str(corpus_dir / "train.txt"), model_prefix=str(tmp_path / "other"), vocab_size=100, minloglevel=2)
    with pytest.raises(InputError, match="pad id -1"):
        tokenization.load_tokenizer(tmp_path / "other.model")
    (tmp_path / "noise.model").write_bytes(b"noise")
    with pytest.raises(InputError, match="noise.model is not a SentencePiece model"):
        tokenization.load_tokenizer(tmp_path / "noise.model")




def test_processes_make_what_one_makes_alone(corpus_dir, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(corpora, "BREAK_BYTES", 200)
    text, tokenizer = corpora.whole_file(corpus_dir / "train.txt"), tokenization.load_tokenizer(data_dir / "tokenizer.model")
    alone = tokenization.write_stream(text, tokenizer, True, tmp_path / "alone")
    with tokenization.worker_processes() as processes:
        together = tokenization.write_stream(text, tokenizer, True, tmp_path / "together", processes)
        assert len(processes._processes) == 2 or cli.CORES != 2
    assert alone == together and (tmp_path / "alone").read_bytes() == (tmp_path / "together").read_bytes()
    pieces = tokenizer.encode([line for line in text.parts[0].path.read_text().splitlines()])
    assert tokenization.Stream(tmp_path / "together")[:].tolist() == [token for line in pieces for token in [*line, EOS]]


def test_a_tokenizer_learns_from_a_sample_of_a_long_text(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("".join(f"line {i} of a text\n" for i in range(1000)))
    text = corpora.whole_file(tmp_path / "text.txt")
    assert len(list(tokenization.sample(text))) == 1000
    monkeypatch.setattr(tokenization, "SAMPLE_BYTES", text.size // 10 + 1)
    assert list(tokenization.sample(text)) == [f"line {i} of a text" for i in range(0, 1000, 10)]
    (tmp_path / "text.txt").write_text("".join(f"\nparagraph {i}\n" for i in range(1000)))
    text = corpora.whole_file(tmp_path / "text.txt")
    monkeypatch.setattr(tokenization, "SAMPLE_BYTES", text.size // 2 + 1)
    assert list(tokenization.sample(text)) == [f"paragraph {i}" for i in range(0, 1000, 2)]


@pytest.mark.parametrize("text", ["word " * 3000, "word\t" * 3000, "  a " + "b" * 10_000 + " c"], ids=["spaces", "tabs", "one long word"])
def test_words_of_long_lines_are_counted_once(text, data_dir, tmp_path):
    (tmp_path / "text.txt").write_text(text)
    _, words = tokenization.encode(*corpora.whole_file(tmp_path / "text.txt").parts, (data_dir / "tokenizer.model").read_bytes(), False)
    assert words == len(text.split()) + 2 * ("b" in text)  # a very long word is cut in three


def test_a_worker_does_not_outlive_its_parent(tmp_path):
    program = f"""
import os, sys, time
sys.path.insert(0, {str(PROJECT)!r})
import tokenization
with tokenization.worker_processes() as processes:
    print(processes.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            return
        time.sleep(0.1)
    pytest.fail("it is still there")
