"""What this project draws: an architecture's probabilities, attention, costs, and a block.

L blocks, K kinds of layer, H heads, N tokens, P networks. `python -m support.pictures` draws
README's picture of a block.
"""

import functools
import io
import warnings
from pathlib import Path
from typing import Sequence

import matplotlib
import numpy as np
from matplotlib import colors, pyplot

from support import cli, files

matplotlib.use("Agg")  # without a display
# Of a corpus' name, whose characters are boxes then.
warnings.filterwarnings("ignore", "Glyph .* missing from font")


def draw_pi(axes, pi: np.ndarray, kinds: Sequence[str], title: str):
    """Draws pi [L, K] anew.

    Blocks lie across, kinds of layer down; shade and number are the probability, a block's largest
    in bold.
    """
    axes.clear()
    axes.imshow(pi.T, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(pi)), [str(block + 1) for block in range(len(pi))])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("block")
    axes.set_title(title, fontsize=9, parse_math=False)
    for block, probabilities in enumerate(pi):
        for kind, probability in enumerate(probabilities):
            weight = "bold" if kind == probabilities.argmax() else "normal"
            color = "white" if probability > 0.5 else "black"
            axes.text(block, kind, f"{probability:.2f}", ha="center", va="center", fontsize=9,
                      weight=weight, color=color)


def architecture_heat_map(pi: np.ndarray, kinds: Sequence[str], title: str) -> np.ndarray:
    """The picture of pi [L, K] as RGB, uint8 [height, width, 3]."""
    figure, axes = _heat_map_figure(len(pi))
    draw_pi(axes, pi, kinds, title)
    return pixels(figure)


@functools.cache
def _heat_map_figure(blocks: int):
    """The figure of all heat maps of so many blocks, and its axes.

    A new one each time would be garbage that Python seldom collects.
    """
    return pyplot.subplots(figsize=(1.6 + 0.6 * blocks, 2.4), dpi=100, layout="constrained")


