"""All subnetworks of a search, against each of them alone."""

import itertools
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
from training.choices import Budget, ChoiceScorer, architectures, evolve, num_architectures
from training.scoring import filled_memory, window_nll
from training.trained_run import TrainedRun


def report_of(run):
    path, = run.glob("choices_step*.json")
    return json.loads(path.read_text())


def test_each_subnetwork_is_scored_as_the_network_with_only_these_layers(
    begun, data_dir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run = TrainedRun(begun)
    search, _ = run.network()
    metadata = data_utils.read_metadata(data_dir)
    windows = list(data_utils.load_windows(data_dir, "valid", metadata).as_numpy_iterator())
    scored = []
    score = ChoiceScorer(search, windows, scored.append)
    losses = score(architectures(search))
    assert score.targets == sum(np.sum(window[:, 1:] != PAD) for window in windows)
    assert scored == [*range(1, 10)]
    assert score([("dense", "identity"), ("attention", "dense")]) == pytest.approx(losses[[5, 1]])
    names = [as_letters(kinds) for kinds in architectures(search)]
    assert sorted(names) == sorted(first + second for first in "adi" for second in "adi")
    assert num_architectures(search) == 9
    for name, found in zip(names, losses):
        single, _ = run.network(architecture=name)
        memory, total = single.empty_memory(metadata["batch_size"]), 0.0
        for number, window in enumerate(windows):
            filled = filled_memory(single, window, number)
            loss, memory = window_nll(single, tf.constant(window), memory, filled, tau=None)
            total += float(tf.reduce_sum(loss))
        assert found == pytest.approx(total / score.targets, rel=1e-5)
    assert len(set(losses.round(4))) == 9


def test_the_choices_of_a_search_in_mixed_precision_are_scored():
    """As by the search itself, and as in float32, to the precision of bfloat16."""
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
        score = ChoiceScorer(search, windows)
        assert score.targets == 3 * 2 * 8
        losses.append(score(architectures(search)))
        search.theta.assign(100 * np.eye(3)[[0, 1]])  # the mixture is attention, then dense
        memory, total = search.empty_memory(2), 0.0
        for number, window in enumerate(windows):
            filled = filled_memory(search, window, number)
            loss, memory = window_nll(search, window, memory, filled, tau=None)
            total += float(tf.reduce_sum(loss))
        assert losses[-1][1] == pytest.approx(total / score.targets, rel=1e-6)
    mixed, exact = losses
    assert mixed == pytest.approx(exact, rel=5e-3)
    assert len({*mixed, *exact}) == 2 * 9 - 1  # ii has nothing in bfloat16


def test_a_budget_names_the_best_subnetwork_within_it(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choose, "layer_latency", lambda *sizes: np.array([3.0, 2.0, 0.5]))
    done = run_command(choose, "--run=logs/supernet", "--num_windows=3", "--budget_ms=3.6")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    report = report_of(begun)
    choices = report["choices"]
    assert report["targets"] == 3 * 4 * 8 and report["text"] == "markov, valid"
    assert len(list(begun.glob("choices_step*.png"))) == 1
    cost = {"a": 3.0, "d": 2.0, "i": 0.5}
    for choice in choices:
        assert choice["ms_per_window"] == sum(cost[letter] for letter in choice["architecture"])
    within = [each for each in choices if each["ms_per_window"] <= 3.6]
    best = min(within, key=lambda each: each["loss"])["architecture"]
    assert 0 < len(within) < 9
    front, listed = [[line.split()[0] for line in part.splitlines() if line[2:4] == "  "]
                     for part in done.stdout.split("shortlist, the best within the budget")]
    assert listed[0] == best == report["shortlist"][0] and listed == report["shortlist"]
    assert len(listed) < len(within)  # ai and ia are the same network
    assert set(listed) <= {each["architecture"] for each in within} and front
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
    _, listed = done.stdout.split("shortlist, the best within the budget:\n")
    listed, flags_given = listed.split("./train.sh ")
    name = listed.split()[0]
    given = dict(flag.removeprefix("--").split("=") for flag in flags_given.split())
    assert given == {"model_name": f"supernet_{name}", "architecture": name,
                     "init_from": "logs/supernet",
                     "data_dir": TrainedRun(begun).flags["data_dir"]}
    tuned = train_in(tmp_path, max_steps=1, max_lr=0.0, **given)
    single = evaluate_run(TrainedRun(begun), architecture=name)
    assert evaluate_run(TrainedRun(tuned))["loss"] == pytest.approx(single["loss"])


def test_evolution_finds_the_best_of_all_subnetworks_within_a_budget():
    """Held against enumeration, on random losses of layers and pairs of neighbours."""
    kinds, cost = "adi", {"a": np.array([3, 1]), "d": np.array([2, 2]), "i": np.array([0, 0])}
    budget = Budget(cost, [11, np.inf])
    for seed in range(3):
        rng = np.random.default_rng(seed)
        of_layer, of_pair = rng.normal(size=[7, 3]), rng.normal(size=[7, 3, 3]) / 2

        def loss(choice):
            numbers = [kinds.index(kind) for kind in choice]
            return (sum(row[n] for row, n in zip(of_layer, numbers))
                    + sum(each[n] for each, n in zip(of_pair, zip(numbers, numbers[1:]))))

        found = evolve(lambda some: np.array([*map(loss, some)]), [kinds] * 7, budget, 300, seed)
        within = [each for each in itertools.product(kinds, repeat=7) if each in budget]
        assert len(found) == 300 < len(within) / 3 and set(found) <= set(within)
        assert min(found, key=found.get) == min(within, key=loss)
        assert all(found[each] == loss(each) for each in found)


def test_evolution_ends_when_the_budget_has_no_more_subnetworks():
    budget = Budget({"a": np.array([2.0]), "i": np.array([0.0])}, [3])
    found = evolve(lambda some: np.ones(len(some)), ["ai"] * 4, budget, 100, seed=0)
    assert sorted(map("".join, found)) == ["aiii", "iaii", "iiai", "iiia", "iiii"]


def test_beyond_the_given_number_of_subnetworks_some_are_scored(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    every = run_command(choose, "--run=logs/supernet", "--num_windows=2")
    losses = {each["architecture"]: each["loss"] for each in report_of(begun)["choices"]}
    done = run_command(choose, "--run=logs/supernet", "--num_windows=2", "--num_networks=4")
    assert "9 of 9 subnetworks" in every.stdout and "shortlist:\n" in every.stdout
    assert "4 of 9 subnetworks" in done.stdout
    some = {each["architecture"]: each["loss"] for each in report_of(begun)["choices"]}
    assert len(some) == 4 and some == {name: losses[name] for name in some}
    run_command(choose, "--run=logs/supernet", "--num_windows=2", "--num_networks=4", "--seed=1")
    assert some.keys() != {each["architecture"] for each in report_of(begun)["choices"]}


def test_a_fixed_network_is_refused(data_dir, tmp_path):
    fixed = train_in(tmp_path, data_dir=str(data_dir), architecture="ad", max_steps=2)
    assert "architecture is fixed" in one_line(run_command(choose, f"--run={fixed}"))
