"""Scores every subnetwork of a search, and names the best one within a budget.

    python choose.py --run=logs/supernet --budget_ms=12

Nothing is trained: each subnetwork uses the weights of the search. Its time is the sum over its
layers, whose times are measured on this machine.

B batch, T sequence length, D model width, V vocabulary, N subnetworks.
"""

from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from support.errors import InputError
from training import run_flags

MOST_CHOICES = 5000
MOST_NUMBERS = 1 << 26  # in the hidden vectors of all subnetworks that are computed at once


def define_flags():
    run_flags.define_run("the folder of a search")
    run_flags.define_checkpoint()
    flags.DEFINE_float("budget_ms", None, "upper limit of the milliseconds that the layers take "
                       "for the forward pass of a window", lower_bound=0)
    flags.DEFINE_float("budget_mflops", None, "upper limit of the MFLOPs per token", lower_bound=0)
    flags.DEFINE_integer("num_windows", 40, "windows of the validation split to score",
                         lower_bound=1)
    run_flags.define_data_dir()


cli.begin(__name__, define_flags)

with cli.quiet():
    import data_utils
    from layers import KINDS, as_letters
    from support import devices, files, pictures
    from training import costs
    from training.choices import ChoiceScorer, architectures, num_architectures
    from training.latency import layer_latency
    from training.trained_run import TrainedRun


def scored_choices(run: TrainedRun, num_windows: int, data_dir: str | Path | None) -> dict:
    """The report: how the subnetworks were scored, and the loss and cost of each.

    Raises:
      InputError: the run is not a search, has too many subnetworks, or its data cannot be read.
    """
    device, on_gpu = devices.prepare(run.flags["mixed_precision"])
    data_dir, metadata = run.find_data(data_dir)
    model, step = run.search()
    N = num_architectures(model)
    if N > MOST_CHOICES:
        raise InputError(f"{run.folder} contains {N:,} subnetworks: at most {MOST_CHOICES:,} "
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
    """The choice of lowest loss within a budget.

    Raises:
      InputError: every choice costs more.
    """
    within = [choice for choice in choices if choice["ms_per_window"] <= most_ms
              and choice["flops_per_token"] <= most_flops]
    if not within:
        milliseconds = min(choice["ms_per_window"] for choice in choices)
        flops = min(choice["flops_per_token"] for choice in choices)
        raise InputError(f"no subnetwork is within the budget: the lowest costs of any are "
                         f"{milliseconds:.2f} ms and {flops / 1e6:.3f} MFLOPs")
    return min(within, key=lambda choice: choice["loss"])


def front_of(choices: list[dict], cost: str) -> list[dict]:
    """The choices on the Pareto front of loss and a cost, in order of increasing cost."""
    columns = [np.array([choice[name] for choice in choices]) for name in (cost, "loss")]
    return [choices[number] for number in pictures.front(*columns)]


def line(choice: dict) -> str:
    return (f"{choice['architecture']}  loss {choice['loss']:.4f}  "
            f"{choice['ms_per_window']:6.2f} ms  {choice['flops_per_token'] / 1e6:6.3f} MFLOPs")


def choices_figure(report: dict):
    """The figure of loss over time and over FLOPs. Choices on a front are black and named."""
    choices = report["choices"]
    on_front = {choice["architecture"] for cost in ("ms_per_window", "flops_per_token")
                for choice in front_of(choices, cost)}
    names = [choice["architecture"] for choice in choices]
    grey = np.array([name not in on_front for name in names])
    columns = {name: np.array([choice[name] for choice in choices])
               for name in ("loss", "ms_per_window", "flops_per_token")}
    return pictures.trade_off_figure(
        ["" if is_grey else name for name, is_grey in zip(names, grey)],
        {"on a front": (~grey, pictures.BLACK), "other subnetworks": (grey, pictures.GREY)},
        columns["loss"],
        {"ms per window, layers only": columns["ms_per_window"],
         "MFLOPs per token": columns["flops_per_token"] / 1e6},
        "loss, nats per token",
        f"subnetworks of {Path(report['run']).name} at step {report['step']:,}, with its weights; "
        f"{report['text']}")


def main(_):
    FLAGS = flags.FLAGS
    run = TrainedRun(FLAGS.run, FLAGS.checkpoint)
    report = scored_choices(run, FLAGS.num_windows, FLAGS.data_dir)
    choices = report["choices"]
    print(f"{len(choices)} subnetworks; the Pareto front of loss and time:")
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
        print(f"best within the budget:\n{line(best)}\n"
              f"to train it from the best weights of the search:\n"
              f"./train.sh --model_name={run.folder.name}_{name} --architecture={name} "
              f"--init_from={run.folder}")


if __name__ == "__main__":
    cli.run(main)
