"""Correlates the ranks of subnetworks with the ranks of the same networks trained alone.

    python -m recipes.rank_correlation --search=logs/supernet --run=logs/one,logs/other,logs/third

The subnetworks must have been scored by choose.py, the trained networks by evaluate.py on the
validation split.

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
    cli.define_paths("run", None, "the folders of fixed networks, with any seeds", required=True)


cli.begin(__name__, define_flags)

with cli.quiet():
    from evaluate import means, read_evaluations
    from layers import without_identity
    from support import files


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation of numbers [P] and [P], of which no two are equal."""
    ranks = np.argsort(np.argsort([x, y]))  # [2, P]
    return float(np.corrcoef(ranks)[0, 1])


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's rank correlation of numbers [P] and [P]: agreeing minus disagreeing pairs."""
    signs = [np.sign(np.subtract.outer(each, each)) for each in (x, y)]  # [P, P] each
    return float(np.sum(signs[0] * signs[1]) / (len(x) * (len(x) - 1)))


def losses_within(search: Path) -> dict[str, float]:
    """The loss of each subnetwork at the last step scored by choose.py, by its letters.

    Identity is left out of the letters. Of subnetworks that then agree, the lowest loss counts.
    A search that choose.py has not scored raises InputError.
    """
    reports = [files.read_json(path, ["step", "choices"])
               for path in search.glob("choices_step*.json")]
    if not reports:
        raise InputError(f"{search} has not been scored: python choose.py --run={search}")
    last = max(reports, key=lambda report: report["step"])
    losses = {}
    for choice in last["choices"]:
        name = without_identity(choice["architecture"])
        losses[name] = min(choice["loss"], losses.get(name, np.inf))
    return losses


def main(_):
    search, folders = Path(flags.FLAGS.search), list(map(Path, flags.FLAGS.run))
    within = losses_within(search)
    alone = {}
    for network in means(read_evaluations(folders)):  # best first
        name = network["architecture"]
        if network["within_search"] or name in alone:
            raise InputError(f"{name} is within a search, or was trained in two ways: --run takes "
                             "fixed networks, trained alike")
        if name not in within:
            raise InputError(f"{search} does not contain {name}")
        alone[name] = network["bits_per_byte"]
    if len(alone) < 3:
        raise InputError("a rank correlation needs at least three networks")
    print("architecture  bits per byte alone  loss within the search")
    for name, bits in alone.items():
        print(f"{name:12}  {bits:19.4f}  {within[name]:22.4f}")
    correlation = spearman([within[name] for name in alone], list(alone.values()))
    print(f"Spearman's rank correlation of {len(alone)} networks: {correlation:.3f}")


if __name__ == "__main__":
    cli.run(main)
