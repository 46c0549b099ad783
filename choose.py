"""Chooses a network from a search: scores all that it contains, names the best within a budget.

    python choose.py --run=logs/supernet --budget_ms=12

No network is trained: each has the weights of the search. What each costs is the sum of what its
layers cost, measured here.

B batch, T sequence length, D model width, V vocabulary, N networks.
"""

from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from support.cli import InputError

MOST_CHOICES = 5000
MOST_NUMBERS = 1 << 26  # of all networks' hidden vectors at once


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
    from layers import KINDS, as_letters
    from support import devices, files, pictures
    from training import costs
    from training.choices import ChoiceScorer, architectures, num_architectures
    from training.latency import layer_latency
    from training.trained_run import TrainedRun


def scored_choices(run: TrainedRun, num_windows: int, data_dir: Path | None) -> dict:
    """What there is to report: on what the networks of a search were scored, and each of them.

    Raises:
      InputError: there is no search, or it contains too many networks, or the data are others.
    """
    device, on_gpu = devices.prepare(run.flags["mixed_precision"])
    data_dir, metadata = run.find_data(data_dir)
    model, step = run.search()
    N = num_architectures(model)
    if N > MOST_CHOICES:
        raise InputError(f"{run.folder} contains {N:,} networks: at most {MOST_CHOICES:,} "
                         "can be scored")
    B, T, D = metadata["batch_size"], metadata["seq_len"], model.sizes.d_model
    rows_at_once = min(B, max(1, MOST_NUMBERS // (N * T * D)))
    score, nll, targets = ChoiceScorer(model), 0, 0
    for first in range(0, B, rows_at_once):
        windows = data_utils.load_windows(data_dir, "valid", metadata).take(num_windows)
        rows = slice(first, first + rows_at_once)
        own_nll, own_targets = score(window[rows] for window in windows.as_numpy_iterator())
        nll, targets = nll + own_nll, targets + own_targets
    stream = data_utils.load_stream(data_dir, "valid", metadata)
    probability = costs.frequencies(stream, metadata["vocab_size"])  # [V]
    softmax_flops = costs.softmax_flops(model, B, T, probability)
    layer_flops = {kind: 2 * layer.multiply_adds(B, T)
                   for block in model.blocks for kind, layer in block.branches.items()}
    layer_ms = dict(zip(KINDS, layer_latency(model.sizes, B, T, on_gpu)))
    choices = []
    for kinds, loss in zip(architectures(model), nll / targets):
        flops = softmax_flops + sum(layer_flops[kind] for kind in kinds)
        choices.append({
            "architecture": as_letters(kinds), "loss": float(loss),
            "ms_per_window": float(sum(layer_ms[kind] for kind in kinds)),
            "flops_per_token": float(flops) / (B * T)})
    return {
        "run": str(run.folder), "step": step, "text": f"{metadata['corpus']}, valid",
        "targets": targets, "batch_size": B, "seq_len": T, "mem_len": model.sizes.mem_len,
        "device": device, "choices": choices}


def best_within(choices: list[dict], most_ms: float, most_flops: float) -> dict:
    """The choice with the lowest loss that costs at most so much.

    Raises:
      InputError: there is none.
    """
    within = [choice for choice in choices if choice["ms_per_window"] <= most_ms
              and choice["flops_per_token"] <= most_flops]
    if not within:
        milliseconds = min(choice["ms_per_window"] for choice in choices)
        flops = min(choice["flops_per_token"] for choice in choices)
        raise InputError(f"no network is within the budget: the least are {milliseconds:.2f} ms "
                         f"and {flops / 1e6:.3f} million FLOPs")
    return min(within, key=lambda choice: choice["loss"])


def front_of(choices: list[dict], cost: str) -> list[dict]:
    """The choices that no other beats in both loss and cost, by rising cost."""
    cost_of_each = np.array([choice[cost] for choice in choices])
    losses = np.array([choice["loss"] for choice in choices])
    return [choices[number] for number in pictures.front(cost_of_each, losses)]


def line(choice: dict) -> str:
    return (f"{choice['architecture']}  loss {choice['loss']:.4f}  "
            f"{choice['ms_per_window']:6.2f} ms  {choice['flops_per_token'] / 1e6:6.3f} MFLOPs")


def choices_figure(report: dict):
    """The figure of loss over time and over FLOPs, a point for each choice.

    Those that are on a front are black, with their letters.
    """
    choices, on_front = report["choices"], set()
    for cost in ("ms_per_window", "flops_per_token"):
        on_front |= {choice["architecture"] for choice in front_of(choices, cost)}
    black = [choice["architecture"] in on_front for choice in choices]
    names = [choice["architecture"] if named else "" for choice, named in zip(choices, black)]
    columns = {name: np.array([choice[name] for choice in choices])
               for name in ("loss", "ms_per_window", "flops_per_token")}
    return pictures.trade_off_figure(
        names, ~np.array(black), ("on a front", "others"), columns["loss"],
        {"ms per window, of the layers": columns["ms_per_window"],
         "FLOPs per token": columns["flops_per_token"]},
        "loss, nats per token",
        f"the networks within {Path(report['run']).name}, step {report['step']:,}, "
        f"with its weights; {report['text']}")


def main(_):
    FLAGS = flags.FLAGS
    run = TrainedRun(FLAGS.run, FLAGS.checkpoint)
    data_dir = FLAGS.data_dir and Path(FLAGS.data_dir)
    report = scored_choices(run, FLAGS.num_windows, data_dir)
    choices = report["choices"]
    print(f"{len(choices)} networks; those that no other beats in time:")
    for choice in front_of(choices, "ms_per_window"):
        print(line(choice))
    path = run.folder / f"choices_step{report['step']}.json"
    files.write_json(path, report)
    pictures.save(choices_figure(report), path.with_suffix(".png"))
    print(f"wrote {path} and {path.with_suffix('.png')}")
    if FLAGS.budget_ms is not None or FLAGS.budget_mflops is not None:
        most_ms = np.inf if FLAGS.budget_ms is None else FLAGS.budget_ms
        most_mflops = np.inf if FLAGS.budget_mflops is None else FLAGS.budget_mflops
        best = best_within(choices, most_ms, 1e6 * most_mflops)
        name = best["architecture"]
        print(f"within the budget:\n{line(best)}\nto train it from the search's best weights:\n"
              f"./train.sh --model_name={run.folder.name}_{name} --architecture={name} "
              f"--init_from={run.folder}")


if __name__ == "__main__":
    cli.run(main)
