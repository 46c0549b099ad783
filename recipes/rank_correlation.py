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
    from layers import without_identity
    from support import files
    from training.comparison import means, read_evaluations


def ranks(numbers: np.ndarray) -> np.ndarray:
    """The rank of each of [P] numbers, from 0; equal ones share the mean of theirs."""
    below = np.sum(numbers < numbers[:, None], axis=1)  # [P]
    equal = np.sum(numbers == numbers[:, None], axis=1)  # [P], itself too
    return below + (equal - 1) / 2


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of [P] and [P] numbers."""
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def losses_within(search: Path) -> dict[str, float]:
    """The loss of each network with the weights of the search, as choose.py scored its last step.

    A network may have its identities anywhere: its loss is the lowest of these.

    Raises:
      InputError: it has scored none.
    """
    reports = [files.read_json(path, ["step", "choices"])
               for path in search.glob("choices_step*.json")]
    if not reports:
        raise InputError(f"{search} has no scores of its networks: python choose.py --run={search}")
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
    for network in means(read_evaluations(folders)):  # the best first
        name = network["architecture"]
        if network["within_search"] or name in alone:
            raise InputError(f"{name} is within a search, or was trained in two ways: --run takes "
                             "networks trained alone, and alike")
        if name not in within:
            raise InputError(f"{search} does not contain {name}")
        alone[name] = network["bits_per_byte"]
    if len(alone) < 3:
        raise InputError("an order needs three networks or more")
    print("architecture  bits per byte alone  loss within the search")
    for name, bits in alone.items():
        print(f"{name:12}  {bits:19.4f}  {within[name]:22.4f}")
    correlation = spearman(np.array([within[name] for name in alone]), np.array([*alone.values()]))
    print(f"Spearman's rank correlation of {len(alone)} networks: {correlation:.3f}")


if __name__ == "__main__":
    cli.run(main)
