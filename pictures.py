"""What this project draws: the probabilities of an architecture, and (run as a program) README's picture of the block."""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

KINDS = ("attention", "dense", "identity")


def architecture_heat_map(pi: np.ndarray, title: str) -> np.ndarray:
    """Blocks across, kinds of layer down, darker for more probable, each block's largest probability written in.

    Args:
      pi: [L, K].
      title: above the picture.

    Returns:
      RGB, uint8 [height, width, 3].
    """
    figure, axes = pyplot.subplots(figsize=(1.6 + 0.6 * len(pi), 2.4), dpi=100, layout="constrained")
    axes.imshow(pi.T, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(pi)), [str(block + 1) for block in range(len(pi))])
    axes.set_yticks(range(len(KINDS)), KINDS)
    axes.set_xlabel("block")
    axes.set_title(title, fontsize=9)
    for block, probability in enumerate(pi):
        kind = int(probability.argmax())
        axes.text(block, kind, f"{probability[kind]:.2f}", ha="center", va="center", fontsize=9,
                  color="white" if probability[kind] > 0.5 else "black")
    figure.canvas.draw()
    image = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    pyplot.close(figure)
    return image
