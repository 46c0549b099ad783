"""Trainings as a user starts them: what they learn, and what they leave."""

import json
import math
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from chaos import events_of, state_of
from commands import one_line, run_command
from conftest import PROJECT, VOCAB_SIZE, results_of, tiny_settings

import data_utils
import train
from support import cli, versions
from support.errors import InputError
from training import scoring
from training.trained_run import TrainedRun, take_weights
from training.trainer import Trainer, build_network


def losses_of(folder):
    return events_of(folder / "train")[0]["metrics/loss"]


def test_a_run_learns_and_leaves_everything_in_its_folder(run_train, data_dir, capsys):
    folder = run_train(epochs=4)
    metadata = data_utils.read_metadata(data_dir)
    steps = metadata["splits"]["train"]["steps"]
    results = results_of(folder)

    assert {path.name.split(".out")[0] for path in folder.iterdir()} == {
        "config.json", "tokenizer.model", "tokenizer.vocab", "training_log.log", "results.json",
        "checkpoints", "best", "train", "valid"}
    assert results["corpus"] == "markov" and results["steps"] == 4 * steps
    assert results["parameters"] > 0
    assert results["wall_seconds"] > results["train_seconds"] > 0
    assert results["tokens_per_second"] > 0
    most_likely = "".join("adi"[kind] for kind in np.argmax(results["pi"], axis=1))
    assert results["architecture"] == most_likely
    assert np.shape(results["pi"]) == (2, 3) and np.allclose(np.sum(results["pi"], axis=1), 1)
    assert results["flags"]["d_model"] == 8 and "CPU" in results["device"]
    assert results["versions"]["tensorflow"] == tf.__version__
    assert results["versions"]["commit"] == versions.commit(PROJECT)
    for split in ("train", "valid", "test"):
        scores, entry = results[split], metadata["splits"][split]
        total = scores["loss"] * (entry["tokens"] - 1)
        assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
        assert scores["word_perplexity"] == pytest.approx(math.exp(total / entry["words"]))
        assert scores["bits_per_byte"] == pytest.approx(total / math.log(2) / entry["bytes"])
        assert scores["perplexity"] < VOCAB_SIZE / 2  # a uniform guess has VOCAB_SIZE

    scalars, others = events_of(folder / "train")
    lines = [step for step in range(1, 4 * steps + 1) if step % 7 == 0 or step % steps == 0]
    for tag in ("metrics/loss", "metrics/perplexity", "training/learning_rate", "training/tau",
                "training/tokens_per_second", "pi/attention_blocks", "pi/identity_blocks",
                "pi/entropy"):
        assert sorted(scalars[tag]) == lines, tag
    epochs = [steps, 2 * steps, 3 * steps, 4 * steps]
    assert others["pi"] == epochs and others["configuration"] == [0]
    valid, _ = events_of(folder / "valid")
    names = ("loss", "perplexity", "word_perplexity", "bits_per_byte")
    assert valid.keys() == {f"{group}/{name}" for name in names for group in ("metrics", "test")}
    assert sorted(valid["metrics/loss"]) == epochs
    assert valid["metrics/loss"][4 * steps] == pytest.approx(results["valid"]["loss"])
    assert valid["test/loss"] == {4 * steps: pytest.approx(results["test"]["loss"])}
    assert scalars["metrics/loss"][lines[-1]] < scalars["metrics/loss"][lines[0]] - 0.5
    entropy = -np.sum(np.multiply(results["pi"], np.log(results["pi"])), axis=1).mean()
    assert scalars["pi/entropy"][lines[-1]] == pytest.approx(entropy)

    log = (folder / "training_log.log").read_text()
    assert re.findall(r" step ([\d,]+)/", log) == [f"{step:,}" for step in lines]
    for part in ("flags {", "versions {", "Total params", "markov", "on CPU", "  ETA 0:00",
                 "valid  loss", "test ", "architecture "):
        assert part in log, part
    console = capsys.readouterr().out
    assert "epoch 4 of 4" in console and "loss" in console and "valid  loss" in console
    assert "Total params" not in console


