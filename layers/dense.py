"""The dense layer: D -> F -> D with ReLU, applied to each position.

B batch, T sequence length, D model width, F inner width.
"""

import tensorflow as tf

from layers.kind import Kind, Sizes
from layers.ops import linear


class FeedForward(Kind):
    """The dense layer.

    The outer kernel is stored as [D, F], which makes its gradient a faster matrix product.
    """

    letter = "d"

    def __init__(self, sizes: Sizes, **kwargs):
        super().__init__(sizes, **kwargs)
        D, F = sizes.d_model, sizes.d_ffn
        self.inner_kernel = self.weight("inner_kernel", [D, F])
        self.inner_bias = self.weight("inner_bias", [F], "zeros")
        self.outer_kernel = self.weight("outer_kernel", [D, F])
        self.outer_bias = self.weight("outer_bias", [D], "zeros")
        self.built = True

    def call(self, x):
        """Computes the inner width in two halves, so that two cores can share the work.

        Args:
          x: [B, T, D].

        Returns:
          [B, T, D].
        """
        F, parts = self.sizes.d_ffn, []
        sizes = [F - F // 2, F // 2]
        kernels = tf.split(self.inner_kernel, sizes, axis=1)  # [D, F/2] each
        biases = tf.split(self.inner_bias, sizes)  # [F/2] each
        outer_kernels = tf.split(self.outer_kernel, sizes, axis=1)  # [D, F/2] each
        for kernel, bias, outer_kernel in zip(kernels, biases, outer_kernels):
            inner = tf.nn.bias_add(linear(x, kernel), tf.cast(bias, x.dtype))  # [B, T, F/2]
            parts.append(linear(tf.nn.relu(inner), outer_kernel, transpose_b=True))  # [B, T, D]
        return tf.nn.bias_add(tf.add_n(parts), tf.cast(self.outer_bias, x.dtype))  # [B, T, D]

    def multiply_adds(self, B: int, T: int) -> float:
        """B T 2 D F."""
        return B * T * 2 * self.sizes.d_model * self.sizes.d_ffn
