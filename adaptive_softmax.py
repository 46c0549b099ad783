"""Input and output of the network, cluster by cluster: adaptive input and adaptive softmax.

Grave et al. 2017 (arXiv 1609.04309) for the output; Baevski & Auli 2019 (arXiv 1809.10853) for the
input, and for sharing the rows of both (tied embeddings: Press & Wolf 2017, Inan et al. 2017).

N tokens, n of them in a tail, D model width, V vocabulary, O outputs of a product. Ids
are in order of decreasing frequency. The head scores the `cutoffs[0]` most frequent ids and one
entry per tail; tail i has rows of width d_i, and a projection unless d_i is D:

    log p(y) = log p_head(cluster of y) + log p_tail(y | cluster)
"""

from typing import Sequence

import keras
import numpy as np
import tensorflow as tf

from cutoffs import Cluster, clusters_of
from layers.ops import linear_cross_entropy


class ClusterTable(keras.layers.Layer):
    """A row for each id: its embedding at the input, its kernel at the output, or both.

    Args:
      clusters: cover all ids; the rows of cluster i are d_i wide.
      stddev: standard deviation of the initial rows.

    Attributes:
      rows: for each cluster, float32 [ids, d_i].
      projections: for each cluster, [d_i, D]; None if d_i is D.
    """

    def __init__(self, clusters: Sequence[Cluster], d_model: int, stddev: float, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.clusters, self._d_model = list(clusters), d_model
        self.rows, self.projections = [], []
        for i, cluster in enumerate(clusters):
            normal = keras.initializers.RandomNormal(stddev=stddev)  # each has its own seed
            self.rows.append(self.add_weight(
                shape=[cluster.size, cluster.width], initializer=normal, name=f"rows_{i}"))
            self.projections.append(None if cluster.width == d_model else self.add_weight(
                shape=[cluster.width, d_model], initializer="glorot_uniform",
                name=f"projection_{i}"))
        self.built = True

    def compute_output_shape(self, input_shape):
        return (*input_shape, self._d_model)

    def call(self, ids):
        """The vectors of ids: int32 [B, T] -> float32 [B, T, D]."""
        if len(self.clusters) == 1:
            return self._vectors(0, ids)
        vectors = 0.0
        for i, (first, end, _) in enumerate(self.clusters):
            inside = (ids >= first) & (ids < end)  # [B, T]
            own = self._vectors(i, tf.clip_by_value(ids - first, 0, end - first - 1))  # [B, T, D]
            vectors += tf.where(inside[..., None], own, 0.0)  # [B, T, D]
        return vectors

    def project(self, hidden, i):
        """Hidden vectors at the width of cluster i: [N, D] -> [N, d_i]."""
        if self.projections[i] is None:
            return hidden
        return tf.matmul(hidden, self.projections[i], transpose_b=True)

    def _vectors(self, i, index):
        """The vectors of ids of cluster i, counted from its first id: [B, T] -> [B, T, D]."""
        own = tf.gather(tf.convert_to_tensor(self.rows[i]), index)  # [B, T, d_i]
        return own if self.projections[i] is None else own @ self.projections[i]


class AdaptiveSoftmax(keras.layers.Layer):
    """Negative log-likelihood of ids given hidden vectors, and the log-probabilities of all V ids.

    Args:
      d_model: D.
      vocab_size: V.
      cutoffs: the first id of each tail, ascending, within 1 ... V - 1; empty for a plain softmax.
      proj_factor: tail i has width D / proj_factor^i, rounded down, at least 1.
      static_shapes: compute each tail for every token, as XLA needs, instead of for its own tokens.
      table: the rows, shared with the input; None for separate rows, which start at zero.

    Raises:
      InputError: the cutoffs are not valid.
    """

    def __init__(self, d_model: int, vocab_size: int, cutoffs: Sequence[int] = (),
                 proj_factor: int = 4, static_shapes: bool = False,
                 table: ClusterTable | None = None, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        clusters = clusters_of(d_model, vocab_size, cutoffs, proj_factor)
        self.head_size, self.tails = clusters[0].size, clusters[1:]
        self._config = {
            "d_model": d_model, "vocab_size": vocab_size, "cutoffs": list(cutoffs),
            "proj_factor": proj_factor, "static_shapes": static_shapes}
        self.static_shapes = static_shapes
        with keras.name_scope(self.name):
            self.table = table or ClusterTable(clusters, d_model, stddev=0.0, name="table")
        if self.tails:
            self.entries = self.add_weight(
                shape=[len(self.tails), d_model], initializer="zeros", name="entries")
        sizes = [self.head_size + len(self.tails), *(tail.size for tail in self.tails)]
        self.biases = [self.add_weight(shape=[size], initializer="zeros", name=f"bias_{i}")
                       for i, size in enumerate(sizes)]
        self.built = True

    def get_config(self):
        return dict(self._config)

    def compute_output_shape(self, input_shape):
        return (input_shape[0],)

    def start_from(self, counts):
        """Sets the biases so that an untrained network predicts the unigram distribution.

        With shared rows, which do not start at zero, it does so approximately. This is our choice,
        not the paper's: at a small learning rate it saves the first thousand steps.

        Args:
          counts: occurrences of each id, [V]; one is added to each, so that no id is impossible.
        """
        probability = (np.asarray(counts) + 1.0) / (np.sum(counts) + len(counts))
        tails = [probability[tail.first:tail.end] for tail in self.tails]
        head = np.concatenate([probability[:self.head_size], [tail.sum() for tail in tails]])
        for bias, part in zip(self.biases, [head, *tails]):
            bias.assign(np.log(part / part.sum()))

    def call(self, hidden, targets):
        """The negative log-likelihood of targets, int32 [N], given hidden [N, D]: nats [N]."""
        inside = [(targets >= tail.first) & (targets < tail.end) for tail in self.tails]  # [N] each
        head_target = targets  # [N], with the ids of each tail replaced by its entry
        for i, within in enumerate(inside):
            head_target = tf.where(within, self.head_size + i, head_target)
        nll = linear_cross_entropy(hidden, self._rows(0), self._bias(0), head_target)  # [N]
        for i, ((first, end, _), within) in enumerate(zip(self.tails, inside), 1):
            rows, bias = self._rows(i), self._bias(i)
            if self.static_shapes:
                label = tf.clip_by_value(targets - first, 0, end - first - 1)  # [N]
                projected = self.table.project(hidden, i)  # [N, d_i]
                tail_nll = linear_cross_entropy(projected, rows, bias, label)  # [N]
                nll += tf.where(within, tail_nll, 0.0)
            else:
                index = tf.where(within)  # [n, 1]
                label = tf.gather_nd(targets, index) - first  # [n]
                projected = self.table.project(tf.gather_nd(hidden, index), i)  # [n, d_i]
                tail_nll = linear_cross_entropy(projected, rows, bias, label)  # [n]
                nll = tf.tensor_scatter_nd_add(nll, index, tail_nll)
        return nll

    def log_prob(self, hidden):
        """Log-probabilities of all ids: hidden [N, D] -> float32 [N, V]."""
        head = self._log_softmax(hidden, 0)  # [N, head + tails]
        parts = [head[:, :self.head_size]]
        for i in range(1, len(self.biases)):
            entry = self.head_size + i - 1
            parts.append(head[:, entry:entry + 1] + self._log_softmax(hidden, i))
        return tf.concat(parts, axis=1)

    def _log_softmax(self, hidden, i):
        """Log-probabilities within the head or tail i: [N, D] -> [N, O]."""
        scores = tf.matmul(self.table.project(hidden, i), self._rows(i), transpose_b=True)
        return tf.nn.log_softmax(scores + self._bias(i))

    def _rows(self, i):
        """The rows of tail i; for i = 0, of the head and its entries for the tails."""
        rows = tf.convert_to_tensor(self.table.rows[i])
        return rows if i or not self.tails else tf.concat([rows, self.entries], axis=0)

    def _bias(self, i):
        return tf.convert_to_tensor(self.biases[i])
