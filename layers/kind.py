"""The interface of a layer type.

B batch, T sequence length, M memory length, C = M + T context, D model width.
"""

from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class Sizes:
    """The sizes of the layers of a network.

    Attributes:
      d_model: D, model width.
      num_heads: H, heads of the attention.
      d_ffn: F, inner width of the dense layer.
      mem_len: M, positions of memory.
    """

    d_model: int
    num_heads: int
    d_ffn: int
    mem_len: int


class Kind(keras.layers.Layer):
    """A layer type: a layer from [B, T, D] to [B, T, D] for a block.

    Attributes:
      letter: stands for this layer type in an architecture such as `aaddid`.
      post_norm: the block computes LayerNorm(x + Dropout(layer(x))). If false, it computes
        layer(x) in float32, and the layer cannot need memory.
      needs_memory: the layer depends on other positions and is called with (x, context, bias):
        `context` [B, C, D] is the memory followed by x; `bias` [T, C] is 0 if position i may see
        position j, and -1e9 if j comes later or holds no token. Without memory, the layer is called
        with (x) and must treat each position independently.
      attends: it has a method `attend(x, context, bias)` whose second result is the attention
        weights [H, B, T, C], for pictures.
    """

    letter: str
    post_norm = True
    needs_memory = False
    attends = False

    def __init__(self, sizes: Sizes, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.sizes = sizes

    def weight(self, name: str, shape: list[int], initializer: str = "glorot_uniform"):
        """A trainable variable."""
        return self.add_weight(shape=shape, initializer=initializer, name=name)

    def multiply_adds(self, B: int, T: int) -> float:
        """The multiply-adds of its matrix products for a window, forward."""
        raise NotImplementedError


class Identity(Kind):
    """Returns its input (Mandava et al. 2020, section 3)."""

    letter = "i"
    post_norm = False

    def call(self, x):
        return x

    def multiply_adds(self, B: int, T: int) -> float:
        return 0
