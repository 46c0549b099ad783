"""The time of each layer type on this machine, for `--latency_weight` and choose.py.

B batch, T sequence length, M memory length, C = M + T context, D model width, K layer types.
"""

from typing import Sequence

import numpy as np
import tensorflow as tf

from layers.attention import score_bias
from layers.kind import Sizes
from model import Block
from support import timing

CALLS = 30


def layer_latency(kinds: Sequence[str], sizes: Sizes, batch_size: int, seq_len: int,
                  jit_compile: bool) -> np.ndarray:
    """Median milliseconds of the forward pass of a window [B, T] per layer type: [K]."""
    M, D = sizes.mem_len, sizes.d_model
    x = tf.zeros([batch_size, seq_len, D])  # [B, T, D]
    bias = score_bias(seq_len, M, filled=M)  # [T, C]
    medians = []
    for kind in kinds:
        block = Block({kind: 0}, sizes, dropout_rate=0.0)
        memory = tf.zeros([batch_size, M, D], block.compute_dtype)  # [B, M, D]
        forward = tf.function(
            lambda: block(x, memory=memory, bias=bias)[0], jit_compile=jit_compile or None)
        forward()
        times = [timing.seconds(lambda: forward().numpy()) for _ in range(CALLS)]
        medians.append(1e3 * np.median(times))
    return np.array(medians)
