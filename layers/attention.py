"""Attention with relative positions over memory and sequence (Dai et al. 2019, section 3.3).

B batch, T sequence length, M memory length, C = M + T context, D model width, H heads.
"""

import numpy as np
import tensorflow as tf

from layers.kind import Kind, Sizes
from layers.ops import linear

MASKED = -1e9  # added to the scores of masked positions
REACH = 32  # positions that local attention sees; our choice


def score_bias(seq_len: int, mem_len: int, filled):
    """The causal mask, added to the scores: 0 if query i may see key j, that is j <= M + i.

    Args:
      seq_len, mem_len: T, M.
      filled: the number of memory positions, counted from the end, that hold tokens; others are
        masked.

    Returns:
      float32 [T, C].
    """
    key = np.arange(mem_len + seq_len)  # [C]
    causal = key <= mem_len + np.arange(seq_len)[:, None]  # [T, C]
    return tf.where(causal & (key >= mem_len - filled), 0.0, MASKED)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Sinusoidal encodings of the distances length - 1 ... 0, float32 [length, width]."""
    distance = np.arange(length - 1, -1, -1.0)[:, None]
    frequency = 10_000.0 ** (-np.arange(0, width, 2) / width)
    angle = distance * frequency  # [length, width / 2]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)[:, :width].astype(np.float32)


def relative_shift(x):
    """Turns scores by distance into scores by key: out[..., i, j] = x[..., i, j + T - i].

    Column c of `x` is distance C - c; column 0 is padding. For j > M + i, beyond the last
    column, the result is a neighbour's value, which the causal mask removes (Dai et al. 2019,
    appendix B).

    Args:
      x: [H, B, T, C + 1].

    Returns:
      [H, B, T, C].
    """
    H, B, T, width = x.shape
    flat = tf.reshape(x, [H * B, T * width])
    flat = tf.slice(flat, [0, T], [-1, -1])  # [H B, T C]: row i now begins T - i columns later
    return tf.reshape(flat, [H, B, T, width - 1])


class RelativeAttention(Kind):
    """Multi-head attention with relative positions."""

    letter = "a"
    needs_memory = attends = True

    def __init__(self, sizes: Sizes, **kwargs):
        super().__init__(sizes, **kwargs)
        D = sizes.d_model
        self.query = self.weight("query", [D, D])
        self.key_value = self.weight("key_value", [D, 2 * D])
        self.position = self.weight("position", [D, D])
        self.output_kernel = self.weight("output", [D, D])
        self.content_bias = self.weight("content_bias", [D], "zeros")  # u of the paper
        self.position_bias = self.weight("position_bias", [D], "zeros")  # v
        self.built = True

    def call(self, x, context, bias):
        """Attends from each position of x to the memory and to x up to that position.

        Args:
          x: [B, T, D].
          context: [B, C, D], the memory followed by x.
          bias: [T, C], added to the scores: `score_bias`.

        Returns:
          [B, T, D].
        """
        return linear(self.attend(x, context, bias)[0], self.output_kernel)  # [B, T, D]

    def attend(self, x, context, bias):
        """The concatenated outputs of the heads, [B, T, D], and their weights, [H, B, T, C]."""
        return self.attend_to(linear(context, self.key_value), x, bias)

    def attend_to(self, key_value, x, bias):
        """`attend`, given the keys and values of the context, [B, C, 2 D]."""
        B, T, D = x.shape
        H, C = self.sizes.num_heads, key_value.shape[1]
        scale = (D // H) ** -0.5  # of the scores; applied to kernel and biases, which are smaller
        u = tf.reshape(self.content_bias * scale, [H, 1, 1, D // H])  # [H, 1, 1, D/H]
        v = tf.reshape(self.position_bias * scale, [H, 1, 1, D // H])  # [H, 1, 1, D/H]
        query = tf.reshape(linear(x, self.query * scale), [B, T, H, D // H])  # [B, T, H, D/H]
        query = tf.transpose(query, [2, 0, 1, 3])  # [H, B, T, D/H]
        key_value = tf.reshape(key_value, [B, C, 2, H, D // H])  # [B, C, 2, H, D/H]
        key, value = tf.unstack(tf.transpose(key_value, [2, 3, 0, 1, 4]))  # [H, B, C, D/H] each
        distances = np.pad(sinusoids(C, D), [[1, 0], [0, 0]])  # [C + 1, D], row 0 to be shifted
        r = linear(tf.cast(distances, x.dtype), self.position)  # [C + 1, D]
        r = tf.transpose(tf.reshape(r, [C + 1, H, D // H]), [1, 0, 2])  # [H, C + 1, D/H]
        content = tf.matmul(query + tf.cast(u, x.dtype), key, transpose_b=True)  # [H, B, T, C]
        by_distance = tf.reshape(query + tf.cast(v, x.dtype), [H, B * T, D // H])  # [H, B T, D/H]
        by_distance = tf.matmul(by_distance, r, transpose_b=True)  # [H, B T, C + 1]
        position = relative_shift(tf.reshape(by_distance, [H, B, T, C + 1]))  # [H, B, T, C]
        scores = content + position  # [H, B, T, C]
        weights = tf.nn.softmax(tf.cast(scores, tf.float32) + bias)  # [H, B, T, C]
        attended = tf.matmul(tf.cast(weights, x.dtype), value)  # [H, B, T, D/H]
        return tf.reshape(tf.transpose(attended, [1, 2, 0, 3]), [B, T, D]), weights

    def multiply_adds(self, B: int, T: int) -> float:
        """B (T (4 D^2 + 3 C D) + 2 M D^2) + C D^2.

        In this order: q, k, v and output; scores and values; k and v of the memory; positions.
        """
        D, M = self.sizes.d_model, self.sizes.mem_len
        C = M + T
        return B * (T * (4 * D * D + 3 * C * D) + 2 * M * D * D) + C * D * D


class LocalAttention(RelativeAttention):
    """Attention to the last R = `REACH` positions, including the position itself.

    A window is cut into P parts of W = min(R, T) positions. Each part attends to itself and to the
    R positions before it, so that the cost per position does not grow with T or M.
    """

    letter = "l"
    attends = False  # its weights are [H, B P, W, R + W], not [H, B, T, C]

    def call(self, x, context, bias):
        """As for `RelativeAttention`."""
        B, T, D = x.shape
        M, R, W = context.shape[1] - T, REACH, min(REACH, T)
        padding = -T % W  # positions after the last
        starts = range(0, T, W)  # of the P parts
        x = tf.pad(x, [[0, 0], [0, padding], [0, 0]])  # [B, P W, D]
        context = tf.pad(context, [[0, 0], [R, padding], [0, 0]])[:, M:]  # [B, R + P W, D]
        bias = tf.pad(bias, [[0, padding], [R, padding]], constant_values=MASKED)
        bias = bias[:, M:]  # [P W, R + P W]
        query, key = np.arange(W)[:, None], np.arange(R + W)
        far = np.where((query < key) & (key <= query + R), np.float32(0), MASKED)  # [W, R + W]
        bias = tf.stack([bias[p:p + W, p:p + R + W] for p in starts]) + far  # [P, W, R + W]
        key_value = linear(context, self.key_value)  # [B, R + P W, 2 D]
        parts = [key_value[:, p:p + R + W] for p in starts]  # P times [B, R + W, 2 D]
        key_value = tf.reshape(tf.stack(parts, axis=1), [-1, R + W, 2 * D])  # [B P, R + W, 2 D]
        attended, _ = self.attend_to(
            key_value, tf.reshape(x, [-1, W, D]), tf.tile(bias, [B, 1, 1]))  # [B P, W, D]
        y = linear(attended, self.output_kernel)  # [B P, W, D]
        return tf.reshape(y, x.shape)[:, :T]  # [B, T, D]

    def multiply_adds(self, B: int, T: int) -> float:
        """As for `RelativeAttention`, with C = R + W for the P W positions of all parts."""
        D, R, W = self.sizes.d_model, REACH, min(REACH, T)
        T, C = T + -T % W, R + W
        return B * (T * (4 * D * D + 3 * C * D) + 2 * R * D * D) + C * D * D
