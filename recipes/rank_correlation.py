"""Correlates the ranks of subnetworks with the ranks of the same networks trained from scratch.

    python -m recipes.rank_correlation --search=logs/supernet --run=logs/one,logs/other,logs/third

P networks.
"""

from pathlib import Path
from typing import Sequence

import numpy as np
from absl import flags

from support import cli
from support.errors import InputError


def define_flags():
    cli.define_path("search", None, "the folder of a search", required=True)
    cli.define_paths("run", None, "the folders of fixed networks with as many blocks as the "
                     "search, identity included; runs of the same network are averaged",
                     required=True)
    flags.DEFINE_integer("num_windows", 40, "windows of the validation split to score",
                         lower_bound=1)


cli.begin(__name__, define_flags)

with cli.quiet():
    import data_utils
    from layers import from_letters
    from support import devices, files
    from training.choices import ChoiceScorer
    from training.trained_run import TrainedRun


def ranks(numbers: Sequence[float]) -> np.ndarray:
    """The ranks of numbers [P] minus their mean. Equal numbers, as of aai and aia, share a rank."""
    differences = np.sign(np.subtract.outer(numbers, numbers))  # [P, P]
    return differences.sum(axis=1) / 2  # [P]


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation of numbers [P] and [P]."""
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's rank correlation: agreeing minus disagreeing pairs, divided by all pairs."""
    signs = [np.sign(np.subtract.outer(each, each)) for each in (x, y)]  # [P, P] each
    return float(np.sum(signs[0] * signs[1]) / (len(x) * (len(x) - 1)))


def bits_alone(folders: list[Path]) -> dict[str, float]:
    """The mean validation bits per byte over the runs of each architecture, lowest first."""
    bits = {}
    for folder in folders:
        results = files.read_json(folder / "results.json", ["architecture", "valid"])
        bits.setdefault(results["architecture"], []).append(results["valid"]["bits_per_byte"])
    means = {letters: float(np.mean(each)) for letters, each in bits.items()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def losses_within(run: TrainedRun, architectures: Sequence[str], num_windows: int) -> np.ndarray:
    """The loss of subnetworks of a search, given as letters, in nats per token: [P].

    Raises:
      InputError: the search does not contain one of them.
    """
    devices.prepare(run.flags["mixed_precision"])
    model, _ = run.search()
    data_dir, metadata = run.find_data()
    choices = []
    for letters in architectures:
        choices.append(tuple(from_letters(letters)))
        if len(letters) != len(model.blocks) or not {*choices[-1]} <= {*model.kinds}:
            raise InputError(f"{run.folder} does not contain {letters}")
    windows = data_utils.load_windows(data_dir, "valid", metadata).take(num_windows)
    return ChoiceScorer(model, windows.as_numpy_iterator())(choices)


def main(_):
    FLAGS = flags.FLAGS
    alone = bits_alone(list(map(Path, FLAGS.run)))
    if len(alone) < 3:
        raise InputError("a rank correlation needs at least three networks")
    within = losses_within(TrainedRun(FLAGS.search), list(alone), FLAGS.num_windows)
    print("architecture  bits per byte alone  loss within the search")
    for (name, bits), loss in zip(alone.items(), within):
        print(f"{name:12}  {bits:19.4f}  {loss:22.4f}")
    both = within, list(alone.values())
    print(f"rank correlation of {len(alone)} networks: Spearman {spearman(*both):.3f}, "
          f"Kendall {kendall(*both):.3f}")


if __name__ == "__main__":
    cli.run(main)
