"""A fourth layer type, added as CONTRIBUTING.md says: one class, one line."""

import re

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from chaos import events_of
from conftest import results_of, tiny_settings
from test_docs import example

import layers
import train
from layers.kind import Sizes
from model import PARTransformerXL
from support import pictures
from support.errors import InputError
from training import costs
from training.latency import layer_latency
from training.trained_run import TrainedRun

WIDTH = 3  # positions that the convolution of CONTRIBUTING.md sees


@pytest.fixture(autouse=True)
def four_kinds(monkeypatch):
    """The class and line of CONTRIBUTING.md are in force."""
    monkeypatch.setitem(layers.KINDS, "convolution", None)  # so that it is removed afterwards
    exec(example("CONTRIBUTING.md", "How to add"), vars(layers) | {"tf": tf})


def test_a_search_weighs_it(run_train, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "architecture_heat_map", lambda pi, kinds, title: drawn.append(
        (np.shape(pi), kinds)) or np.zeros([9, 9, 3], np.uint8))
    folder = run_train(max_steps=6, log_every=3, latency_weight=0.1, fresh=True)
    results = results_of(folder)
    assert np.shape(results["pi"]) == (2, 4) and np.ptp(results["pi"]) > 0
    assert np.allclose(np.sum(results["pi"], axis=1), 1)
    assert events_of(folder / "train")[0]["pi/convolution_blocks"].keys() == {3, 6}
    assert drawn[-1] == ((2, 4), ["attention", "dense", "identity", "convolution"])
    log = (folder / "training_log.log").read_text()
    times = "".join(rf" {kind} \d+\.\d\d,?" for kind in layers.KINDS)
    assert re.search(f"milliseconds per window:{times}\n", log)


def test_a_fixed_network_has_it_and_carries_its_memory(run_train):
    folder = run_train(architecture="ca", max_steps=40, log_every=10, fresh=True)
    losses = events_of(folder / "train")[0]["metrics/loss"]
    assert results_of(folder)["architecture"] == "ca" and losses[40] < losses[10]
    net = PARTransformerXL(30, ["convolution", "identity"], d_model=8, num_heads=2, mem_len=4)
    tokens = tf.constant(np.random.default_rng(0).integers(4, 30, [2, 8]), tf.int32)
    nothing = tf.random.normal(net.empty_memory(2).shape)  # masked, whatever it holds
    whole, _ = PARTransformerXL.call(net, tokens, nothing, filled=0)
    first, memory = net(tokens[:, :4], nothing, filled=0)
    second, _ = net(tokens[:, 4:], memory, filled=4)
    assert np.allclose(tf.concat([first, second], axis=1), whole, atol=1e-5)
    changed = tf.concat([tokens[:, :7], (tokens[:, 7:] + 1) % 30], axis=1)
    later, _ = net(changed, nothing, filled=0)
    assert np.allclose(later[:, :7], whole[:, :7]) and not np.allclose(later[:, 7], whole[:, 7])


def test_a_random_architecture_may_have_it():
    drawn = set()
    for seed in range(9):
        with flagsaver.flagsaver(architecture="random", num_layers=9, seed=seed):
            drawn |= set(train.architecture(None))
    assert drawn == {"attention", "dense", "identity", "convolution"}


def test_its_costs_and_its_time_count():
    arguments = tiny_settings(architecture=["dense", "convolution"]).network_arguments(30)
    both = PARTransformerXL(**arguments | {"cutoffs": []})
    dense = PARTransformerXL(**arguments | {"cutoffs": [], "architecture": ["dense"]})
    certain = np.eye(30)[0]
    added = costs.flops(both, 4, 8, certain) - costs.flops(dense, 4, 8, certain)
    assert added == 2 * 4 * 8 * WIDTH * 8 * 8
    assert layer_latency(Sizes(16, 2, 32, 8), 2, 8, jit_compile=False).shape == (4,)


@pytest.mark.parametrize("letter, other", [("d", "dense"), ("s", "search")])
def test_two_kinds_do_not_share_a_letter(letter, other, monkeypatch):
    assert layers.letters() == {
        "a": "attention", "d": "dense", "i": "identity", "c": "convolution", "s": "search"}
    monkeypatch.setattr(layers.KINDS["convolution"], "letter", letter)
    with pytest.raises(ValueError, match=f"convolution and {other} have the same letter, {letter}"):
        layers.letters()


def test_a_search_among_other_kinds_is_not_mistaken_for_one_among_these(search_run):
    message = "searched among attention, dense, identity, but layers.KINDS has .*, convolution"
    with pytest.raises(InputError, match=message):
        TrainedRun(search_run).network()
