"""The layer types. To add one, write a subclass of `Kind` and register it in `KINDS`.

Letters of architectures, costs, latencies and pictures all follow from `KINDS`; a search mixes the
types that it is given. `ops` holds shared operations, `draws` the random numbers of a step.
"""

from typing import Sequence

from layers.attention import LocalAttention, RelativeAttention
from layers.dense import FeedForward
from layers.kind import Identity, Kind

KINDS: dict[str, type[Kind]] = {
    "attention": RelativeAttention,
    "dense": FeedForward,
    "identity": Identity,
    "local": LocalAttention,
}
SEARCH = "search"  # a block that mixes the layer types of a search


def letters() -> dict[str, str]:
    """{letter: layer type}, with s for search.

    Raises:
      ValueError: two layer types have the same letter.
    """
    by_letter = {"s": SEARCH}
    for kind, layer in KINDS.items():
        if layer.letter in by_letter:
            other = by_letter[layer.letter]
            raise ValueError(f"{kind} and {other} have the same letter, {layer.letter}")
        by_letter[layer.letter] = kind
    return by_letter


def as_letters(architecture: Sequence[str]) -> str:
    """An architecture, the layer type of each block, as letters."""
    letter_of = {kind: letter for letter, kind in letters().items()}
    return "".join(letter_of[kind] for kind in architecture)


def from_letters(text: str) -> list[str]:
    """The layer type of each block of an architecture given as letters."""
    return [letters()[letter] for letter in text]


def kinds_of(searched: Sequence[str], architecture: Sequence[str]) -> list[str]:
    """The layer types of a network in the order of `KINDS`, which is that of pi.

    Args:
      searched: the layer types that a search is given.
      architecture: the layer type of each block, or `search`.
    """
    return [kind for kind in KINDS if kind in {*searched, *architecture}]


def without_identity(architecture: str) -> str:
    """An architecture without its identities: aaiiad and aaaidi are the same network, aaad.

    Unchanged if it consists only of identities.
    """
    return architecture.replace(Identity.letter, "") or architecture
