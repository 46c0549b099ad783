"""Draws the search of a run from the run's own record: pi over training as an animation and, at its end, as a still picture.

L blocks, K kinds of layer, S recorded steps.
"""

from pathlib import Path

import numpy as np
from absl import flags
from matplotlib import pyplot, ticker
from PIL import Image

from support import cli

with cli.quiet():
    from model import KINDS
    from runs import TrainedRun
    from support import pictures

from support.cli import InputError

FRAMES, SECONDS_PER_FRAME, SECONDS_AT_THE_END = 60, 0.125, 2
SHADES = 16  # of grey; more would show no more


def recorded_pi(curves: dict) -> tuple[np.ndarray, np.ndarray]:
    """The steps [S] at which pi was recorded, and pi [S, L, K] itself, from the curves of `train`."""
    blocks = sum(tag.endswith(f"/{KINDS[0]}") for tag in curves)
    values = [[curves[f"pi/block_{block}/{kind}"][1] for kind in KINDS] for block in range(1, blocks + 1)]  # [L, K, S]
    return curves[f"pi/block_1/{KINDS[0]}"][0], np.moveaxis(np.array(values), -1, 0)


def entropy(pi: np.ndarray) -> np.ndarray:
    """In nats, of each of [..., K] probabilities: log(K) where all are alike, 0 where one is certain."""
    return -np.sum(pi * np.log(np.maximum(pi, 1e-30)), axis=-1)


class SearchFigure:
    """pi at one step above, and the curves of the whole search below, with a mark at this step.

    Args:
      run: of a search.

    Raises:
      InputError: the run recorded no search.
    """

    def __init__(self, run: TrainedRun):
        train, valid = run.scalars("train"), run.scalars("valid")
        if not any(tag.startswith("pi/") for tag in train):
            raise InputError(f"{run.folder} has no record of a search: its architecture is fixed, or it has just begun")
        self.steps, self._pi = recorded_pi(train)  # [S], [S, L, K]
        self._name = f"{run.folder.name}, {run.data['corpus']}"
        self.figure = pyplot.figure(figsize=(8, 5.6), dpi=80, layout="constrained")
        grid = self.figure.add_gridspec(3, 2, height_ratios=(1.7, 1, 1))
        self._heat_map = self.figure.add_subplot(grid[0, :])
        loss, perplexity, tau, pi_entropy = curves = [self.figure.add_subplot(grid[row, column]) for row in (1, 2) for column in (0, 1)]
        for axes, tag in ((loss, "loss"), (perplexity, "perplexity")):
            axes.plot(*train[tag], color="0.6", linewidth=1, label="train")
            axes.plot(*valid.get(tag, ([], [])), color="black", marker="o", markersize=4, linewidth=1, label="valid")
            axes.legend(fontsize=7)
        perplexity.set_yscale("log")
        perplexity.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        perplexity.yaxis.set_major_formatter("{x:,.0f}")
        perplexity.yaxis.set_minor_formatter(ticker.NullFormatter())
        tau.plot(*train["training/tau"], color="black", linewidth=1)
        for block in range(self._pi.shape[1]):
            pi_entropy.plot(self.steps, entropy(self._pi[:, block]), color="0.6", linewidth=0.8, label="each block" if block == 0 else None)
        pi_entropy.plot(self.steps, entropy(self._pi).mean(axis=1), color="black", linewidth=1.5, label="mean")
        pi_entropy.legend(fontsize=7)
        for axes, name in zip(curves, ("loss, nats per token", "perplexity", "temperature tau", "entropy of pi, nats")):
            axes.set_title(name, fontsize=8)
            axes.tick_params(labelsize=7, which="both")
            axes.xaxis.set_major_formatter("{x:,.0f}")
        self._marks = [axes.axvline(self.steps[0], color="black", linestyle=":", linewidth=1) for axes in curves]

    def show(self, number: int) -> Image.Image:
        """Draws record `number` of the S. Returns the picture in grey."""
        pictures.draw_pi(self._heat_map, self._pi[number], KINDS, f"pi at step {self.steps[number]:,} of {self._name}")
        for mark in self._marks:
            mark.set_xdata([self.steps[number]] * 2)
        return Image.fromarray(pictures.pixels(self.figure)).convert("L").quantize(SHADES)


def define_flags():
    cli.define_path("run", None, "the folder of a search, which may still go on", required=True)


def main(_):
    run = TrainedRun(Path(flags.FLAGS.run))
    search = SearchFigure(run)
    numbers = np.unique(np.linspace(0, len(search.steps) - 1, FRAMES).round().astype(int))
    frames = [search.show(number) for number in numbers]
    search.figure.savefig(run.folder / "search.png", dpi=120)
    durations = [1000 * SECONDS_PER_FRAME] * (len(frames) - 1) + [1000 * SECONDS_AT_THE_END]
    frames[0].save(run.folder / "search.gif", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    print(f"wrote {run.folder / 'search.gif'} and {run.folder / 'search.png'}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
