"""PAR Transformer-XL: stochastic blocks that learn an architecture along with their weights.

Mandava et al. 2020, "Pay Attention when Required" (arXiv 2009.04534), on Transformer-XL, Dai et al.
2019 (arXiv 1901.02860).

B batch, T sequence length, M memory length, C = M + T context, D model width, H heads, L blocks (S
of them searched, A with memory), K layer types, N = B T tokens, V vocabulary.
"""

from dataclasses import asdict
from typing import Sequence

import keras
import numpy as np
import tensorflow as tf

from adaptive_softmax import AdaptiveSoftmax, ClusterTable
from cutoffs import Cluster, clusters_of
from layers import KINDS, SEARCH
from layers.attention import score_bias
from layers.kind import Sizes
from layers.ops import layer_norm


@keras.saving.register_keras_serializable("par_transformer_xl")
class PARTransformerXL(keras.Model):
    """Embedding, blocks and adaptive softmax, without state: memory is an input and an output.

    Args:
      vocab_size: V.
      architecture: `search` or a layer type of `KINDS` for each block; all `search` is the
        SuperNet.
      d_model, num_heads, d_ffn, mem_len: see `Sizes`.
      dropout_rate: dropout of the output of each layer, before its residual connection.
      embedding_dropout: dropout of the embedded tokens.
      cutoffs, proj_factor, static_shapes: see `AdaptiveSoftmax`.
      tie_embeddings: share the rows of the embedding between input and output.
      straight_through: sample one-hot, with the gradient of the relaxed sample.
      gumbel_per_row: draw a sample for each row of a batch instead of one for all.
      trainable_tau: initial value of a trainable temperature; None if it is not trained.
      tau: the temperature used by calls that give none.

    Raises:
      ValueError: a layer type is unknown, or H does not divide D, or the cutoffs are not valid.
    """

    def __init__(self, vocab_size: int, architecture: Sequence[str], d_model: int = 128,
                 num_heads: int = 4, d_ffn: int = 1024, mem_len: int = 16,
                 dropout_rate: float = 0.1, embedding_dropout: float = 0.0,
                 cutoffs: Sequence[int] = (), proj_factor: int = 4, tie_embeddings: bool = False,
                 straight_through: bool = False, gumbel_per_row: bool = False,
                 trainable_tau: float | None = None, tau: float = 1.0,
                 static_shapes: bool = False, **kwargs):
        super().__init__(autocast=False, **kwargs)
        for kind in architecture:
            if kind not in (*KINDS, SEARCH):
                choice = ", ".join((*KINDS, SEARCH))
                raise ValueError(f"unknown layer type '{kind}': choose from {choice}")
        if d_model % num_heads:
            raise ValueError(f"d_model={d_model} is not divisible by num_heads={num_heads}")
        self.architecture = list(architecture)
        self.sizes = Sizes(d_model, num_heads, d_ffn, mem_len)
        self.dropout_rate, self.embedding_dropout = dropout_rate, embedding_dropout
        self.straight_through, self.gumbel_per_row = straight_through, gumbel_per_row
        self.tau, self.tie_embeddings = tau, tie_embeddings
        clusters = [Cluster(0, vocab_size, d_model)]
        if tie_embeddings:
            clusters = clusters_of(d_model, vocab_size, cutoffs, proj_factor)
        # Shared rows start smaller: as output weights, they add to biases, the log-frequencies.
        stddev = 0.005 if tie_embeddings else 0.02  # measured, docs/cutoffs.md
        self.embedding = ClusterTable(clusters, d_model, stddev, name="embedding")
        self.embedding.build([None, None])  # this shape, and those below, are for summary()
        self.blocks = [Block(kind, place, self.sizes, dropout_rate, dtype=self.dtype_policy,
                             name=f"block_{place + 1}") for place, kind in enumerate(architecture)]
        for block in self.blocks:
            block.build([None, None, d_model])
        self.theta = self.log_tau = None
        # A Keras model casts its own weights despite autocast=False, unless each weight forbids it.
        if searched := self.architecture.count(SEARCH):
            self.theta = self.add_weight(
                shape=[searched, len(KINDS)], initializer="zeros", autocast=False, name="theta")
            if trainable_tau:
                log_tau = keras.initializers.Constant(np.log(trainable_tau))
                self.log_tau = self.add_weight(
                    shape=[], initializer=log_tau, autocast=False, name="log_tau")
        self.softmax = AdaptiveSoftmax(
            d_model, vocab_size, cutoffs, proj_factor, static_shapes,
            table=self.embedding if tie_embeddings else None, name="softmax")
        self.softmax.build([None, d_model])
        self.built = True

    def get_config(self):
        tau = None if self.log_tau is None else float(self.temperature())
        return asdict(self.sizes) | self.softmax.get_config() | {
            "name": self.name, "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "architecture": list(self.architecture), "dropout_rate": self.dropout_rate,
            "embedding_dropout": self.embedding_dropout,
            "straight_through": self.straight_through, "gumbel_per_row": self.gumbel_per_row,
            "trainable_tau": tau, "tau": self.tau, "tie_embeddings": self.tie_embeddings}

    def call(self, tokens, memory, filled, tau=None, draws=None, return_attention_scores=False):
        """The hidden vectors that predict each next token.

        Args:
          tokens: int32 [B, T].
          memory: [A, B, M, D].
          filled: the number of memory positions, from the end, that hold tokens; the others are
            masked.
          tau: temperature of the mixtures; None for the network's own.
          draws: the random numbers of training; None for neither dropout nor Gumbel noise.
          return_attention_scores: also return the attention weights.

        Returns:
          Hidden vectors, float32 [B, T, D]; the memory for the next window, [A, B, M, D]; and, with
          `return_attention_scores`, the weights of each block that attends: [H, B, T, C].
        """
        B, T = tokens.shape
        bias = score_bias(T, memory.shape[2], filled)  # [T, C]
        sample = self.sample(tau, draws, rows=B)  # [S, K] or [B, S, K]
        mixtures = iter(tf.unstack(sample, axis=-2))  # S times [K] or [B, K]
        memories = iter(tf.unstack(memory))  # A times [B, M, D]
        new_memories, scores = [], []
        x = self.embed(tokens)  # [B, T, D]
        x = dropout(x, self.embedding_dropout, draws, dropout_place(len(self.blocks)))  # [B, T, D]
        for block in self.blocks:
            inputs = {"draws": draws}
            if block.needs_memory:
                inputs |= {"memory": next(memories), "bias": bias}
            if block.kind == SEARCH:
                inputs["mixture"] = next(mixtures)
            if block.attends and return_attention_scores:
                scores.append(block.attention_scores(x, inputs["memory"], bias))  # [H, B, T, C]
            x, new_memory = block(x, **inputs)  # [B, T, D], [B, M, D]
            if block.needs_memory:
                new_memories.append(new_memory)
        if new_memories:
            memory = tf.stop_gradient(tf.stack(new_memories))  # [A, B, M, D]
        hidden = self.hidden(x)  # [B, T, D]
        if return_attention_scores:
            return hidden, memory, scores
        return hidden, memory

    def embed(self, tokens):
        """The input of the first block, float32 [B, T, D], for tokens [B, T]."""
        return self.embedding(tokens) * self.scale

    def hidden(self, x):
        """The hidden vectors, float32 [B, T, D], for the output of the last block [B, T, D].

        Separate output rows start at zero and, scaled by sqrt(D), learn as fast as the embeddings.
        Shared rows are scaled by D^0.25, the best of 1, D^0.25 and D^0.5 (docs/cutoffs.md).
        """
        return x * (self.sizes.d_model**0.25 if self.tie_embeddings else self.scale)

    @property
    def scale(self) -> float:
        """The scale of embeddings, sqrt(D).

        Adam moves each weight by about the learning rate. The output of a block sums D such moves,
        but an entry of an embedding makes only one. Scaled by sqrt(D), embeddings learn as fast.
        """
        return self.sizes.d_model**0.5

    def sample(self, tau=None, draws=None, rows: int = 1):
        """The mixture weights of the searched blocks.

        Returns:
          [S, K]; with `gumbel_per_row` and noise, a sample for each row, [rows, S, K].
        """
        if self.theta is None:
            return tf.zeros([0, len(KINDS)])
        if draws is None:
            noise = 0.0
        elif self.gumbel_per_row:
            noise = draws.gumbel_rows(rows, self.theta.shape)  # [rows, S, K]
        else:
            noise = draws.gumbel(self.theta.shape)  # [S, K]
        return gumbel_softmax(self.theta, self.temperature(tau), noise, self.straight_through)

    def temperature(self, tau=None):
        """The trainable temperature, or else `tau`, or else the network's own."""
        if self.log_tau is not None:
            return tf.exp(self.log_tau)
        return self.tau if tau is None else tau

    def pi(self) -> np.ndarray:
        """The probability of each layer type in each block, [L, K]; 0 or 1 in a fixed block."""
        kinds, searched = list(KINDS), [kind == SEARCH for kind in self.architecture]
        pi = np.zeros([len(self.blocks), len(kinds)])
        for block, kind in enumerate(self.architecture):
            if kind != SEARCH:
                pi[block, kinds.index(kind)] = 1
        if any(searched):
            pi[searched] = tf.nn.softmax(self.theta)
        return pi

    def most_likely(self) -> list[str]:
        """The most probable layer type of each block."""
        return [list(KINDS)[kind] for kind in self.pi().argmax(axis=1)]

    @property
    def architecture_parameters(self) -> list:
        """The parameters of a search: theta, and the temperature if it is trainable."""
        return [each for each in (self.theta, self.log_tau) if each is not None]

    @property
    def num_memories(self) -> int:
        """A, the number of blocks with memory."""
        return sum(block.needs_memory for block in self.blocks)

    def empty_memory(self, batch_size: int, mem_len: int | None = None):
        """The memory before the first window, [A, B, M, D]; `mem_len` may differ from `sizes`."""
        M = self.sizes.mem_len if mem_len is None else mem_len
        shape = [self.num_memories, batch_size, M, self.sizes.d_model]
        return tf.zeros(shape, self.compute_dtype)


