"""Scores, against a plain reading of the text."""

import itertools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf
from commands import one_line, run_command
from conftest import BATCH_SIZE, SEQ_LEN, VOCAB_SIZE, make_data, tiny_settings, train_in

import data_utils
import evaluate
from evaluate import evaluate_run
from model import PARTransformerXL
from support import files, tokenization
from support.errors import InputError
from training import costs, scoring
from training.scoring import Evaluator
from training.trained_run import TrainedRun
from training.trainer import build_network


@pytest.fixture
def run(search_run, monkeypatch):
    """The finished search, read where it was trained."""
    monkeypatch.chdir(search_run.parent.parent)
    return TrainedRun(search_run)


def random_network(mem_len):
    tf.random.set_seed(0)
    model = PARTransformerXL(
        VOCAB_SIZE, ["search", "attention", "dense"], d_model=8, num_heads=2, d_ffn=16,
        mem_len=mem_len, cutoffs=[20, 60])
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + rng.normal(size=weight.shape) * 0.3)
    return model


@pytest.mark.parametrize("mem_len", [0, 3, 20])
def test_a_score_is_that_of_one_row_read_window_by_window_for_every_batch_size(mem_len):
    model = random_network(mem_len)
    stream = np.random.default_rng(1).integers(4, VOCAB_SIZE, 301).astype(np.int32)
    memory, expected = model.empty_memory(1), 0.0
    for start in range(0, 300, SEQ_LEN):
        targets = stream[start + 1:start + 1 + SEQ_LEN]
        inputs = stream[start:start + len(targets)]
        hidden, memory = model(
            tf.constant(inputs[None]), memory, filled=min(start, mem_len), tau=0.5)
        expected -= sum(model.softmax.log_prob(hidden[0]).numpy()[np.arange(len(targets)), targets])
    for together, batch_size in itertools.product((1, 7), (1, 2, 5, 64)):
        evaluator = Evaluator(model, jit_compile=False, windows_per_execution=together)
        score = evaluator(stream, batch_size, SEQ_LEN, 0.5)
        assert score.targets == 300 and score.nll == pytest.approx(expected, rel=1e-6)
        assert len(score.seconds) > 0 and min(score.seconds) > 0


def test_padding_carries_no_loss():
    model = build_network(tiny_settings(), VOCAB_SIZE, static_shapes=False)
    padded = np.random.default_rng(0).integers(4, VOCAB_SIZE, [BATCH_SIZE, SEQ_LEN + 1])
    padded[:, 5:] = tokenization.PAD
    memory = model.empty_memory(BATCH_SIZE)
    nll, _ = scoring.window_nll(model, tf.constant(padded), memory, 0, 1.0)
    short, _ = scoring.window_nll(model, tf.constant(padded[:, :5]), memory, 0, 1.0)
    assert np.all(nll[:, 4:] == 0) and np.allclose(nll[:, :4], short, atol=1e-5)
    assert np.array_equal(scoring.real_targets(tf.constant(padded))[0], np.arange(SEQ_LEN) < 4)


def test_frequencies_are_those_of_the_targets():
    found = costs.frequencies(np.array([3, 1, 1, 2, 1]), vocab_size=5)  # the first is no target
    assert found.tolist() == [0, 0.75, 0.25, 0, 0]


def test_metrics_by_hand():
    text = {"tokens": 101, "words": 50, "bytes": 400, "unknown_characters": 0}
    loss = {"loss": 2, "perplexity": pytest.approx(math.e**2)}
    assert scoring.metrics(2.0, text) == loss | {
        "word_perplexity": pytest.approx(math.e**4),
        "bits_per_byte": pytest.approx(200 / math.log(2) / 400)}
    assert scoring.metrics(2.0, text | {"unknown_characters": 1}) == loss | {
        "word_perplexity": None, "bits_per_byte": None}
    assert scoring.metrics(900.0, text | {"words": 1})["word_perplexity"] == math.inf


