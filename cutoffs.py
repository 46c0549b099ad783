"""The clusters of the adaptive softmax, and the cutoffs that need the fewest multiply-adds.

    ./train.sh $(python cutoffs.py --clusters=3 --proj_factor=1) --proj_factor=1

Grave et al. 2017 (arXiv 1609.04309). V vocabulary, D model width, K clusters: the head and K - 1
tails. Tail i holds n_i ids in rows of width d_i, and a token falls into it with probability p_i.
Per token, the forward pass of the output layer takes this many multiply-adds:

    D (head + K - 1) + sum_i p_i (n_i d_i + D d_i [d_i != D])

The head scores its ids and one entry per tail for every token. A tail scores its ids for its own
tokens, after a projection if it is narrower than D. The paper fits a cost in milliseconds to its
GPU; this count holds for every machine, but ignores the fixed cost of a cluster and the softmax.

The minimum is exact. For starts a <= a' and ends b <= b', the cost w(a, b) of a tail satisfies

    w(a, b) + w(a', b') <= w(a, b') + w(a', b)

because it is a product of two sums over the same ids, plus one such sum. The best start of the
last tail therefore never decreases as its end grows, and divide and conquer finds the minimum in
O(K V log V).
"""

import sys
from pathlib import Path
from typing import NamedTuple, Sequence

import numpy as np
from absl import flags

from support import cli
from support.errors import InputError


class Cluster(NamedTuple):
    """Ids of similar frequency, `first` to `end` - 1, whose rows have the same width."""

    first: int
    end: int
    width: int

    @property
    def size(self) -> int:
        return self.end - self.first


def cluster_widths(clusters: int, d_model: int, proj_factor: int) -> list[int]:
    """The widths of the head, D, and of the tails: D / proj_factor^i, rounded down, at least 1."""
    return [max(1, d_model // proj_factor**i) for i in range(clusters)]


def clusters_of(d_model: int, vocab_size: int, cutoffs: Sequence[int],
                proj_factor: int) -> list[Cluster]:
    """The head and the tails; InputError if the cutoffs do not rise or are out of range."""
    bounds = [0, *cutoffs, vocab_size]
    if any(first >= end for first, end in zip(bounds, bounds[1:])):
        raise InputError(f"cutoffs {list(cutoffs)} must rise, from 1 or more, and lie below the "
                         f"vocabulary size {vocab_size}; cutoffs.py finds the cheapest")
    widths = cluster_widths(len(cutoffs) + 1, d_model, proj_factor)
    return [Cluster(*each) for each in zip(bounds, bounds[1:], widths)]


def head_cost(size, tails: int, d_model: int):
    """Multiply-adds per token of a head with `size` ids."""
    return d_model * (size + tails)


def tail_cost(size, share, width: int, d_model: int):
    """Multiply-adds per token of a tail with `size` ids and this share of the tokens."""
    return share * width * (size + d_model * (width != d_model))


def multiply_adds(clusters: Sequence[Cluster], probability: np.ndarray) -> float:
    """Multiply-adds per token of an adaptive softmax whose ids have these probabilities, [V]."""
    head, *tails = clusters
    total = head_cost(head.size, len(tails), head.width)
    for first, end, width in tails:
        total += tail_cost(end - first, probability[first:end].sum(), width, head.width)
    return float(total)


def cheapest_cutoffs(probability: np.ndarray, widths: Sequence[int]) -> list[int]:
    """The cutoffs with the fewest multiply-adds for one cluster of each width, none empty.

    Args:
      probability: of each id, [V].
      widths: of the head and of each tail, [K].
    """
    below = np.concatenate([[0], np.cumsum(probability)])  # [V + 1], share of the ids below
    d_model, *tails = widths
    ids = np.arange(len(below))
    least = head_cost(ids, len(tails), d_model)  # [V + 1], for the ids below each end
    least = np.where(ids > 0, least.astype(float), np.inf)  # [V + 1], no cluster is empty
    starts = []
    for width in tails:
        least, start = _add_tail(least, below, width, d_model)
        starts.append(start)
    cutoffs, end = [], len(probability)
    for start in reversed(starts):
        end = int(start[end])
        cutoffs.insert(0, end)
    return cutoffs


def _add_tail(least, below, width, d_model):
    """The least cost of the ids below each end with one more tail, and the start of that tail."""
    result, start = np.full_like(least, np.inf), np.zeros(len(least), int)

    def solve(low, high, first, last):
        """Ends `low` to `high`, whose best starts lie between `first` and `last`."""
        if low > high:
            return
        end = (low + high) // 2
        starts = np.arange(first, min(last, end - 1) + 1)
        share = below[end] - below[starts]
        costs = least[starts] + tail_cost(end - starts, share, width, d_model)
        best = costs.argmin()
        result[end], start[end] = costs[best], starts[best]
        solve(low, end - 1, first, starts[best])
        solve(end + 1, high, starts[best], last)

    solve(1, len(least) - 1, 0, len(least) - 2)
    return result, start


def define_flags():
    cli.define_path("counts_file", "data/tfrecords/unigram_counts.txt",
                    "the count of each id, one per line")
    flags.DEFINE_integer("clusters", 3, "K, the head and the tails: K - 1 cutoffs", lower_bound=1)
    flags.DEFINE_integer("d_model", 128, "D, the width of the head", lower_bound=1)
    flags.DEFINE_integer("proj_factor", 4, "tail i is D / proj_factor^i wide", lower_bound=1)


def main(_):
    from data_utils import read_counts  # here, so that the network does not import data_utils

    FLAGS = flags.FLAGS
    counts = read_counts(Path(FLAGS.counts_file))
    if FLAGS.clusters > len(counts):
        raise InputError(f"--clusters={FLAGS.clusters} is more than the {len(counts)} ids")
    widths = cluster_widths(FLAGS.clusters, FLAGS.d_model, FLAGS.proj_factor)
    probability = counts / counts.sum()  # [V]
    print("clusters  multiply-adds per token  cutoffs", file=sys.stderr)
    for number in range(1, FLAGS.clusters + 1):
        cutoffs = cheapest_cutoffs(probability, widths[:number])
        clusters = clusters_of(FLAGS.d_model, len(counts), cutoffs, FLAGS.proj_factor)
        text = ",".join(map(str, cutoffs))
        print(f"{number:8}  {multiply_adds(clusters, probability):23,.0f}  {text or 'none'}",
              file=sys.stderr)
    print(f"--cutoffs={text}")


if __name__ == "__main__":
    cli.begin(__name__, define_flags)
    cli.run(main)