def attention_figure(weights: np.ndarray, tokens: Sequence[str], seq_len: int, title: str):
    """The figure of what each token of a text attends to, in each head of a block.

    Args:
      weights: [H, N, N], a row for each token that attends.
      tokens: the text of each, N.
      seq_len: how many tokens are read at once: a line stands where a new window begins. What lies
        left of it and is attended to from below it is the memory.
      title: of the figure.
    """
    heads, columns = len(weights), min(len(weights), 2)
    rows, side = -(-heads // columns), max(2.4, 0.16 * len(tokens))
    figure, grid = pyplot.subplots(
        rows, columns, figsize=(side * columns + 0.6, side * rows + 1), dpi=120, squeeze=False,
        layout="constrained")
    labels = [token.strip() or repr(token)[1:-1] for token in tokens]
    for head, axes in enumerate(grid.flat):
        if head >= heads:
            axes.axis("off")
            continue
        shades = colors.PowerNorm(0.5, vmin=0, vmax=1)  # small weights show too
        axes.imshow(weights[head], cmap="Greys", norm=shades)
        axes.set_title(f"head {head + 1}", fontsize=8)
        axes.set_xticks(range(len(tokens)), labels, rotation=90, fontsize=6, parse_math=False)
        axes.set_yticks(range(len(tokens)), labels, fontsize=6, parse_math=False)
        for start in range(seq_len, len(tokens), seq_len):
            axes.axhline(start - 0.5, color="black", linewidth=0.5, linestyle=":")
            axes.axvline(start - 0.5, color="black", linewidth=0.5, linestyle=":")
    figure.suptitle(title, fontsize=9, parse_math=False)
    figure.supylabel("token that attends", fontsize=8)
    figure.supxlabel("token that is attended to", fontsize=8)
    return figure


def front(costs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Which networks no other beats, by rising cost: none has both figures as low, and one lower.

    Args:
      costs, losses: of each of P networks, [P].

    Returns:
      Their numbers.
    """
    chosen, least = [], np.inf
    for number in np.lexsort([losses, costs]):
        if losses[number] < least:
            chosen.append(number)
            least = losses[number]
    return np.array(chosen, int)


def trade_off_figure(names: Sequence[str], grey: np.ndarray, shade_names: tuple[str, str],
                     losses: np.ndarray, costs: dict[str, np.ndarray], loss_name: str, title: str):
    """The figure of what networks cost and how well they predict, a panel for each kind of cost.

    A network far worse than most is a triangle at the upper edge, to leave room for those; beside
    its name stands its loss.

    Args:
      names: of P networks.
      grey: which are drawn in grey, boolean [P].
      shade_names: what the black ones are, and what the grey ones.
      losses: of each, [P].
      costs: {name of the cost: of each network, [P]}; the front of each is drawn.
      loss_name, title: what the figure says.
    """
    figure, panels = pyplot.subplots(1, len(costs), figsize=(6 * len(costs), 5), dpi=120,
                                     sharey=True, squeeze=False, layout="constrained")
    known = losses[np.isfinite(losses)]
    top = known.min() + 2 * (np.quantile(known, 0.75) - known.min())
    worse = (losses > top) & (top > known.min())
    heights = np.where(worse, top, losses)
    for axes, (cost_name, cost) in zip(panels.flat, costs.items()):
        best = front(cost, losses)
        axes.plot(cost[best], heights[best], color="black", linewidth=0.8, linestyle="--",
                  drawstyle="steps-post", label="front", zorder=1)
        axes.scatter(cost[grey], heights[grey], color="0.65", s=18, label=shade_names[1], zorder=2)
        axes.scatter(cost[~grey], heights[~grey], color="black", s=18, label=shade_names[0],
                     zorder=3)
        if worse.any():
            axes.scatter(cost[worse], heights[worse], color="white", edgecolor="0.4", s=28,
                         marker="^", label="worse than shown", zorder=4)
        for number, name in enumerate(names):
            text = f"{name} {losses[number]:.3f}" if name and worse[number] else name
            place, side, color = (-4, "right", "0.45") if grey[number] else (4, "left", "black")
            axes.annotate(text, (cost[number], heights[number]), xytext=(place, 3), ha=side,
                          textcoords="offset points", fontsize=7, color=color, parse_math=False)
        axes.set_xlabel(cost_name)
        axes.margins(x=0.2)  # room for the names
        axes.set_xlim(left=max(0, axes.get_xlim()[0]))
        axes.legend(fontsize=8)
    panels[0, 0].set_ylabel(loss_name)
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def save(figure, path: Path):
    """Writes a figure as PNG, and forgets it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    pyplot.close(figure)
    files.write_whole(path, picture.getvalue())


def pixels(figure) -> np.ndarray:
    """A figure as it looks now: RGB, uint8 [height, width, 3]."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def block_diagram():
    """The figure of a stochastic block: three branches, weighted by a Gumbel-Softmax sample."""
    figure, axes = pyplot.subplots(figsize=(8, 4), dpi=100, layout="constrained")
    axes.set(xlim=(0, 16), ylim=(0, 8))
    axes.axis("off")

    def box(x, y, text, width=2.6, height=1.0, shade="0.93"):
        corner = (x - width / 2, y - height / 2)
        axes.add_patch(
            pyplot.Rectangle(corner, width, height, facecolor=shade, edgecolor="black"))
        axes.text(x, y, text, ha="center", va="center", fontsize=9)

    def arrow(start, end, style="-"):
        axes.annotate("", end, start, arrowprops={
            "arrowstyle": "-|>", "color": "black", "linestyle": style, "shrinkA": 0, "shrinkB": 0})

    box(1.2, 4.2, "input $x$", width=1.8)
    branches = (
        (6.4, "attention", "LN($x$ + attention($x$))"),
        (4.2, "dense", "LN($x$ + dense($x$))"),
        (2.0, "identity", "$x$"),
    )
    for y, text, formula in branches:
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
    box(8.6, 0.5, r"$w$ = softmax((log $\pi$ + Gumbel noise) / $\tau$),   "
        r"$\pi$ = softmax($\theta$), learned with the weights", width=11.6, height=0.8)
    arrow((12.9, 0.9), (12.9, 3.7), "--")
    return figure


def main(_):
    block_diagram().savefig("docs/block.png")


if __name__ == "__main__":
    cli.begin(__name__)
    cli.run(main)
