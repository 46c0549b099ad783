"""Writes text with the network of a run: one token at a time, at constant cost per token, with memory carried along.

M memory length, A blocks with attention, D model width, V vocabulary.
"""

import sys
from pathlib import Path
from typing import Iterator, Sequence

from absl import flags

from support import cli, devices

with cli.quiet():
    import tensorflow as tf

from model import Draws
from runs import TrainedRun
from support.cli import InputError
from tokenization import BOS, PAD, UNK, Tokenizer


def keep_top_k(scores, k: int):
    """Scores [V] with all but the k largest, and what equals the k-th, at minus infinity."""
    least = tf.math.top_k(scores, min(k, scores.shape[0])).values[-1]
    return tf.where(scores >= least, scores, -float("inf"))


def keep_top_p(scores, p: float):
    """Scores [V] with all but the likeliest ids that together have probability p at minus infinity (Holtzman et al. 2020)."""
    descending = tf.sort(tf.nn.softmax(scores), direction="DESCENDING")  # [V]
    before = tf.cumsum(descending, exclusive=True)  # [V], the probability of the likelier ids
    least = tf.reduce_min(tf.where(before < p, descending, 1.0))
    return tf.where(tf.nn.softmax(scores) >= least, scores, -float("inf"))


class Writer:
    """Continues token ids.

    Args:
      model: the network.
      tau: its temperature.
      jit_compile: compile with XLA.
      temperature: of the draw; 0 takes the likeliest id.
      top_k: draw from so many of the likeliest ids; None for all.
      top_p: draw from the likeliest ids that together have this probability.
    """

    def __init__(self, model, tau: float, jit_compile: bool, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0):
        self._model, self._tau, self._temperature, self._top_k, self._top_p = model, tau, temperature, top_k, top_p
        self._compiled = tf.function(self._next, jit_compile=jit_compile or None)

    def write(self, prompt: Sequence[int], num_tokens: int, seed: int) -> Iterator[int]:
        """Yields the ids that follow the ids of the prompt, one at least; the same for the same seed."""
        memory, drawn = self._model.empty_memory(1), None
        for position in range(len(prompt) + num_tokens - 1):
            token = prompt[position] if position < len(prompt) else drawn
            drawn, memory = self._compiled(tf.constant(token), memory, tf.constant(position), tf.constant(seed))
            drawn = int(drawn)
            if position >= len(prompt) - 1:
                yield drawn

    def _next(self, token, memory, position, seed):
        """Draws what follows a token at a position, and gives the memory [A, 1, M, D] for that."""
        filled = tf.minimum(position, self._model.mem_len)
        hidden, memory = self._model(token[None, None], memory, filled=filled, tau=self._tau)  # [1, 1, D]
        log_prob = self._model.softmax.log_prob(hidden[0])[0]  # [V]
        scores = tf.tensor_scatter_nd_update(log_prob, [[PAD], [BOS], [UNK]], [-float("inf")] * 3)  # [V]
        if not self._temperature:
            return tf.argmax(scores, output_type=tf.int32), memory
        scores /= self._temperature
        if self._top_k:
            scores = keep_top_k(scores, self._top_k)
        if self._top_p < 1:
            scores = keep_top_p(scores, self._top_p)
        noise = Draws(seed, position).gumbel(scores.shape)  # [V]: the largest sum is a draw from softmax(scores)
        return tf.argmax(scores + noise, output_type=tf.int32), memory


def define_flags():
    cli.define_path("run", None, "the folder of a run", required=True)
    flags.DEFINE_string("checkpoint", "best", "best (lowest validation loss), latest, or the step of one that is there")
    flags.DEFINE_string("prompt", None, "what to continue; without it, each line that you type")
    flags.DEFINE_integer("num_tokens", 100, "how many tokens to write", lower_bound=1)
    flags.DEFINE_float("temperature", 1.0, "below 1 keeps to likelier words, 0 takes the likeliest always")
    flags.DEFINE_integer("top_k", None, "draw from so many of the likeliest tokens", lower_bound=1)
    flags.DEFINE_float("top_p", 1.0, "draw from the likeliest tokens that together have this probability")
    flags.DEFINE_integer("num_samples", 1, "continuations of each prompt; a later one has the seed after the one before", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "the same seed writes the same text", lower_bound=0)
    flags.register_validator("temperature", lambda value: value == 0 or 0.001 <= value <= 1000, "must be 0, or lie between 0.001 and 1000")
    flags.register_validator("top_p", lambda value: 0 < value <= 1, "must be above 0, and 1 at most")


def memory_length(mem_len: int, seq_len: int) -> int:
    """M for windows of one token: as far back as the last token of a window sees in training."""
    return mem_len + seq_len - 1


def lines() -> Iterator[str]:
    """What is typed, line by line; empty ones are left out.

    Raises:
      InputError: it is not UTF-8.
    """
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except UnicodeDecodeError:
            raise InputError("the prompt is not UTF-8") from None
        if line.strip():
            yield line


def main(_):
    FLAGS = flags.FLAGS
    run = TrainedRun(Path(FLAGS.run))
    _, on_gpu = devices.prepare(run.flags["mixed_precision"])
    mem_len = memory_length(run.flags["mem_len"], run.data["seq_len"])
    model, tau, _ = run.network(FLAGS.checkpoint, mem_len=mem_len, static_shapes=on_gpu)
    writer = Writer(model, tau, on_gpu, FLAGS.temperature, FLAGS.top_k, FLAGS.top_p)
    tokenizer = Tokenizer(run.tokenizer)
    for prompt in lines() if FLAGS.prompt is None else [FLAGS.prompt]:
        tokens, _, unknown = (value.numpy() for value in tokenizer.tokenize(tf.constant(prompt), run.data["add_eos"]))
        if not len(tokens):
            raise InputError("the prompt is empty: there is nothing to continue")
        if unknown:
            print(f"{unknown:,} characters of the prompt are unknown to the tokenizer", file=sys.stderr)
        for sample in range(FLAGS.num_samples):
            print(prompt if tokenizer.keeps_white_space else prompt.rstrip(" "), end="", flush=True)
            written = writer.write(tokens, FLAGS.num_tokens, (FLAGS.seed + sample) % 2**31)
            for text in tokenizer.decode(written, within_line=not prompt.endswith("\n")):
                print(text, end="", flush=True)
            print()


if __name__ == "__main__":
    define_flags()
    cli.run(main)
