"""The output layer: adaptive softmax of Grave et al. 2017 (arXiv 1609.04309).

N tokens, n of them in a tail, D model width, V vocabulary, I inputs and O outputs of a kernel. Ids
are ordered by falling frequency. The head scores the `cutoffs[0]` most frequent ids and one entry
per tail cluster; tail i projects D -> d_i, then to its ids:

    log p(y) = log p_head(cluster of y) + log p_tail(y | cluster)
"""

from typing import Sequence

import keras
import numpy as np
import tensorflow as tf

from layers.ops import linear_cross_entropy


def tail_widths(tails: int, d_model: int, proj_factor: int,
                proj_dims: Sequence[int] | None = None) -> list[int]:
    """The projected width of each tail.

    It is D / proj_factor^i, rounded down and at least 1; or `proj_dims` tells.

    Raises:
      ValueError: `proj_dims` is not one positive width per tail.
    """
    if proj_dims:
        widths = list(proj_dims)
    else:
        widths = [max(1, d_model // proj_factor**i) for i in range(1, tails + 1)]
    if len(widths) != tails or any(width < 1 for width in widths):
        raise ValueError(
            f"proj_dims {widths} must be one positive width for each of the {tails} tails")
    return widths


def with_one(x):
    """x [N, I] with a one at the end of each row, [N, I + 1], for kernels that end in the bias."""
    return tf.pad(x, [[0, 0], [0, 1]], constant_values=1)


@keras.saving.register_keras_serializable("par_transformer_xl")
class AdaptiveSoftmax(keras.layers.Layer):
    """Negative log-likelihood of ids given hidden vectors, and the log-probabilities of all V ids.

    Args:
      d_model: D.
      vocab_size: V.
      cutoffs: the first id of each tail cluster, rising and within 1 ... V - 1; none gives a plain
        softmax.
      proj_factor, proj_dims: the projected widths, as `tail_widths` takes them.
      static_shapes: compute every tail for every token, as XLA needs it, instead of for the tokens
        that fall into it.

    Raises:
      ValueError: cutoffs that do not rise or are out of range; `proj_dims` not one positive width
        per tail.
    """

    def __init__(self, d_model: int, vocab_size: int, cutoffs: Sequence[int] = (),
                 proj_factor: int = 4, proj_dims: Sequence[int] | None = None,
                 static_shapes: bool = False, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        ends = [*cutoffs, vocab_size]
        if ends[0] < 1 or any(a >= b for a, b in zip(ends, ends[1:])):
            raise ValueError(f"cutoffs {list(cutoffs)} must rise and lie below the vocabulary size "
                             f"{vocab_size}; cutoffs.py finds the cheapest")
        widths = tail_widths(len(cutoffs), d_model, proj_factor, proj_dims)
        self._config = {
            "d_model": d_model, "vocab_size": vocab_size, "cutoffs": list(cutoffs),
            "proj_dims": widths, "static_shapes": static_shapes}
        self.static_shapes = static_shapes
        self.tails = list(zip(ends, ends[1:]))  # [(first id, past the last)]
        self.head_size = ends[0]
        self.head = self._kernel("head", d_model, ends[0] + len(self.tails))
        self.projections = [
            self.add_weight(
                shape=[d_model, width], initializer="glorot_uniform", name=f"projection_{i}")
            for i, width in enumerate(widths, 1)]
        sizes = [end - first for first, end in self.tails]
        self.tail_kernels = [self._kernel(f"tail_{i}", width, size)
                             for i, (width, size) in enumerate(zip(widths, sizes), 1)]
        self.built = True

    def get_config(self):
        return {"name": self.name, **self._config}

    def compute_output_shape(self, input_shape):
        return (input_shape[0],)

    def start_from(self, counts):
        """Sets the biases to the unigram distribution, where prediction then starts.

        Our choice, not the paper's: at a small learning rate it saves the first thousand steps.

        Args:
          counts: how often each id occurs, [V]; each is taken once more, so that none is
            impossible.
        """
        probability = (np.asarray(counts) + 1.0) / (np.sum(counts) + len(counts))
        tails = [probability[first:end] for first, end in self.tails]
        head = np.concatenate([probability[:self.head_size], [tail.sum() for tail in tails]])
        for kernel, part in zip([self.head, *self.tail_kernels], [head, *tails]):
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
            inside = (targets >= first) & (targets < end)  # [N]
            head_target = tf.where(inside, self.head_size + i, head_target)
        kernel = tf.convert_to_tensor(self.head)
        nll = linear_cross_entropy(with_one(hidden), kernel, head_target)  # [N]
        for i, (first, end) in enumerate(self.tails):
            inside = (targets >= first) & (targets < end)  # [N]
            kernel = tf.convert_to_tensor(self.tail_kernels[i])
            if self.static_shapes:
                label = tf.clip_by_value(targets - first, 0, end - first - 1)  # [N]
                projected = self._project(hidden, i)  # [N, d_i + 1]
                tail_nll = linear_cross_entropy(projected, kernel, label)  # [N]
                nll += tf.where(inside, tail_nll, 0.0)
            else:
                index = tf.where(inside)  # [n, 1]
                label = tf.gather_nd(targets, index) - first  # [n]
                projected = self._project(tf.gather_nd(hidden, index), i)  # [n, d_i + 1]
                tail_nll = linear_cross_entropy(projected, kernel, label)  # [n]
                nll = tf.tensor_scatter_nd_add(nll, index, tail_nll)
        return nll

    def log_prob(self, hidden):
        """Log-probabilities of all ids: hidden [N, D] -> float32 [N, V]."""
        head = tf.nn.log_softmax(tf.matmul(with_one(hidden), self.head))  # [N, head + tails]
        parts = [head[:, :self.head_size]]
        for i, kernel in enumerate(self.tail_kernels):
            entry = self.head_size + i
            scores = tf.matmul(self._project(hidden, i), kernel)  # [N, O]
            parts.append(head[:, entry:entry + 1] + tf.nn.log_softmax(scores))
        return tf.concat(parts, axis=1)

    def _project(self, hidden, i):
        """What the kernel of tail i takes: [N, d_i + 1]."""
        return with_one(tf.matmul(hidden, self.projections[i]))

    def _kernel(self, name, inputs, outputs):
        """A kernel with its bias as the last row.

        It starts at zero: at first the biases, `start_from`, decide alone.
        """
        return self.add_weight(shape=[inputs + 1, outputs], initializer="zeros", name=name)
