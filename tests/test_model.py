"""The network and its layers, against the papers' formulas in plain numpy."""

import itertools
import math
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from slopes import slope

import model
from layers import KINDS
from layers.attention import RelativeAttention, score_bias
from layers.dense import FeedForward
from layers.draws import Draws
from layers.kind import Sizes
from layers.ops import layer_norm
from model import Block, PARTransformerXL

B, T, M, D, H, F, V = 2, 4, 3, 8, 2, 16, 30
C = M + T
SIZES = Sizes(D, H, F, M)
SEARCHED = {"attention": 0, "dense": 1, "identity": 2}  # and the places of their dropout


def randomised(layer, seed=0):
    """The layer with every weight drawn anew, so that no zero or one hides a mistake."""
    rng = np.random.default_rng(seed)
    for variable in layer.weights:
        variable.assign(rng.normal(size=variable.shape) * 0.4)
    return layer


def network(architecture, **settings):
    settings = dict(d_model=D, num_heads=H, d_ffn=F, mem_len=M, dropout_rate=0.0) | settings
    return randomised(PARTransformerXL(V, architecture, **settings))


def tokens(shape, seed=0):
    return tf.constant(np.random.default_rng(seed).integers(1, V, shape), tf.int32)


# --------------------------------------------------------------------------------------------------
# Relative attention


