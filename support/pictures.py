"""Pictures: the probabilities of an architecture, attention, and quality over cost.

L blocks, K layer types, H heads, N tokens, P networks.
"""

import io
import warnings
from pathlib import Path
from typing import Sequence

import matplotlib
import numpy as np
from matplotlib import colors, pyplot

from support import files

matplotlib.use("Agg")  # without a display
# A corpus may have a name in any script; missing characters are drawn as boxes.
warnings.filterwarnings("ignore", "Glyph .* missing from font")


def draw_pi(axes, pi: np.ndarray, kinds: Sequence[str], title: str):
    """Redraws pi [L, K] as a heat map: blocks across, layer types down.

    The largest number of a block is bold, unless two are equal as shown.
    """
    axes.clear()
    axes.imshow(pi.T, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(pi)), [str(block + 1) for block in range(len(pi))])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("block")
    axes.set_title(title, fontsize=9, parse_math=False)
    for block, probabilities in enumerate(pi):
        texts = [f"{probability:.2f}" for probability in probabilities]
        for kind, text in enumerate(texts):
            is_largest = text == max(texts) and texts.count(text) == 1
            axes.text(block, kind, text, ha="center", va="center", fontsize=9,
                      weight="bold" if is_largest else "normal",
                      color="white" if probabilities[kind] > 0.5 else "black")


def architecture_heat_map(pi: np.ndarray, kinds: Sequence[str], title: str) -> np.ndarray:
    """The heat map of pi [L, K]: RGB, uint8 [height, width, 3]."""
    size = 1.6 + 0.6 * len(pi), 0.9 + 0.5 * len(kinds)
    figure, axes = pyplot.subplots(figsize=size, dpi=100, layout="constrained")
    draw_pi(axes, pi, kinds, title)
    picture = pixels(figure)
    pyplot.close(figure)
    return picture


def attention_figure(weights: np.ndarray, tokens: Sequence[str], seq_len: int, title: str):
    """The figure of the attention in each head of a block.

    Args:
      weights: [H, N, N], a row for each query.
      tokens: the text of each token, N.
      seq_len: tokens per window. A line marks the start of each window; weights below and to the
        left of it are attention to the memory.
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
        shades = colors.PowerNorm(0.5, vmin=0, vmax=1)  # makes small weights visible
        axes.imshow(weights[head], cmap="Greys", norm=shades)
        axes.set_title(f"head {head + 1}", fontsize=8)
        axes.set_xticks(range(len(tokens)), labels, rotation=90, fontsize=6, parse_math=False)
        axes.set_yticks(range(len(tokens)), labels, fontsize=6, parse_math=False)
        for start in range(seq_len, len(tokens), seq_len):
            axes.axhline(start - 0.5, color="black", linewidth=0.5, linestyle=":")
            axes.axvline(start - 0.5, color="black", linewidth=0.5, linestyle=":")
    figure.suptitle(title, fontsize=9, parse_math=False)
    figure.supylabel("attending token", fontsize=8)
    figure.supxlabel("attended token", fontsize=8)
    return figure


# Styles of the networks in a `trade_off_figure`.
BLACK = {"color": "black", "marker": "o", "s": 18, "zorder": 3}
GREY = {"color": "0.65", "marker": "o", "s": 18, "zorder": 2}
STAR = {"color": "black", "marker": "*", "s": 80, "zorder": 3}
# Where a name may stand: the side of its point, and its height above it, in points.
PLACES = [(side, height) for height in (3, -9, -3, 13, -19) for side in ("right", "left")]


def front(costs: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The indices of the Pareto front of costs and losses [P], by increasing cost."""
    chosen, least = [], np.inf
    for number in np.lexsort([losses, costs]):
        if losses[number] < least:
            chosen.append(number)
            least = losses[number]
    return np.array(chosen, int)


def trade_off_figure(names: Sequence[str], groups: dict[str, tuple[np.ndarray, dict]],
                     losses: np.ndarray, costs: dict[str, np.ndarray], loss_name: str, title: str):
    """The figure of loss over cost: a panel for each cost, with the front of all networks.

    A network far worse than most is a triangle at the upper edge, labelled with its loss.

    Args:
      names: of P networks; empty names are not drawn.
      groups: {label: (which networks, boolean [P]; their style)}; each network is in one group.
      losses: of the networks, [P].
      costs: {axis label: costs of the networks, [P]}.
      loss_name: label of the vertical axis.
    """
    figure, panels = pyplot.subplots(1, len(costs), figsize=(6 * len(costs), 5), dpi=120,
                                     sharey=True, squeeze=False, layout="constrained")
    heights, worse = _heights(losses)
    for axes, (cost_name, cost) in zip(panels.flat, costs.items()):
        best = front(cost, losses)
        axes.plot(cost[best], heights[best], color="black", linewidth=0.8, linestyle="--",
                  drawstyle="steps-post", label="front", zorder=1)
        for label, (members, style) in groups.items():
            shown = members & ~worse
            if shown.any():
                axes.scatter(cost[shown], heights[shown], label=label, **style)
        if worse.any():
            axes.scatter(cost[worse], heights[worse], color="white", edgecolor="0.4", s=28,
                         marker="^", label="worse than shown", zorder=4)
        axes.set_xlabel(cost_name)
        axes.margins(x=0.2)  # room for the names
        axes.set_xlim(left=max(0, axes.get_xlim()[0]))
    panels[0, 0].set_ylabel(loss_name)
    figure.suptitle(title, fontsize=9, parse_math=False)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5,
                  fontsize=8)
    figure.draw_without_rendering()  # decides where the points are
    texts = [name and f"{name} {loss:.3f}" if is_worse else name
             for name, loss, is_worse in zip(names, losses, worse)]
    for axes, cost in zip(panels.flat, costs.values()):
        _write_names(axes, np.stack([cost, heights], axis=1), texts, groups)
    return figure