class Block(keras.layers.Layer):
    """One layer, or a mixture of all layer types (Mandava et al. 2020, section 3).

    Input, output, residuals and norms are float32; layers compute in the precision of the policy.

    Args:
      kind: a layer type of `KINDS`, or `search`.
      place: the number of the block in the network; its dropout depends on it.
      sizes: the sizes of its layers.
      dropout_rate: dropout of each branch, before its residual.
    """

    def __init__(self, kind: str, place: int, sizes: Sizes, dropout_rate: float, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.kind, self.place, self.dropout_rate = kind, place, dropout_rate
        self.branches, self.norms = {}, {}
        with keras.name_scope(self.name):  # gives each weight of the network a unique path
            for name in KINDS if kind == SEARCH else [kind]:
                self.branches[name] = KINDS[name](sizes, dtype=self.dtype_policy, name=name)
                if KINDS[name].post_norm:
                    self.norms[name] = LayerNorm(sizes.d_model, name=f"{name}_norm")
        self.built = True

    def build(self, input_shape):
        """Does nothing: the weights exist already."""

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    @property
    def needs_memory(self) -> bool:
        return any(layer.needs_memory for layer in self.branches.values())

    @property
    def attends(self) -> bool:
        return any(layer.attends for layer in self.branches.values())

    def call(self, x, memory=None, bias=None, mixture=None, draws=None):
        """Applies the block.

        Args:
          x: float32 [B, T, D].
          memory, bias: [B, M, D] and [T, C], for layers that need memory.
          mixture: the weights of a search, [K], or [B, K] for a mixture per row.
          draws: the random numbers of dropout; None for no dropout.

        Returns:
          float32 [B, T, D]; and the memory for the next window, [B, M, D], or None.
        """
        weights = [1.0]
        if mixture is not None and mixture.shape.rank == 1:
            weights = tf.unstack(mixture)  # K scalars
        elif mixture is not None:
            weights = tf.unstack(mixture[:, None, None], axis=-1)  # K times [B, 1, 1]
        outputs, new_memory = self.outputs(x, memory, bias, weights, draws)
        return tf.add_n(outputs), new_memory

    def outputs(self, x, memory, bias, weights, draws=None):
        """The output of each layer, times its weight.

        Args:
          x, memory, bias, draws: see `call`.
          weights: of the K layers, scalars or [B, 1, 1].

        Returns:
          K times [B, T, D]; and the memory for the next window, [B, M, D], or None.
        """
        inner, new_memory = tf.cast(x, self.compute_dtype), None  # [B, T, D]
        if self.needs_memory:
            context = tf.concat([memory, inner], axis=1)  # [B, C, D]
            new_memory = context[:, x.shape[1]:]  # [B, M, D]
        outputs = []
        for (kind, layer), weight in zip(self.branches.items(), weights, strict=True):
            if not layer.post_norm:
                outputs.append(layer(x) * weight)  # [B, T, D]
                continue
            y = layer(inner, context, bias) if layer.needs_memory else layer(inner)  # [B, T, D]
            y = tf.cast(y, tf.float32)  # [B, T, D]
            y = dropout(y, self.dropout_rate, draws, dropout_place(self.place, kind))  # [B, T, D]
            outputs.append(self.norms[kind](x + y, weight=weight))  # [B, T, D]
        return outputs, new_memory

    def attention_scores(self, x, memory, bias):
        """The attention weights of each position of x, in a block that attends: [H, B, T, C]."""
        inner = tf.cast(x, self.compute_dtype)  # [B, T, D]
        layer = next(layer for layer in self.branches.values() if layer.attends)
        return layer.attend(inner, tf.concat([memory, inner], axis=1), bias)[1]


class LayerNorm(keras.layers.Layer):
    """Layer normalisation, in float32."""

    def __init__(self, d_model: int, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.scale = self.add_weight(shape=[d_model], initializer="ones", name="scale")
        self.offset = self.add_weight(shape=[d_model], initializer="zeros", name="offset")
        self.built = True

    def call(self, x, weight=1.0):
        """`weight` times the norm of x.

        Args:
          x: [B, T, D].
          weight: a scalar, folded cheaply into the D scales and offsets; or [B, 1, 1].

        Returns:
          [B, T, D].
        """
        each_row = len(tf.convert_to_tensor(weight).shape) > 0
        factor = 1.0 if each_row else weight
        flat = tf.reshape(x, [-1, x.shape[-1]])  # [N, D]
        normal = layer_norm(flat, self.scale * factor, self.offset * factor)  # [N, D]
        normal = tf.reshape(normal, x.shape)  # [B, T, D]
        return normal * weight if each_row else normal


def dropout_place(block: int, kind: str | None = None) -> int:
    """A unique number for the dropout of a layer in a block; the embedding is one more block.

    Only layers with a residual have dropout.
    """
    kinds = [name for name, layer in KINDS.items() if layer.post_norm]
    return len(kinds) * block + (kinds.index(kind) if kind else 0)


def dropout(x, rate, draws, place):
    """Inverted dropout; the identity without draws.

    Args:
      x: float32, any shape.
      rate: the fraction of elements set to zero.
      draws: the random numbers of a step, or None.
      place: unique for each use in the network: `dropout_place`.
    """
    if draws is None or not rate:
        return x
    mask = tf.cast(draws.dropout_mask(place, x.shape, rate), tf.float32)
    return x * (mask / (1 - rate))


def gumbel_softmax(theta, tau, noise=0.0, straight_through=False):
    """A relaxed categorical sample (Jang et al. 2016, equation 2; Maddison et al. 2016).

    Args:
      theta: [..., K], logits of pi = softmax(theta).
      tau: temperature; as it approaches 0, the sample becomes one-hot.
      noise: [..., K], samples of Gumbel(0, 1); 0 gives the softmax of log(pi) / tau.
      straight_through: return the one-hot of the largest weight, with the gradient of the relaxed
        sample.

    Returns:
      Weights, [..., K]; they sum to 1.
    """
    soft = tf.nn.softmax((tf.nn.log_softmax(theta) + noise) / tau)  # [..., K]
    if not straight_through:
        return soft
    hard = tf.one_hot(tf.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)  # [..., K]
    return hard + (soft - tf.stop_gradient(soft))
