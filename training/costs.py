"""What a network costs: the FLOPs of a window, and the memory of a training step.

B batch, T sequence length, D model width, L blocks, V vocabulary, P parameters. Each kind of layer
tells its own share.
"""

import numpy as np

from model import PARTransformerXL


def flops(model: PARTransformerXL, B: int, T: int, probability: np.ndarray) -> float:
    """FLOPs of a window, forward: 2 for each multiply-add of a matrix product, 0 for all else.

    Args:
      model, B, T, probability: as of `softmax_flops`.
    """
    blocks = sum(layer.multiply_adds(B, T) for layer in _layers(model))
    return 2 * blocks + softmax_flops(model, B, T, probability)


def frequencies(stream: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each id is a target in a stream of tokens [N], relative to all: [V]."""
    return np.bincount(stream[1:], minlength=vocab_size) / (len(stream) - 1)


def softmax_flops(model: PARTransformerXL, B: int, T: int, probability: np.ndarray) -> float:
    """FLOPs of the softmax for a window, forward.

    It has B T (D (head + tails) + sum_i p_i (D d_i + d_i n_i)) multiply-adds, where head counts the
    ids in the head, tails the tails, and tail i has width d_i and n_i ids. If d_i is D there
    is no projection, D d_i; the input of tied embeddings has it for every token. (A compiled step
    does more: it computes every tail for every token.)

    Args:
      model: the network.
      B, T: batch and sequence length.
      probability: of each id, [V]; a tail counts for the share p_i of the tokens that fall into it.
    """
    D, softmax = model.sizes.d_model, model.softmax
    per_token = D * (softmax.head_size + len(softmax.tails))
    for tail in softmax.tails:
        projection = D * tail.width * (tail.width != D)
        share = probability[tail.first:tail.end].sum()
        per_token += share * (projection + tail.width * tail.size)
        per_token += projection * model.tie_embeddings  # at the input, for every token
    return 2 * B * T * per_token


def training_memory(model: PARTransformerXL, B: int, T: int, probability: np.ndarray) -> float:
    """Bytes that a training step takes in float32 with Adam, beside what the program itself takes.

    Numbers of 4 bytes:

        parameters  4 P                                   themselves, gradients, Adam's averages
        layers      what each kind says that it keeps
        blocks      L B T D                               their inputs
        at once     of the layer that has most, while its gradient is computed
        softmax     3 B T (head + tails + sum_i p_i n_i)  logits, probabilities, gradient

    With static shapes, that is on a GPU, every tail is computed for every token: p_i is 1.

    Args:
      model: the network.
      B, T: batch and sequence length; of the rows that a device computes at once.
      probability: of each id, [V], as in `flops`.
    """
    softmax = model.softmax
    logits = softmax.head_size + len(softmax.tails)
    for tail in softmax.tails:
        share = 1 if softmax.static_shapes else probability[tail.first:tail.end].sum()
        logits += share * tail.size
    inputs = len(model.blocks) * B * T * model.sizes.d_model
    kept = sum(layer.numbers_kept(B, T) for layer in _layers(model))
    at_once = max((layer.numbers_at_once(B, T) for layer in _layers(model)), default=0)
    return 4 * (4 * model.count_params() + inputs + kept + at_once + 3 * B * T * logits)


def _layers(model: PARTransformerXL) -> list:
    return [layer for block in model.blocks for layer in block.branches.values()]
