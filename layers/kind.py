"""What every kind of layer tells of itself.

B batch, T sequence length, M memory length, C = M + T context, D model width.
"""

from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network from which its layers are built.

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
    """A layer that a block may have, from [B, T, D] to [B, T, D].

    Attributes:
      letter: stands for this kind where an architecture is written as text.
      post_norm: the block gives LayerNorm(x + Dropout(layer(x))); otherwise layer(x) as it is.
      needs_memory: it looks at other positions than its own, and is called with (x, context, bias):
        `context` [B, C, D] is the memory and x, what follows a position included; `bias` [T, C] is
        0 where position i may see j, and -1e9 where j comes later or no token has filled it. A kind
        without memory is called with (x) alone: one position at a time must give the same.
    """

    letter: str
    post_norm = True
    needs_memory = False

    def __init__(self, sizes: Sizes, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.sizes = sizes

    def weight(self, name: str, shape: list[int], initializer: str = "glorot_uniform"):
        """A variable that is trained."""
        return self.add_weight(shape=shape, initializer=initializer, name=name)

    def multiply_adds(self, B: int, T: int) -> float:
        """Those of its matrix products for a window, forward."""
        raise NotImplementedError


class Identity(Kind):
    """The kind that leaves its input as it is (Mandava et al. 2020, section 3)."""

    letter = "i"
    post_norm = False

    def call(self, x):
        return x

    def multiply_adds(self, B: int, T: int) -> float:
        return 0
