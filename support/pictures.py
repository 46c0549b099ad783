"""What this project draws: the probabilities of an architecture and, by `python -m support.pictures`, README's picture of a block.

L blocks, K kinds of layer.
"""

import functools
import warnings
from typing import Sequence

import matplotlib
import numpy as np
from matplotlib import pyplot

matplotlib.use("Agg")  # without a display
warnings.filterwarnings("ignore", "Glyph .* missing from font")  # of a corpus' name, whose characters are boxes then


def draw_pi(axes, pi: np.ndarray, kinds: Sequence[str], title: str):
    """Draws pi [L, K] anew: blocks across, kinds of layer down, shade and number the probability, a block's largest in bold."""
    axes.clear()
    axes.imshow(pi.T, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(pi)), [str(block + 1) for block in range(len(pi))])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("block")
    axes.set_title(title, fontsize=9, parse_math=False)
    for block, probabilities in enumerate(pi):
        for kind, probability in enumerate(probabilities):
            axes.text(block, kind, f"{probability:.2f}", ha="center", va="center", fontsize=9,
                      weight="bold" if kind == probabilities.argmax() else "normal", color="white" if probability > 0.5 else "black")


def architecture_heat_map(pi: np.ndarray, kinds: Sequence[str], title: str) -> np.ndarray:
    """The picture of pi [L, K] as RGB, uint8 [height, width, 3]."""
    figure, axes = _heat_map_figure(len(pi))
    draw_pi(axes, pi, kinds, title)
    return pixels(figure)


@functools.cache
def _heat_map_figure(blocks: int):
    """The figure of all heat maps of so many blocks, and its axes: a new one each time would be garbage that Python seldom collects."""
    return pyplot.subplots(figsize=(1.6 + 0.6 * blocks, 2.4), dpi=100, layout="constrained")


def pixels(figure) -> np.ndarray:
    """A figure as it looks now: RGB, uint8 [height, width, 3]."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def block_diagram():
    """A stochastic block: three branches, weighted by a Gumbel-Softmax sample. Returns the figure."""
    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=100, layout="constrained")
    axes.set(xlim=(0, 16), ylim=(0, 8))
    axes.axis("off")

    def box(x, y, text, width=2.6, height=1.0, shade="0.93"):
        axes.add_patch(pyplot.Rectangle((x - width / 2, y - height / 2), width, height, facecolor=shade, edgecolor="black"))
        axes.text(x, y, text, ha="center", va="center", fontsize=9)

    def arrow(start, end, style="-"):
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "linestyle": style, "shrinkA": 0, "shrinkB": 0})

    box(1.2, 4.2, "input $x$", width=1.8)
    for y, text, formula in ((6.4, "attention", "LN($x$ + attention($x$))"), (4.2, "dense", "LN($x$ + dense($x$))"), (2.0, "identity", "$x$")):
        arrow((2.1, 4.2), (3.7, y))
        box(5.0, y, text, shade="0.8")
        arrow((6.3, y), (7.0, y))
        box(8.6, y, formula, width=3.2)
        arrow((10.2, y), (12.4, 4.2 + 0.25 * (y - 4.2)))
        axes.text(10.4, y + (0.2 if y >= 4.2 else -0.4), f"$w_\\mathrm{{{text}}}$", fontsize=10)
    box(5.0, 7.6, "memory: the last inputs", width=4.2, height=0.7)
    arrow((5.0, 7.25), (5.0, 6.9))
    box(12.9, 4.2, "sum", width=1.0)
    arrow((13.4, 4.2), (14.0, 4.2))
    box(14.9, 4.2, "output", width=1.8)
    box(8.6, 0.5, r"$w$ = softmax((log $\pi$ + Gumbel noise) / $\tau$),   $\pi$ = softmax($\theta$), learned with the weights", width=11.6, height=0.8)
    arrow((12.9, 0.9), (12.9, 3.7), "--")
    return figure


if __name__ == "__main__":
    block_diagram().savefig("docs/block.png")
