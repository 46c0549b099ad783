"""Chooses a network from a search: scores all that it contains, names the best within a budget.

    python choose.py --run=logs/supernet --budget_ms=12

No network is trained: each has the weights of the search. What each costs is the sum of what its
layers cost, measured here.

B batch, T sequence length, V vocabulary, N networks.
"""

from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from support.cli import InputError

MOST_CHOICES = 3**7


def define_flags():
    cli.define_path("run", None, "the folder of a search", required=True)
    flags.DEFINE_string("checkpoint", "best", "best (lowest validation loss), latest, "
                        "or the step of one that is there")
    flags.DEFINE_float("budget_ms", None, "the most milliseconds that the layers may take for a "
                       "window, forward", lower_bound=0)
    flags.DEFINE_float("budget_mflops", None, "the most FLOPs per token, in millions",
                       lower_bound=0)
    flags.DEFINE_integer("num_windows", 40, "how many windows of the validation split to score",
                         lower_bound=1)
    cli.define_path("data_dir", None, "where the data are (default: where they were in training)")


cli.begin(__name__, define_flags)

with cli.quiet():
    import data_utils
    from layers import KINDS, SEARCH, as_letters
    from support import devices, files, pictures
    from training import costs
    from training.choices import ChoiceScorer, architectures
    from training.latency import layer_latency
    from training.trained_run import TrainedRun


def scored_choices(run: TrainedRun, checkpoint: str, num_windows: int,
                   data_dir: Path | None) -> tuple[list[dict], int]:
    """Every network that a search contains, with its loss and its costs; and the search's step.

    Raises:
      InputError: there is no search, or it contains too many networks, or the data are others.
    """
    on_gpu = devices.prepare(run.flags["mixed_precision"])[1]
    data_dir, metadata = run.find_data(data_dir)
    model, step = run.network(checkpoint)
    if SEARCH not in model.architecture:
        raise InputError(f"{run.folder} is no search: its architecture is fixed")
    choices = architectures(model)
    if len(choices) > MOST_CHOICES:
        raise InputError(f"{run.folder} contains {len(choices):,} networks: at most "
                         f"{MOST_CHOICES:,} can be scored")
    windows = data_utils.load_windows(data_dir, "valid", metadata).take(num_windows)
    nll, targets = ChoiceScorer(model)(windows.as_numpy_iterator())
    B, T = metadata["batch_size"], metadata["seq_len"]
    counts = data_utils.read_counts(data_dir / "unigram_counts.txt")  # [V]
    softmax_flops = costs.softmax_flops(model, B, T, counts / counts.sum())
    layer_flops = {kind: 2 * layer.multiply_adds(B, T)
                   for block in model.blocks for kind, layer in block.branches.items()}
    layer_ms = dict(zip(KINDS, layer_latency(model.sizes, B, T, on_gpu)))
    scored = []
    for kinds, loss in zip(choices, nll / targets):
        flops = softmax_flops + sum(layer_flops[kind] for kind in kinds)
        scored.append({
            "architecture": as_letters(kinds), "loss": float(loss),
            "ms_per_window": float(sum(layer_ms[kind] for kind in kinds)),
            "flops_per_token": float(flops) / (B * T)})
    return scored, step


def best_within(choices: list[dict], cost: str, most: float) -> dict:
    """The choice with the lowest loss whose cost is at most so much.

    Raises:
      InputError: there is none.
    """
    within = [choice for choice in choices if choice[cost] <= most]
    if not within:
        least = min(choice[cost] for choice in choices)
        raise InputError(f"no network is within the budget: the least is {least:.4g}")
    return min(within, key=lambda choice: choice["loss"])


def front_of(choices: list[dict], cost: str) -> list[dict]:
    """The choices that no other beats in both loss and cost, by rising cost."""
    costs = np.array([choice[cost] for choice in choices])
    losses = np.array([choice["loss"] for choice in choices])
    return [choices[number] for number in pictures.front(costs, losses)]


def line(choice: dict) -> str:
    return (f"{choice['architecture']}  loss {choice['loss']:.4f}  "
            f"{choice['ms_per_window']:6.2f} ms  {choice['flops_per_token'] / 1e6:6.3f} MFLOPs")


def draw(choices: list[dict], title: str, path: Path):
    """Draws loss over time and over FLOPs, a point for each choice; those of a front are named."""
    fronts = [front_of(choices, cost) for cost in ("ms_per_window", "flops_per_token")]
    named = {choice["architecture"] for front in fronts for choice in front}
    pictures.save(pictures.trade_off_figure(
        [choice["architecture"] if choice["architecture"] in named else "" for choice in choices],
        np.array([choice["architecture"] not in named for choice in choices]),
        np.array([choice["loss"] for choice in choices]),
        {"ms per window, of the layers": np.array([each["ms_per_window"] for each in choices]),
         "FLOPs per token": np.array([each["flops_per_token"] for each in choices])},
        "loss, nats per token", title), path)


def main(_):
    FLAGS = flags.FLAGS
    run, data_dir = TrainedRun(FLAGS.run), FLAGS.data_dir and Path(FLAGS.data_dir)
    choices, step = scored_choices(run, FLAGS.checkpoint, FLAGS.num_windows, data_dir)
    print(f"{len(choices)} networks; those that no other beats in time:")
    for choice in front_of(choices, "ms_per_window"):
        print(line(choice))
    files.write_json(run.folder / f"choices_step{step}.json", {"choices": choices})
    picture = run.folder / f"choices_step{step}.png"
    draw(choices, f"what {run.folder.name} contains, step {step:,}, untrained alone", picture)
    print(f"wrote {picture.with_suffix('.json')} and {picture}")
    for cost, most in (("ms_per_window", FLAGS.budget_ms),
                       ("flops_per_token", FLAGS.budget_mflops and 1e6 * FLAGS.budget_mflops)):
        if most is not None:
            best = best_within(choices, cost, most)
            print(f"within the budget:\n{line(best)}\nto train it from these weights: ./train.sh "
                  f"--architecture={best['architecture']} --init_from={run.folder}")


if __name__ == "__main__":
    cli.run(main)