def _heights(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The heights at which networks with losses [P] are drawn, [P], and which are far worse, [P].

    Far worse means more than twice as far above the best as the upper quartile.
    """
    known = losses[np.isfinite(losses)]
    best, most = known.min(), np.quantile(known, 0.75)
    limit = best + 2 * (most - best) if most > best else np.inf
    worse = ~np.isfinite(losses) | (losses > limit)
    highest = losses[~worse].max()
    return np.where(worse, highest + 0.1 * (highest - best), losses), worse


def _write_names(axes, points: np.ndarray, texts: Sequence[str],
                 groups: dict[str, tuple[np.ndarray, dict]]):
    """Writes texts beside their points [P, 2], each in the place where it covers the least."""
    pixels = axes.transData.transform(points)  # [P, 2]
    taken = np.hstack([pixels - 5, pixels + 5])  # [P, 4]: left, bottom, right, top
    for members, style in groups.values():
        for number in np.flatnonzero(members):
            if not texts[number]:
                continue
            text = axes.annotate(
                texts[number], points[number], (0, 0), textcoords="offset points", fontsize=7,
                color="0.45" if style is GREY else "black",
                weight="bold" if style is STAR else "normal", parse_math=False, in_layout=False)
            boxes = np.stack([_move(text, *place) for place in PLACES])  # [places, 4]
            covered = [_shared(box, taken).sum() - _shared(box, axes.bbox.extents[None]).sum()
                       for box in boxes]
            best = np.argmin(np.round(covered))
            _move(text, *PLACES[best])
            taken = np.vstack([taken, boxes[best]])


def _move(text, side: str, height: int) -> np.ndarray:
    """Moves a text to a side of its point. Returns its box in pixels: left, bottom, right, top."""
    text.set(ha="left" if side == "right" else "right",
             position=(5 if side == "right" else -5, height))
    return text.get_window_extent().extents


def _shared(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area that a box [4] shares with each of some others [N, 4]."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])  # [N, 2]
    return np.prod(np.maximum(0, sides), axis=1)  # [N]


def depth_figure(architectures: Sequence[str], losses: np.ndarray, dark: str, loss_name: str,
                 title: str):
    """The figure of the layers of networks: a row for each network, a column for each layer.

    Args:
      architectures: of P networks, as letters.
      losses: of the networks, [P].
      dark: the letters whose cells are dark.
      loss_name: what the losses are; each row is labelled with its loss.
      title: of the figure.
    """
    rows, columns = len(architectures), max(map(len, architectures))
    shades = np.ones([rows, columns])  # [P, L], of grey; 1 is white
    for row, letters in enumerate(architectures):
        shades[row, :len(letters)] = [0.25 if letter in dark else 0.8 for letter in letters]
    figure, axes = pyplot.subplots(figsize=(1.4 + 0.3 * columns, 1.2 + 0.2 * rows), dpi=120,
                                   layout="constrained")
    axes.imshow(shades, cmap="gray", vmin=0, vmax=1, aspect="auto")
    for row, letters in enumerate(architectures):
        for column, letter in enumerate(letters):
            axes.text(column, row, letter, ha="center", va="center", fontsize=7,
                      color="white" if letter in dark else "black")
    axes.set_xticks(range(columns), range(1, columns + 1), fontsize=7)
    axes.set_yticks(range(rows), [f"{loss:.3f}" for loss in losses], fontsize=7)
    axes.set_xlabel("layer", fontsize=8)
    axes.set_ylabel(loss_name, fontsize=8)
    axes.set_title(title, fontsize=8, parse_math=False)
    return figure


def save(figure, path: Path):
    """Writes a figure as PNG and closes it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    pyplot.close(figure)
    files.write_whole(path, picture.getvalue())


def pixels(figure) -> np.ndarray:
    """The current picture of a figure: RGB, uint8 [height, width, 3]."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
