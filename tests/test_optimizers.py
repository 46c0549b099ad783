"""How far a variable moves: optimizers, clipping and schedules, against plain formulas."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_settings

from support.errors import InputError
from training.optimizers import (
    FusedAdam,
    build_optimizer,
    learning_rate_schedule,
    tau_schedule,
    trains_architecture,
)


def ones(*shape):
    return keras.Variable(np.ones(shape), dtype="float32")


def plain_adam(weight, gradients, rates):
    """Kingma & Ba 2014, algorithm 1, in float64."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, (gradient, rate) in enumerate(zip(gradients, rates), 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weight = weight - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    return weight


def test_fused_adam_is_adam():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=[5, 3]), rng.normal(size=[6, 5, 3])
    variable = keras.Variable(start, dtype="float32")
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    optimizer = FusedAdam(learning_rate=schedule)
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
    expected = plain_adam(start, gradients, [float(schedule(step)) for step in range(6)])
    assert np.allclose(variable.numpy(), expected, atol=1e-5)
    assert not np.allclose(start, expected, atol=0.1)


@pytest.mark.parametrize("name, kind", [
    ("adam", FusedAdam), ("sgd", keras.optimizers.SGD), ("lion", keras.optimizers.Lion)])
def test_the_name_says_the_optimizer(name, kind):
    optimizer = build_optimizer(tiny_settings(opt_name=name), "weights", lambda: 0.1, [])
    assert isinstance(optimizer, kind) and optimizer.name == "weights"


def test_an_optimizer_that_keras_lacks_is_refused():
    with pytest.raises(InputError, match="--opt_name=x: Keras has no such optimizer"):
        build_optimizer(tiny_settings(opt_name="x"), "weights", lambda: 0.1, [])


@pytest.mark.parametrize("opt_name", ["adam", "rmsprop", "sgd"])
@pytest.mark.parametrize("name, left", [("weights", 0.98**2), ("architecture", 1.0)])
def test_weight_decay_shrinks_matrices_of_weights_alone(opt_name, name, left):
    matrix, bias = ones(2, 3), ones(3)
    settings = tiny_settings(opt_name=opt_name, weight_decay=0.2)
    optimizer = build_optimizer(settings, name, lambda: 0.1, [matrix, bias])
    for _ in range(2):
        optimizer.apply([tf.zeros([2, 3]), tf.zeros([3])], [matrix, bias])
    assert np.allclose(matrix.numpy(), left)
    assert np.all(bias.numpy() == 1)


@pytest.mark.parametrize("clip, moved", [
    ({}, [3.0, -4.0]), ({"clipnorm": 0.5}, [0.3, -0.4]), ({"clipnorm": 9.0}, [3.0, -4.0])], ids=str)
def test_gradients_are_clipped(clip, moved):
    variable, settings = keras.Variable([0.0, 0.0]), tiny_settings(opt_name="sgd", **clip)
    optimizer = build_optimizer(settings, "weights", lambda: 0.1, [variable])
    optimizer.apply([tf.constant([3.0, -4.0])], [variable])
    assert np.allclose(variable.numpy(), -0.1 * np.array(moved))


def test_learning_rate_at_its_corners():
    schedule = learning_rate_schedule(1e-3, 100, 1100)
    quarter = 1e-3 * (1 + math.cos(math.pi / 4)) / 2
    for step, expected in [(0, 0), (50, 5e-4), (100, 1e-3), (600, 5e-4), (1100, 0), (350, quarter)]:
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert float(learning_rate_schedule(1e-3, 0, 10)(0)) == pytest.approx(1e-3)
    shorter_than_its_warm_up = learning_rate_schedule(1e-3, 4000, 40)
    assert float(shorter_than_its_warm_up(40)) == pytest.approx(1e-5)


def test_temperature_at_its_corners():
    tau_at = tau_schedule(1.0, 0.1, 1000)
    for step, expected in [(0, 1.0), (500, 10**-0.5), (1000, 0.1)]:
        assert float(tau_at(tf.constant(step))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.2, 1 / 3, 0.7])
def test_the_share_of_the_architecture_is_kept_and_spread(share):
    turns = [trains_architecture(step, 10, share) for step in range(310)]
    assert not any(turns[:10]) and sum(turns) == math.floor(300 * share + 1e-9)
    gaps = np.diff(np.flatnonzero(turns))
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
