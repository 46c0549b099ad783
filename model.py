"""PAR Transformer-XL: a sequence of stochastic blocks that learns its weights and its architecture at once.

Mandava et al. 2020, "Pay Attention when Required" (arXiv 2009.04534), on Transformer-XL, Dai et al. 2019 (arXiv 1901.02860).

B batch, T sequence length, M memory length, C = M + T context, D model width, H heads, F width of the dense layer,
L blocks, S of which are searched and A have attention, K = 3 kinds of layer, N = B T tokens, V vocabulary.
"""

import math
from typing import Sequence

import keras
import numpy as np
import tensorflow as tf

from adaptive_softmax import AdaptiveSoftmax

KINDS = ("attention", "dense", "identity")
SEARCH = "search"
LETTERS = {kind[0]: kind for kind in (*KINDS, SEARCH)}  # an architecture may be written with a letter for each block
MASKED = -1e9  # added to a score that must not count
PHILOX_HALVES = 8  # 16-bit numbers that one count of Philox gives


class Draws:
    """Random numbers keyed by (seed, step, place): the same key always gives the same numbers, compiled or not.

    Philox (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed as key; step and place are the upper
    half of its counter, and the numbers of one draw run through the lower half. Where a batch is cut into shares, for replicas
    or one after another, each draws its part of what the whole batch would draw.

    Args:
      seed: below 2^31.
      step: of training, an integer tensor below 2^31.
      share, shares: which of how many equal shares of the rows of a batch this is.
    """

    def __init__(self, seed: int, step, share=0, shares: int = 1):
        self._seed, self._step, self._share, self._shares = seed, tf.cast(step, tf.int64), tf.cast(share, tf.int64), shares

    def gumbel(self, shape):
        """Gumbel(0, 1) noise, float32; the same for all shares, which must agree on the architecture."""
        uniform = (tf.cast(self._bits(shape, place=0), tf.float64) + 0.5) / 2**32
        return tf.cast(-tf.math.log(-tf.math.log(uniform)), tf.float32)

    def gumbel_rows(self, rows: int, shape):
        """Gumbel(0, 1) noise for each row of this share, float32 [rows, *shape]."""
        return tf.gather(self.gumbel([self._shares, rows, *shape]), self._share)

    def dropout_mask(self, place: int, shape, rate: float):
        """A dropout mask: boolean, true with probability 1 - `rate`, to 16 bits. Every `place` of the network has its own number."""
        size = math.prod(shape)
        blocks = -(-size // PHILOX_HALVES)  # where this is no division without remainder, shares draw other masks than the whole
        pairs = self._bits([(size + 1) // 2], place + 1, skip=self._share * blocks)
        bits = tf.reshape(tf.bitcast(pairs, tf.uint16), [-1])[:size]
        return tf.reshape(bits, shape) >= tf.constant(min(round(rate * 2**16), 2**16 - 1), tf.uint16)

    def _bits(self, shape, place, skip=0):
        counter = tf.stack([tf.cast(skip, tf.int64), self._step * 2**32 + place])
        return tf.raw_ops.StatelessRandomUniformFullIntV2(
            shape=shape, key=tf.cast([self._seed], tf.uint64), counter=tf.cast(counter, tf.uint64), alg=1, dtype=tf.uint32)  # 1: Philox


def by_path(variables: Sequence[keras.Variable]) -> dict[str, tf.Variable]:
    """Keras variables as a checkpoint takes them: by itself it does not look into Keras' lists of layers and variables."""
    return {variable.path: variable.value for variable in variables}


def gumbel_softmax(theta, tau, noise=0.0, straight_through=False):
    """A relaxed sample of a category (Jang et al. 2016, equation 2; Maddison et al. 2016).

    Args:
      theta: [..., K], logits of pi = softmax(theta).
      tau: temperature; towards 0 the sample becomes one-hot.
      noise: [..., K], draws from Gumbel(0, 1); 0 gives the softmax of log(pi) / tau.
      straight_through: give the one-hot of the largest weight, with the gradient of the relaxed sample.

    Returns:
      Weights, [..., K]; they sum to 1.
    """
    soft = tf.nn.softmax((tf.nn.log_softmax(theta) + noise) / tau)
    if not straight_through:
        return soft
    hard = tf.one_hot(tf.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)
    return hard + (soft - tf.stop_gradient(soft))


def sinusoids(length: int, width: int) -> np.ndarray:
    """Encodings of the distances length - 1 ... 0, float32 [length, width] (Dai et al. 2019, section 3.3)."""
    distance = np.arange(length - 1, -1, -1.0)[:, None]
    frequency = 10_000.0 ** (-np.arange(0, width, 2) / width)
    angle = distance * frequency  # [length, width / 2]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)[:, :width].astype(np.float32)


def score_bias(seq_len: int, mem_len: int, filled):
    """What is added to the scores: 0 where query i may see key j <= M + i, if a token has filled it; float32 [T, C].

    Args:
      filled: how many of the M memory positions, the last ones, hold tokens.
    """
    key = np.arange(mem_len + seq_len)  # [C]
    causal = key <= mem_len + np.arange(seq_len)[:, None]  # [T, C]
    return tf.where(causal & (key >= mem_len - filled), 0.0, MASKED)


def relative_shift(x):
    """Turns scores by distance into scores by key, [H, B, T, C + 1] -> [H, B, T, C]: out[..., i, j] = x[..., i, j + T - i].

    Column c of `x` belongs to distance C - c, column 0 to none. Where the right side lies beyond the last column, j > M + i,
    the result is a neighbour's value, for the causal mask to remove (Dai et al. 2019, appendix B).
    """
    H, B, T, width = x.shape
    flat = tf.slice(tf.reshape(x, [H * B, T * width]), [0, T], [-1, -1])  # [H B, T C]: row i now begins T - i columns later
    return tf.reshape(flat, [H, B, T, width - 1])


def linear(x, kernel, transpose_b=False):
    """x [..., I] times kernel [I, O], or [O, I] if transposed, as one matrix product in the precision of x: [..., O]."""
    flat = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), tf.cast(kernel, x.dtype), transpose_b=transpose_b)  # [N, O]
    return tf.reshape(flat, [*x.shape[:-1], flat.shape[-1]])


@tf.custom_gradient
def layer_norm(x, scale, offset):
    """Layer normalisation (Ba et al. 2016, equation 4), float32: x [N, D], scale and offset [D] -> [N, D].

    With normal = (x - mean) / deviation, the gradient is (g - mean(g) - normal mean(g normal)) / deviation for g = dy scale;
    written out here it takes half the operations of automatic differentiation. Means over D are matrix-vector products.
    """
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)  # [N, D]
    inverse_deviation = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + 1e-5)  # [N, 1]
    normal = centred * inverse_deviation  # [N, D]

    def gradient(dy):
        dy_normal = dy * normal  # [N, D]
        mean = scale[:, None] / x.shape[-1]  # [D, 1]: dy times this is the mean of g
        dx = (dy * scale - tf.matmul(dy, mean) - normal * tf.matmul(dy_normal, mean)) * inverse_deviation  # [N, D]
        return dx, tf.raw_ops.BiasAddGrad(out_backprop=dy_normal), tf.raw_ops.BiasAddGrad(out_backprop=dy)  # sums over N

    return normal * scale + offset, gradient


