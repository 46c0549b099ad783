"""Perplexity with a continuous cache (Grave et al. 2016, arXiv 1612.04426).

    python -m recipes.continuous_cache --run=logs/wt2_words

The cache stores the last n hidden vectors h_i, each with the token x_{i+1} that followed it:

    p_cache(y) = sum of softmax_i(theta h_t . h_i) over the i with x_{i+1} = y
    p(y) = (1 - lambda) p_network(y) + lambda p_cache(y)                        (section 3)

Nothing is trained. Theta and lambda are chosen from a grid on the validation split, and the test
split is scored once with them.

N tokens of a text, n size of the cache, T sequence length, D model width.
"""

import itertools
import math

import numpy as np
from absl import flags

from support import cli
from training import run_flags

THETAS = [0.02, 0.05, 0.1, 0.2, 0.4]  # for hidden vectors of length sqrt(D)
LAMBDAS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5]
BLOCK = 500  # tokens scored together


def define_flags():
    run_flags.define_run()
    flags.DEFINE_integer("size", 2000, "n, the tokens in the cache", lower_bound=1)
    flags.DEFINE_integer("mem_len", None, "M, memory length (default: as in training)",
                         lower_bound=0)
    run_flags.define_data_dir()


cli.begin(__name__, define_flags)

with cli.quiet():
    import tensorflow as tf

    import data_utils
    from training.scoring import filled_memory
    from training.trained_run import TrainedRun


def hidden_and_nll(model, stream: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a text in one row.

    Returns:
      The hidden vector that predicts each token but the first, [N - 1, D], scaled to length
      sqrt(D); and the negative log-likelihood of that token in nats, [N - 1].
    """
    @tf.function
    def read(window, memory, number):
        filled = filled_memory(model, window, number)
        hidden, memory = model(window[:, :-1], memory, filled=filled)
        return hidden[0], model.softmax(hidden[0], window[0, 1:]), memory

    hidden, nll, memory = [], [], model.empty_memory(1)
    for number, (window, _) in enumerate(data_utils.scoring_windows(stream, 1, seq_len, 0)):
        *result, memory = read(tf.constant(window), memory, tf.constant(number))
        hidden.append(result[0])
        nll.append(result[1])
    hidden = np.concatenate(hidden)[:len(stream) - 1]
    hidden *= hidden.shape[1]**0.5 / np.linalg.norm(hidden, axis=1, keepdims=True)
    return hidden, np.concatenate(nll)[:len(stream) - 1]


def cache_probability(hidden: np.ndarray, targets: np.ndarray, size: int,
                      thetas: list[float]) -> np.ndarray:
    """The probability of each target in the cache of the tokens before it.

    Args:
      hidden: [N, D].
      targets: the tokens that follow, int [N].
      size: n.
      thetas: the values of theta.

    Returns:
      [thetas, N], 0 for an empty cache.
    """
    result = np.zeros([len(thetas), len(targets)])
    for start in range(0, len(targets), BLOCK):
        end, first = min(start + BLOCK, len(targets)), max(0, start - size)
        age = np.arange(start, end)[:, None] - np.arange(first, end)  # [block, seen]
        remembered = (age > 0) & (age <= size)
        scores = hidden[start:end] @ hidden[first:end].T  # [block, seen]
        scores -= np.max(scores, axis=1, initial=-np.inf, where=remembered, keepdims=True)
        same = targets[start:end, None] == targets[first:end]
        for i, theta in enumerate(thetas):
            weights = np.exp(theta * scores, where=remembered, out=np.zeros_like(scores))
            total = weights.sum(axis=1)
            found = np.sum(weights, axis=1, where=same)
            np.divide(found, total, out=result[i, start:end], where=total > 0)
    return result


def loss(nll: np.ndarray, cached: np.ndarray, share: float) -> float:
    """Nats per token of the mixture; the first token, with an empty cache, is not mixed."""
    share = np.where(np.arange(len(nll)) > 0, share, 0)
    return float(-np.mean(np.log((1 - share) * np.exp(-nll) + share * cached)))


def main(_):
    FLAGS = flags.FLAGS
    run = TrainedRun(FLAGS.run)
    data_dir, metadata = run.find_data(FLAGS.data_dir)
    mem_len = run.flags["mem_len"] if FLAGS.mem_len is None else FLAGS.mem_len
    model, step = run.network(mem_len=mem_len)

    def read(split):
        stream = data_utils.load_stream(data_dir, split, metadata)
        return *hidden_and_nll(model, stream, run.data["seq_len"]), stream[1:]

    hidden, nll, targets = read("valid")
    cached = cache_probability(hidden, targets, FLAGS.size, THETAS)
    losses = {(theta, share): loss(nll, each, share)
              for (theta, each), share in itertools.product(zip(THETAS, cached), LAMBDAS)}
    theta, share = min(losses, key=losses.get)
    print(f"{run.folder.name}, step {step:,}, memory {mem_len}, cache {FLAGS.size}: "
          f"theta {theta}, lambda {share}")
    print("perplexity  alone  with the cache")
    print(f"valid  {math.exp(nll.mean()):9.2f}  {math.exp(losses[theta, share]):9.2f}")
    hidden, nll, targets = read("test")
    cached, = cache_probability(hidden, targets, FLAGS.size, [theta])
    print(f"test   {math.exp(nll.mean()):9.2f}  {math.exp(loss(nll, cached, share)):9.2f}")


if __name__ == "__main__":
    cli.run(main)
