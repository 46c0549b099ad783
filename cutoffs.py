"""Cost-optimal cutoffs for the adaptive softmax, exactly, from how often each id occurs (Grave et al. 2017, section 4).

V vocabulary, K clusters: the head and K - 1 tails. Per token, in multiply-adds,

    head    D (cutoffs[0] + K - 1)                       evaluated for every token, with one entry per tail
    tail i  p_i n_i D / proj_factor^i                    its probability, its size, its projected width

plus `fixed_cost` for each cluster; the projection itself is left out. A tail's cost (P(b) - P(a)) (b - a) satisfies the
quadrangle inequality, so the best start of the last tail never falls as its end grows, and dynamic programming by divide and
conquer is exact in O(K V log V).
"""

import sys
from pathlib import Path
from typing import Sequence

import numpy as np
from absl import flags

from support import cli
from support.cli import InputError


def tail_widths(tails: int, d_model: int, proj_factor: int, proj_dims: Sequence[int] | None = None) -> list[int]:
    """The projected width of each tail: D / proj_factor^i, rounded down and at least 1, or `proj_dims`.

    Raises:
      ValueError: `proj_dims` is not one positive width per tail.
    """
    widths = list(proj_dims) if proj_dims else [max(1, d_model // proj_factor**i) for i in range(1, tails + 1)]
    if len(widths) != tails or any(width < 1 for width in widths):
        raise ValueError(f"proj_dims {widths} must be one positive width for each of the {tails} tails")
    return widths


def expected_cost(probability: np.ndarray, cutoffs: list[int], width: list[float], fixed_cost: float = 0) -> float:
    """Multiply-adds per token of an adaptive softmax with these cutoffs.

    Args:
      probability: of each id, [V].
      cutoffs: the first id of each tail.
      width: of the head and of each tail, [K].
      fixed_cost: of each cluster, in multiply-adds.
    """
    ends = [*cutoffs, len(probability)]
    cost = width[0] * (ends[0] + len(cutoffs)) + fixed_cost * len(ends)
    for first, end, tail_width in zip(ends, ends[1:], width[1:]):
        cost += probability[first:end].sum() * (end - first) * tail_width
    return float(cost)


def optimal_cutoffs(probability: np.ndarray, width: list[float]) -> list[int]:
    """The cutoffs of least expected cost for K = len(width) clusters, none of them empty.

    Args:
      probability: of each id, [V].
      width: of the head and of each tail, [K].
    """
    vocab_size = len(probability)
    below = np.concatenate([[0], np.cumsum(probability)])  # [V + 1], probability of the ids below
    best = width[0] * np.arange(vocab_size + 1, dtype=np.float64)  # [V + 1], least cost of the ids below end with one cluster
    starts = []
    for k, tail_width in enumerate(width[1:], start=1):
        best, start = _add_tail(best, below, tail_width, k)
        starts.append(start)
    cutoffs, end = [], vocab_size
    for start in reversed(starts):
        end = int(start[end])
        cutoffs.insert(0, end)
    return cutoffs


def _add_tail(best, below, tail_width, k):
    """One more tail: for every end b, the least of best[a] + tail(a, b) over k <= a < b, and the a that gives it.

    All midpoints of one level of the divide and conquer are solved together, each between the starts of its neighbours.
    """
    size = len(best)
    least = np.full(size, np.inf)
    start = np.full(size, size)
    low, high = np.array([k + 1]), np.array([size - 1])  # ends still to solve, inclusive ranges
    first, last = np.array([k]), np.array([size - 2])  # where their starts lie
    while len(low):
        middle = (low + high) // 2
        counts = np.minimum(last, middle - 1) - first + 1
        offsets = np.cumsum(counts) - counts
        group = np.repeat(np.arange(len(middle)), counts)
        a = np.arange(counts.sum()) - offsets[group] + first[group]
        b = middle[group]
        cost = best[a] + tail_width * (below[b] - below[a]) * (b - a)
        least[middle] = np.minimum.reduceat(cost, offsets)
        position = np.where(cost == least[b], np.arange(len(cost)), len(cost))
        start[middle] = a[np.minimum.reduceat(position, offsets)]
        left, right = low < middle, middle < high
        low, high, first, last = (
            np.concatenate([low[left], middle[right] + 1]), np.concatenate([middle[left] - 1, high[right]]),
            np.concatenate([first[left], start[middle[right]]]), np.concatenate([start[middle[left]], last[right]]))
    return least, start


def read_counts(path: Path) -> np.ndarray:
    """How often each id occurs, [V], one count per line.

    Raises:
      InputError: the file is missing, or holds something else than counts.
    """
    if not path.is_file():
        raise InputError(f"no counts in {path}: run ./make_data.sh first")
    try:
        counts = np.array([float(line) for line in path.read_text().splitlines()])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if not np.isfinite(counts).all() or (counts < 0).any() or not counts.sum():
        raise InputError(f"{path} must hold one count per line, none negative and not all zero")
    return counts


def define_flags():
    cli.define_path("counts_file", "data/tfrecords/unigram_counts.txt", "how often each id occurs, one count per line")
    flags.DEFINE_integer("clusters", 3, "K, the head included: K - 1 cutoffs", lower_bound=1)
    flags.DEFINE_integer("d_model", 128, "D, the width of the head", lower_bound=1)
    flags.DEFINE_integer("proj_factor", 4, "tail i has width D / proj_factor^i", lower_bound=1)
    cli.define_integers("proj_dims", "", "the tails' widths themselves")
    flags.DEFINE_float("fixed_cost", 0, "cost of a cluster beside its products, in multiply-adds per token: weighs one K against another",
                       lower_bound=0)


def main(_):
    FLAGS = flags.FLAGS
    counts = read_counts(Path(FLAGS.counts_file))
    if FLAGS.clusters > len(counts):
        raise InputError(f"--clusters={FLAGS.clusters} is more than the {len(counts)} ids")
    try:
        width = [FLAGS.d_model, *tail_widths(FLAGS.clusters - 1, FLAGS.d_model, FLAGS.proj_factor, cli.integers(FLAGS.proj_dims))]
    except ValueError as error:
        raise InputError(str(error)) from None
    probability = counts / counts.sum()
    cutoffs = optimal_cutoffs(probability, width)
    cost = expected_cost(probability, cutoffs, width, FLAGS.fixed_cost)
    plain = expected_cost(probability, [], width, FLAGS.fixed_cost)
    print("--cutoffs=" + ",".join(map(str, cutoffs)))
    print(f"{cost:,.0f} multiply-adds per token, {plain / cost:.1f} times fewer than the {plain:,.0f} of a plain softmax", file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