def plain_attention(weights, x, memory, filled, probabilities=None):
    """Dai et al. 2019, section 3.3, one query, head and key at a time, in float64.

    Fills `probabilities`, [H, B, T, C].
    """
    w_q, w_kv, w_r, w_o, u, v = weights
    w_k, w_v = w_kv[:, :D], w_kv[:, D:]
    width = D // H
    out = np.zeros([B, T, D])
    for b in range(B):
        context = np.concatenate([memory[b], x[b]])  # [C, D]
        for i in range(T):
            heads = []
            for h in range(H):
                part = slice(h * width, (h + 1) * width)
                q = (x[b, i] @ w_q)[part]
                scores, values = [], []
                for j in range(M - filled, M + i + 1):
                    distance = M + i - j
                    angles = [distance / 10_000 ** (2 * n / D) for n in range(D // 2)]
                    sinusoids = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                    r = (np.array(sinusoids) @ w_r)[part]
                    k = (context[j] @ w_k)[part]
                    scores.append(((q + u[part]) @ k + (q + v[part]) @ r) / math.sqrt(D / H))
                    values.append((context[j] @ w_v)[part])
                probability = np.exp(scores) / np.exp(scores).sum()
                if probabilities is not None:
                    probabilities[h, b, i, M - filled:M + i + 1] = probability
                heads.append(probability @ np.array(values))
            out[b, i] = np.concatenate(heads) @ w_o
    return out


@pytest.mark.parametrize("filled", [0, 2, M])
def test_attention_equals_the_double_loop_in_value_and_gradient(filled):
    attention = randomised(RelativeAttention(SIZES))
    rng = np.random.default_rng(1)
    x, direction = rng.normal(size=[2, B, T, D])
    memory = rng.normal(size=[B, M, D])
    arrays = [x, memory, *(variable.numpy().astype(float) for variable in attention.weights)]
    tensors = [tf.constant(x, tf.float32), tf.constant(memory, tf.float32)]
    bias = score_bias(T, M, filled)
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        context = tf.concat([tensors[1], tensors[0]], axis=1)
        y = attention(tensors[0], context, bias)
        loss = tf.reduce_sum(y * direction.astype(np.float32))
    probabilities = np.zeros([H, B, T, C])
    assert np.allclose(y, plain_attention(arrays[2:], x, memory, filled, probabilities), atol=1e-5)
    assert np.allclose(attention.attend(tensors[0], context, bias)[1], probabilities, atol=1e-5)
    for n, gradient in enumerate(tape.gradient(loss, [*tensors, *attention.weights])):
        def plain_loss(array):
            x, memory, *weights = [*arrays[:n], array, *arrays[n + 1:]]
            return (plain_attention(weights, x, memory, filled) * direction).sum()

        for _ in range(2):
            step = rng.normal(size=arrays[n].shape)
            expected = slope(plain_loss, arrays[n], step, 1e-6)
            assert np.sum(gradient * step) == pytest.approx(expected, rel=1e-4, abs=1e-3)


# --------------------------------------------------------------------------------------------------
# Blocks and their mixture


def plain_norm(x, scale, offset):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * scale + offset


def test_layer_norm_equals_the_formula_in_value_and_gradient():
    rng = np.random.default_rng(4)
    x, direction = rng.normal(2, 3, size=[2, 7, D])
    arrays = [x, *rng.normal(size=[2, D])]  # with scale and offset
    tensors = [tf.constant(array, tf.float32) for array in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        y = layer_norm(*tensors)
        loss = tf.reduce_sum(y * direction.astype(np.float32))
    assert np.allclose(y, plain_norm(*arrays), atol=1e-5)
    for n, gradient in enumerate(tape.gradient(loss, tensors)):
        def plain_loss(array):
            return (plain_norm(*arrays[:n], array, *arrays[n + 1:]) * direction).sum()

        for element in np.eye(arrays[n].size):
            step = element.reshape(arrays[n].shape)
            expected = slope(plain_loss, arrays[n], step, 1e-6)
            assert np.sum(gradient * step) == pytest.approx(expected, abs=1e-4)


def plain_dense(layer, x):
    """D -> F -> D with ReLU."""
    inner = np.maximum(x @ layer.inner_kernel.numpy() + layer.inner_bias.numpy(), 0)
    return inner @ layer.outer_kernel.numpy().T + layer.outer_bias.numpy()


@pytest.mark.parametrize("d_ffn", [1, 7, 16])
def test_dense_has_its_width_and_starts_as_glorot_says(d_ffn):
    random.seed(0)  # from which Keras draws the seeds of the kernels
    layer = FeedForward(Sizes(D, H, d_ffn, M))
    assert layer.count_params() == 2 * D * d_ffn + d_ffn + D
    kernels = [layer.inner_kernel.numpy(), layer.outer_kernel.numpy()]
    assert all(kernel.shape == (D, d_ffn) for kernel in kernels)
    assert len(np.unique(kernels)) == 2 * D * d_ffn  # none is drawn twice
    limit = math.sqrt(6 / (D + d_ffn))
    assert 0.3 * limit < np.abs(kernels).max() <= limit
    x = tf.random.stateless_normal([B, T, D], [1, 1])
    assert np.allclose(randomised(layer)(x), plain_dense(layer, x.numpy()), atol=1e-5)


def test_a_search_block_is_the_weighted_sum_of_its_branches():
    block = randomised(Block(SEARCHED, SIZES, 0.0))
    rng = np.random.default_rng(2)
    x, memory = rng.normal(size=[B, T, D]), rng.normal(size=[B, M, D])
    weights = [v.numpy().astype(np.float64) for v in block.branches["attention"].weights]
    outputs = {
        "attention": plain_attention(weights, x, memory, M),
        "dense": plain_dense(block.branches["dense"], x),
    }
    branches = [plain_norm(x + y, *block.norms[kind].get_weights()) for kind, y in outputs.items()]
    branches.append(x)
    for weights in ([0.2, 0.5, 0.3], [1, 0, 0], [0, 1, 0], [0, 0, 1]):
        y, new_memory = block(
            tf.constant(x, tf.float32), memory=tf.constant(memory, tf.float32),
            bias=score_bias(T, M, M), mixture=tf.constant(weights, tf.float32))
        assert np.allclose(new_memory, np.concatenate([memory, x], axis=1)[:, T:])
        assert np.allclose(y, sum(w * branch for w, branch in zip(weights, branches)), atol=2e-5)


def test_a_search_block_may_compute_a_single_layer():
    """It then equals a one-hot mixture, in value and gradient."""
    block = randomised(Block(SEARCHED, SIZES, 0.0))
    x, memory = (tf.random.stateless_normal([B, n, D], [1, n]) for n in (T, M))
    for number in range(3):
        results = []
        for mixture in (tf.constant(number), tf.one_hot(number, 3)):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y, new_memory = block(x, memory=memory, bias=score_bias(T, M, M), mixture=mixture)
            weights = [variable.value for variable in block.trainable_variables]
            gradients = tape.gradient(
                y, [x, *weights], unconnected_gradients=tf.UnconnectedGradients.ZERO)
            results.append([y, new_memory, *gradients])
        for one, other in zip(*results):
            assert np.allclose(one, other, atol=1e-5)


def test_every_branch_teaches_the_search():
    """The gradient of theta is the slope of the loss, by differences, through each weight."""
    net = network(["search"])
    arguments = {"tokens": tokens([B, T]), "memory": net.empty_memory(B), "filled": 0}

    def loss(theta=None):
        if theta is not None:
            net.theta.assign(theta)
        return tf.reduce_sum(net(**arguments)[0] ** 2) / 1000

    with tf.GradientTape() as tape:
        value = loss()
    gradient, theta = tape.gradient(value, net.theta).numpy()[0], net.theta.numpy()
    slopes = [slope(loss, theta, each, 1e-2) for each in np.eye(len(net.kinds), dtype=np.float32)]
    assert gradient == pytest.approx(np.array(slopes), rel=0.02)
    assert np.abs(gradient).min() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_block_is_its_branch_and_holds_nothing_else(kind):
    fixed = Block({kind: 0}, SIZES, 0.0)
    search = randomised(Block(dict.fromkeys(KINDS, 0), SIZES, 0.0))
    if kind != "identity":
        for part in ("branches", "norms"):
            getattr(fixed, part)[kind].set_weights(getattr(search, part)[kind].get_weights())
    x = tf.random.stateless_normal([B, T, D], [1, 1])
    memory = tf.random.stateless_normal([B, M, D], [2, 2])
    bias, one_hot = score_bias(T, M, M), tf.one_hot(list(KINDS).index(kind), len(KINDS))
    inputs = {"memory": memory, "bias": bias}
    assert np.allclose(fixed(x, **inputs)[0], search(x, **inputs, mixture=one_hot)[0], atol=1e-5)
    norm = 2 * D
    parameters = 2 * D * F + F + D if kind == "dense" else 5 * D * D + 2 * D
    assert fixed.count_params() == (0 if kind == "identity" else parameters + norm)


def test_dropout_zeroes_a_share_and_scales_the_rest():
    block = Block({"dense": 0}, SIZES, 0.25)
    block.branches["dense"].call, block.norms["dense"].call = tf.ones_like, lambda x, weight: x
    x = tf.zeros([50, 40, D])
    y = block(x, draws=Draws(0, 0))[0].numpy()
    assert set(np.unique(y.round(5))) == {0.0, np.float32(1 / 0.75).round(5)}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.015)


def test_embedding_dropout_is_of_the_input_of_the_first_block():
    net = network(["identity"], embedding_dropout=0.25)
    ids, memory = tokens([50, 40]), net.empty_memory(50)
    whole = net(ids, memory, filled=0)[0].numpy()  # [B, T, D]
    dropped = net(ids, memory, filled=0, draws=Draws(0, 0))[0].numpy()  # [B, T, D]
    kept = dropped != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.015)
    assert np.allclose(dropped[kept], whole[kept] / 0.75, rtol=1e-5)


# --------------------------------------------------------------------------------------------------
# Gumbel-Softmax and the random draws


def test_gumbel_softmax_chooses_with_the_probabilities_pi():
    theta = tf.constant([0.3, -1.0, 1.2])
    pi = np.exp(theta) / np.exp(theta).sum()
    samples = model.gumbel_softmax(theta, 0.5, Draws(3, 7).gumbel([40_000, 3]))
    share = np.bincount(tf.argmax(samples, axis=1), minlength=3) / 40_000
    assert np.allclose(share, pi, atol=0.01)
    assert np.allclose(tf.reduce_sum(samples, axis=1), 1, atol=1e-5)


def test_without_noise_a_sample_is_pi_to_the_power_of_the_inverse_temperature():
    theta = tf.constant([[0.3, -1.0, 1.2], [0.0, 0.0, 0.0]])
    pi = tf.nn.softmax(theta).numpy().astype(float)
    for tau in (1.0, 0.5, 0.01):
        expected = pi ** (1 / tau)
        expected /= expected.sum(axis=1, keepdims=True)
        assert np.allclose(model.gumbel_softmax(theta, tau), expected, atol=1e-6)


def test_straight_through_is_one_hot_forward_and_soft_backward():
    theta, noise = tf.constant([0.3, -1.0, 1.2]), tf.constant([0.9, 0.1, -0.5])
    gradients = []
    for straight_through in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(theta)
            w = model.gumbel_softmax(theta, 0.7, noise, straight_through)
            loss = tf.reduce_sum(w * [1.0, 2.0, 5.0])
        gradients.append(tape.gradient(loss, theta).numpy())
    assert w.numpy().tolist() == [1, 0, 0]
    assert np.allclose(*gradients) and np.abs(gradients[0]).max() > 0.1


def test_draws_depend_on_seed_step_place_and_replica_alone():
    def mask(seed, step, place, replica):
        draws = Draws(seed, tf.constant(step), tf.constant(replica))
        return draws.dropout_mask(place, [200], 0.5).numpy()

    assert np.array_equal(mask(1, 2, 3, 0), mask(1, 2, 3, 0))
    masks = [mask(*each) for each in itertools.product((1, 2), (1, 2, 3), (2, 3, 4), (0, 1))]
    for one, other in itertools.combinations(masks, 2):
        assert 0.3 < (one == other).mean() < 0.7
    gumbel = Draws(1, 2, 0).gumbel([5]).numpy()
    assert np.array_equal(gumbel, Draws(1, 2, 1).gumbel([5]))  # of one architecture
    assert not np.array_equal(gumbel, Draws(1, 3, 0).gumbel([5]))


def test_noise_for_each_row_is_a_replicas_part_of_what_one_alone_would_draw():
    alone = Draws(1, 2).gumbel_rows(6, [2, 3]).numpy()
    parts = [Draws(1, 2, replica, 3).gumbel_rows(2, [2, 3]).numpy() for replica in range(3)]
    assert alone.shape == (6, 2, 3) and len(np.unique(alone)) == 36
    assert np.array_equal(alone, np.concatenate(parts))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_dropout_of_shares_is_what_the_whole_batch_would_draw(jit_compile):
    @tf.function(jit_compile=jit_compile or None)
    def keep(share, shares):
        return Draws(3, 7, share, shares).dropout_mask(2, [12 // shares, 5, 8], 0.3)

    whole = keep(0, 1).numpy()
    for shares in (2, 3, 4):
        parts = [keep(share, shares) for share in range(shares)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_dropout_and_gumbel_noise_come_from_different_numbers():
    noise = Draws(1, 2).gumbel([2000]).numpy()
    kept = Draws(1, 2).dropout_mask(0, [4000], 0.5).numpy()
    for half in (kept[0::2], kept[1::2]):
        assert abs(np.corrcoef(noise, half)[0, 1]) < 0.1


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999999])
def test_dropout_keeps_its_share_of_any_number_of_elements(rate):
    kept = Draws(0, 0).dropout_mask(0, [101, 333], rate).numpy()
    assert kept.shape == (101, 333) and kept.mean() == pytest.approx(1 - rate, abs=0.01)
    assert rate > 0 or kept.all()


# --------------------------------------------------------------------------------------------------
# The network and its memory

ARCHITECTURES = [
    ["attention"] * 3,
    ["search", "dense", "attention"],
    ["search"] * 2,
    ["identity", "attention", "identity", "dense"],
]


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=", ".join)
def test_two_windows_with_memory_equal_one_long_window(architecture):
    x, net = tokens([B, 2 * T]), network(architecture, mem_len=T)
    nothing = tf.random.stateless_normal(net.empty_memory(B).shape, [1, 1])  # masked
    first, memory = net(x[:, :T], nothing, filled=0)
    second, _ = net(x[:, T:], memory, filled=T)
    whole, _ = net(x, nothing, filled=0)
    assert np.allclose(tf.concat([first, second], axis=1), whole, atol=1e-5)


def test_memory_is_each_attention_blocks_last_inputs():
    net = network(["attention", "dense", "search"])
    x, before = tokens([B, T]), tf.random.stateless_normal([2, B, M, D], [1, 1])
    _, memory = net(x, before, filled=M)
    assert memory.shape == [2, B, M, D] and np.allclose(memory[0], net.embed(x)[:, -M:])
    short = tokens([B, 2])
    _, after = net(short, memory, filled=M)
    assert np.allclose(after[0, :, :M - 2], memory[0, :, 2:])
    assert np.allclose(after[0, :, -2:], net.embed(short))


def test_memory_carries_no_gradient():
    net = network(["attention", "attention"])
    with tf.GradientTape() as tape:
        _, memory = net(tokens([B, T]), net.empty_memory(B), filled=0)
        loss = tf.reduce_sum(memory)
    assert all(gradient is None for gradient in tape.gradient(loss, net.trainable_variables))


@pytest.mark.parametrize("architecture, mem_len, shape", [
    (["dense", "identity"], M, [0, B, M, D]), (["attention", "search"], 0, [2, B, 0, D])],
    ids=["no attention", "no length"])
def test_a_network_without_memory_reads_a_window(architecture, mem_len, shape):
    net = network(architecture, mem_len=mem_len)
    hidden, memory = net(tokens([B, T]), net.empty_memory(B), filled=0)
    assert memory.shape == shape and hidden.shape == [B, T, D] and np.isfinite(hidden).all()


def test_pi_starts_uniform_and_is_one_hot_where_fixed():
    net = PARTransformerXL(V, ["search", "dense", "search"], d_model=D, num_heads=H, d_ffn=F)
    assert np.allclose(net.pi(), [[1 / 3] * 3, [0, 1, 0], [1 / 3] * 3])
    assert any(variable is net.theta for variable in net.trainable_variables)


@pytest.mark.parametrize("tied, factor", [(False, D**0.5), (True, D**0.25)])
def test_vectors_are_scaled_as_their_rows_need_it(tied, factor):
    net = network(["identity"], cutoffs=[20], proj_factor=1, tie_embeddings=tied)
    x = tokens([B, T])
    hidden, _ = net(x, net.empty_memory(B), filled=0)
    assert np.allclose(net.embed(x), net.embedding(x) * D**0.5, rtol=1e-6)
    assert np.allclose(hidden, net.embed(x) * factor, rtol=1e-6)


def test_tied_rows_start_near_the_unigram_distribution():
    counts = 10_000 / np.arange(1, 501)
    net = PARTransformerXL(500, ["dense"], d_model=64, num_heads=2, d_ffn=128, cutoffs=[50],
                           proj_factor=1, tie_embeddings=True)
    net.softmax.start_from(counts)
    targets = np.random.default_rng(0).choice(500, [1, 2000], p=counts / counts.sum())
    hidden, _ = net(tf.constant(targets), net.empty_memory(1), filled=0)
    nll = net.softmax(hidden[0, :-1], tf.constant(targets[0, 1:], tf.int32))
    entropy = -np.mean(np.log((counts / counts.sum())[targets[0, 1:]]))
    assert float(tf.reduce_mean(nll)) == pytest.approx(entropy, rel=0.1)


def test_weights_start_as_they_should():
    tied = PARTransformerXL(500, ["dense"], d_model=64, num_heads=2, tie_embeddings=True)
    assert np.std(tied.embedding.rows[0]) == pytest.approx(0.005, rel=0.05)
    net = PARTransformerXL(500, ["search"], d_model=64, num_heads=2, d_ffn=128)
    assert np.std(net.embedding.rows[0]) == pytest.approx(0.02, rel=0.05)
    attention = net.blocks[0].branches["attention"]
    for kernel in (attention.query, attention.key_value, attention.position,
                   attention.output_kernel):
        glorot = math.sqrt(2 / sum(kernel.shape))  # Glorot & Bengio 2010, equation 12
        assert np.std(kernel) == pytest.approx(glorot, rel=0.05)
    assert not np.any(attention.content_bias) and not np.any(attention.position_bias)


def test_every_weight_is_trained_and_has_a_gradient():
    net = network(["search", "attention", "dense", "identity"], cutoffs=[5, 15],
                  trainable_tau=1.0, dropout_rate=0.1)
    with tf.GradientTape() as tape:
        hidden, _ = net(tokens([B, T]), net.empty_memory(B), filled=0, draws=Draws(0, 0))
        loss = tf.reduce_sum(
            net.softmax(tf.reshape(hidden, [-1, D]), tf.constant([1, 2, 3, 6, 7, 16, 20, 29])))
    assert len(net.trainable_variables) == len(net.weights)
    gradients = tape.gradient(loss, net.trainable_variables)
    for variable, gradient in zip(net.trainable_variables, gradients):
        assert gradient is not None, variable.path
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 0, variable.path


def test_the_networks_own_samples_follow_temperature_noise_and_straight_through():
    soft, hard = network(["search"] * 3), network(["search"] * 3, straight_through=True)
    noise = Draws(0, 5).gumbel([3, 3])
    for tau in (0.3, 1.0):
        expected = model.gumbel_softmax(soft.theta, tau, noise)
        assert np.allclose(soft.sample(tau, Draws(0, 5)), expected)
    assert set(np.unique(hard.sample(1.0, Draws(0, 5)))) == {0, 1}
    assert np.unique(noise).size == 9  # every block has its own
    assert np.allclose(soft.sample(1.0, None), soft.pi()[:3], atol=1e-6)


def test_a_sample_for_each_row_mixes_each_row_by_itself():
    net, shared = (network(["search", "dense", "search"], gumbel_per_row=per_row)
                   for per_row in (True, False))
    x, draws = tokens([B, T]), Draws(0, 5)
    samples = net.sample(0.7, draws, rows=B)  # [B, S, K]
    assert samples.shape == (B, 2, 3) and np.ptp(samples, axis=0).min() > 1e-3
    hidden, memory = net(x, net.empty_memory(B), filled=0, tau=0.7, draws=draws)
    for row in range(B):
        shared.sample = lambda *arguments, **named: samples[row]
        alone, alone_memory = shared(
            x[row:row + 1], shared.empty_memory(1), filled=0, tau=0.7, draws=draws)
        assert np.allclose(hidden[row], alone[0], atol=1e-5)
        assert np.allclose(memory[:, row], alone_memory[:, 0], atol=1e-5)


def test_every_place_in_the_network_has_its_own_dropout():
    masks = []

    class Recorder(Draws):
        def dropout_mask(self, *arguments):
            masks.append(super().dropout_mask(*arguments))
            return masks[-1]

    net = network(["search", "search"], dropout_rate=0.5, embedding_dropout=0.5)
    net(tokens([B, T]), net.empty_memory(B), filled=0, draws=Recorder(0, 0))
    assert len(masks) == 5
    for one, other in itertools.combinations([mask.numpy() for mask in masks], 2):
        assert 0.2 < (one == other).mean() < 0.8


def test_a_trainable_temperature_replaces_the_given_one():
    fixed, trained = network(["search"]), network(["search"], trainable_tau=0.5)
    fresh = PARTransformerXL(V, ["search"], d_model=D, num_heads=H, d_ffn=F, trainable_tau=0.5)
    assert float(fresh.temperature(9.0)) == pytest.approx(0.5)
    trained.log_tau.assign(math.log(0.25))
    assert float(trained.temperature(9.0)) == pytest.approx(0.25) and fixed.temperature(9.0) == 9.0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_bfloat16_computes_in_bfloat16_and_scores_in_float32(jit_compile):
    settings = {"cutoffs": [5, 15], "static_shapes": jit_compile}
    full = network(["search"], **settings)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = network(["search"], **settings)
    finally:
        keras.config.set_dtype_policy("float32")
    losses = []
    for net in (full, half):

        @tf.function(jit_compile=jit_compile or None)
        def loss(x):
            hidden, memory = net(x, net.empty_memory(B), filled=0)
            nll = net.softmax(tf.reshape(hidden, [-1, D]), tf.reshape(x, [-1]))
            return hidden, memory, tf.reduce_mean(nll)

        hidden, memory, nll = loss(tokens([B, T]))
        assert memory.dtype == net.compute_dtype and hidden.dtype == nll.dtype == tf.float32
        losses.append(float(nll))
    assert half.compute_dtype == "bfloat16"
    assert all(variable.dtype == "float32" for variable in half.weights)
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_a_compiled_gradient_equals_the_graph_mode_one():
    results, settings = [], {"cutoffs": [5, 15], "dropout_rate": 0.2}
    for jit_compile in (False, True):
        net = network(["search"], static_shapes=jit_compile, **settings)

        @tf.function(jit_compile=jit_compile or None)
        def gradients(x, memory):
            with tf.GradientTape() as tape:
                hidden, _ = net(x, memory, filled=2, draws=Draws(0, 3))
                nll = net.softmax(tf.reshape(hidden, [-1, D]), tf.reshape(x, [-1]))
                loss = tf.reduce_mean(nll)
            slopes = tape.gradient(loss, net.trainable_variables)
            return [loss, *(tf.convert_to_tensor(slope) for slope in slopes)]

        memory = tf.random.stateless_normal([1, B, M, D], [1, 1])
        results.append(gradients(tokens([B, T]), memory))
    for one, other in zip(*results):
        assert np.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("settings, message", [
    (dict(architecture=["search", "pooling"]),
     f"unknown layer type 'pooling': choose from {', '.join(KINDS)}"),
    (dict(architecture=["search"], d_model=10, num_heads=4),
     "d_model=10 is not divisible by num_heads=4"),
    (dict(architecture=["search"], cutoffs=[V]), "cutoffs")])
def test_networks_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PARTransformerXL(V, **settings)
