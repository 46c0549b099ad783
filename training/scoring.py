"""The loss of a window, the score of a text, and its metrics.

B batch, T sequence length, M memory length, A blocks that need memory, D model width, N tokens of a
text.
"""

import itertools
import math
import time
from dataclasses import dataclass, field
from typing import Callable

import numpy as np
import tensorflow as tf

import data_utils
from support import devices
from support.tokenization import PAD


def window_nll(model, window, memory, filled, tau, draws=None):
    """The loss of a window, int32 [B, T + 1]; other arguments are those of the network's `call`.

    Returns:
      The negative log-likelihood of each target, float32 [B, T], 0 for padding; the next memory.
    """
    inputs, targets = window[:, :-1], window[:, 1:]  # [B, T]
    hidden, memory = model(inputs, memory, filled=filled, tau=tau, draws=draws)
    flat = tf.reshape(hidden, [-1, hidden.shape[-1]])  # [B T, D]
    nll = model.softmax(flat, tf.reshape(targets, [-1]))  # [B T]
    return tf.reshape(nll, targets.shape) * real_targets(window), memory


def real_targets(window):
    """1 for each target of a window [B, T + 1] that is a token, 0 for padding: float32 [B, T]."""
    return tf.cast(window[:, 1:] != PAD, tf.float32)


def filled_memory(model, window, number):
    """The number of memory positions that hold tokens at window `number` of a text."""
    return tf.minimum(number * (window.shape[1] - 1), model.sizes.mem_len)


@dataclass
class Score:
    """The score of a text."""

    nll: float = 0.0  # summed over the tokens, in nats
    targets: int = 0  # tokens predicted
    seconds: list[float] = field(default_factory=list)  # of each window: the mean in its execution


class Evaluator:
    """Scores every token of a text except the first, without noise.

    The result depends neither on the batch size nor on the number of replicas: each row first reads
    the text before it, as far back as the memory reaches.

    Args:
      jit_compile: compile with XLA.
      strategy: the replicas; None for one device.
      windows_per_execution: W, the windows that are sent to a device together.
    """

    def __init__(self, model, jit_compile: bool, strategy: tf.distribute.Strategy | None = None,
                 windows_per_execution: int = 1):
        self._model, self._strategy = model, strategy or tf.distribute.get_strategy()
        self._windows_per_execution = windows_per_execution
        self._compiled = tf.function(self._windows, jit_compile=jit_compile or None)

    def __call__(self, stream: np.ndarray, batch_size: int, seq_len: int, tau: float | None = None,
                 between: Callable[[], None] = lambda: None) -> Score:
        """Scores a stream of tokens.

        Args:
          stream: int32 [N].
          batch_size: the number of rows to read in parallel.
          seq_len: T.
          tau: the temperature of the mixtures; None for the network's own.
          between: called after each execution.
        """
        tau = self._model.tau if tau is None else tau
        windows_back = -(-self._model.sizes.mem_len // seq_len)  # reached by one memory
        lead = self._model.num_memories * windows_back  # reached through all blocks
        memory = self._model.empty_memory(batch_size)  # [A, B, M, D]
        memory = devices.split_rows(self._strategy, memory, axis=1)
        score, number, W = Score(), 0, self._windows_per_execution
        windows = data_utils.scoring_windows(stream, batch_size, seq_len, lead)
        while together := list(itertools.islice(windows, W)):
            start, count = time.perf_counter(), len(together)
            window = np.zeros([W, batch_size, seq_len + 1], np.int32)
            scored = np.zeros([W, batch_size, 1], np.float32)
            for i in range(count):
                window[i], scored[i, :, 0] = together[i]
            sums, memory = self._everywhere(
                devices.split_rows(self._strategy, tf.constant(window), axis=1),
                devices.split_rows(self._strategy, tf.constant(scored), axis=1),
                tf.constant(count), memory, tf.constant(number), tf.constant(tau))
            nll, targets = sums.numpy().tolist()
            score.nll += nll
            score.targets += int(targets)
            score.seconds += [(time.perf_counter() - start) / count] * count
            number += count
            between()
        return score

    @tf.function
    def _everywhere(self, *arguments):
        """`_windows` on every replica, with the sums over all replicas."""
        sums, memory = self._strategy.run(lambda *own: self._compiled(*own), args=arguments)
        return self._strategy.reduce("sum", sums, axis=None), memory

    def _windows(self, windows, scored, count, memory, first, tau):
        """The first `count` of W windows on one replica.

        Args:
          windows: int32 [W, B, T + 1].
          scored: 1 for each row to score, else 0: float32 [W, B, 1].
          count, memory, tau: scalar, [A, B, M, D], scalar.
          first: the number of the first window in the text.

        Returns:
          Loss and number of the scored targets, float64 [2]; the next memory.
        """
        sums = tf.zeros([2], tf.float64)
        for i in tf.range(count):
            filled = filled_memory(self._model, windows[i], first + i)
            nll, memory = window_nll(self._model, windows[i], memory, filled, tau)  # [B, T]
            targets = real_targets(windows[i])  # [B, T]
            own = [tf.reduce_sum(part * scored[i]) for part in (nll, targets)]
            sums += tf.cast(tf.stack(own), tf.float64)  # [2]
        return sums, memory


def metrics(loss: float, text: dict) -> dict:
    """Loss, perplexity, word perplexity and bits per byte.

    Word perplexity and bits per byte divide the negative log-likelihood of all tokens except the
    first by the words and bytes of the raw text, so they do not depend on the tokenizer. Word
    perplexity may be infinite in languages without spaces. If characters are unknown to the
    tokenizer, both are None: omitting text must not improve a score.

    Args:
      loss: in nats per token.
      text: its `tokens`, `words`, `bytes` and `unknown_characters`, as in metadata.json.
    """
    total, whole = loss * (text["tokens"] - 1), not text["unknown_characters"]
    return {
        "loss": loss,
        "perplexity": exp(loss),
        "word_perplexity": exp(total / text["words"]) if whole else None,
        "bits_per_byte": total / math.log(2) / text["bytes"] if whole else None,
    }


def exp(nats: float) -> float:
    """e^nats; infinite if that overflows."""
    return math.exp(nats) if nats < 700 else math.inf


def finite(metrics: dict) -> dict:
    """Metrics with None for infinite numbers, which JSON lacks."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in metrics.items()}
