"""Scores every subnetwork of a search with the weights of the search.

B batch, T sequence length, M memory length, C = M + T context, D model width, L blocks, K layer
types of a block, P subnetworks of the blocks so far, N subnetworks of all blocks.
"""

import itertools
import math
from typing import Iterable

import numpy as np
import tensorflow as tf

from layers.attention import score_bias
from model import PARTransformerXL
from training.scoring import filled_memory, real_targets


def num_architectures(model: PARTransformerXL) -> int:
    """N, which is K^L for a search in all L blocks."""
    return math.prod(len(block.branches) for block in model.blocks)


def architectures(model: PARTransformerXL) -> list[tuple[str, ...]]:
    """The layer types of each subnetwork: N tuples of length L."""
    return list(itertools.product(*(block.branches for block in model.blocks)))


class ChoiceScorer:
    """Scores all subnetworks at once. Those with the same first blocks share their computation.

    The outputs of P subnetworks of the blocks so far lie in the batch, [P B, T, D], and the next
    block turns them into K P. So the first block runs once and the last for N / K subnetworks,
    whereas N separate networks would run each block N times.

    Args:
      model: a search.
    """

    def __init__(self, model: PARTransformerXL):
        self._model = model
        self._compiled = tf.function(self._window)

    def __call__(self, windows: Iterable[np.ndarray]) -> tuple[np.ndarray, int]:
        """Scores consecutive windows, int32 [B, T + 1] each, from an empty memory.

        Returns:
          The summed negative log-likelihood of each subnetwork in nats, float64 [N], in the order
          of `architectures`; and the number of targets.
        """
        memories, total, targets = None, 0.0, 0
        for number, window in enumerate(windows):
            window = tf.constant(window)
            memories = memories or self._empty_memories(len(window))
            nll, memories = self._compiled(window, memories, tf.constant(number))
            total += nll.numpy().astype(np.float64)
            targets += int(tf.reduce_sum(real_targets(window)))
        return total, targets

    def _empty_memories(self, rows: int) -> list:
        """The memory of each block for all subnetworks of the blocks before it: L x [P B, M, D]."""
        memories, networks = [], 1
        for block in self._model.blocks:
            M, D = self._model.sizes.mem_len, self._model.sizes.d_model
            memories.append(tf.zeros([networks * rows, M, D], block.compute_dtype))
            networks *= len(block.branches)
        return memories

    def _window(self, window, memories, number):
        """The loss of each subnetwork on a window, [N], and the next memories, L x [P B, M, D]."""
        B, T = window.shape[0], window.shape[1] - 1
        model, filled = self._model, filled_memory(self._model, window, number)
        bias = score_bias(T, model.sizes.mem_len, filled)  # [T, C]
        x, new_memories = model.embed(window[:, :-1]), []  # [B, T, D]
        for block, memory in zip(model.blocks, memories):
            weights = [tf.constant(1.0)] * len(block.branches)  # Keras would cast a number
            outputs, new_memory = block.outputs(x, memory, bias, weights)  # K x [P B, T, D]
            new_memories.append(memory if new_memory is None else new_memory)
            by_network = [tf.reshape(each, [-1, B, T, each.shape[-1]]) for each in outputs]
            x = tf.stack(by_network, axis=1)  # [P, K, B, T, D]
            x = tf.reshape(x, [-1, T, x.shape[-1]])  # [P K B, T, D]
        hidden = tf.reshape(model.hidden(x), [-1, B * T, x.shape[-1]])  # [N, B T, D]
        labels = tf.reshape(window[:, 1:], [-1])  # [B T]
        real = tf.reshape(real_targets(window), [-1])  # [B T]

        def nll(hidden):
            return tf.reduce_sum(model.softmax(hidden, labels) * real)  # []

        return tf.map_fn(nll, hidden), new_memories  # [N]