class RelativeAttention(keras.layers.Layer):
    """Multi-head attention with relative positions over memory and sequence (Dai et al. 2019, section 3.3)."""

    def __init__(self, d_model: int, num_heads: int, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.num_heads = num_heads
        self.query = self.add_weight(shape=[d_model, d_model], initializer="glorot_uniform", name="query")
        self.key_value = self.add_weight(shape=[d_model, 2 * d_model], initializer="glorot_uniform", name="key_value")
        self.position = self.add_weight(shape=[d_model, d_model], initializer="glorot_uniform", name="position")
        self.output_kernel = self.add_weight(shape=[d_model, d_model], initializer="glorot_uniform", name="output")
        self.content_bias = self.add_weight(shape=[d_model], initializer="zeros", name="content_bias")  # u
        self.position_bias = self.add_weight(shape=[d_model], initializer="zeros", name="position_bias")  # v
        self.built = True

    def call(self, x, memory, bias):
        """Attends from each position of x to memory and to the positions of x up to itself.

        Args:
          x: [B, T, D].
          memory: [B, M, D], what came before x.
          bias: [T, C], added to the scores: `score_bias`.

        Returns:
          [B, T, D].
        """
        B, T, D = x.shape
        H, C = self.num_heads, bias.shape[-1]
        scale = (D // H) ** -0.5  # of the scores, applied to the small parameters on their left side
        u = tf.cast(tf.reshape(self.content_bias * scale, [H, 1, 1, D // H]), x.dtype)  # [H, 1, 1, D/H]
        v = tf.cast(tf.reshape(self.position_bias * scale, [H, 1, 1, D // H]), x.dtype)  # [H, 1, 1, D/H]
        query = tf.reshape(linear(x, self.query * scale), [B, T, H, D // H])  # [B, T, H, D/H]
        query = tf.transpose(query, [2, 0, 1, 3])  # [H, B, T, D/H]
        context = tf.concat([memory, x], axis=1)  # [B, C, D]
        key_value = tf.reshape(linear(context, self.key_value), [B, C, 2, H, D // H])  # [B, C, 2, H, D/H]
        key, value = tf.unstack(tf.transpose(key_value, [2, 3, 0, 1, 4]))  # [H, B, C, D/H] each
        distances = np.pad(sinusoids(C, D), [[1, 0], [0, 0]])  # [C + 1, D], the row of zeros for `relative_shift`
        r = tf.reshape(linear(tf.cast(distances, x.dtype), self.position), [C + 1, H, D // H])  # [C + 1, H, D/H]
        r = tf.transpose(r, [1, 0, 2])  # [H, C + 1, D/H]
        content = tf.matmul(query + u, key, transpose_b=True)  # [H, B, T, C]
        position = tf.matmul(tf.reshape(query + v, [H, B * T, D // H]), r, transpose_b=True)  # [H, B T, C + 1]
        scores = content + relative_shift(tf.reshape(position, [H, B, T, C + 1]))  # [H, B, T, C]
        weights = tf.nn.softmax(tf.cast(scores, tf.float32) + bias)  # [H, B, T, C]
        attended = tf.transpose(tf.matmul(tf.cast(weights, x.dtype), value), [1, 2, 0, 3])  # [B, T, H, D/H]
        return linear(tf.reshape(attended, [B, T, D]), self.output_kernel)  # [B, T, D]


class FeedForward(keras.layers.Layer):
    """The dense layer, D -> F -> D with ReLU, at each position by itself.

    Its inner width is cut in two halves, which two cores compute side by side. An outer kernel is stored transposed: so the
    product of its gradient is the faster one.
    """

    def __init__(self, d_model: int, d_ffn: int, **kwargs):
        super().__init__(autocast=False, **kwargs)

        def glorot():  # uniform, of the whole layer; an initializer of its own for each weight, or they would be equal
            limit = math.sqrt(6 / (d_model + d_ffn))
            return keras.initializers.RandomUniform(-limit, limit)

        self.halves = []
        for i, width in enumerate((d_ffn - d_ffn // 2, d_ffn // 2)):
            inner_kernel = self.add_weight(shape=[d_model, width], initializer=glorot(), name=f"inner_kernel_{i}")
            inner_bias = self.add_weight(shape=[width], initializer="zeros", name=f"inner_bias_{i}")
            outer_kernel = self.add_weight(shape=[d_model, width], initializer=glorot(), name=f"outer_kernel_{i}")
            self.halves.append((inner_kernel, inner_bias, outer_kernel))
        self.outer_bias = self.add_weight(shape=[d_model], initializer="zeros", name="outer_bias")
        self.built = True

    def call(self, x):
        """x [B, T, D] -> [B, T, D]."""
        parts = []
        for inner_kernel, inner_bias, outer_kernel in self.halves:
            inner = tf.nn.relu(tf.nn.bias_add(linear(x, inner_kernel), tf.cast(inner_bias, x.dtype)))  # [B, T, F/2]
            parts.append(linear(inner, outer_kernel, transpose_b=True))  # [B, T, D]
        return tf.nn.bias_add(tf.add_n(parts), tf.cast(self.outer_bias, x.dtype))  # [B, T, D]


class LayerNorm(keras.layers.Layer):
    """Layer normalisation, in float32."""

    def __init__(self, d_model: int, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.scale = self.add_weight(shape=[d_model], initializer="ones", name="scale")
        self.offset = self.add_weight(shape=[d_model], initializer="zeros", name="offset")
        self.built = True

    def call(self, x, weight=1.0):
        """x [B, T, D] -> the norm of x times `weight`, [B, T, D].

        Args:
          x: [B, T, D].
          weight: a scalar, which the D scales and offsets take at little cost; or [B, 1, 1].
        """
        each_row = len(tf.convert_to_tensor(weight).shape) > 0
        factor = 1.0 if each_row else weight
        normal = layer_norm(tf.reshape(x, [-1, x.shape[-1]]), self.scale * factor, self.offset * factor)  # [N, D]
        normal = tf.reshape(normal, x.shape)  # [B, T, D]
        return normal * weight if each_row else normal


class Block(keras.layers.Layer):
    """One block: a single kind of layer, or with `search` the mixture of all of them (Mandava et al. 2020, section 3).

    Its input, its output, residuals and norms are float32; attention and dense layer compute in the precision of the policy.
    """

    def __init__(self, kind: str, place: int, d_model: int, num_heads: int, d_ffn: int, dropout_rate: float, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.kind, self.place, self.dropout_rate = kind, place, dropout_rate
        self.attention = self.dense = None
        with keras.name_scope(self.name):  # so that each weight of the network has a path of its own
            if kind in ("attention", SEARCH):
                self.attention = RelativeAttention(d_model, num_heads, name="attention")
                self.attention_norm = LayerNorm(d_model, name="attention_norm")
            if kind in ("dense", SEARCH):
                self.dense = FeedForward(d_model, d_ffn, name="dense")
                self.dense_norm = LayerNorm(d_model, name="dense_norm")
        self.built = True

    def call(self, x, memory=None, bias=None, weights=None, draws=None):
        """Applies the block.

        Args:
          x: float32 [B, T, D].
          memory, bias: [B, M, D] and [T, C], for the attention.
          weights: of the mixture, [K], or [B, K] with a mixture for each row.
          draws: the noise of dropout; None for none.

        Returns:
          float32 [B, T, D].
        """
        if self.kind != SEARCH:
            weights = [1.0] * len(KINDS)
        elif weights.shape.rank == 1:
            weights = tf.unstack(weights)  # K scalars
        else:
            weights = tf.unstack(weights[:, None, None], axis=-1)  # K times [B, 1, 1]
        inner = tf.cast(x, self.compute_dtype)  # [B, T, D]
        branches = []
        if self.attention:
            y = self._dropout(self.attention(inner, memory, bias), draws, 2 * self.place)  # [B, T, D]
            branches.append(self.attention_norm(x + y, weight=weights[0]))
        if self.dense:
            y = self._dropout(self.dense(inner), draws, 2 * self.place + 1)  # [B, T, D]
            branches.append(self.dense_norm(x + y, weight=weights[1]))
        if self.kind in ("identity", SEARCH):
            branches.append(x * weights[2])
        return tf.add_n(branches)

    def _dropout(self, y, draws, place):
        y = tf.cast(y, tf.float32)
        if not draws or not self.dropout_rate:
            return y
        return y * (tf.cast(draws.dropout_mask(place, y.shape, self.dropout_rate), tf.float32) / (1 - self.dropout_rate))


class PARTransformerXL(keras.Model):
    """The network: embedding, blocks, adaptive softmax. It is pure: memory goes in and comes out, noise comes from its key.

    Args:
      vocab_size: V.
      architecture: `search` or one of `KINDS` for each block; all `search` is the SuperNet.
      d_model, num_heads, d_ffn: D, H, F.
      mem_len: M.
      dropout_rate: of each branch, before its residual.
      cutoffs, proj_factor, proj_dims, static_shapes: of the `AdaptiveSoftmax`.
      straight_through: sample one-hot, with the gradient of the relaxed sample.
      gumbel_per_row: one sample for each row of a batch, not one for all.
      trainable_tau: where a trainable temperature starts; None takes the temperature of each call.

    Raises:
      ValueError: an unknown kind, or D that H does not divide, or what `AdaptiveSoftmax` raises.
    """

    def __init__(self, vocab_size: int, architecture: Sequence[str], d_model: int = 128, num_heads: int = 4, d_ffn: int = 1024,
                 mem_len: int = 16, dropout_rate: float = 0.1, cutoffs: Sequence[int] = (), proj_factor: int = 4,
                 proj_dims: Sequence[int] | None = None, straight_through: bool = False, gumbel_per_row: bool = False,
                 trainable_tau: float | None = None, static_shapes: bool = False, **kwargs):
        super().__init__(autocast=False, **kwargs)
        for kind in architecture:
            if kind not in (*KINDS, SEARCH):
                raise ValueError(f"unknown layer type '{kind}': choose from {', '.join((*KINDS, SEARCH))}")
        if d_model % num_heads:
            raise ValueError(f"d_model={d_model} is not divisible by num_heads={num_heads}")
        self.architecture, self.d_model, self.num_heads, self.d_ffn, self.mem_len = list(architecture), d_model, num_heads, d_ffn, mem_len
        self.straight_through, self.gumbel_per_row = straight_through, gumbel_per_row
        self.embedding = keras.layers.Embedding(vocab_size, d_model, keras.initializers.RandomNormal(stddev=0.02), dtype="float32", name="embedding")
        self.embedding.build()
        self.blocks = [Block(kind, place, d_model, num_heads, d_ffn, dropout_rate, name=f"block_{place}")
                       for place, kind in enumerate(architecture)]
        searched = self.architecture.count(SEARCH)
        # Called at the top, a Keras model casts its own weights in spite of its autocast=False, unless each says so itself.
        self.theta = self.add_weight(shape=[searched, len(KINDS)], initializer="zeros", autocast=False, name="theta") if searched else None
        self.log_tau = None
        if searched and trainable_tau:
            self.log_tau = self.add_weight(shape=[], initializer=keras.initializers.Constant(np.log(trainable_tau)), autocast=False, name="log_tau")
        self.softmax = AdaptiveSoftmax(d_model, vocab_size, cutoffs, proj_factor, proj_dims, static_shapes, name="softmax")
        self.built = True

    @property
    def num_memories(self) -> int:
        """A, the blocks that have attention and therefore memory."""
        return sum(block.attention is not None for block in self.blocks)

    def empty_memory(self, batch_size: int):
        """The memory before the first window, [A, B, M, D]."""
        return tf.zeros([self.num_memories, batch_size, self.mem_len, self.d_model], self.compute_dtype)

    def pi(self) -> np.ndarray:
        """The probability of each kind in each block, [L, K]; a fixed block has its kind with probability 1."""
        searched = iter(tf.nn.softmax(self.theta).numpy()) if self.theta is not None else None
        return np.stack([next(searched) if kind == SEARCH else np.eye(len(KINDS))[KINDS.index(kind)] for kind in self.architecture])

    @property
    def architecture_parameters(self) -> list:
        """What the search learns besides the weights: theta, and the temperature where it is trainable."""
        return [parameter for parameter in (self.theta, self.log_tau) if parameter is not None]

    def flops(self, batch_size: int, seq_len: int, probability: np.ndarray) -> float:
        """Model FLOPs of a window, forward: 2 for each multiply-add of a matrix product, and nothing for all else. Multiply-adds:

            attention   B (T (4 D^2 + 3 C D) + 2 M D^2) + C D^2      q, k, v, output; two scores and the values; memory's k, v; positions
            dense       B T 2 D F
            softmax     B T (D (head + tails) + sum_i p_i (D d_i + d_i n_i))

        where head and tails count the ids in the head and the tails, and tail i has width d_i and n_i ids.

        Args:
          batch_size, seq_len: B, T.
          probability: of each id, [V]; a tail counts for the share p_i of the tokens that falls into it.
        """
        B, T, M, D, F = batch_size, seq_len, self.mem_len, self.d_model, self.d_ffn
        C = M + T
        attention = B * (T * (4 * D * D + 3 * C * D) + 2 * M * D * D) + C * D * D
        dense = B * T * 2 * D * F
        softmax = D * (self.softmax.head_size + len(self.softmax.tails))
        for (first, end), kernel in zip(self.softmax.tails, self.softmax.projections):
            softmax += probability[first:end].sum() * kernel.shape[1] * (D + end - first)
        blocks = sum(attention * (block.attention is not None) + dense * (block.dense is not None) for block in self.blocks)
        return 2 * (blocks + B * T * softmax)

    def memory(self, batch_size: int, seq_len: int, probability: np.ndarray) -> float:
        """Bytes that a training step takes in float32 with Adam, without what the program takes by itself. Numbers of 4 bytes:

            parameters  4 P                                                     themselves, gradients, Adam's two averages
            attention   B T (D (3 C/T + 4 + 2 M/T) + H C)                       inputs of products, softmax, norm; old and new memory
            dense       B T (F + 2 D)
            block       B T D                                                   its input
            at once     8 B T H C                                               of one attention layer, while its gradient is computed
            softmax     3 B T (head + tails + sum_i p_i n_i)                    logits, probabilities, gradient

        Args:
          batch_size, seq_len: B, T; of the rows that a device computes at once.
          probability: of each id, [V], as in `flops`.
        """
        B, T, M, D, F, H = batch_size, seq_len, self.mem_len, self.d_model, self.d_ffn, self.num_heads
        C = M + T
        attention = B * (T * (D * (3 * C / T + 4 + 2 * M / T) + H * C))
        dense = B * T * (F + 2 * D)
        softmax = self.softmax.head_size + len(self.softmax.tails) + sum(probability[first:end].sum() * (end - first) for first, end in self.softmax.tails)
        blocks = sum(B * T * D + attention * (block.attention is not None) + dense * (block.dense is not None) for block in self.blocks)
        at_once = 8 * B * T * H * C * (self.num_memories > 0)
        return 4 * (4 * self.count_params() + blocks + at_once + 3 * B * T * softmax)

    def temperature(self, tau):
        """The temperature in force: the trainable one, or `tau`."""
        return tau if self.log_tau is None else tf.exp(self.log_tau)

    def call(self, tokens, memory, filled, tau=1.0, draws=None):
        """The hidden vectors from which each next token is predicted.

        Args:
          tokens: int32 [B, T].
          memory: [A, B, M, D].
          filled: how many of the M memory positions, the last ones, hold tokens; the rest is masked.
          tau: temperature of the mixtures.
          draws: the noise of training, or None: no dropout and no Gumbel noise.

        Returns:
          Hidden vectors, float32 [B, T, D], and the memory for the next window, [A, B, M, D].
        """
        T = tokens.shape[1]
        bias = score_bias(T, self.mem_len, filled)  # [T, C]
        weights = iter(tf.unstack(self.sample(tau, draws, rows=tokens.shape[0]), axis=-2))  # S times [K] or [B, K]
        memories = iter(tf.unstack(memory))  # A times [B, M, D]
        new_memories = []
        # Adam moves each weight by about the learning rate. A block's output adds D such moves, an entry of an embedding is one:
        # this factor, before the blocks and after them, lets what is learned of each word keep up.
        scale = self.d_model**0.5
        x = self.embedding(tokens) * scale  # [B, T, D]
        for block in self.blocks:
            kwargs = {"draws": draws}
            if block.attention:
                kwargs |= {"memory": next(memories), "bias": bias}
                context = tf.concat([kwargs["memory"], tf.cast(x, self.compute_dtype)], axis=1)  # [B, C, D]
                new_memories.append(context[:, T:])  # [B, M, D]
            if block.kind == SEARCH:
                kwargs["weights"] = next(weights)
            x = block(x, **kwargs)  # [B, T, D]
        new_memory = tf.stop_gradient(tf.stack(new_memories)) if new_memories else memory
        return x * scale, new_memory

    def sample(self, tau, draws=None, rows: int = 1):
        """The mixture weights of the S searched blocks, [S, K]; with noise and `gumbel_per_row`, one sample for each row, [rows, S, K]."""
        if self.theta is None:
            return tf.zeros([0, len(KINDS)])
        if draws is None:
            noise = 0.0
        elif self.gumbel_per_row:
            noise = draws.gumbel_rows(rows, self.theta.shape)
        else:
            noise = draws.gumbel(self.theta.shape)
        return gumbel_softmax(self.theta, self.temperature(tau), noise, self.straight_through)