@pytest.mark.parametrize("settings", [
    {"architecture": "ad", "num_layers": 2, "mem_len": 20, "opt_name": "rmsprop"},
    {"architecture": "i", "cutoffs": [20, 60], "proj_factor": 3},
    {"architecture": "sds", "num_layers": 3, "cutoffs": []},
    {"architecture": "random", "weight_decay": 0.1, "opt_name": "lion"},
    {"straight_through": True, "mem_len": 0, "max_lr": 1e-3, "warmup_steps": 0},
    {"tau_is_trainable": True, "search": "alternating"},
    {"opt_name": "sgd", "clipnorm": 1.0, "embedding_dropout": 0.1},
    {"gumbel_per_row": True, "latency_weight": 0.1},
    {"tie_embeddings": True, "proj_factor": 2, "embedding_dropout": 0.1, "weight_decay": 0.1},
    {"tie_embeddings": True, "cutoffs": [], "accumulate": 2},
    {"tie_embeddings": True, "proj_factor": 1, "mixed_precision": True},
    {"gumbel_per_row": True, "straight_through": True}], ids=str)
def test_every_setting_trains(settings, run_train):
    folder = run_train(max_steps=40, log_every=10, **{"num_layers": 1} | settings)
    losses = losses_of(folder)
    assert all(math.isfinite(loss) for loss in losses.values())
    assert results_of(folder)["steps"] == 40
    if settings.get("opt_name") != "sgd" and "max_lr" not in settings:
        assert losses[40] < losses[10]


@pytest.mark.parametrize("tied", [False, True])
def test_compiled_and_graph_mode_agree(tied, run_train):
    settings = {"num_layers": 1, "max_steps": 20, "log_every": 5, "tie_embeddings": tied}
    graph, compiled = (
        losses_of(run_train(model_name=mode, jit_compile=mode, **settings))
        for mode in ("false", "true"))
    assert list(compiled.values()) == pytest.approx(list(graph.values()), rel=1e-4)


def test_mixed_precision_learns_as_float32_does(run_train):
    settings = {"max_steps": 120, "log_every": 20}
    full = losses_of(run_train(model_name="full", **settings))
    folder = run_train(model_name="mixed", mixed_precision=True, **settings)
    mixed = losses_of(folder)
    TrainedRun(folder).language_model.log_prob("the king was dead")
    assert keras.config.dtype_policy().name == "float32"  # for what is trained after it is read
    assert list(mixed.values()) == pytest.approx(list(full.values()), rel=0.01)
    assert mixed != full and mixed[120] < mixed[20] - 0.1


def test_a_fixed_architecture_has_no_search(run_train):
    folder = run_train(architecture="ad", max_steps=3)
    results = results_of(folder)
    assert results["pi"] == [[1, 0, 0], [0, 1, 0]] and results["architecture"] == "ad"
    assert not any("theta" in name for name in state_of(folder))
    assert not any(tag.startswith("pi/") for tag in events_of(folder / "train")[0])


def architecture_of_flags():
    return train.architecture(train.source_run())


def test_an_architecture_is_letters_a_finished_run_or_a_random_draw(run_train, search_run):
    found = results_of(search_run)["architecture"]
    with flagsaver.flagsaver(architecture=str(search_run)):
        assert "".join(kind[0] for kind in architecture_of_flags()) == found and len(found) == 2
    with flagsaver.flagsaver(architecture="aaddis"):
        assert architecture_of_flags() == [
            "attention", "attention", "dense", "dense", "identity", "search"]
    with flagsaver.flagsaver(num_layers=3):
        assert architecture_of_flags() == ["search"] * 3
    drawn = set()
    for seed in range(6):
        with flagsaver.flagsaver(architecture="random", num_layers=9, seed=seed):
            once, again = architecture_of_flags(), architecture_of_flags()
            assert once == again and len(once) == 9
            drawn.add(tuple(once))
    assert len(drawn) == 6 and {kind for kinds in drawn for kind in kinds} == {
        "attention", "dense", "identity"}
    folder = run_train(architecture=str(search_run), max_steps=3, model_name="fixed")
    results = results_of(folder)
    assert results["architecture"] == results["flags"]["architecture"] == found


