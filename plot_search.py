"""Draws a search, the attention of a network, or a comparison of networks.

    python plot_search.py --run=logs/supernet
    python plot_search.py --run=logs/supernet --attention="The king was dead."
    python plot_search.py --compare=logs/found,logs/other,logs/random_1 --searches=logs/supernet

A search is drawn as an animation of pi over training, and a picture of its end. A comparison shows
quality over cost, and the layers over depth, for the networks that evaluate.py has scored on the
validation split. Runs with the same layers, identity aside, and as many parameters are one point
and one row.

L blocks, K layer types, S recorded steps.
"""

import collections
import io
from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from support.errors import InputError


def define_flags():
    cli.define_path("run", None, "the folder of a search, which may still be running")
    flags.DEFINE_string("attention", None, "draw the attention of --run on this text instead")
    cli.define_paths("compare", None, "the folders of runs scored by evaluate.py; networks are "
                     "grey if all their runs have random in their name")
    cli.define_paths("searches", None, "with --compare, the folders of finished searches, "
                     "or of networks found otherwise: their architectures are stars")


cli.begin(__name__, define_flags)

with cli.quiet():
    from matplotlib import pyplot, ticker
    from PIL import Image

    from evaluate import means, read_evaluations
    from layers import KINDS, kinds_of, without_identity
    from support import files, pictures
    from support.events import curves
    from training.recording import entropy
    from training.trained_run import TrainedRun

FRAMES, SECONDS_PER_FRAME, SECONDS_AT_THE_END = 60, 0.125, 2
SHADES = 16  # of grey; more make the file larger, not better
MOST_TOKENS = 80


class SearchFigure:
    """A heat map of pi at one step, above curves of the whole search that mark this step.

    Args:
      run: a search.

    Raises:
      InputError: the run has not recorded pi.
    """

    def __init__(self, run: TrainedRun):
        train, valid = curves(run.folder / "train"), curves(run.folder / "valid")
        recorded = curves(run.folder / "train", plugin="pi")
        if not recorded:
            raise InputError(f"{run.folder} has no record of a search: its architecture is fixed, "
                             "or it has just begun")
        self.steps, self._pi = recorded["pi/all"]  # [S], [S, L, K]
        self._kinds = kinds_of(run.settings.kinds, run.settings.architecture)  # K
        self._name = f"{run.folder.name}, {run.data['corpus']}"
        self.figure = pyplot.figure(figsize=(8, 5.6), dpi=80, layout="constrained")
        self.figure.get_layout_engine().set(w_pad=0.1)
        grid = self.figure.add_gridspec(3, 2, height_ratios=(1.7, 1, 1))
        self._heat_map = self.figure.add_subplot(grid[0, :])
        panels = [self.figure.add_subplot(grid[row, column]) for row in (1, 2) for column in (0, 1)]
        loss, perplexity, tau, pi_entropy = panels
        for axes, tag in ((loss, "metrics/loss"), (perplexity, "metrics/perplexity")):
            axes.plot(*train[tag], color="0.6", linewidth=1, label="train")
            axes.plot(*valid.get(tag, ([], [])), color="black", marker="o", markersize=4,
                      linewidth=1, label="valid")
        perplexity.set_yscale("log")
        perplexity.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        perplexity.yaxis.set_major_formatter("{x:,.0f}")
        perplexity.yaxis.set_minor_formatter(ticker.NullFormatter())
        tau.plot(*train["training/tau"], color="black", linewidth=1)
        block_entropy = entropy(self._pi)  # [S, L]
        each, *_ = pi_entropy.plot(self.steps, block_entropy, color="0.6", linewidth=0.8)
        each.set_label("each block")
        pi_entropy.plot(self.steps, block_entropy.mean(axis=1), color="black", linewidth=1.5,
                        label="mean")
        # The default place, "best", would change with the mark.
        for axes, place in ((loss, "upper right"), (perplexity, "upper right"),
                            (pi_entropy, "lower left")):
            axes.legend(fontsize=7, loc=place)
        titles = ("loss, nats per token", "perplexity", "temperature tau", "entropy of pi, nats")
        for axes, title in zip(panels, titles):
            axes.set_title(title, fontsize=8)
            axes.tick_params(labelsize=7, which="both")
            axes.xaxis.set_major_formatter("{x:,.0f}")
        for axes in (tau, pi_entropy):
            axes.set_xlabel("step", fontsize=8)
        self._marks = [axes.axvline(self.steps[0], color="black", linestyle=":", linewidth=1)
                       for axes in panels]
        self.show(0)
        self.figure.set_layout_engine("none")  # keep the layout: computing it is slow

    def show(self, number: int) -> Image.Image:
        """Draws record `number` of the S. Returns the picture, in grey."""
        step = self.steps[number]
        title = f"pi at step {step:,} of {self._name}"
        pictures.draw_pi(self._heat_map, self._pi[number], self._kinds, title)
        for mark in self._marks:
            mark.set_xdata([step] * 2)
        return Image.fromarray(pictures.pixels(self.figure)).convert("L").quantize(SHADES)


