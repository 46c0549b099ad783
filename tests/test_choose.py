"""All subnetworks of a search, against each of them alone."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from commands import one_line, run_command
from conftest import train_in

import choose
import data_utils
from evaluate import evaluate_run
from layers import as_letters
from model import PARTransformerXL
from support.tokenization import PAD
from training.choices import ChoiceScorer, architectures, num_architectures
from training.scoring import filled_memory, window_nll
from training.trained_run import TrainedRun


def test_each_subnetwork_is_scored_as_the_network_with_only_these_layers(
    begun, data_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = TrainedRun(begun)
    search, _ = run.network()
    metadata = data_utils.read_metadata(data_dir)
    windows = list(data_utils.load_windows(data_dir, "valid", metadata).as_numpy_iterator())
    nll, targets = ChoiceScorer(search)(windows)
    assert targets == sum(np.sum(window[:, 1:] != PAD) for window in windows)
    names = [as_letters(kinds) for kinds in architectures(search)]
    assert sorted(names) == sorted(first + second for first in "adi" for second in "adi")
    assert num_architectures(search) == 9
    for name, found in zip(names, nll):
        single, _ = run.network(architecture=name)
        memory, total = single.empty_memory(metadata["batch_size"]), 0.0
        for number, window in enumerate(windows):
            filled = filled_memory(single, window, number)
            loss, memory = window_nll(single, tf.constant(window), memory, filled, tau=None)
            total += float(tf.reduce_sum(loss))
        assert found == pytest.approx(total, rel=1e-5)
    assert len(set(nll.round(3))) == 9


def test_the_choices_of_a_search_in_mixed_precision_are_scored():
    """As in float32, to the precision of bfloat16."""
    rng = np.random.default_rng(0)
    windows = [tf.constant(rng.integers(4, 30, [2, 9]), tf.int32) for _ in range(3)]
    losses = []
    for policy in ("mixed_bfloat16", "float32"):
        keras.config.set_dtype_policy(policy)
        search = PARTransformerXL(
            vocab_size=30, architecture=["search"] * 2, d_model=8, num_heads=2, d_ffn=16, mem_len=4)
        numbers = np.random.default_rng(1)
        for variable in search.trainable_variables:
            variable.assign(numbers.normal(0, 0.3, variable.shape))
        nll, targets = ChoiceScorer(search)(windows)
        assert targets == 3 * 2 * 8
        losses.append(nll)
    mixed, exact = losses
    assert mixed == pytest.approx(exact, rel=5e-3)
    assert len({*mixed, *exact}) == 2 * 9 - 1  # ii has nothing in bfloat16


def test_a_budget_names_the_best_subnetwork_within_it(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choose, "layer_latency", lambda *sizes: np.array([3.0, 2.0, 0.5]))
    monkeypatch.setattr(choose, "MOST_NUMBERS", 9 * 8 * 8 * 3)  # three rows, then one
    done = run_command(choose, "--run=logs/supernet", "--num_windows=3", "--budget_ms=3.6")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    path, = begun.glob("choices_step*.json")
    report = json.loads(path.read_text())
    choices = report["choices"]
    assert report["targets"] == 3 * 4 * 8 and report["text"] == "markov, valid"
    assert path.with_suffix(".png").is_file()
    cost = {"a": 3.0, "d": 2.0, "i": 0.5}
    for choice in choices:
        assert choice["ms_per_window"] == sum(cost[letter] for letter in choice["architecture"])
    within = [each for each in choices if each["ms_per_window"] <= 3.6]
    best = min(within, key=lambda each: each["loss"])["architecture"]
    assert 0 < len(within) < 9
    front = [line.split()[0] for line in done.stdout.splitlines()[1:] if line[2:4] == "  "]
    assert front.pop() == best and front
    for name in front:
        one, = (each for each in choices if each["architecture"] == name)
        assert not [each for each in choices if each["loss"] < one["loss"]
                    and each["ms_per_window"] <= one["ms_per_window"]]
    done = run_command(choose, "--run=logs/supernet", "--num_windows=1", "--budget_ms=0.9")
    assert "no subnetwork is within the budget: the lowest costs of any are 1.00 ms and 0.0" in (
        one_line(done))
    for choice in choices[:2]:
        evaluated = evaluate_run(TrainedRun(begun), architecture=choice["architecture"])
        assert choice["flops_per_token"] == pytest.approx(evaluated["flops_per_token"])


def test_the_printed_command_trains_the_subnetwork_from_the_weights_of_the_search(
    begun, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    done = run_command(choose, "--run=logs/supernet", "--num_windows=1", "--budget_mflops=9")
    name, flags_given = done.stdout.splitlines()[-3].split()[0], done.stdout.split("./train.sh ")[1]
    given = dict(flag.removeprefix("--").split("=") for flag in flags_given.split())
    assert given == {"model_name": f"supernet_{name}", "architecture": name,
                     "init_from": "logs/supernet"}
    tuned = train_in(tmp_path, data_dir=TrainedRun(begun).flags["data_dir"], max_steps=1,
                     max_lr=0.0, **given)
    single = evaluate_run(TrainedRun(begun), architecture=name)
    assert evaluate_run(TrainedRun(tuned))["loss"] == pytest.approx(single["loss"])


def test_a_huge_search_and_a_fixed_network_are_refused(begun, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choose, "num_architectures", lambda model: 3**32)
    done = run_command(choose, "--run=logs/supernet")
    assert "contains 1,853,020,188,851,841 subnetworks: at most 5,000 can be" in one_line(done)
    (tmp_path / "fixed").mkdir()
    fixed = train_in(tmp_path / "fixed", data_dir=str(data_dir), architecture="ad", max_steps=2)
    assert "architecture is fixed" in one_line(run_command(choose, f"--run={fixed}"))
