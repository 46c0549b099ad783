"""What the recipes measure, against numbers that are known."""

import numpy as np
import pytest
import tensorflow as tf
from commands import run_command

import data_utils
from recipes import pi_gradient
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