def draw_search(run: TrainedRun) -> list[Path]:
    """Draws a search as an animation and a picture of its end. Returns their paths.

    Raises:
      InputError: the run has not recorded pi.
    """
    search = SearchFigure(run)
    numbers = np.linspace(0, len(search.steps) - 1, FRAMES).round().astype(int)
    frames = [search.show(number) for number in np.unique(numbers)]
    durations = [1000 * SECONDS_PER_FRAME] * (len(frames) - 1) + [1000 * SECONDS_AT_THE_END]
    animation, still = io.BytesIO(), io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:], duration=durations,
                   loop=0)
    search.figure.savefig(still, format="png", dpi=120)
    paths = [run.folder / "search.gif", run.folder / "search.png"]
    for path, picture in zip(paths, (animation, still)):
        files.write_whole(path, picture.getvalue())
    return paths


def draw_attention(run: TrainedRun, text: str) -> list[Path]:
    """Draws the attention of each block that sees the whole memory. Returns the paths.

    Raises:
      InputError: the text is empty or too long, or no block attends.
    """
    length = len(run.language_model.encode(text)[0])
    if length > MOST_TOKENS:
        raise InputError(f"the text has {length} tokens: at most {MOST_TOKENS} can be drawn")
    weights, tokens = run.language_model.attention(text)  # [attending blocks, H, N, M + N]
    if not weights.size:
        raise InputError("there is no attention to draw: the text is empty, or no block attends")
    blocks = run.language_model.model.blocks
    attending = [number for number, block in enumerate(blocks, 1) if block.attends]
    paths = []
    for number, of_block in zip(attending, weights):
        figure = pictures.attention_figure(
            of_block[..., -len(tokens):], tokens, run.data["seq_len"],
            f"attention of block {number} of {run.folder.name}, {run.data['corpus']}")
        paths.append(run.folder / f"attention_block_{number}.png")
        pictures.save(figure, paths[-1])
    return paths


def table(networks: list[dict]) -> str:
    """One line per network of `means`."""
    lines = ["bits per byte  spread    runs  word perplexity  parameters  MFLOPs per token  "
             "ms per window  B x T + M      architecture"]
    for each in networks:
        lines.append(
            f"{each['bits_per_byte']:13.4f}  {each['spread']:6.4f}  {each['evaluations']:6}  "
            f"{each['word_perplexity']:15.1f}  {each['parameters']:10,}  "
            f"{each['flops_per_token'] / 1e6:16.3f}  {each['ms']:13.2f}  "
            f"{each['batch_size']:3} x {each['seq_len']} + {each['mem_len']:<5}  "
            f"{each['architecture']}")
    return "\n".join(lines)


def names(networks: list[dict]) -> list[str]:
    """The architecture of each network, and its parameters if its layers have several sizes."""
    letters = [network["architecture"] for network in networks]
    parameters = [network["parameters"] for network in networks]
    widths = collections.Counter(name for name, _ in set(zip(letters, parameters)))
    return [f"{name} {number / 1e6:.2f}M" if widths[name] > 1 else name
            for name, number in zip(letters, parameters)]


def comparison_figure(networks: list[dict], found: set[str]):
    """The figure of bits per byte over time and over FLOPs.

    Args:
      networks: of `means`.
      found: the architectures found by searches, without identity.
    """
    star = np.array([network["architecture"] in found and not network["within_search"]
                     for network in networks])
    grey = np.array([network["random"] for network in networks]) & ~star
    columns = {name: np.array([network[name] for network in networks])
               for name in ("bits_per_byte", "ms", "flops_per_token")}
    return pictures.trade_off_figure(
        names(networks),
        {"found by a search": (star, pictures.STAR), "random": (grey, pictures.GREY),
         "others": (~star & ~grey, pictures.BLACK)},
        columns["bits_per_byte"],
        {"ms per window, median": columns["ms"],
         "MFLOPs per token": columns["flops_per_token"] / 1e6},
        "bits per byte", networks[0]["text"])


def depth_figure(networks: list[dict]):
    """The figure of the layers of networks of `means`; those that see other positions are dark."""
    dark = "".join(layer.letter for layer in KINDS.values() if layer.needs_memory)
    return pictures.depth_figure(
        [network["architecture"] for network in networks],
        np.array([network["bits_per_byte"] for network in networks]), dark, "bits per byte",
        networks[0]["text"])


def main(_):
    FLAGS = flags.FLAGS
    if bool(FLAGS.run) == bool(FLAGS.compare):
        raise InputError("give either --run or --compare")
    if FLAGS.compare and FLAGS.attention is not None:
        raise InputError("--attention needs --run")
    if FLAGS.searches and not FLAGS.compare:
        raise InputError("--searches needs --compare")
    if FLAGS.compare:
        folders = list(map(Path, FLAGS.compare))
        networks = means(read_evaluations(folders))
        found = {without_identity(TrainedRun(folder).architecture)
                 for folder in FLAGS.searches or []}
        print(table(networks))
        paths = [folders[0] / "comparison.png", folders[0] / "depth.png"]
        pictures.save(comparison_figure(networks, found), paths[0])
        pictures.save(depth_figure(networks), paths[1])
    elif FLAGS.attention is not None:
        paths = draw_attention(TrainedRun(FLAGS.run), FLAGS.attention)
    else:
        paths = draw_search(TrainedRun(FLAGS.run))
    print("wrote " + ", ".join(map(str, paths)))


if __name__ == "__main__":
    cli.run(main)