def test_a_uniform_search_chooses_no_architecture(run_train):
    folder = run_train(search="uniform", max_steps=3)
    assert results_of(folder)["architecture"] == "ss"
    assert f"run python choose.py --run={Path('logs/supernet')}" in (
        folder / "training_log.log").read_text()
    run = TrainedRun(folder)
    for chosen in (lambda: run.architecture, lambda: run.network("found")):
        with pytest.raises(InputError, match="does not choose an architecture: run python choose"):
            chosen()


def test_fine_tuning_starts_from_the_weights_of_the_chosen_branches(run_train, search_run):
    run = TrainedRun(search_run)
    trained, _ = run.network()
    settings = tiny_settings(architecture=["dense", "attention"])
    model = build_network(settings, VOCAB_SIZE, static_shapes=False)
    take_weights(model, search_run, run.data)
    x, memory = tf.random.normal([1, 3, 8]), tf.random.normal([1, 6, 8])
    bias, context = tf.zeros([3, 9]), tf.concat([memory, x], axis=1)
    first, second = trained.blocks
    dense = first.norms["dense"](x + first.branches["dense"](x))
    attention = second.norms["attention"](x + second.branches["attention"](x, context, bias))
    assert np.array_equal(model.blocks[0](x)[0], dense)
    assert np.array_equal(model.blocks[1](x, memory=memory, bias=bias)[0], attention)
    assert np.array_equal(model.embedding.rows[0], trained.embedding.rows[0])
    assert np.array_equal(model.softmax.log_prob(x[0]), trained.softmax.log_prob(x[0]))

    tuned = run_train(model_name="tuned", init_from=str(search_run), max_steps=7)
    assert results_of(tuned)["architecture"] == results_of(search_run)["architecture"]
    scratch = run_train(model_name="scratch", architecture=str(search_run), max_steps=7)
    assert losses_of(tuned)[7] < losses_of(scratch)[7] - 0.3
    again = run_train(model_name="tuned", init_from=str(search_run), max_steps=9)  # resumes
    assert np.frombuffer(state_of(again)["step"], np.int64) == 9


def test_a_network_has_the_sizes_of_the_run_that_it_starts_from(search_run, data_dir):
    for number, (flag, given, d_model) in enumerate([
            ("architecture", [], 8), ("init_from", [], 8), ("architecture", ["--d_model=4"], 4)]):
        done = run_command(
            train, f"--{flag}={search_run}", f"--data_dir={data_dir}", "--max_steps=1",
            f"--model_name={number}", *given)
        assert done.returncode == 0, done.stderr
        flags = results_of(Path("logs") / str(number))["flags"]
        assert (flags["d_model"], flags["d_ffn"], flags["cutoffs"]) == (d_model, 16, [20, 60])
    done = run_command(
        train, f"--init_from={search_run}", f"--data_dir={data_dir}", "--d_model=4")
    assert "here: --init_from needs a network of the same sizes" in one_line(done)


def test_an_epoch_is_kept_though_no_text_can_be_written(run_train, tmp_path, monkeypatch):
    def fail(trainer):
        raise InputError("no text")

    monkeypatch.setattr(Trainer, "write_text", fail)
    with pytest.raises(InputError, match="no text"):
        run_train(max_steps=6)
    assert state_of(tmp_path / "logs" / "supernet")["step"] == np.int64(6).tobytes()


def test_a_tokenizer_that_does_not_load_is_noticed_before_the_training(
        run_train, tmp_path, monkeypatch):
    def fail():
        raise InputError("tensorflow-text does not load")

    monkeypatch.setattr(cli, "tensorflow_text", fail)
    with pytest.raises(InputError, match="tensorflow-text does not load"):
        run_train(max_steps=6, fresh=True)
    assert not (tmp_path / "logs").exists()


def test_an_infinite_metric_is_null_in_json(run_train, monkeypatch):
    monkeypatch.setattr(scoring, "exp", lambda nats: math.inf)
    results = (run_train(max_steps=3) / "results.json").read_text()
    assert "Infinity" not in results and json.loads(results)["valid"]["word_perplexity"] is None
