"""The layer types beside those of the paper, and one added as CONTRIBUTING.md says."""

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
from layers import attention
from layers.kind import Sizes
from model import PARTransformerXL
from support import pictures
from support.errors import InputError
from training import costs
from training.latency import layer_latency
from training.trained_run import TrainedRun

WIDTH = 3  # positions that the convolution of CONTRIBUTING.md sees


KINDS = ["attention", "dense", "identity", "convolution"]


@pytest.fixture(autouse=True)
def convolution(monkeypatch):
    """The class and line of CONTRIBUTING.md are in force."""
    monkeypatch.setitem(layers.KINDS, "convolution", None)  # so that it is removed afterwards
    exec(example("CONTRIBUTING.md", "How to add"), vars(layers) | {"tf": tf})


def test_a_search_weighs_it(run_train, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "architecture_heat_map", lambda pi, kinds, title: drawn.append(
        (np.shape(pi), kinds)) or np.zeros([9, 9, 3], np.uint8))
    folder = run_train(max_steps=6, log_every=3, latency_weight=0.1, kinds=KINDS, fresh=True)
    results = results_of(folder)
    assert np.shape(results["pi"]) == (2, 4) and np.ptp(results["pi"]) > 0
    assert np.allclose(np.sum(results["pi"], axis=1), 1)
    assert events_of(folder / "train")[0]["pi/convolution_blocks"].keys() == {3, 6}
    assert drawn[-1] == ((2, 4), KINDS) and results["kinds"] == KINDS
    log = (folder / "training_log.log").read_text()
    times = "".join(rf" {kind} \d+\.\d\d,?" for kind in KINDS)
    assert re.search(f"milliseconds per window:{times}\n", log)


def test_a_fixed_network_has_it(run_train):
    folder = run_train(architecture="ca", max_steps=40, log_every=10, fresh=True)
    losses = events_of(folder / "train")[0]["metrics/loss"]
    assert results_of(folder)["architecture"] == "ca" and losses[40] < losses[10]


@pytest.mark.parametrize("kind", ["convolution", "local"])
def test_it_is_causal_and_carries_its_memory(kind, monkeypatch):
    monkeypatch.setattr(attention, "REACH", 3)
    net = PARTransformerXL(30, [kind, "identity"], d_model=8, num_heads=2, mem_len=4)
    tokens = tf.constant(np.random.default_rng(0).integers(4, 30, [2, 8]), tf.int32)
    nothing = tf.random.normal(net.empty_memory(2).shape)  # masked, whatever it holds
    whole, _ = PARTransformerXL.call(net, tokens, nothing, filled=0)
    first, memory = net(tokens[:, :4], nothing, filled=0)
    second, _ = net(tokens[:, 4:], memory, filled=4)
    assert np.allclose(tf.concat([first, second], axis=1), whole, atol=1e-5)
    changed = tf.concat([tokens[:, :7], (tokens[:, 7:] + 1) % 30], axis=1)
    later, _ = net(changed, nothing, filled=0)
    assert np.allclose(later[:, :7], whole[:, :7]) and not np.allclose(later[:, 7], whole[:, 7])


@pytest.mark.parametrize("seq_len, mem_len", [(6, 6), (7, 2), (2, 9), (9, 0)])
def test_local_attention_is_attention_with_what_is_far_masked(seq_len, mem_len, monkeypatch):
    monkeypatch.setattr(attention, "REACH", 3)
    sizes, rng = Sizes(8, 2, 16, mem_len), np.random.default_rng(0)
    local, whole = attention.LocalAttention(sizes), attention.RelativeAttention(sizes)
    for mine, theirs in zip(local.weights, whole.weights, strict=True):
        for variable in (mine, theirs):
            variable.assign(np.random.default_rng(mine.shape[0]).normal(size=mine.shape))
    context = tf.constant(rng.normal(size=[2, mem_len + seq_len, 8]), tf.float32)
    bias = attention.score_bias(seq_len, mem_len, filled=min(mem_len, 4)).numpy()
    far = bias.copy()
    for i in range(seq_len):
        far[i, :max(0, mem_len + i - 2)] = attention.MASKED  # of the last three, the third is i - 2
    x = context[:, mem_len:]
    assert np.allclose(local(x, context, bias), whole(x, context, far), atol=1e-5)
    assert not np.allclose(local(x, context, bias), whole(x, context, bias), atol=1e-2)


def test_a_random_architecture_may_have_it():
    drawn = set()
    for seed in range(9):
        with flagsaver.flagsaver(architecture="random", num_layers=9, seed=seed, kinds=KINDS):
            drawn |= set(train.architecture(None))
    assert drawn == {*KINDS}


def test_its_costs_and_its_time_count():
    arguments = tiny_settings(architecture=["dense", "convolution"]).network_arguments(30)
    both = PARTransformerXL(**arguments | {"cutoffs": []})
    dense = PARTransformerXL(**arguments | {"cutoffs": [], "architecture": ["dense"]})
    certain = np.eye(30)[0]
    added = costs.flops(both, 4, 8, certain) - costs.flops(dense, 4, 8, certain)
    assert added == 2 * 4 * 8 * WIDTH * 8 * 8
    assert layer_latency(KINDS, Sizes(16, 2, 32, 8), 2, 8, jit_compile=False).shape == (4,)


@pytest.mark.parametrize("letter, other", [("d", "dense"), ("s", "search")])
def test_two_kinds_do_not_share_a_letter(letter, other, monkeypatch):
    assert layers.letters()["c"] == "convolution"
    monkeypatch.setattr(layers.KINDS["convolution"], "letter", letter)
    with pytest.raises(ValueError, match=f"convolution and {other} have the same letter, {letter}"):
        layers.letters()


def test_a_run_with_a_layer_type_that_is_gone_is_refused(run_train, monkeypatch):
    folder = run_train(max_steps=2, kinds=KINDS, fresh=True)
    monkeypatch.delitem(layers.KINDS, "convolution")
    with pytest.raises(InputError, match="type 'convolution', but layers.KINDS has only attention"):
        TrainedRun(folder).network()
