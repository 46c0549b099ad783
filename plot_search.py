"""Draws searches: one from the run's own record, what its network attends to, several compared.

    python plot_search.py --run=logs/supernet
    python plot_search.py --run=logs/supernet --attention="The king was dead."
    python plot_search.py --compare=logs/found,logs/other,logs/random_1

The pictures of a search are an animation of pi over training, and a still one of its end; of
attention, one for each block that has it. A comparison draws quality against cost, of every network
of the runs that evaluate.py has scored on the validation split. Runs that trained the same network,
with several seeds or with identities in other places, are one point.

L blocks, K kinds of layer, S recorded steps.
"""

import io
from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from support.cli import InputError


def define_flags():
    cli.define_path("run", None, "the folder of a search, which may still go on")
    cli.define_paths("compare", None, "the folders of runs that evaluate.py has scored; a network "
                     "is grey where all its runs have random in their name")
    flags.DEFINE_string("attention", None, "a text: draw what each of its tokens attends to")


cli.begin(__name__, define_flags)

with cli.quiet():
    from matplotlib import pyplot, ticker
    from PIL import Image

    from layers import KINDS
    from support import files, pictures
    from training.comparison import means, read_evaluations, table
    from training.trained_run import TrainedRun

FRAMES, SECONDS_PER_FRAME, SECONDS_AT_THE_END = 60, 0.125, 2
SHADES = 16  # of grey; more would show no more
MOST_TOKENS = 80


def entropy(pi: np.ndarray) -> np.ndarray:
    """In nats, of each of [..., K] probabilities.

    It is log(K) where all are alike, 0 where one is certain.
    """
    return -np.sum(pi * np.log(np.maximum(pi, 1e-30)), axis=-1)


class SearchFigure:
    """pi at one step above, and the curves of the whole search below, with a mark at this step.

    Args:
      run: of a search.

    Raises:
      InputError: the run recorded no search.
    """

    def __init__(self, run: TrainedRun):
        train, valid = run.recorded("train"), run.recorded("valid")
        recorded = run.recorded("train", plugin="pi")
        if not recorded:
            raise InputError(f"{run.folder} has no record of a search: its architecture is fixed, "
                             "or it has just begun")
        self.steps, self._pi = recorded["pi/all"]  # [S], [S, L, K]
        self._name = f"{run.folder.name}, {run.data['corpus']}"
        self.figure = pyplot.figure(figsize=(8, 5.6), dpi=80, layout="constrained")
        self.figure.get_layout_engine().set(w_pad=0.1)
        grid = self.figure.add_gridspec(3, 2, height_ratios=(1.7, 1, 1))
        self._heat_map = self.figure.add_subplot(grid[0, :])
        places = [(1, 0), (1, 1), (2, 0), (2, 1)]
        curves = [self.figure.add_subplot(grid[row, column]) for row, column in places]
        loss, perplexity, tau, pi_entropy = curves
        for axes, tag in ((loss, "loss"), (perplexity, "perplexity")):
            axes.plot(*train[tag], color="0.6", linewidth=1, label="train")
            axes.plot(*valid.get(tag, ([], [])), color="black", marker="o", markersize=4,
                      linewidth=1, label="valid")
            axes.legend(fontsize=7)
        perplexity.set_yscale("log")
        perplexity.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        perplexity.yaxis.set_major_formatter("{x:,.0f}")
        perplexity.yaxis.set_minor_formatter(ticker.NullFormatter())
        tau.plot(*train["training/tau"], color="black", linewidth=1)
        for block in range(self._pi.shape[1]):
            label = "each block" if block == 0 else None
            pi_entropy.plot(self.steps, entropy(self._pi[:, block]), color="0.6", linewidth=0.8,
                            label=label)
        pi_entropy.plot(self.steps, entropy(self._pi).mean(axis=1), color="black", linewidth=1.5,
                        label="mean")
        pi_entropy.legend(fontsize=7)
        titles = ("loss, nats per token", "perplexity", "temperature tau", "entropy of pi, nats")
        for axes, title in zip(curves, titles):
            axes.set_title(title, fontsize=8)
            axes.tick_params(labelsize=7, which="both")
            axes.xaxis.set_major_formatter("{x:,.0f}")
        self._marks = [axes.axvline(self.steps[0], color="black", linestyle=":", linewidth=1)
                       for axes in curves]
        self.show(0)
        self.figure.set_layout_engine("none")  # the places stay: to find them takes long

    def show(self, number: int) -> Image.Image:
        """Draws record `number` of the S.

        Returns:
          The picture, in grey.
        """
        step = self.steps[number]
        title = f"pi at step {step:,} of {self._name}"
        pictures.draw_pi(self._heat_map, self._pi[number], list(KINDS), title)
        for mark in self._marks:
            mark.set_xdata([step] * 2)
        return Image.fromarray(pictures.pixels(self.figure)).convert("L").quantize(SHADES)


