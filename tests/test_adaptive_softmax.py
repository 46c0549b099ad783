"""Adaptive input and adaptive softmax, against loops in float64."""

import numpy as np
import pytest
import tensorflow as tf

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


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_value_and_gradient_equal_the_plain_softmax_that_it_factorises(settings, static_shapes):
    layer = build(**settings, static_shapes=static_shapes)
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=[60, D])
    targets = np.concatenate([rng.integers(0, V, 30), rng.integers(0, 4, 30)])
    log_prob = plain_log_prob(layer, hidden)
    assert np.allclose(np.exp(log_prob).sum(axis=1), 1)
    assert np.allclose(layer.log_prob(tf.constant(hidden, tf.float32)), log_prob, atol=1e-5)

    # The plain softmax over V whose logits are these: its gradient by central differences.
    x = tf.constant(hidden, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        nll = layer(x, tf.constant(targets, tf.int32))
        loss = tf.reduce_mean(nll)
    assert nll.dtype == tf.float32 and np.allclose(nll, -log_prob[range(60), targets], atol=1e-5)
    gradients = tape.gradient(loss, [x, *layer.trainable_variables])

    def plain_loss(hidden):
        return -plain_log_prob(layer, hidden)[range(60), targets].mean()

    eps = 1e-6
    for n, d in [(0, 0), (7, 3), (29, 15), (40, 8)]:
        step = np.zeros_like(hidden)
        step[n, d] = eps
        assert float(gradients[0][n, d]) == pytest.approx(
            (plain_loss(hidden + step) - plain_loss(hidden - step)) / (2 * eps), abs=1e-5
        )
    log_prob_gradients = _gradients_through_log_prob(layer, x, targets)
    for variable, gradient, expected in zip(
        [x, *layer.trainable_variables], gradients, log_prob_gradients
    ):
        assert np.allclose(tf.convert_to_tensor(gradient), expected, atol=1e-5), getattr(
            variable, "name", "hidden"
        )


def _gradients_through_log_prob(layer, hidden, targets):
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        loss = -tf.reduce_mean(tf.gather(layer.log_prob(hidden), targets, axis=1, batch_dims=1))
    return [
        tf.convert_to_tensor(g) for g in tape.gradient(loss, [hidden, *layer.trainable_variables])
    ]


@pytest.mark.parametrize(
    "shape, scale", [([5, 4, 7], 1), ([5, 4, 7], 100), ([0, 4, 7], 1), ([5, 4, 1], 1)], ids=str
)
def test_linear_cross_entropy_and_its_gradient_are_exact_for_any_logits(shape, scale):
    n, inputs, outputs = shape
    rng = np.random.default_rng(5)
    x, rows, bias, dy = (
        rng.normal(size=[n, inputs]),
        scale * rng.normal(size=[outputs, inputs]),
        scale * rng.normal(size=outputs),
        rng.normal(size=n),
    )
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


def test_weight_gradients_equal_central_differences():
    layer = build([10, 25])
    rng = np.random.default_rng(2)
    hidden, targets = rng.normal(size=[20, D]), rng.integers(0, V, 20)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(
            layer(tf.constant(hidden, tf.float32), tf.constant(targets, tf.int32))
        )
    for variable, gradient in zip(
        layer.trainable_variables, tape.gradient(loss, layer.trainable_variables)
    ):
        before, direction = variable.numpy(), rng.normal(size=variable.shape)
        sides = []
        for sign in (1, -1):
            variable.assign(before + sign * 1e-3 * direction)
            sides.append(-plain_log_prob(layer, hidden)[range(20), targets].mean())
        variable.assign(before)
        assert (gradient.numpy() * direction).sum() == pytest.approx(
            (sides[0] - sides[1]) / 2e-3, rel=1e-3, abs=1e-4
        )


def test_without_cutoffs_it_is_a_softmax():
    layer = build([])
    hidden, targets = tf.random.stateless_normal([9, D], [1, 2]), tf.constant(range(9))
    logits = hidden @ tf.transpose(layer.table.rows[0]) + layer.biases[0]
    assert np.allclose(
        layer(hidden, targets),
        tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits),
        atol=1e-6,
    )
    assert len(layer.weights) == 2


@pytest.mark.parametrize("cutoffs", [[], [10, 25]])
def test_it_can_start_at_the_unigram_distribution_whatever_the_hidden_vector(cutoffs):
    layer = AdaptiveSoftmax(D, V, cutoffs)
    counts = np.random.default_rng(3).integers(0, 1000, V)
    layer.start_from(counts)
    log_prob = layer.log_prob(tf.random.stateless_normal([7, D], [1, 2])).numpy()
    assert np.allclose(
        np.exp(log_prob), np.tile((counts + 1) / (counts + 1).sum(), [7, 1]), rtol=1e-5
    )


