"""The cheapest cutoffs of the adaptive softmax: a cost in milliseconds, and its least, exactly.

    python cutoffs.py --measure
    ./train.sh $(python cutoffs.py --clusters=3)

Grave et al. 2017 (arXiv 1609.04309), section 4. K clusters: the head and K - 1 tails. N tokens of a
step, V vocabulary, D width of the head, d_i width of tail i, P(a, b) the share of the tokens whose
id is at least a and below b. A cluster of k columns that n rows of width d meet takes

    g = max(floor, fixed + n k (product d + logit))

forward and backward: a constant time below a size, then a straight line. `product` is the time of
one multiply-add of the forward product, and of the two products backward for it; `logit` is that
of the softmax for one logit, ours, for the softmax of a narrow tail takes longer than its products.
The head meets all N tokens and has an entry for each tail; tail i, of the ids a ... b - 1, meets
N P(a, b) of them, and first projects them unless d_i is D: N P(a, b) D d_i multiply-adds more.

The least is exact. Take starts a <= a' and ends b <= b' of a tail. The work w(a, b) inside the max
is a product of two sums over the same ids, plus such sums; so it grows with the tail, and

    w(a, b) + w(a', b') <= w(a, b') + w(a', b).

On the right stands the greatest of the four. A convex function that never falls, as max(floor, .)
is, keeps such an inequality (Tomic's and Weyl's, of weak majorization), so it holds for g as well.
Then the cheapest start of the last tail never falls as its end grows, and dynamic programming by
divide and conquer finds the least in O(K V log V).
"""

import json
import sys
import time
from dataclasses import astuple, dataclass
from itertools import combinations
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

import numpy as np
from absl import flags

from data_utils import read_counts
from support import cli, timing
from support.cli import InputError

STEP_TOKENS = 32 * 32  # of the default experiment


class Cluster(NamedTuple):
    """Ids of neighbouring frequency, whose rows are equally wide."""

    first: int
    end: int  # past the last
    width: int

    @property
    def size(self) -> int:
        return self.end - self.first


