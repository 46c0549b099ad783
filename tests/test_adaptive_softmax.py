"""Adaptive input and adaptive softmax, against loops in float64."""

import numpy as np
import pytest
import tensorflow as tf
from slopes import slope

from adaptive_softmax import AdaptiveSoftmax, ClusterTable, linear_cross_entropy
from cutoffs import clusters_of

D, V = 16, 50


def plain_log_prob(layer, hidden):
    """The factorisation in float64 numpy, id by id: log-probabilities [N, V]."""
    weights = {variable.name: variable.numpy().astype(np.float64) for variable in layer.weights}

    def log_softmax(x, rows, bias):
        logits = x @ rows.T + bias
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    rows = np.concatenate([weights["rows_0"], weights.get("entries", np.zeros([0, D]))])
    head = log_softmax(hidden, rows, weights["bias_0"])
    result = np.zeros([len(hidden), V])
    result[:, : layer.head_size] = head[:, : layer.head_size]
    for i, (first, end, width) in enumerate(layer.tails, 1):
        projection = weights[f"projection_{i}"] if width < D else np.eye(D)
        tail = log_softmax(hidden @ projection.T, weights[f"rows_{i}"], weights[f"bias_{i}"])
        for y in range(first, end):
            result[:, y] = head[:, layer.head_size + i - 1] + tail[:, y - first]
    return result


def plain_vectors(table, ids):
    """The vectors of ids [N], one id at a time: float64 [N, D]."""
    weights = {variable.name: variable.numpy().astype(np.float64) for variable in table.weights}
    vectors = []
    for y in ids:
        (i, (first, _, width)), = [
            (i, each) for i, each in enumerate(table.clusters) if each.first <= y < each.end]
        row = weights[f"rows_{i}"][y - first]
        vectors.append(row if width == D else row @ weights[f"projection_{i}"])
    return np.array(vectors)


def build(cutoffs, **settings):
    layer = AdaptiveSoftmax(D, V, cutoffs, **settings)
    rng = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(rng.normal(size=variable.shape) * 0.5)
    return layer


CASES = [
    dict(cutoffs=[]),
    dict(cutoffs=[5]),
    dict(cutoffs=[10, 25]),
    dict(cutoffs=[1, 2, 49], proj_factor=2),
    dict(cutoffs=[10, 25], proj_factor=3),
    dict(cutoffs=[10, 25], proj_factor=1),
]


def assert_is_the_plain_softmax(layer, targets):
    """Value, and gradients of hidden vectors and weights, are those of the softmax over V ids."""
    x = tf.random.stateless_normal([len(targets), D], [1, 2])
    log_prob = plain_log_prob(layer, x.numpy())
    assert np.allclose(np.exp(log_prob).sum(axis=1), 1)
    assert np.allclose(layer.log_prob(x), log_prob, atol=1e-5)

    def through_log_prob(x, targets):  # by plain operations of TensorFlow
        return -tf.gather(layer.log_prob(x), targets, axis=1, batch_dims=1)

    gradients = []
    for function in (layer, through_log_prob):
        with tf.GradientTape() as tape:
            tape.watch(x)
            nll = function(x, tf.constant(targets, tf.int32))
        assert nll.dtype == tf.float32
        assert np.allclose(nll, -log_prob[range(len(targets)), targets], atol=1e-5)
        sources = [x, *layer.trainable_variables]
        gradients.append(tape.gradient(nll, sources, unconnected_gradients="zero"))
    for source, gradient, expected in zip(sources, *gradients):
        assert np.allclose(
            tf.convert_to_tensor(gradient), expected, atol=1e-4), getattr(source, "path", "hidden")


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_value_and_gradient_equal_the_plain_softmax_that_it_factorises(settings, static_shapes):
    rng = np.random.default_rng(1)
    targets = np.concatenate([rng.integers(0, V, 30), rng.integers(0, 4, 30)])
    assert_is_the_plain_softmax(build(**settings, static_shapes=static_shapes), targets)


@pytest.mark.parametrize("targets", [[0, 1, 2], [11, 12, 24], [25, 49, 30]],
                         ids=["no tail", "only the first", "only the second"])
def test_a_tail_without_tokens(targets):
    assert_is_the_plain_softmax(build([10, 25]), targets)


@pytest.mark.parametrize(
    "shape, scale", [([5, 4, 7], 1), ([5, 4, 7], 100), ([0, 4, 7], 1), ([5, 4, 1], 1)], ids=str)
