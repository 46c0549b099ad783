"""FLOPs of a forward pass: 2 per multiply-add of a matrix product, 0 for everything else.

B batch, T sequence length, D model width, N tokens, V vocabulary.
"""

import numpy as np

from cutoffs import multiply_adds
from model import PARTransformerXL


def flops(model: PARTransformerXL, B: int, T: int, probability: np.ndarray) -> float:
    """FLOPs of one window [B, T].

    Args:
      probability: of each id as a target, [V], because a tail is computed only for its own tokens.
    """
    layers = [layer for block in model.blocks for layer in block.branches.values()]
    blocks = 2 * sum(layer.multiply_adds(B, T) for layer in layers)
    return blocks + softmax_flops(model, B, T, probability)


def softmax_flops(model: PARTransformerXL, B: int, T: int, probability: np.ndarray) -> float:
    """The share of the output layer in `flops`: `cutoffs.multiply_adds`.

    With tied embeddings it includes the projections of the input rows, computed for every token.
    A step compiled by XLA does more: it computes every tail for every token.
    """
    D, clusters = model.sizes.d_model, model.softmax.table.clusters
    per_token = multiply_adds(clusters, probability)
    if model.tie_embeddings:
        per_token += sum(D * tail.width for tail in clusters if tail.width != D)
    return 2 * B * T * per_token


def frequencies(stream: np.ndarray, vocab_size: int) -> np.ndarray:
    """The relative frequency of each id among the targets of a stream of tokens [N]: [V]."""
    return np.bincount(stream[1:], minlength=vocab_size) / (len(stream) - 1)