def test_an_evaluation_agrees_with_that_at_the_end_of_training(run, search_run):
    results = json.loads((search_run / "results.json").read_text())
    for split in ("valid", "test"):
        report = evaluate_run(run, split)
        for name in ("loss", "perplexity", "word_perplexity", "bits_per_byte"):
            assert report[name] == pytest.approx(results[split][name], rel=1e-6)
    expected = {"parameters": results["parameters"], "architecture": "ss", "mem_len": 6,
                "step": results["steps"], "text": "markov, test", "unknown_characters": 0}
    assert {name: report[name] for name in expected} == expected
    p50, p95, p99 = (report["ms_per_window"][name] for name in ("p50", "p95", "p99"))
    assert 0 < p50 <= p95 <= p99
    assert report["flops_per_token"] > 0 and report["tokens_per_second"] > 0
    loss = results["valid"]["loss"]
    assert evaluate_run(run, "valid", batch_size=7)["loss"] == pytest.approx(loss, rel=1e-6)
    longer = evaluate_run(run, "valid", mem_len=30)
    assert longer["mem_len"] == 30
    assert longer["loss"] != loss and longer["loss"] == pytest.approx(loss, rel=0.2)


def test_a_text_file_is_scored_as_the_split_that_it_is(run, corpus_dir, tmp_path):
    split, text = evaluate_run(run, "test"), evaluate_run(run, text=corpus_dir / "test.txt")
    for name in ("loss", "perplexity", "word_perplexity", "bits_per_byte", "targets"):
        assert text[name] == pytest.approx(split[name])
    line = "日本語 Ωmega café 😀"
    (tmp_path / "strange.txt").write_text(f"{line}\r\n\n" * 3)
    report = evaluate_run(run, text=tmp_path / "strange.txt")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(run.folder / "tokenizer.model"))
    assert report["targets"] == 3 * len(pieces.encode(line)) - 1
    assert report["unknown_characters"] == 0
    assert report["bits_per_byte"] > 2  # every byte counts


@pytest.mark.parametrize("mark, line_end", [("", "\r\n"), ("", "\r"), ("\ufeff", "\n")])
def test_figures_do_not_depend_on_line_ends(mark, line_end, run, corpus_dir, tmp_path):
    lines = (corpus_dir / "test.txt").read_text()
    (tmp_path / "text.txt").write_bytes((mark + lines.replace("\n", line_end)).encode())
    expected, report = evaluate_run(run, "test"), evaluate_run(run, text=tmp_path / "text.txt")
    for name in ("bits_per_byte", "word_perplexity"):
        assert report[name] == expected[name]


