"""What the recipes measure, against numbers that are known."""

import json

import numpy as np
import pytest
import tensorflow as tf
from commands import one_line, run_command

import choose
import data_utils
import evaluate
from recipes import pi_gradient, rank_correlation
from training.trained_run import TrainedRun


def test_the_size_of_a_gradient_is_told_apart_from_its_noise():
    rng = np.random.default_rng(0)
    for size in (0.0, 0.3, 2.0):
        gradients = size + rng.normal(size=[20, 6000, 3])  # few windows, many entries
        found, noise, moved = pi_gradient.size_noise_and_step(gradients)
        assert found == pytest.approx(size, abs=0.03) and noise == pytest.approx(1, abs=0.03)
        assert moved == pytest.approx(size / np.hypot(size, 1), abs=0.03)


def test_each_temperature_is_measured_with_one_draw_and_with_one_for_each_row(
    search_run, monkeypatch
):
    monkeypatch.chdir(search_run.parent.parent)
    done = run_command(pi_gradient, "--run=logs/supernet", "--num_windows=4", "--tau=1", "--tau=.1")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [line[0] for line in lines] == ["1.00", "1.00", "0.10", "0.10"]
    assert len({line[-2] for line in lines}) == 4


def test_the_gradient_of_theta_is_that_of_finite_differences(search_run, data_dir):
    """At two thetas nearby, with the same draws."""
    model, _ = TrainedRun(search_run).network()
    metadata = data_utils.read_metadata(data_dir)
    windows = list(data_utils.load_windows(data_dir, "train", metadata).take(2).as_numpy_iterator())
    found = pi_gradient.theta_gradients(model, windows, tau=0.7)
    theta, losses = model.theta.numpy(), []
    for change in (-0.01, 0.01):
        moved = theta.copy()
        moved[1, 0] += change
        model.theta.assign(moved)
        draws = pi_gradient.Draws(0, tf.constant(0))
        nll, _ = pi_gradient.window_nll(
            model, tf.constant(windows[0]), model.empty_memory(len(windows[0])), 0, 0.7, draws)
        losses.append(float(tf.reduce_mean(nll)))
    assert found[0, 1, 0] == pytest.approx((losses[1] - losses[0]) / 0.02, rel=0.02, abs=1e-5)


def test_the_rank_correlation_is_that_of_the_squared_distances():
    """Spearman 1904: without equal ranks it is 1 - 6 sum d^2 / (P (P^2 - 1))."""
    rng = np.random.default_rng(0)
    for P in (3, 4, 20):
        for _ in range(5):
            x, y = rng.normal(size=[2, P])
            squared = 0
            for one, other in zip(x, y):
                squared += (np.sum(x < one) - np.sum(y < other))**2
            expected = 1 - 6 * squared / (P * (P**2 - 1))
            assert rank_correlation.spearman(x, y) == pytest.approx(expected)


def test_networks_within_a_search_are_ranked_beside_those_trained_alone(
    begun, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command = ("--search=logs/supernet", "--run=logs/supernet")
    lacking = one_line(run_command(rank_correlation, *command))
    assert "python choose.py --run=logs/supernet" in lacking
    assert run_command(choose, "--run=logs/supernet").returncode == 0
    lacking = one_line(run_command(rank_correlation, *command))
    assert "python evaluate.py --run=logs/supernet" in lacking
    for name in ("aa", "di"):
        assert run_command(evaluate, command[1], f"--architecture={name}").returncode == 0
    assert "three networks or more" in one_line(run_command(rank_correlation, *command))
    assert run_command(evaluate, command[1], "--architecture=ad").returncode == 0
    done = run_command(rank_correlation, *command)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert sorted(line[0] for line in lines[1:4]) == ["aa", "ad", "di"], done.stderr
    path, = begun.glob("choices_step*.json")
    choices = {choice["architecture"]: choice for choice in json.loads(path.read_text())["choices"]}
    last = 0
    for name, alone, within in lines[1:4]:
        path, = begun.glob(f"evaluation_valid_{name}_*.json")
        assert float(alone) == round(json.loads(path.read_text())["loss"], 4) > last
        assert float(within) == round(choices[name]["loss"], 4)
        last = float(alone)
    assert done.stdout.endswith("correlation of 3 networks: 1.000\n")
    assert run_command(evaluate, command[1]).returncode == 0  # the mixture, ss
    assert "does not contain ss" in one_line(run_command(rank_correlation, *command))
