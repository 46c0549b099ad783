"""The output layer: adaptive softmax of Grave et al. 2017 (arXiv 1609.04309).

N tokens, n of them in a tail, D model width, V vocabulary, I inputs and O outputs of a kernel. Ids are ordered by falling
frequency. The head scores the `cutoffs[0]` most frequent ids and one entry per tail cluster; tail i projects D -> d_i, then to
its ids:

    log p(y) = log p_head(cluster of y) + log p_tail(y | cluster)
"""

from typing import Sequence

import keras
import numpy as np
import tensorflow as tf

from cutoffs import tail_widths


def with_one(x):
    """x [N, I] with a one at the end of each row, [N, I + 1], for kernels whose last row is the bias."""
    return tf.pad(x, [[0, 0], [0, 1]], constant_values=1)


@tf.custom_gradient
def linear_cross_entropy(x, kernel, labels):
    """The negative log-likelihood of labels under softmax(x kernel), in few passes over the logits.

    The gradient of the logits, (p - onehot) dy, is never made: dy multiplies the narrow sides, and onehot is looked up there.

    Args:
      x: float32 [N, I].
      kernel: float32 [I, O].
      labels: int32 [N], below O.

    Returns:
      float32 [N], in nats.
    """
    logits = tf.matmul(x, kernel)  # [N, O]
    p = tf.nn.softmax(logits)  # [N, O]
    log_normaliser = tf.reduce_max(logits, axis=1) - tf.math.log(tf.reduce_max(p, axis=1))  # [N]
    label_logits = tf.gather(logits, labels, axis=1, batch_dims=1)  # [N]

    def gradient(dy):
        dy = dy[:, None]  # [N, 1]
        x_dy = x * dy  # [N, I]
        dx = (tf.matmul(p, kernel, transpose_b=True) - tf.gather(tf.transpose(kernel), labels)) * dy  # [N, I]
        labelled = tf.math.unsorted_segment_sum(x_dy, labels, kernel.shape[1])  # [O, I]
        return dx, tf.matmul(x_dy, p, transpose_a=True) - tf.transpose(labelled), None

    return log_normaliser - label_logits, gradient


class AdaptiveSoftmax(keras.layers.Layer):
    """Negative log-likelihood of ids given hidden vectors, and the log-probabilities of all V ids.

    Args:
      d_model: D.
      vocab_size: V.
      cutoffs: the first id of each tail cluster, rising and within 1 ... V - 1; none gives a plain softmax.
      proj_factor, proj_dims: the projected widths, as `tail_widths` takes them.
      static_shapes: compute every tail for every token, as XLA needs it, instead of for the tokens that fall into it.

    Raises:
      ValueError: cutoffs that do not rise or are out of range; `proj_dims` not one positive width per tail.
    """

    def __init__(self, d_model: int, vocab_size: int, cutoffs: Sequence[int] = (), proj_factor: int = 4,
                 proj_dims: Sequence[int] | None = None, static_shapes: bool = False, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        ends = [*cutoffs, vocab_size]
        if ends[0] < 1 or any(a >= b for a, b in zip(ends, ends[1:])):
            raise ValueError(f"cutoffs {list(cutoffs)} must rise and lie below the vocabulary size {vocab_size}; cutoffs.py finds the best")
        widths = tail_widths(len(cutoffs), d_model, proj_factor, proj_dims)
        self.static_shapes = static_shapes
        self.tails = list(zip(ends, ends[1:]))  # [(first id, past the last)]
        self.head_size = ends[0]
        self.head = self._kernel("head", d_model, ends[0] + len(self.tails))
        self.projections = [self.add_weight(shape=[d_model, width], initializer="glorot_uniform", name=f"projection_{i}")
                            for i, width in enumerate(widths, 1)]
        self.outputs = [self._kernel(f"tail_{i}", width, end - first) for i, (width, (first, end)) in enumerate(zip(widths, self.tails), 1)]
        self.built = True

    def start_from(self, counts):
        """Sets the biases to the unigram distribution, where prediction then starts.

        Our choice, not the paper's: at a small learning rate it saves the first thousand steps.

        Args:
          counts: how often each id occurs, [V]; each is taken once more, so that none is impossible.
        """
        probability = (np.asarray(counts) + 1.0) / (np.sum(counts) + len(counts))
        tails = [probability[first:end] for first, end in self.tails]
        head = np.concatenate([probability[:self.head_size], [tail.sum() for tail in tails]])
        for kernel, part in zip([self.head, *self.outputs], [head, *tails]):
            kernel.assign(np.vstack([kernel[:-1], np.log(part / part.sum())]))

    def call(self, hidden, targets):
        """The negative log-likelihood of each target.

        Args:
          hidden: [N, D].
          targets: ids, int32 [N].

        Returns:
          float32 [N], in nats.
        """
        head_target = targets  # [N], a tail's ids replaced by its entry
        for i, (first, end) in enumerate(self.tails):
            head_target = tf.where((targets >= first) & (targets < end), self.head_size + i, head_target)
        nll = linear_cross_entropy(with_one(hidden), tf.convert_to_tensor(self.head), head_target)  # [N]
        for i, (first, end) in enumerate(self.tails):
            inside = (targets >= first) & (targets < end)  # [N]
            kernel = tf.convert_to_tensor(self.outputs[i])
            if self.static_shapes:
                label = tf.clip_by_value(targets - first, 0, end - first - 1)  # [N]
                tail_nll = linear_cross_entropy(self._project(hidden, i), kernel, label)  # [N]
                nll += tf.where(inside, tail_nll, 0.0)
            else:
                index = tf.where(inside)  # [n, 1]
                label = tf.gather_nd(targets, index) - first  # [n]
                tail_nll = linear_cross_entropy(self._project(tf.gather_nd(hidden, index), i), kernel, label)  # [n]
                nll = tf.tensor_scatter_nd_add(nll, index, tail_nll)
        return nll

    def log_prob(self, hidden):
        """Log-probabilities of all ids: hidden [N, D] -> float32 [N, V]."""
        head = tf.nn.log_softmax(tf.matmul(with_one(hidden), self.head))  # [N, head + tails]
        parts = [head[:, :self.head_size]]
        for i, kernel in enumerate(self.outputs):
            entry = self.head_size + i
            parts.append(head[:, entry:entry + 1] + tf.nn.log_softmax(tf.matmul(self._project(hidden, i), kernel)))
        return tf.concat(parts, axis=1)

    def _project(self, hidden, i):
        """What the kernel of tail i takes: [N, d_i + 1]."""
        return with_one(tf.matmul(hidden, self.projections[i]))

    def _kernel(self, name, inputs, outputs):
        """A kernel with its bias as the last row. It starts at zero: at first the biases, `start_from`, decide alone."""
        return self.add_weight(shape=[inputs + 1, outputs], initializer="zeros", name=name)
