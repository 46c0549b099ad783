"""PAR Transformer-XL: stochastic blocks that learn their weights and their architecture at once.

Mandava et al. 2020, "Pay Attention when Required" (arXiv 2009.04534), on Transformer-XL, Dai et al.
2019 (arXiv 1901.02860).

B batch, T sequence length, M memory length, C = M + T context, D model width, H heads, L blocks, S
of which are searched and A need memory, K kinds of layer, N = B T tokens, V vocabulary.
"""

from dataclasses import asdict
from typing import Sequence

import keras
import numpy as np
import tensorflow as tf

from adaptive_softmax import AdaptiveSoftmax, ClusterTable
from cutoffs import Cluster, clusters_of
from layers import KINDS, SEARCH
from layers.attention import RelativeAttention, score_bias
from layers.kind import Sizes
from layers.ops import layer_norm


@keras.saving.register_keras_serializable("par_transformer_xl")
class PARTransformerXL(keras.Model):
    """The network: embedding, blocks, adaptive softmax. It is pure: memory goes in and comes out.

    Args:
      vocab_size: V.
      architecture: `search` or one of `KINDS` for each block; all `search` is the SuperNet.
      d_model, num_heads, d_ffn, mem_len: the `Sizes`.
      dropout_rate: of each branch, before its residual.
      embedding_dropout: of the numbers of the embedded tokens.
      cutoffs, proj_factor, proj_dims, static_shapes: of the `AdaptiveSoftmax`.
      tie_embeddings: input and output share the rows of the ids.
      straight_through: sample one-hot, with the gradient of the relaxed sample.
      gumbel_per_row: one sample for each row of a batch, not one for all.
      trainable_tau: where a trainable temperature starts; None for none.
      tau: the temperature of a call that gives none, where none is trainable.

    Raises:
      ValueError: an unknown kind, or D that H does not divide, or what `AdaptiveSoftmax` raises.
    """

    def __init__(self, vocab_size: int, architecture: Sequence[str], d_model: int = 128,
                 num_heads: int = 4, d_ffn: int = 1024, mem_len: int = 16,
                 dropout_rate: float = 0.1, embedding_dropout: float = 0.0,
                 cutoffs: Sequence[int] = (), proj_factor: int = 4,
                 proj_dims: Sequence[int] | None = None, straight_through: bool = False,
                 gumbel_per_row: bool = False, trainable_tau: float | None = None,
                 tau: float = 1.0, static_shapes: bool = False, tie_embeddings: bool = False,
                 **kwargs):
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
            clusters = clusters_of(d_model, vocab_size, cutoffs, proj_factor, proj_dims)
        # Shared rows start smaller: they also score, beside biases that know the frequencies.
        stddev = 0.005 if tie_embeddings else 0.02  # measured, docs/cutoffs.md
        self.embedding = ClusterTable(clusters, d_model, stddev, name="embedding")
        self.embedding.build([None, None])  # the shape is for summary(), as in what follows
        self.blocks = [Block(kind, place, self.sizes, dropout_rate, dtype=self.dtype_policy,
                             name=f"block_{place + 1}") for place, kind in enumerate(architecture)]
        for block in self.blocks:
            block.build([None, None, d_model])
        self.theta = self.log_tau = None
        # A Keras model casts its own weights in spite of autocast=False, unless each forbids it.
        if searched := self.architecture.count(SEARCH):
            self.theta = self.add_weight(
                shape=[searched, len(KINDS)], initializer="zeros", autocast=False, name="theta")
            if trainable_tau:
                log_tau = keras.initializers.Constant(np.log(trainable_tau))
                self.log_tau = self.add_weight(
                    shape=[], initializer=log_tau, autocast=False, name="log_tau")
        self.softmax = AdaptiveSoftmax(
            d_model, vocab_size, cutoffs, proj_factor, proj_dims, static_shapes,
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
        """The hidden vectors from which each next token is predicted.

        Args:
          tokens: int32 [B, T].
          memory: [A, B, M, D].
          filled: how many of the M memory positions, the last ones, hold tokens; others are masked.
          tau: temperature of the mixtures; None for the network's own.
          draws: the noise of training, or None: no dropout and no Gumbel noise.
          return_attention_scores: say too what each position attends to.

        Returns:
          Hidden vectors, float32 [B, T, D], and the memory for the next window, [A, B, M, D]. Then,
          where it is asked for, the weights of the attention in each block with it: [H, B, T, C].
        """
        B, T = tokens.shape
        bias = score_bias(T, memory.shape[2], filled)  # [T, C]
        sample = self.sample(tau, draws, rows=B)  # [S, K] or [B, S, K]
        mixtures = iter(tf.unstack(sample, axis=-2))  # S times [K] or [B, K]
        memories = iter(tf.unstack(memory))  # A times [B, M, D]
        new_memories, scores = [], []
        x = self.embed(tokens)  # [B, T, D]
        behind_all_branches = len(KINDS) * len(self.blocks)
        x = dropout(x, self.embedding_dropout, draws, behind_all_branches)  # [B, T, D]
        for block in self.blocks:
            inputs = {"draws": draws}
            if block.needs_memory:
                inputs |= {"memory": next(memories), "bias": bias}
            if block.kind == SEARCH:
                inputs["mixture"] = next(mixtures)
            if block.attention is not None and return_attention_scores:
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
        """What the softmax takes, float32 [B, T, D], for the output of the last block [B, T, D].

        Separate output rows start at zero and, scaled by sqrt(D), learn as fast as the embeddings.
        Shared rows are scaled by D^0.25, the best of 1, D^0.25 and D^0.5 (docs/cutoffs.md).
        """
        return x * (self.sizes.d_model**0.25 if self.tie_embeddings else self.scale)

    @property
    def scale(self) -> float:
        """The factor of embeddings, sqrt(D).

        Adam moves each weight by about the learning rate. A block's output sums D such moves, an
        entry of an embedding is one: scaled by sqrt(D), embeddings learn as fast.
        """
        return self.sizes.d_model**0.5

    def sample(self, tau=None, draws=None, rows: int = 1):
        """The mixture weights of the searched blocks.

        Returns:
          [S, K]; with noise and `gumbel_per_row` one sample for each row, [rows, S, K].
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
        """The temperature in force: the trainable one, or `tau`, or the network's own."""
        if self.log_tau is not None:
            return tf.exp(self.log_tau)
        return self.tau if tau is None else tau

    def pi(self) -> np.ndarray:
        """The probability of each kind in each block, [L, K]; 1 for the kind of a fixed block."""
        kinds, searched = list(KINDS), [kind == SEARCH for kind in self.architecture]
        pi = np.zeros([len(self.blocks), len(kinds)])
        for block, kind in enumerate(self.architecture):
            if kind != SEARCH:
                pi[block, kinds.index(kind)] = 1
        if any(searched):
            pi[searched] = tf.nn.softmax(self.theta)
        return pi

    def most_likely(self) -> list[str]:
        """The kind of each block that has the largest probability."""
        return [list(KINDS)[kind] for kind in self.pi().argmax(axis=1)]

    @property
    def architecture_parameters(self) -> list:
        """What the search learns besides the weights: theta, and a trainable temperature."""
        return [each for each in (self.theta, self.log_tau) if each is not None]

    @property
    def num_memories(self) -> int:
        """A, the blocks that need memory."""
        return sum(block.needs_memory for block in self.blocks)

    def empty_memory(self, batch_size: int, mem_len: int | None = None):
        """The memory before the first window, [A, B, M, D]; M may be another than in `sizes`."""
        M = self.sizes.mem_len if mem_len is None else mem_len
        shape = [self.num_memories, batch_size, M, self.sizes.d_model]
        return tf.zeros(shape, self.compute_dtype)


class Block(keras.layers.Layer):
    """One block: a single kind of layer, or the mixture of all (Mandava et al. 2020, section 3).

    Its input, its output, residuals and norms are float32; layers compute in the precision of the
    policy.

    Args:
      kind: one of `KINDS`, or `search`.
      place: its number in the network, from which the noise of its dropout is drawn.
      sizes: of its layers.
      dropout_rate: of each branch, before its residual.
    """

    def __init__(self, kind: str, place: int, sizes: Sizes, dropout_rate: float, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.kind, self.place, self.dropout_rate = kind, place, dropout_rate
        self.branches, self.norms = {}, {}
        with keras.name_scope(self.name):  # so that each weight of the network has its own path
            for name in KINDS if kind == SEARCH else [kind]:
                self.branches[name] = KINDS[name](sizes, dtype=self.dtype_policy, name=name)
                if KINDS[name].post_norm:
                    self.norms[name] = LayerNorm(sizes.d_model, name=f"{name}_norm")
        self.built = True

    def build(self, input_shape):
        """All weights are there already."""

    def compute_output_shape(self, input_shape):
        return tuple(input_shape)

    @property
    def needs_memory(self) -> bool:
        return any(layer.needs_memory for layer in self.branches.values())

    def call(self, x, memory=None, bias=None, mixture=None, draws=None):
        """Applies the block.

        Args:
          x: float32 [B, T, D].
          memory, bias: [B, M, D] and [T, C], for layers that need memory.
          mixture: the weights of a search, [K], or [B, K] with a mixture for each row.
          draws: the noise of dropout; None for none.

        Returns:
          float32 [B, T, D]; and the memory for the next window, [B, M, D], None if it needs none.
        """
        weights = [1.0]
        if mixture is not None and mixture.shape.rank == 1:
            weights = tf.unstack(mixture)  # K scalars
        elif mixture is not None:
            weights = tf.unstack(mixture[:, None, None], axis=-1)  # K times [B, 1, 1]
        outputs, new_memory = self.outputs(x, memory, bias, weights, draws)
        return tf.add_n(outputs), new_memory

    def outputs(self, x, memory, bias, weights, draws=None):
        """What each layer of the block gives, times its weight.

        Args:
          x, memory, bias, draws: as of `call`.
          weights: of its K layers, scalars or [B, 1, 1].

        Returns:
          K times [B, T, D]; and the memory for the next window, [B, M, D], None if it needs none.
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
            y = dropout(y, self.dropout_rate, draws, self._dropout_place(kind))  # [B, T, D]
            outputs.append(self.norms[kind](x + y, weight=weight))  # [B, T, D]
        return outputs, new_memory

    def _dropout_place(self, kind: str) -> int:
        kinds = [name for name, layer in KINDS.items() if layer.post_norm]
        return len(kinds) * self.place + kinds.index(kind)

    @property
    def attention(self) -> RelativeAttention | None:
        """Its layer of attention, if it has one."""
        return self.branches.get("attention")

    def attention_scores(self, x, memory, bias):
        """What each position of x attends to, in a block with attention: [H, B, T, C]."""
        inner = tf.cast(x, self.compute_dtype)  # [B, T, D]
        return self.attention.attend(inner, tf.concat([memory, inner], axis=1), bias)[1]


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
          weight: a scalar, which the D scales and offsets take at little cost; or [B, 1, 1].

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
    """x with some of its elements at zero and the rest larger; x itself without draws.

    Args:
      x: float32, any shape.
      rate: the share that becomes zero.
      draws: the noise of a step, or None.
      place: a number of its own for each use within the network.
    """
    if draws is None or not rate:
        return x
    mask = tf.cast(draws.dropout_mask(place, x.shape, rate), tf.float32)
    return x * (mask / (1 - rate))


def gumbel_softmax(theta, tau, noise=0.0, straight_through=False):
    """A relaxed sample of a category (Jang et al. 2016, equation 2; Maddison et al. 2016).

    Args:
      theta: [..., K], logits of pi = softmax(theta).
      tau: temperature; towards 0 the sample becomes one-hot.
      noise: [..., K], draws from Gumbel(0, 1); 0 gives the softmax of log(pi) / tau.
      straight_through: the one-hot of the largest weight, with the gradient of the relaxed sample.

    Returns:
      Weights, [..., K]; they sum to 1.
    """
    soft = tf.nn.softmax((tf.nn.log_softmax(theta) + noise) / tau)  # [..., K]
    if not straight_through:
        return soft
    hard = tf.one_hot(tf.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)  # [..., K]
    return hard + (soft - tf.stop_gradient(soft))