def draw_attention(run: TrainedRun, text: str) -> list[Path]:
    """Draws what the tokens of a text attend to, in each block with attention.

    Returns:
      The pictures.

    Raises:
      InputError: the text has no token, or too many to be read, or the network no attention.
    """
    length = len(run.encode(text)[0])
    if length > MOST_TOKENS:
        raise InputError(f"the text has {length} tokens: {MOST_TOKENS} can be drawn legibly")
    weights, tokens = run.attention(text)  # [A, H, N, M + N]
    if not weights.size:
        raise InputError("there is no attention to draw: the text is empty, or no block attends")
    attending = [number for number, block in enumerate(run.model.blocks, 1)
                 if block.attention is not None]
    paths = []
    for number, of_block in zip(attending, weights):
        figure = pictures.attention_figure(
            of_block[..., -len(tokens):], tokens, run.data["seq_len"],
            f"attention of block {number} of {run.folder.name}, {run.data['corpus']}")
        paths.append(run.folder / f"attention_block_{number}.png")
        pictures.save(figure, paths[-1])
    return paths


def comparison_figure(networks: list[dict]):
    """The figure of bits per byte over time and over FLOPs, of the networks that `means` gives."""
    columns = {name: np.array([network[name] for network in networks])
               for name in ("random", "bits_per_byte", "ms", "flops_per_token")}
    return pictures.trade_off_figure(
        [network["architecture"] for network in networks], columns["random"],
        ("others", "random"), columns["bits_per_byte"], {"ms per window, median": columns["ms"],
                                   "FLOPs per token": columns["flops_per_token"]},
        "bits per byte", networks[0]["text"])


def main(_):
    FLAGS = flags.FLAGS
    if bool(FLAGS.run) == bool(FLAGS.compare):
        raise InputError("one of --run and --compare must be given")
    if FLAGS.compare and FLAGS.attention is not None:
        raise InputError("--attention is about --run")
    if FLAGS.compare:
        folders = list(map(Path, FLAGS.compare))
        networks = means(read_evaluations(folders))
        print(table(networks))
        path = folders[0] / "comparison.png"
        pictures.save(comparison_figure(networks), path)
        print(f"wrote {path}")
        return
    run = TrainedRun(FLAGS.run)
    if FLAGS.attention is not None:
        print("wrote " + ", ".join(map(str, draw_attention(run, FLAGS.attention))))
        return
    search = SearchFigure(run)
    numbers = np.linspace(0, len(search.steps) - 1, FRAMES).round().astype(int)
    frames = [search.show(number) for number in np.unique(numbers)]
    still, animation = io.BytesIO(), io.BytesIO()
    search.figure.savefig(still, format="png", dpi=120)
    durations = [1000 * SECONDS_PER_FRAME] * (len(frames) - 1) + [1000 * SECONDS_AT_THE_END]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:], duration=durations,
                   loop=0)
    paths = run.folder / "search.gif", run.folder / "search.png"
    for path, picture in zip(paths, (animation, still)):
        files.write_whole(path, picture.getvalue())
    print(f"wrote {paths[0]} and {paths[1]}")


if __name__ == "__main__":
    cli.run(main)
