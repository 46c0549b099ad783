"""The kinds of layer that a block may be. Another one is a class, and a line here.

What a search weighs, the letters of architectures, costs, latency table and pictures follow from
`KINDS`. `ops` holds what they compute with, `draws` the randomness of a step.
"""

from typing import Sequence

from layers.attention import RelativeAttention
from layers.dense import FeedForward
from layers.kind import Identity, Kind

KINDS: dict[str, type[Kind]] = {
    "attention": RelativeAttention,
    "dense": FeedForward,
    "identity": Identity,
}
SEARCH = "search"  # a block that is a mixture of all kinds


def letters() -> dict[str, str]:
    """{letter: kind} of every kind of block.

    Raises:
      ValueError: two have the same letter.
    """
    by_letter = {"s": SEARCH}
    for kind, layer in KINDS.items():
        if layer.letter in by_letter:
            other = by_letter[layer.letter]
            raise ValueError(f"{kind} and {other} have the same letter, {layer.letter}")
        by_letter[layer.letter] = kind
    return by_letter


def as_letters(architecture: Sequence[str]) -> str:
    """An architecture, the kind of each block, as text."""
    letter_of = {kind: letter for letter, kind in letters().items()}
    return "".join(letter_of[kind] for kind in architecture)


def from_letters(text: str) -> list[str]:
    """The kind of each block of an architecture that is written as text."""
    return [letters()[letter] for letter in text]


def without_identity(architecture: str) -> str:
    """The letters of an architecture that are layers: aaiiad and aaaidi are one network, aaad.

    As it is, where nothing would be left.
    """
    return architecture.replace(Identity.letter, "") or architecture