def test_figures_of_the_raw_text_need_a_tokenizer_that_knows_all_characters(
    corpus_dir, tmp_path, monkeypatch
):
    """A tokenizer from elsewhere does not know all characters of the test split."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus_dir / "train.txt"), model_prefix=str(tmp_path / "other"), vocab_size=80,
        character_coverage=1.0, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2)
    shutil.copytree(corpus_dir, tmp_path / "corpus")
    with open(tmp_path / "corpus" / "test.txt", "a") as file:
        file.write("☃☃ and é\n")
    make_data(tmp_path / "corpus", tmp_path / "data", tmp_path / "other.model")
    monkeypatch.chdir(tmp_path)
    run = TrainedRun(train_in(tmp_path, data_dir="data", max_steps=3))
    why = "not given: 3 characters are unknown to the tokenizer"
    log = (run.folder / "training_log.log").read_text()
    assert f"test: word perplexity and bits per byte {why}" in log
    assert re.search(r"test .*  word_perplexity not given  bits_per_byte not given", log)
    results = json.loads((run.folder / "results.json").read_text())
    given = [results[split]["bits_per_byte"] is not None for split in ("train", "valid", "test")]
    assert given == [True, True, False]
    report = evaluate_run(run, "test")
    assert report["word_perplexity"] is report["bits_per_byte"] is None
    assert report["unknown_characters"] == 3 and evaluate.table([report]).count(why) == 2


def test_mistakes_are_refused(run, tmp_path, monkeypatch):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "nothing.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for arguments, message in [
        (dict(text=tmp_path / "empty.txt"), "empty.txt is empty"),
        (dict(text=tmp_path / "nothing.txt"), "nothing.txt is empty"),
        (dict(text=Path("/dev/null")), "/dev/null is not a regular file: --text takes a file"),
        (dict(text=tmp_path / "latin.txt"), "latin.txt is not UTF-8: line 1"),
        (dict(text=tmp_path), "is a folder: --text takes a file"),
        (dict(data_dir=tmp_path), "no data in"),
    ]:
        with pytest.raises(InputError, match=message):
            evaluate_run(run, **arguments)
    with pytest.raises(InputError, match="no checkpoint '77'.* best, latest, "):
        evaluate_run(TrainedRun(run.folder, 77))
    with pytest.raises(FileNotFoundError):
        evaluate_run(run, text=tmp_path / "missing.txt")
    monkeypatch.setattr(data_utils, "tokenizer_sha256", lambda metadata: "other")
    with pytest.raises(InputError, match="a different tokenizer"):
        evaluate_run(run)


def test_runs_side_by_side_on_the_console(search_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(search_run.parent, "logs")
    both = "--run=logs/supernet,logs/supernet"
    done = run_command(evaluate, both, "--mem_len=12", "--split=test")
    assert done.returncode == 0 and done.stderr == ""
    step = json.loads((search_run / "results.json").read_text())["steps"]
    path = tmp_path / "logs" / "supernet" / f"evaluation_test_B4_T8_M12_step{step}.json"
    report = json.loads(path.read_text())
    lines = {line[:24].strip(): line[26:].split() for line in done.stdout.splitlines()}
    assert lines["run"] == ["supernet", "supernet"]
    assert lines["perplexity"] == [f"{report['perplexity']:.2f}"] * 2
    assert lines["rows x tokens + memory"] == ["4", "x", "8", "+", "12"] * 2
    assert lines["architecture"] == ["ss", "(found", f"{report['most_likely']})"] * 2


def test_single_layers_of_a_search_are_scored_with_its_weights(
    begun, data_dir, tmp_path, monkeypatch
):
    """Held against the search itself, whose theta makes the mixture these layers alone."""
    monkeypatch.chdir(tmp_path)
    run = TrainedRun(begun)
    search, _ = run.network()
    search.theta.assign([[0, 99, 0], [99, 0, 0]])
    stream = data_utils.load_stream(data_dir, "valid", data_utils.read_metadata(data_dir))
    expected = Evaluator(search, jit_compile=False)(stream, BATCH_SIZE, SEQ_LEN)
    done = run_command(evaluate, "--run=logs/supernet", "--architecture=da")
    assert done.returncode == 0 and " da\n" in done.stdout, done.stderr
    path, = begun.glob("evaluation_valid_da_B4_T8_M6_step*.json")
    assert json.loads(path.read_text())["loss"] == pytest.approx(
        expected.nll / expected.targets, rel=1e-6)
    for wrong in ("d", "dx", "ds", "daa"):
        done = run_command(evaluate, "--run=logs/supernet", f"--architecture={wrong}")
        assert f"has no weights for {wrong}: name a layer type of each of its 2 blocks" in (
            one_line(done))


@pytest.mark.parametrize("given, message", [
    (["--run=logs"], "logs/config.json is missing"),
    ([], "--run is missing"),
    (["--run=logs", "--text=x.txt", "--split=test"], "use --text or --split, not both")])
def test_mistakes_end_in_one_line(given, message):
    assert one_line(run_command(evaluate, *given)).endswith(f"{message}\n")


def test_a_configuration_of_another_version_is_refused(tmp_path):
    for other in ({"flags": {}, "data": {}, "model": {}}, {"flags": {"mem_len": 1}}):
        files.write_json(tmp_path / "config.json", other)
        with pytest.raises(InputError, match="config.json was written by another program"):
            TrainedRun(tmp_path)
