"""Scores subnetworks of a search, and names the best ones within a budget.

    python choose.py --run=logs/supernet --budget_ms=5

Nothing is trained: each subnetwork uses the weights of the search. Its time is the sum over its
layers, whose times are measured on this machine. If the search contains more subnetworks than
--num_networks, an evolutionary search (Guo et al. 2019) decides which ones to score.

B batch, T sequence length, V vocabulary.
"""

import shlex
from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from support.errors import InputError
from training import run_flags

SHORTLIST = 8


def define_flags():
    run_flags.define_run("the folder of a search")
    run_flags.define_checkpoint()
    flags.DEFINE_float("budget_ms", None, "upper limit of the milliseconds that the layers take "
                       "for the forward pass of a window", lower_bound=1e-6)
    flags.DEFINE_float("budget_mflops", None, "upper limit of the MFLOPs per token",
                       lower_bound=1e-6)
    flags.DEFINE_integer("num_windows", 40, "windows of the validation split to score",
                         lower_bound=1)
    flags.DEFINE_integer("num_networks", 1000, "subnetworks to score", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of the evolutionary search", lower_bound=0)
    run_flags.define_data_dir()


cli.begin(__name__, define_flags)

with cli.quiet():
    import data_utils
    from layers import as_letters, without_identity
    from support import console, devices, files, pictures
    from training import costs
    from training.choices import (
        Budget,
        ChoiceScorer,
        architectures,
        evolve,
        num_architectures,
    )
    from training.latency import layer_latency
    from training.trained_run import TrainedRun


def scored_choices(run: TrainedRun, num_windows: int, data_dir: str | Path | None,
                   limits: tuple[float, float], num_networks: int, seed: int) -> dict:
    """The report: how the subnetworks were scored, and the loss and cost of each.

    Args:
      run: a search.
      num_windows: windows of the validation split.
      data_dir: the folder of the data; None for that of the training.
      limits: the milliseconds of a window and the FLOPs per token that a subnetwork may cost. An
        evolutionary search looks within them only; otherwise the report has all subnetworks.
      num_networks: the number of subnetworks to score.
      seed: of the evolutionary search.

    Raises:
      InputError: the run is not a search, or its data cannot be read.
    """
    device, on_gpu = devices.prepare(run.flags["mixed_precision"])
    data_dir, metadata = run.find_data(data_dir)
    model, step = run.search()
    B, T = metadata["batch_size"], metadata["seq_len"]
    stream = data_utils.load_stream(data_dir, "valid", metadata)
    probability = costs.frequencies(stream, metadata["vocab_size"])  # [V]
    shared = np.array([0, costs.softmax_flops(model, B, T, probability) / (B * T)])  # [2]
    of_layers = layer_costs(model, B, T, on_gpu)
    budget = Budget(of_layers, np.array(limits) - shared)
    windows = data_utils.load_windows(data_dir, "valid", metadata).take(num_windows)
    N = num_architectures(model)
    score = ChoiceScorer(model, windows.as_numpy_iterator(), scored=lambda number: console.redraw(
        f"{number:,} of {min(N, num_networks):,} subnetworks"))
    if N <= num_networks:
        losses = dict(zip(architectures(model), score(architectures(model))))
    else:
        blocks = [list(block.branches) for block in model.blocks]
        losses = evolve(score, blocks, budget, num_networks, seed)
    console.redraw("\n")
    choices = []
    for kinds, loss in losses.items():
        milliseconds, flops = shared + sum(of_layers[kind] for kind in kinds)
        choices.append({
            "architecture": as_letters(kinds), "loss": float(loss),
            "ms_per_window": float(milliseconds), "flops_per_token": float(flops),
            "within_budget": kinds in budget})
    return {
        "run": str(run.folder), "step": step, "text": f"{metadata['corpus']}, valid",
        "targets": score.targets, "batch_size": B, "seq_len": T, "mem_len": model.sizes.mem_len,
        "device": device, "subnetworks": N, "choices": choices}


def layer_costs(model, B: int, T: int, jit_compile: bool) -> dict[str, np.ndarray]:
    """Milliseconds of a window [B, T] and FLOPs per token of each layer type: {name: [2]}."""
    layers = {kind: layer for block in model.blocks for kind, layer in block.branches.items()}
    times = layer_latency(model.kinds, model.sizes, B, T, jit_compile)  # [K]
    return {kind: np.array([ms, 2 * layers[kind].multiply_adds(B, T) / (B * T)])
            for kind, ms in zip(model.kinds, times)}


def shortlist(choices: list[dict]) -> list[dict]:
    """The choices of lowest loss within the budget, the best first.

    Of choices that are the same network without identity, the best one alone.

    Raises:
      InputError: no choice is within the budget.
    """
    best = {}
    for choice in sorted(choices, key=lambda choice: choice["loss"]):
        if choice["within_budget"]:
            best.setdefault(without_identity(choice["architecture"]), choice)
    if not best:
        milliseconds = min(choice["ms_per_window"] for choice in choices)
        mflops = min(choice["flops_per_token"] for choice in choices) / 1e6
        raise InputError(f"no subnetwork is within the budget: the lowest costs of any are "
                         f"{milliseconds:.2f} ms and {mflops:.3f} MFLOPs")
    return [*best.values()][:SHORTLIST]


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
    limits = (np.inf if FLAGS.budget_ms is None else FLAGS.budget_ms,
              np.inf if FLAGS.budget_mflops is None else 1e6 * FLAGS.budget_mflops)
    report = scored_choices(
        run, FLAGS.num_windows, FLAGS.data_dir, limits, FLAGS.num_networks, FLAGS.seed)
    choices, best = report["choices"], shortlist(report["choices"])
    print(f"{len(choices):,} of {report['subnetworks']:,} subnetworks; the Pareto front of loss "
          "and time:")
    for choice in front_of(choices, "ms_per_window"):
        print(line(choice))
    print("shortlist, the best within the budget:" if np.isfinite(limits).any() else "shortlist:")
    for choice in best:
        print(line(choice))
    path = run.folder / f"choices_step{report['step']}.json"
    report["shortlist"] = [choice["architecture"] for choice in best]
    files.write_json(path, report)
    pictures.save(choices_figure(report), path.with_suffix(".png"))
    print(f"wrote {path} and {path.with_suffix('.png')}")
    name = best[0]["architecture"]
    command = ["./train.sh", f"--model_name={run.folder.name}_{name}", f"--architecture={name}",
               f"--init_from={run.folder}", f"--data_dir={FLAGS.data_dir or run.flags['data_dir']}"]
    print("to train the best one from the best weights of the search, add the flags of the "
          f"training, such as --epochs, to this command:\n{shlex.join(command)}")


if __name__ == "__main__":
    cli.run(main)