@pytest.mark.parametrize("static_shapes", [False, True])
def test_static_shapes_have_no_size_that_depends_on_the_tokens(static_shapes):
    layer = build([10, 25], static_shapes=static_shapes)
    graph = (
        tf.function(layer)
        .get_concrete_function(tf.TensorSpec([9, D]), tf.TensorSpec([9], tf.int32))
        .graph
    )
    assert (
        all(
            output.shape.is_fully_defined()
            for op in graph.get_operations()
            for output in op.outputs
            if output.dtype != tf.resource
        )
        == static_shapes
    )


@pytest.mark.parametrize(
    "targets",
    [[0, 1, 2], [11, 12, 24], [25, 49, 30]],
    ids=["no tail", "only the first", "only the second"],
)
def test_a_tail_without_tokens(targets):
    layer = build([10, 25])
    hidden = tf.random.stateless_normal([3, D], [1, 2])
    with tf.GradientTape() as tape:
        nll = layer(hidden, tf.constant(targets))
    assert np.allclose(nll, -plain_log_prob(layer, hidden.numpy())[range(3), targets], atol=1e-5)
    assert all(
        np.isfinite(tf.convert_to_tensor(gradient)).all()
        for gradient in tape.gradient(nll, layer.trainable_variables)
    )


def widths_of(table):
    return [rows.shape[1] for rows in table.rows]


def test_tails_have_the_projected_widths():
    assert widths_of(build([10, 25]).table) == [D, 4, 1]
    assert build([10, 25], proj_factor=1).table.projections == [None] * 3


TIED = [
    dict(cutoffs=[]),
    dict(cutoffs=[10, 25], proj_factor=1),
    dict(cutoffs=[10, 25], proj_factor=2),
    dict(cutoffs=[1, 2, 49], proj_factor=3),
]


def build_tied(cutoffs, proj_factor=4, **settings):
    """A table, and the softmax that shares its rows."""
    table = ClusterTable(clusters_of(D, V, cutoffs, proj_factor), D, stddev=0.02)
    layer = AdaptiveSoftmax(D, V, cutoffs, proj_factor, table=table, **settings)
    rng = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(rng.normal(size=variable.shape) * 0.5)
    return table, layer


@pytest.mark.parametrize("settings", TIED, ids=str)
def test_the_vectors_of_ids_are_their_projected_rows(settings):
    table, _ = build_tied(**settings)
    ids = np.random.default_rng(1).permutation(V).reshape([5, 10])
    vectors = table(tf.constant(ids, tf.int32))
    assert vectors.dtype == tf.float32
    assert np.allclose(np.reshape(vectors, [V, D]), plain_vectors(table, ids.ravel()), atol=1e-5)


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("settings", TIED, ids=str)
def test_rows_that_are_shared_get_the_gradients_of_input_and_output(settings, static_shapes):
    """Against central differences of loops in float64, in which each id is looked up by itself."""
    table, layer = build_tied(**settings, static_shapes=static_shapes)
    assert sum(variable is table.rows[0] for variable in layer.trainable_variables) == 1
    rng = np.random.default_rng(4)
    ids, targets = rng.integers(0, V, [1, 40]), rng.integers(0, V, 40)

    def plain_loss():
        log_prob = plain_log_prob(layer, plain_vectors(table, ids[0]))
        assert np.allclose(np.exp(log_prob).sum(axis=1), 1)
        return -log_prob[range(40), targets].mean()

    with tf.GradientTape() as tape:
        hidden = tf.reshape(table(tf.constant(ids, tf.int32)), [-1, D])
        loss = tf.reduce_mean(layer(hidden, tf.constant(targets, tf.int32)))
    assert float(loss) == pytest.approx(plain_loss(), rel=1e-5)
    for variable, gradient in zip(
        layer.trainable_variables, tape.gradient(loss, layer.trainable_variables), strict=True
    ):
        before, direction = variable.numpy(), rng.normal(size=variable.shape)
        sides = []
        for sign in (1, -1):
            variable.assign(before + sign * 1e-3 * direction)
            sides.append(plain_loss())
        variable.assign(before)
        assert (tf.convert_to_tensor(gradient).numpy() * direction).sum() == pytest.approx(
            (sides[0] - sides[1]) / 2e-3, rel=1e-3, abs=1e-4
        ), variable.path


def test_no_two_ids_start_alike():
    table = ClusterTable(clusters_of(D, V, [10, 25], 1), D, stddev=0.02)
    assert len(np.unique(np.concatenate(table.rows), axis=0)) == V


@pytest.mark.parametrize(
    "settings",
    [
        dict(cutoffs=[0]),
        dict(cutoffs=[V]),
        dict(cutoffs=[10, 10]),
        dict(cutoffs=[20, 10]),
        dict(cutoffs=[-1, 10]),
    ],
    ids=str,
)
def test_bad_cutoffs_are_refused(settings):
    with pytest.raises(ValueError, match="cutoffs"):
        AdaptiveSoftmax(D, V, **settings)
