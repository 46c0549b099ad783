"""The output layer: adaptive softmax of Grave et al. 2017 (arXiv 1609.04309).

N tokens, n of them in a tail, D model width, V vocabulary. Ids are ordered by falling frequency. The head scores the
`cutoffs[0]` most frequent ids and one entry per tail cluster; tail i projects D -> d_i, then to its ids:

    log p(y) = log p_head(cluster of y) + log p_tail(y | cluster)
"""

from typing import Sequence

import keras
import numpy as np
import tensorflow as tf

from cutoffs import tail_widths


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
        super().__init__(autocast=False, **kwargs)
        ends = [*cutoffs, vocab_size]
        if ends[0] < 1 or any(a >= b for a, b in zip(ends, ends[1:])):
            raise ValueError(f"cutoffs {list(cutoffs)} must rise and lie below the vocabulary size {vocab_size}; cutoffs.py finds the best")
        widths = tail_widths(len(cutoffs), d_model, proj_factor, proj_dims)
        self.static_shapes = static_shapes
        self.tails = list(zip(ends, ends[1:]))  # [(first id, past the last)]
        self.head_size = ends[0]
        self.head = self._linear("head", d_model, ends[0] + len(self.tails))
        self.projections = [self.add_weight(shape=[d_model, width], initializer="glorot_uniform", name=f"projection_{i}")
                            for i, width in enumerate(widths, 1)]
        self.outputs = [self._linear(f"tail_{i}", width, end - first) for i, (width, (first, end)) in enumerate(zip(widths, self.tails), 1)]
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
        for (_, bias), part in zip([self.head, *self.outputs], [head, *tails]):
            bias.assign(np.log(part / part.sum()))

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
        nll = tf.nn.sparse_softmax_cross_entropy_with_logits(head_target, self._head_logits(hidden))  # [N]
        for i, (first, end) in enumerate(self.tails):
            inside = (targets >= first) & (targets < end)  # [N]
            if self.static_shapes:
                label = tf.clip_by_value(targets - first, 0, end - first - 1)  # [N]
                tail_nll = tf.nn.sparse_softmax_cross_entropy_with_logits(label, self._tail_logits(i, hidden))  # [N]
                nll += tf.where(inside, tail_nll, 0.0)
            else:
                index = tf.where(inside)  # [n, 1]
                label = tf.gather_nd(targets, index) - first  # [n]
                logits = self._tail_logits(i, tf.gather_nd(hidden, index))  # [n, tail]
                tail_nll = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)  # [n]
                nll = tf.tensor_scatter_nd_add(nll, index, tail_nll)
        return nll

    def log_prob(self, hidden):
        """Log-probabilities of all ids: hidden [N, D] -> float32 [N, V]."""
        head = tf.nn.log_softmax(self._head_logits(hidden))  # [N, head + tails]
        parts = [head[:, :self.head_size]]
        for i in range(len(self.tails)):
            entry = self.head_size + i
            parts.append(head[:, entry:entry + 1] + tf.nn.log_softmax(self._tail_logits(i, hidden)))
        return tf.concat(parts, axis=1)

    def _head_logits(self, hidden):
        return self._apply(self.head, hidden)

    def _tail_logits(self, i, hidden):
        return self._apply(self.outputs[i], tf.matmul(hidden, tf.cast(self.projections[i], hidden.dtype)))

    def _apply(self, linear, x):
        kernel, bias = linear
        return tf.cast(tf.matmul(x, tf.cast(kernel, x.dtype)), tf.float32) + bias

    def _linear(self, name, inputs, outputs):
        """Kernel and bias. The kernel starts at zero: at first the biases, `start_from`, decide alone."""
        kernel = self.add_weight(shape=[inputs, outputs], initializer="zeros", name=f"{name}_kernel")
        return kernel, self.add_weight(shape=[outputs], initializer="zeros", autocast=False, name=f"{name}_bias")
