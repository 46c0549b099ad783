"""How well the order of the networks within a search predicts their order once trained alone.

    python -m recipes.rank_correlation --search=logs/supernet --run=logs/one,logs/other,logs/third

choose.py has scored the networks within the search, evaluate.py the trained ones on the validation
split.

P networks.
"""

from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from support.cli import InputError


def define_flags():
    cli.define_path("search", None, "the folder of a search", required=True)
    cli.define_paths("run", None, "the folders of networks trained alone, with any seeds",
                     required=True)


cli.begin(__name__, define_flags)

with cli.quiet():
    from support import files


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of [P] and [P] numbers, those of each different."""
    ranks = [np.argsort(np.argsort(numbers)) for numbers in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def losses_within(search: Path) -> dict[str, float]:
    """The loss of each network with the weights of the search, where choose.py scored it last."""
    reports = [files.read_json(path, ["step", "choices"])
               for path in search.glob("choices_step*.json")]
    if not reports:
        raise InputError(f"{search} has no scores of its networks: python choose.py --run={search}")
    last = max(reports, key=lambda report: report["step"])
    return {choice["architecture"]: choice["loss"] for choice in last["choices"]}


def losses_alone(folders: list[Path]) -> dict[str, float]:
    """The mean loss of each architecture over the runs that trained it."""
    losses = {}
    for folder in folders:
        paths = sorted(folder.glob("evaluation_valid_*.json"))
        if not paths:
            raise InputError(f"{folder} has no evaluation of the validation split: "
                             f"python evaluate.py --run={folder}")
        for path in paths:
            report = files.read_json(path, ["architecture", "loss"])
            losses.setdefault(report["architecture"], []).append(report["loss"])
    return {architecture: float(np.mean(own)) for architecture, own in losses.items()}


def main(_):
    search, folders = Path(flags.FLAGS.search), list(map(Path, flags.FLAGS.run))
    within, alone = losses_within(search), losses_alone(folders)
    networks = sorted(alone, key=alone.get)
    if missing := set(networks) - within.keys():
        raise InputError(f"{search} does not contain {min(missing)}")
    if len(networks) < 3:
        raise InputError("an order needs three networks or more")
    print("architecture  loss alone  loss within the search")
    for network in networks:
        print(f"{network:12}  {alone[network]:10.4f}  {within[network]:22.4f}")
    correlation = spearman(np.array([within[network] for network in networks]),
                           np.array([alone[network] for network in networks]))
    print(f"Spearman's rank correlation of {len(networks)} networks: {correlation:.3f}")


if __name__ == "__main__":
    cli.run(main)
