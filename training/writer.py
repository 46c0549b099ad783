"""Generates tokens one at a time with a memory, at a constant cost per token.

M memory length, A blocks with memory, D model width, V vocabulary.
"""

from typing import Iterator, Sequence

import tensorflow as tf

from layers.draws import Draws
from support.errors import InputError
from support.tokenization import BOS, PAD, UNK

EMPTY_PROMPT = "the prompt is empty: there is nothing to continue"


class Writer:
    """Continues token ids.

    Args:
      mem_len: M, positions of memory, as given by `memory_length`.
      jit_compile: compile with XLA.
    """

    def __init__(self, model, mem_len: int, jit_compile: bool = False):
        self.model, self.mem_len = model, mem_len
        self._compiled = tf.function(self.next, jit_compile=jit_compile or None)

    def write(self, prompt: Sequence[int], num_tokens: int, seed: int, temperature: float = 1.0,
              top_k: int = 0, top_p: float = 1.0) -> Iterator[int]:
        """Yields the ids that continue a prompt. The same seed gives the same ids.

        Args:
          prompt: at least one id.
          num_tokens: the number of ids to yield.
          seed: of the random numbers.
          temperature, top_k, top_p: see `draw`.

        Raises:
          InputError: an argument is out of its range.
        """
        for needed, is_met in ranges(num_tokens, seed, temperature, top_k, top_p).items():
            if not is_met:
                raise InputError(needed)
        memory, drawn = self.model.empty_memory(1, self.mem_len), None
        settings = int(seed), float(temperature), int(top_k), float(top_p), self.model.tau
        settings = list(map(tf.constant, settings))
        for position in range(len(prompt) + num_tokens - 1):
            token = prompt[position] if position < len(prompt) else drawn
            drawn, memory = self._compiled(
                tf.constant(token), memory, tf.constant(position), *settings)
            drawn = int(drawn)
            if position >= len(prompt) - 1:
                yield drawn

    def next(self, token, memory, position, seed, temperature, top_k, top_p, tau=None):
        """The id drawn after a token at a position, and the next memory, [A, 1, M, D]."""
        window, filled = tf.reshape(token, [1, 1]), tf.minimum(position, self.mem_len)
        hidden, memory = self.model(window, memory, filled=filled, tau=tau)  # [1, 1, D]
        log_prob = self.model.softmax.log_prob(hidden[0])[0]  # [V]
        return draw(log_prob, Draws(seed, position), temperature, top_k, top_p), memory


def ranges(num_tokens, seed, temperature, top_k, top_p) -> dict:
    """{what an argument of `Writer.write` must be: whether it is}, for numbers or tensors."""
    return {
        "num_tokens must be 1 or more": num_tokens >= 1,
        "seed must be 0 or more, and below 2^31": (seed >= 0) & (seed <= 2**31 - 1),
        "top_k must be 0 or more": top_k >= 0,
        "top_p must be above 0 and at most 1": (top_p > 0) & (top_p <= 1),
        "temperature must be 0, or from 0.001 to 1000":
            (temperature == 0) | (temperature >= 0.001) & (temperature <= 1000)}


def draw(log_prob, draws: Draws, temperature, top_k, top_p):
    """Samples an id, int32 []. Ids that stand for no text have probability 0.

    Args:
      log_prob: [V].
      temperature: divides the log-probabilities; 0 takes the most likely id.
      top_k: sample from the k most likely ids; 0 for all.
      top_p: sample from the smallest set of most likely ids whose probabilities reach p.
    """
    never = [[PAD], [BOS], [UNK]]
    scores = tf.tensor_scatter_nd_update(log_prob, never, [-float("inf")] * len(never))  # [V]

    def drawn():
        kept = scores / temperature  # [V]
        kept = tf.cond(top_k > 0, lambda: keep_top_k(kept, top_k), lambda: kept)  # [V]
        kept = tf.cond(top_p < 1, lambda: keep_top_p(kept, top_p), lambda: kept)  # [V]
        return tf.argmax(kept + draws.gumbel(kept.shape), output_type=tf.int32)  # []

    return tf.cond(temperature > 0, drawn, lambda: tf.argmax(scores, output_type=tf.int32))


def keep_top_k(scores, k):
    """Scores [V] with minus infinity for those below the k-th largest."""
    least = tf.sort(scores, direction="DESCENDING")[tf.minimum(k, scores.shape[0]) - 1]
    return tf.where(scores >= least, scores, -float("inf"))


def keep_top_p(scores, p):
    """Scores [V] with minus infinity outside the nucleus of probability p.

    The nucleus is the smallest set of most likely ids with this probability (Holtzman et al. 2020,
    section 3.1).
    """
    descending = tf.sort(tf.nn.softmax(scores), direction="DESCENDING")  # [V]
    before = tf.cumsum(descending, exclusive=True)  # [V], the probability of likelier ids
    least = tf.reduce_min(tf.where(before < p, descending, 1.0))  # []
    least = tf.minimum(least, descending[0])  # float32 may round a tiny p to 0
    return tf.where(tf.nn.softmax(scores) >= least, scores, -float("inf"))


def memory_length(mem_len: int, seq_len: int) -> int:
    """M for generation: as far back as the last token of a window sees in training."""
    return mem_len + seq_len - 1