def cluster_widths(clusters: int, d_model: int, proj_factor: int,
                   proj_dims: Sequence[int] | None = None) -> list[int]:
    """The widths of the head, D, and of each tail.

    Tail i has D / proj_factor^i, rounded down and at least 1; or `proj_dims` says.

    Raises:
      InputError: `proj_dims` is not one positive width per tail.
    """
    tails = list(proj_dims or [max(1, d_model // proj_factor**i) for i in range(1, clusters)])
    if len(tails) != clusters - 1 or any(width < 1 for width in tails):
        raise InputError(f"proj_dims {tails} must be one positive width for each of the "
                         f"{clusters - 1} tails")
    return [d_model, *tails]


def clusters_of(d_model: int, vocab_size: int, cutoffs: Sequence[int], proj_factor: int,
                proj_dims: Sequence[int] | None = None) -> list[Cluster]:
    """The head and the tails.

    Raises:
      InputError: cutoffs that do not rise or are out of range, or what `cluster_widths` raises.
    """
    bounds = [0, *cutoffs, vocab_size]
    if any(first >= end for first, end in zip(bounds, bounds[1:])):
        raise InputError(f"cutoffs {list(cutoffs)} must rise and lie below the vocabulary size "
                         f"{vocab_size}; cutoffs.py finds the cheapest")
    widths = cluster_widths(len(cutoffs) + 1, d_model, proj_factor, proj_dims)
    return [Cluster(*each) for each in zip(bounds, bounds[1:], widths)]


@dataclass(frozen=True)
class Constants:
    """What the cost of a cluster depends on.

    Attributes:
      floor: the least time of a cluster, in ms.
      fixed: the fixed overhead of a cluster, in ms.
      product: of a multiply-add of the forward product, its two backward included, in ns.
      logit: of a logit's softmax, in ns.
    """

    floor: float
    fixed: float
    product: float
    logit: float

    def milliseconds(self, rows, columns, width: int, projected_from: int = 0):
        """The time of a cluster. `rows` and `columns` may be arrays.

        Args:
          rows: n, how many tokens meet it.
          columns: k, how many logits each has there.
          width: d.
          projected_from: D, for a tail of another width.
        """
        nanoseconds = self.product * width * (columns + projected_from) + self.logit * columns
        return np.maximum(self.floor, self.fixed + 1e-6 * rows * nanoseconds)


DEFAULT = Constants(floor=0.41, fixed=0.93, product=0.074, logit=3.75)


@dataclass(frozen=True)
class Problem:
    """What cutoffs are sought for.

    Attributes:
      probability: of each id, [V].
      width: of the head and of each tail, the most that there may be.
      tokens: N.
      constants: of the machine.
    """

    probability: np.ndarray
    width: list[int]
    tokens: int
    constants: Constants

    def head(self, ids, tails: int):
        """Milliseconds of a head of so many ids."""
        return self.constants.milliseconds(self.tokens, ids + tails, self.width[0])

    def tail(self, i: int, ids, share):
        """Milliseconds of tail i of so many ids, which are such a share of the tokens."""
        rows, (d_model, width) = self.tokens * share, (self.width[0], self.width[i])
        return self.constants.milliseconds(rows, ids, width, d_model * (width != d_model))


def expected_time(problem: Problem, cutoffs: list[int]) -> float:
    """Milliseconds per step of an adaptive softmax with these cutoffs."""
    ends = [*cutoffs, len(problem.probability)]
    total = problem.head(ends[0], len(cutoffs))
    for i, (first, end) in enumerate(zip(ends, ends[1:]), start=1):
        total += problem.tail(i, end - first, problem.probability[first:end].sum())
    return float(total)


def cheapest_cutoffs(problem: Problem, clusters: int) -> list[int]:
    """The cutoffs of least expected time with so many clusters, none of them empty."""
    vocab_size, tails = len(problem.probability), clusters - 1
    below = np.concatenate([[0], np.cumsum(problem.probability)])  # [V + 1], share of the ids below
    # [V + 1], the least for the ids below an end: at first with the head alone
    least = problem.head(np.arange(vocab_size + 1), tails)
    starts = []
    for i in range(1, clusters):
        least, start = _add_tail(problem, least, below, i)
        starts.append(start)
    cutoffs, end = [], vocab_size
    for start in reversed(starts):
        end = int(start[end])
        cutoffs.insert(0, end)
    return cutoffs


def _add_tail(problem, least, below, i):
    """For every end b, the least of least[a] + tail i of a ... b - 1, and the a that gives it.

    i <= a < b, since no cluster is empty. All middles of one level of the divide and conquer are
    solved together, each between the starts of its neighbours.
    """
    size = len(least)
    result = np.full(size, np.inf)
    start = np.full(size, size)
    low, high = np.array([i + 1]), np.array([size - 1])  # ends still to solve, inclusive ranges
    first, last = np.array([i]), np.array([size - 2])  # where their starts lie
    while len(low):
        middle = (low + high) // 2
        counts = np.minimum(last, middle - 1) - first + 1
        offsets = np.cumsum(counts) - counts
        group = np.repeat(np.arange(len(middle)), counts)
        a = np.arange(counts.sum()) - offsets[group] + first[group]
        b = middle[group]
        total = least[a] + problem.tail(i, b - a, below[b] - below[a])
        result[middle] = np.minimum.reduceat(total, offsets)
        position = np.where(total == result[b], np.arange(len(total)), len(total))
        start[middle] = a[np.minimum.reduceat(position, offsets)]
        left, right = low < middle, middle < high
        low, high, first, last = (
            np.concatenate([low[left], middle[right] + 1]),
            np.concatenate([middle[left] - 1, high[right]]),
            np.concatenate([first[left], start[middle[right]]]),
            np.concatenate([start[middle[left]], last[right]]))
    return result, start


def measure(vocab_size: int, tokens: int, width: list[int], seconds: float = 6.0) -> Constants:
    """The constants of this machine.

    The layer runs forward and backward at sizes that the clusters of cheap cutoffs have, each in
    turn with the others: a head of 256 and of 1,024 ids for all tokens, and for a quarter of them
    tails of 256 and of 1,024 ids times D / d_i. `floor` is a quarter of the time of four
    clusters of 16 ids each; the others are the least squares of the relative errors.

    Args:
      vocab_size: V; no tail is larger.
      tokens: N.
      width: of the head and of each tail, [K].
      seconds: how long to measure, after all was called once.
    """
    quarter = max(4, tokens // 4)
    sizes = [(tokens, columns, width[0]) for columns in (256, 1024)]
    for tail_width in width[1:]:
        scale = width[0] / tail_width
        sizes += [(quarter, min(round(columns * scale), vocab_size), tail_width)
                  for columns in (256, 1024)]
    calls = [_random_step(rows, d, columns, cutoffs=[]) for rows, columns, d in sizes]
    calls.append(_random_step(quarter, width[0], 64, cutoffs=[16, 32, 48]))
    *times, four = _medians(calls, seconds)
    rows, columns, d = np.array(sizes, float).T
    parts = np.stack([np.ones(len(sizes)), 1e-6 * rows * columns * d, 1e-6 * rows * columns], 1)
    return Constants(four / 4, *nonnegative_fit(parts / np.array(times)[:, None]))


def nonnegative_fit(parts: np.ndarray) -> np.ndarray:
    """The weights, none negative, of which parts @ weights is nearest to one: [len(parts[0])]."""
    count, fits = parts.shape[1], []
    for size in range(1, count + 1):
        for chosen in map(list, combinations(range(count), size)):
            weights = np.zeros(count)
            weights[chosen] = np.linalg.lstsq(parts[:, chosen], np.ones(len(parts)))[0]
            if (weights >= 0).all():
                fits.append((((parts @ weights - 1) ** 2).sum(), weights))
    return min(fits, key=lambda fit: fit[0])[1]


def _random_step(rows: int, width: int, vocab_size: int, cutoffs: list[int]) -> Callable:
    """`layer_step` of an adaptive softmax, for targets that are all as frequent."""
    cli.tensorflow()
    from adaptive_softmax import AdaptiveSoftmax
    from support import devices  # noqa: F401, the threads that train.py has

    targets = np.random.default_rng(0).integers(0, vocab_size, rows)  # [N]
    return layer_step(AdaptiveSoftmax(width, vocab_size, cutoffs), targets)


def layer_step(layer, targets) -> Callable:
    """A function that runs an adaptive softmax forward and backward for targets [N]."""
    tf = cli.tensorflow()
    shape = [len(targets), layer.table.rows[0].shape[1]]
    hidden = tf.Variable(tf.random.stateless_normal(shape, seed=[0, 0]))  # [N, D]
    targets = tf.constant(targets, tf.int32)  # [N]

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(hidden, targets))
        return loss, tape.gradient(loss, [hidden, *layer.trainable_variables])

    graph = tf.function(step, jit_compile=layer.static_shapes or None).get_concrete_function()
    return lambda: graph()[0].numpy()


def _medians(calls, seconds):
    """The median milliseconds of each call: all in turn, three times at least, for so long."""
    for call in calls:
        call()
    rounds, end = [], time.perf_counter() + seconds
    while len(rounds) < 3 or time.perf_counter() < end:
        rounds.append([1e3 * timing.seconds(call) for call in calls])
    return np.median(rounds, axis=0).tolist()


def step_tokens(folder: Path) -> int:
    """The tokens of a step, as the metadata of a data folder tell, or of the default experiment."""
    if not (folder / "metadata.json").is_file():
        return STEP_TOKENS
    try:
        metadata = json.loads((folder / "metadata.json").read_text())
        return metadata["batch_size"] * metadata["seq_len"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / 'metadata.json'} does not say batch_size and seq_len: "
                         "give --batch_tokens") from None


def define_flags():
    cli.define_path("counts_file", "data/tfrecords/unigram_counts.txt",
                    "how often each id occurs, one count per line")
    flags.DEFINE_integer("clusters", 3, "K, the head included: at most K - 1 cutoffs",
                         lower_bound=1)
    flags.DEFINE_integer("d_model", 128, "D, the width of the head", lower_bound=1)
    flags.DEFINE_integer("proj_factor", 4, "tail i has width D / proj_factor^i", lower_bound=1)
    cli.define_integers(
        "proj_dims", [], "the tails' widths themselves; with fewer tails the first ones count")
    flags.DEFINE_integer(
        "batch_tokens", None, "N, tokens of a step (default: batch_size x seq_len of the "
        f"metadata.json beside the counts, or {STEP_TOKENS})", lower_bound=1)
    flags.DEFINE_list(
        "constants", [str(number) for number in astuple(DEFAULT)], "of the machine: floor and "
        "fixed time of a cluster in ms, time of a multiply-add and of a logit in ns (default: "
        "those of a CPU of 2 cores, by --measure)")
    flags.DEFINE_boolean("measure", False, "measure the constants on this machine, 20 seconds")


def parse_constants(texts: list[str]) -> Constants:
    """The constants that a flag gives."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not np.isfinite(numbers).all() or min(numbers) < 0:
        raise InputError(f"--constants={','.join(texts)} must be four numbers, none negative")
    return Constants(*numbers)


def main(_):
    FLAGS = flags.FLAGS
    path = Path(FLAGS.counts_file)
    counts = read_counts(path)
    if FLAGS.clusters > len(counts):
        raise InputError(f"--clusters={FLAGS.clusters} is more than the {len(counts)} ids")
    width = cluster_widths(FLAGS.clusters, FLAGS.d_model, FLAGS.proj_factor, FLAGS.proj_dims)
    tokens = FLAGS.batch_tokens or step_tokens(path.parent)
    constants = parse_constants(FLAGS.constants)
    if FLAGS.measure and FLAGS["constants"].present:
        raise InputError("--measure and --constants exclude each other")
    if FLAGS.measure:
        constants = measure(len(counts), tokens, width)
        numbers = ",".join(f"{number:.3g}" for number in astuple(constants))
        print(f"--constants={numbers}", file=sys.stderr)
    problem = Problem(counts / counts.sum(), width, tokens, constants)
    found = [cheapest_cutoffs(problem, clusters) for clusters in range(1, FLAGS.clusters + 1)]
    times = [expected_time(problem, cutoffs) for cutoffs in found]
    print("cheapest with   cutoffs                    ms per step", file=sys.stderr)
    for cutoffs, milliseconds in zip(found, times):
        clusters = f"{len(cutoffs) + 1} cluster{'s' if cutoffs else ''}"
        text = ",".join(map(str, cutoffs)) or "none"
        print(f"{clusters:14}  {text:24}  {milliseconds:12,.2f}", file=sys.stderr)
    print("--cutoffs=" + ",".join(map(str, found[int(np.argmin(times))])))


if __name__ == "__main__":
    cli.begin(__name__, define_flags)
    cli.run(main)
