"""Scores subnetworks of a search with the weights of the search, and searches for good ones.

B batch, T sequence length, M memory length, C = M + T context, D model width, L blocks, N
subnetworks, W windows.
"""

import itertools
import math
from typing import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from layers.attention import score_bias
from model import PARTransformerXL
from training.scoring import real_targets

Architecture = tuple[str, ...]  # the layer type of each block, L

PARENTS, CHILDREN = 10, 50  # of a generation; as in Guo et al. 2019
MUTATION = 0.1  # probability that a mutation redraws a block; also as in Guo et al. 2019


def num_architectures(model: PARTransformerXL) -> int:
    """The number of subnetworks, K^L for a search among K layer types in all L blocks."""
    return math.prod(len(block.branches) for block in model.blocks)


def architectures(model: PARTransformerXL) -> list[Architecture]:
    """All subnetworks."""
    return list(itertools.product(*(block.branches for block in model.blocks)))


class ChoiceScorer:
    """Scores subnetworks on consecutive windows, from an empty memory.

    Subnetworks with the same first blocks share their computation: the first block runs at most K
    times, once for each layer type.

    Args:
      model: a search.
      windows: W windows, int32 [B, T + 1] each.
      scored: called with the number of subnetworks scored so far, after each.
    """

    def __init__(self, model: PARTransformerXL, windows: Iterable[np.ndarray],
                 scored: Callable[[int], None] = lambda number: None):
        self._model, self._windows = model, [tf.constant(window) for window in windows]
        self._scored, self._number = scored, 0
        self._embed = tf.function(lambda window: model.embed(window[:, :-1]))
        self._branches = {(number, kind): self._branch(number, kind)
                          for number, block in enumerate(model.blocks) for kind in block.branches}
        self._window_nll = tf.function(self._nll)
        self.targets = sum(int(tf.reduce_sum(real_targets(window))) for window in self._windows)

    def __call__(self, choices: Sequence[Architecture]) -> np.ndarray:
        """The mean loss of each subnetwork, in nats per token: float64 [N]."""
        losses = {}
        self._score(sorted(choices), 0, [self._embed(window) for window in self._windows], losses)
        return np.array([losses[choice] for choice in choices])

    def _score(self, choices: list[Architecture], number: int, inputs: list, losses: dict):
        """Adds the losses of subnetworks, which agree before block `number`.

        Args:
          choices: the subnetworks, sorted.
          number: of a block.
          inputs: the input of the block for each window, W times [B, T, D].
          losses: by subnetwork.
        """
        if number == len(self._model.blocks):
            nll = [float(self._window_nll(*each)) for each in zip(inputs, self._windows)]
            losses[choices[0]] = sum(nll) / self.targets
            self._number += 1
            self._scored(self._number)
            return
        for kind, same in itertools.groupby(choices, lambda choice: choice[number]):
            memory, outputs = self._empty_memory(number), []
            for window, x in enumerate(inputs):
                y, memory = self._branches[number, kind](x, memory, tf.constant(window))
                outputs.append(y)  # [B, T, D]
            self._score(list(same), number + 1, outputs, losses)

    def _empty_memory(self, number: int):
        rows = self._windows[0].shape[0]
        block, sizes = self._model.blocks[number], self._model.sizes
        return tf.zeros([rows, sizes.mem_len, sizes.d_model], block.compute_dtype)  # [B, M, D]

    def _branch(self, number: int, kind: str):
        """A compiled function: one layer of a block, on a window."""
        block, M = self._model.blocks[number], self._model.sizes.mem_len

        @tf.function
        def branch(x, memory, window):
            T = x.shape[1]
            bias = score_bias(T, M, tf.minimum(window * T, M))  # [T, C]
            context = block.context(x, memory)  # [B, C, D]
            y = block.branch(kind, x, context, bias, weight=1.0)  # [B, T, D]
            return y, context[:, T:]  # [B, T, D], [B, M, D]

        return branch

    def _nll(self, x, window):
        """The summed loss of a window [B, T + 1] for the output of the last block [B, T, D]."""
        hidden = tf.reshape(self._model.hidden(x), [-1, x.shape[-1]])  # [B T, D]
        nll = self._model.softmax(hidden, tf.reshape(window[:, 1:], [-1]))  # [B T]
        return tf.reduce_sum(nll * tf.reshape(real_targets(window), [-1]))  # []


class Budget:
    """An upper limit of the costs of a subnetwork, such as milliseconds and FLOPs.

    Args:
      costs: of each layer type, an array of one number for each limit.
      limits: the same numbers for a subnetwork; infinity for none.
    """

    def __init__(self, costs: dict[str, np.ndarray], limits: Sequence[float]):
        self._costs, self._limits = costs, np.array(limits)

    def __contains__(self, choice: Sequence[str]) -> bool:
        return bool(np.all(sum(self._costs[kind] for kind in choice) <= self._limits))

    def cheapest(self, kinds: Iterable[str]) -> str:
        """The layer type that takes the smallest part of the budget."""
        limits = abs(self._limits)  # the softmax alone may exceed a limit: what is left is negative
        return min(kinds, key=lambda kind: np.max(self._costs[kind] / limits))


def evolve(score: Callable[[Sequence[Architecture]], np.ndarray],
           blocks: Sequence[Sequence[str]], budget: Budget, num_choices: int,
           seed: int) -> dict[Architecture, float]:
    """Evolutionary search for the subnetworks of lowest loss (Guo et al. 2019).

    Each generation adds children of the best subnetworks so far: mutations of one and crossovers of
    two. A child beyond the budget gets the cheapest layer type in random blocks until it fits.

    Args:
      score: the loss of each of some subnetworks.
      blocks: the layer types of each block, L.
      budget: for all subnetworks. If even the cheapest one exceeds it, that one is scored.
      num_choices: the number of subnetworks to score; fewer if the budget has fewer.
      seed: of the random numbers.

    Returns:
      The loss of each subnetwork that was scored.
    """
    rng, losses = np.random.default_rng(seed), {}
    while len(losses) < num_choices:
        parents = sorted(losses, key=losses.get)[:PARENTS]
        wanted = min(CHILDREN, num_choices - len(losses))
        children = {}  # a set that keeps the order
        for _ in range(100 * wanted):
            if len(children) == wanted:
                break
            own = within(budget, child(parents, blocks, rng), blocks, rng)
            if own not in losses:
                children[own] = None
        if not children:
            break
        losses |= zip(children, map(float, score([*children])))
    return losses


def child(parents: list[Architecture], blocks: Sequence[Sequence[str]], rng) -> Architecture:
    """A mutation of one of the parents, or a crossover of two; random without parents."""
    one = other = tuple(kinds[rng.integers(len(kinds))] for kinds in blocks)
    share = MUTATION
    if parents:
        one = parents[rng.integers(len(parents))]
        if rng.random() < 0.5:
            other, share = parents[rng.integers(len(parents))], 0.5
    return tuple(b if rng.random() < share else a for a, b in zip(one, other))


def within(budget: Budget, choice: Architecture, blocks: Sequence[Sequence[str]],
           rng) -> Architecture:
    """The choice, with the cheapest layer type in as many random blocks as the budget needs."""
    own = list(choice)
    for block in rng.permutation(len(blocks)):
        if own in budget:
            break
        own[block] = budget.cheapest(blocks[block])
    return tuple(own)
