"""PAR Transformer-XL: stochastic blocks that learn an architecture along with their weights.

Mandava et al. 2020, "Pay Attention when Required" (arXiv 2009.04534), on Transformer-XL, Dai et al.
2019 (arXiv 1901.02860).

B batch, T sequence length, M memory length, C = M + T context, D model width, H heads, L blocks (S
of them searched, A with memory), K layer types, N = B T tokens, V vocabulary.
"""

import functools
from dataclasses import asdict
from typing import Sequence

import keras
import numpy as np
import tensorflow as tf

from adaptive_softmax import AdaptiveSoftmax, ClusterTable
from cutoffs import Cluster, clusters_of
from layers import KINDS, SEARCH, kinds_of
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
      kinds: the layer types that a searched block mixes; it also mixes those of fixed blocks.
      d_model, num_heads, d_ffn, mem_len: see `Sizes`.
      dropout_rate: dropout of the output of each layer, before its residual connection.
      embedding_dropout: dropout of the embedded tokens.
      cutoffs, proj_factor, static_shapes: see `AdaptiveSoftmax`.
      tie_embeddings: share the rows of the embedding between input and output.
      straight_through: sample one-hot, with the gradient of the relaxed sample.
      gumbel_per_row: draw a sample for each row of a batch instead of one for all.
      uniform: in training, sample one layer per block, all types with equal probability.
      trainable_tau: initial value of a trainable temperature; None if it is not trained.
      tau: the temperature used by calls that give none.

    Raises:
      ValueError: a layer type is unknown, or H does not divide D, or the cutoffs are not valid.
    """

    def __init__(self, vocab_size: int, architecture: Sequence[str],
                 kinds: Sequence[str] = ("attention", "dense", "identity"), d_model: int = 128,
                 num_heads: int = 4, d_ffn: int = 1024, mem_len: int = 16,
                 dropout_rate: float = 0.1, embedding_dropout: float = 0.0,
                 cutoffs: Sequence[int] = (), proj_factor: int = 4, tie_embeddings: bool = False,
                 straight_through: bool = False, gumbel_per_row: bool = False,
                 uniform: bool = False, trainable_tau: float | None = None, tau: float = 1.0,
                 static_shapes: bool = False, **kwargs):
        super().__init__(autocast=False, **kwargs)
        unknown = ({*kinds} - {*KINDS}) | ({*architecture} - {*KINDS, SEARCH})
        if unknown:
            choice = ", ".join(KINDS)
            raise ValueError(f"unknown layer type '{min(unknown)}': choose from {choice}")
        if d_model % num_heads:
            raise ValueError(f"d_model={d_model} is not divisible by num_heads={num_heads}")
        self.architecture, self.kinds = list(architecture), kinds_of(kinds, architecture)
        self.sizes = Sizes(d_model, num_heads, d_ffn, mem_len)
        self.dropout_rate, self.embedding_dropout = dropout_rate, embedding_dropout
        self.straight_through, self.gumbel_per_row = straight_through, gumbel_per_row
        self.uniform, self.tau, self.tie_embeddings = uniform, tau, tie_embeddings
        clusters = [Cluster(0, vocab_size, d_model)]
        if tie_embeddings:
            clusters = clusters_of(d_model, vocab_size, cutoffs, proj_factor)
        # Shared rows start smaller: at the output, they add noise to the initial log-frequencies.
        stddev = 0.005 if tie_embeddings else 0.02  # measured, docs/cutoffs.md
        self.embedding = ClusterTable(clusters, d_model, stddev, name="embedding")
        self.embedding.build([None, None])  # this shape, and those below, are for summary()
        self.blocks = []
        for place, kind in enumerate(architecture):
            own = self.kinds if kind == SEARCH else [kind]
            block = Block({name: self.dropout_place(place, name) for name in own}, self.sizes,
                          dropout_rate, dtype=self.dtype_policy, name=f"block_{place + 1}")
            block.build([None, None, d_model])
            self.blocks.append(block)
        self.theta = self.log_tau = None
        # A Keras model casts its own weights despite autocast=False, unless each weight forbids it.
        if searched := self.architecture.count(SEARCH):
            shape = [searched, len(self.kinds)]
            self.theta = self.add_weight(
                shape=shape, initializer="zeros", autocast=False, name="theta")
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
        trainable_tau = None if self.log_tau is None else float(self.temperature())
        return asdict(self.sizes) | self.softmax.get_config() | {
            "name": self.name, "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "architecture": list(self.architecture), "kinds": list(self.kinds),
            "dropout_rate": self.dropout_rate, "embedding_dropout": self.embedding_dropout,
            "straight_through": self.straight_through, "gumbel_per_row": self.gumbel_per_row,
            "uniform": self.uniform, "trainable_tau": trainable_tau, "tau": self.tau,
            "tie_embeddings": self.tie_embeddings}

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
        if self.uniform and sample.shape.rank == 2 and draws is not None:
            mixtures = iter(tf.unstack(tf.argmax(sample, axis=-1, output_type=tf.int32)))  # S x []
        memories = iter(tf.unstack(memory))  # A times [B, M, D]
        new_memories, scores = [], []
        x = self.embed(tokens)  # [B, T, D]
        place = self.dropout_place(len(self.blocks))
        x = dropout(x, self.embedding_dropout, draws, place)  # [B, T, D]
        for kind, block in zip(self.architecture, self.blocks):
            inputs = {"draws": draws}
            if block.needs_memory:
                inputs |= {"memory": next(memories), "bias": bias}
            if kind == SEARCH:
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
        but an entry of an embedding makes only one. Scaled by sqrt(D), embeddings keep pace.
        """
        return self.sizes.d_model**0.5

    def dropout_place(self, block: int, kind: str | None = None) -> int:
        """A unique number for the dropout of a layer in a block; the embedding is one more block.

        Only layers with a residual have dropout.
        """
        kinds = [name for name in self.kinds if KINDS[name].post_norm]
        return len(kinds) * block + (kinds.index(kind) if kind in kinds else 0)

    def sample(self, tau=None, draws=None, rows: int = 1):
        """The mixture weights of the searched blocks.

        Returns:
          [S, K]; with noise, if each row has its own sample, [rows, S, K].
        """
        if self.theta is None:
            return tf.zeros([0, len(self.kinds)])
        if draws is None:
            noise = 0.0
        elif self.gumbel_per_row:
            noise = draws.gumbel_rows(rows, self.theta.shape)  # [rows, S, K]
        else:
            noise = draws.gumbel(self.theta.shape)  # [S, K]
        one_hot = self.straight_through or self.uniform and draws is not None
        return gumbel_softmax(self.theta, self.temperature(tau), noise, one_hot)

    def temperature(self, tau=None):
        """The trainable temperature, or else `tau`, or else the network's own."""
        if self.log_tau is not None:
            return tf.exp(self.log_tau)
        return self.tau if tau is None else tau

    def pi(self) -> np.ndarray:
        """The probability of each of `kinds` in each block, [L, K]; 0 or 1 in a fixed block."""
        searched = [kind == SEARCH for kind in self.architecture]
        pi = np.zeros([len(self.blocks), len(self.kinds)])
        for block, kind in enumerate(self.architecture):
            if kind != SEARCH:
                pi[block, self.kinds.index(kind)] = 1
        if any(searched):
            pi[searched] = tf.nn.softmax(self.theta)
        return pi

    def most_likely(self) -> list[str]:
        """The most probable layer type of each block.

        A uniform search does not learn it: its blocks remain `search`.
        """
        if self.uniform:
            return list(self.architecture)
        return [self.kinds[kind] for kind in self.pi().argmax(axis=1)]

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
    """One layer, or a mixture of several layer types (Mandava et al. 2020, section 3).

    Input, output, residuals and norms are float32; layers compute in the precision of the policy.

    Args:
      dropout_places: {layer type: the place of its dropout, a number unique in the network}. If
        there are several layer types, the block mixes them.
      sizes: the sizes of its layers.
      dropout_rate: dropout of each branch, before its residual.
    """

    def __init__(self, dropout_places: dict[str, int], sizes: Sizes, dropout_rate: float,
                 **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.dropout_places, self.dropout_rate = dropout_places, dropout_rate
        self.branches, self.norms = {}, {}
        with keras.name_scope(self.name):  # gives each weight of the network a unique path
            for name in dropout_places:
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
          mixture: the weights of a search, [K], or [B, K] for a mixture per row; or the number of
            the only layer to compute, int32 [].
          draws: the random numbers of dropout; None for no dropout.

        Returns:
          float32 [B, T, D]; and the memory for the next window, [B, M, D], or None.
        """
        context = self.context(x, memory) if self.needs_memory else None  # [B, C, D]
        new_memory = None if context is None else context[:, x.shape[1]:]  # [B, M, D]
        if mixture is not None and mixture.shape.rank == 0:
            layers = [functools.partial(self.branch, kind, x, context, bias, 1.0, draws)
                      for kind in self.branches]
            return tf.switch_case(mixture, layers), new_memory
        weights = [1.0]
        if mixture is not None and mixture.shape.rank == 1:
            weights = tf.unstack(mixture)  # K scalars
        elif mixture is not None:
            weights = tf.unstack(mixture[:, None, None], axis=-1)  # K times [B, 1, 1]
        outputs = [self.branch(kind, x, context, bias, weight, draws)
                   for kind, weight in zip(self.branches, weights, strict=True)]  # K x [B, T, D]
        return tf.add_n(outputs), new_memory

    def context(self, x, memory):
        """The memory [B, M, D] followed by x [B, T, D], in the precision of the layers."""
        return tf.concat([memory, tf.cast(x, self.compute_dtype)], axis=1)  # [B, C, D]

    def branch(self, kind, x, context, bias, weight, draws=None):
        """The output of one layer, times its weight.

        Args:
          kind: a layer type of the block.
          x, bias, draws: see `call`.
          context: [B, C, D], for layers that need memory.
          weight: a scalar or [B, 1, 1].

        Returns:
          float32 [B, T, D].
        """
        layer = self.branches[kind]
        if not layer.post_norm:
            return layer(x) * weight  # [B, T, D]
        inner = tf.cast(x, self.compute_dtype)  # [B, T, D]
        y = layer(inner, context, bias) if layer.needs_memory else layer(inner)  # [B, T, D]
        place = self.dropout_places[kind]
        y = dropout(tf.cast(y, tf.float32), self.dropout_rate, draws, place)  # [B, T, D]
        return self.norms[kind](x + y, weight=weight)  # [B, T, D]

    def attention_scores(self, x, memory, bias):
        """The attention weights of each position of x, in a block that attends: [H, B, T, C]."""
        layer = next(layer for layer in self.branches.values() if layer.attends)
        return layer.attend(tf.cast(x, self.compute_dtype), self.context(x, memory), bias)[1]


class LayerNorm(keras.layers.Layer):
    """Layer normalisation, in float32."""

    def __init__(self, d_model: int, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.scale = self.add_weight(
            shape=[d_model], initializer="ones", autocast=False, name="scale")
        self.offset = self.add_weight(
            shape=[d_model], initializer="zeros", autocast=False, name="offset")
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


def dropout(x, rate, draws, place):
    """Inverted dropout; the identity without draws.

    Args:
      x: float32, any shape.
      rate: the fraction of elements set to zero.
      draws: the random numbers of a step, or None.
      place: a number that is unique for each use in the network.
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