def test_linear_cross_entropy_and_its_gradient_are_exact_for_any_logits(shape, scale):
    n, inputs, outputs = shape
    rng = np.random.default_rng(5)
    x, dy = rng.normal(size=[n, inputs]), rng.normal(size=n)
    rows, bias = scale * rng.normal(size=[outputs, inputs]), scale * rng.normal(size=outputs)
    labels = rng.integers(0, outputs, n)
    logits = x @ rows.T + bias
    highest = logits.max(axis=1, keepdims=True)
    p = np.exp(logits - highest)
    normaliser = p.sum(axis=1, keepdims=True)
    value = (highest + np.log(normaliser))[:, 0] - logits[range(n), labels]
    d_logits = (p / normaliser - np.eye(outputs)[labels]) * dy[:, None]
    assert scale == 1 or value.max() > 200  # where exp would overflow

    tensors = [tf.constant(each, tf.float32) for each in (x, rows, bias)]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        nll = linear_cross_entropy(*tensors, tf.constant(labels, tf.int32))
    gradients = tape.gradient(nll, tensors, tf.constant(dy, tf.float32))
    assert np.allclose(nll, value, rtol=1e-5, atol=1e-5)
    assert np.allclose(gradients[0], d_logits @ rows, rtol=1e-4, atol=1e-5 * scale)
    assert np.allclose(gradients[1], d_logits.T @ x, atol=1e-4)
    assert np.allclose(gradients[2], d_logits.sum(axis=0), atol=1e-4)


@pytest.mark.parametrize("cutoffs", [[], [10, 25]])
def test_it_can_start_at_the_unigram_distribution_whatever_the_hidden_vector(cutoffs):
    layer = AdaptiveSoftmax(D, V, cutoffs)
    counts = np.random.default_rng(3).integers(0, 1000, V)
    layer.start_from(counts)
    log_prob = layer.log_prob(tf.random.stateless_normal([7, D], [1, 2])).numpy()
    assert np.allclose(np.exp(log_prob), (counts + 1) / (counts + 1).sum(), rtol=1e-5)


@pytest.mark.parametrize("static_shapes", [False, True])
def test_static_shapes_have_no_size_that_depends_on_the_tokens(static_shapes):
    layer = build([10, 25], static_shapes=static_shapes)
    graph = tf.function(layer).get_concrete_function(
        tf.TensorSpec([9, D]), tf.TensorSpec([9], tf.int32)).graph
    outputs = [output for op in graph.get_operations() for output in op.outputs
               if output.dtype != tf.resource]
    assert all(output.shape.is_fully_defined() for output in outputs) == static_shapes


def test_tails_have_the_projected_widths():
    assert [rows.shape[1] for rows in build([10, 25], proj_factor=5).table.rows] == [D, 3, 1]


TIED = [
    dict(cutoffs=[]),
    dict(cutoffs=[10, 25], proj_factor=1),
    dict(cutoffs=[10, 25], proj_factor=2),
    dict(cutoffs=[1, 2, 49], proj_factor=3),
]


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("settings", TIED, ids=str)
def test_rows_that_are_shared_get_the_gradients_of_input_and_output(settings, static_shapes):
    """Against central differences of loops in float64, in which each id is looked up by itself."""
    clusters = clusters_of(D, V, settings["cutoffs"], settings.get("proj_factor", 4))
    table = ClusterTable(clusters, D, stddev=0.02)
    layer = build(**settings, static_shapes=static_shapes, table=table)
    assert sum(variable is table.rows[0] for variable in layer.trainable_variables) == 1
    rng = np.random.default_rng(4)
    ids, targets = rng.permutation(V).reshape([5, 10]), rng.integers(0, V, V)

    def plain_loss():
        vectors = plain_vectors(table, ids.ravel())
        return vectors, -plain_log_prob(layer, vectors)[range(V), targets].mean()

    with tf.GradientTape() as tape:
        hidden = tf.reshape(table(tf.constant(ids, tf.int32)), [V, D])
        loss = tf.reduce_mean(layer(hidden, tf.constant(targets, tf.int32)))
    vectors, value = plain_loss()
    assert np.allclose(hidden, vectors, atol=1e-5) and float(loss) == pytest.approx(value, rel=1e-5)
    gradients = tape.gradient(loss, layer.trainable_variables)
    for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
        before, direction = variable.numpy(), rng.normal(size=variable.shape)

        def loss_with(values):
            variable.assign(values)
            return plain_loss()[1]

        expected = slope(loss_with, before, direction, 1e-3)
        variable.assign(before)
        found = (tf.convert_to_tensor(gradient).numpy() * direction).sum()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), variable.path


def test_no_two_ids_start_alike():
    table = ClusterTable(clusters_of(D, V, [10, 25], 1), D, stddev=0.02)
    assert len(np.unique(np.concatenate(table.rows), axis=0)) == V


@pytest.mark.parametrize("cutoffs", [[0], [V], [10, 10], [20, 10], [-1, 10]], ids=str)
def test_bad_cutoffs_are_refused(cutoffs):
    with pytest.raises(ValueError, match="cutoffs"):
        AdaptiveSoftmax(D, V, cutoffs)
