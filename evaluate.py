"""Reports loss, cost and speed of trained networks on a split of the data or on a text.

    python evaluate.py --run=logs/supernet --split=test
    python evaluate.py --run=logs/a,logs/b --text=book.txt

N tokens of a text, V vocabulary.
"""

import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from support.errors import InputError
from training import run_flags


def define_flags():
    cli.define_paths("run", None, "the folder of a run, or several to compare", required=True)
    run_flags.define_checkpoint()
    run_flags.define_subnetwork()
    flags.DEFINE_enum("split", "valid", ["valid", "test", "train"], "the split to score")
    cli.define_path("text", None, "a UTF-8 file to score instead of a split")
    run_flags.define_data_dir()
    flags.DEFINE_integer("mem_len", None, "M, memory length; a longer one usually helps "
                         "(default: as in training)", lower_bound=0)
    flags.DEFINE_integer("seq_len", None, "T, tokens per row and window "
                         "(default: as in training)", lower_bound=1)
    flags.DEFINE_integer("batch_size", None, "rows scored side by side; does not change the score "
                         "(default: as in training)", lower_bound=1)


cli.begin(__name__, define_flags)

with cli.quiet():
    import data_utils
    from layers import SEARCH, as_letters, without_identity
    from support import corpora, devices, files
    from support.tokenization import Tokenizer
    from training import costs
    from training.scoring import Evaluator, finite, metrics
    from training.trained_run import TrainedRun

MEASURED_ON = ("text", "device", "batch_size", "seq_len", "mem_len")
EVALUATION = ("run", "step", "architecture", "within_search", "bits_per_byte", "word_perplexity",
              "ms_per_window", "flops_per_token", "parameters", *MEASURED_ON)


def read_text(path: Path, tokenizer: Tokenizer, add_eos: bool) -> tuple[np.ndarray, dict]:
    """The tokens of a text file, int32 [N], and their `Stream.sizes`; InputError without text."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise InputError(f"{path} is {kind}: --text takes a file")
    text = corpora.whole_file(path)
    corpora.checked_sha256(text)
    with tempfile.TemporaryDirectory() as folder:
        stream = data_utils.Stream(Path(folder) / "tokens", text, tokenizer, add_eos)
        return np.array(stream[:]), stream.sizes


def evaluate_run(run: TrainedRun, split: str = "valid", text: Path | None = None,
                 data_dir: str | Path | None = None, batch_size: int | None = None,
                 seq_len: int | None = None, mem_len: int | None = None,
                 architecture: str | None = None) -> dict:
    """The figures of a run on a split of the data or a text file, as in the JSON file.

    `data_dir` and sizes are by default those of training; `architecture` is as in
    `TrainedRun.network`.

    Raises:
      InputError: nothing can be predicted, or `read_text` or `run` raises it.
    """
    device, on_gpu = devices.prepare(run.flags["mixed_precision"])
    if text:
        name = str(text)
        stream, size = read_text(text, run.tokenizer, run.data["add_eos"])
    else:
        data_dir, metadata = run.find_data(data_dir)
        name = f"{metadata['corpus']}, {split}"
        stream = data_utils.load_stream(data_dir, split, metadata)
        size = metadata["splits"][split]
    if len(stream) < 2:
        raise InputError(f"{name} has fewer than two tokens: there is nothing to predict")
    batch_size = batch_size or run.data["batch_size"]
    seq_len = seq_len or run.data["seq_len"]
    mem_len = run.flags["mem_len"] if mem_len is None else mem_len
    model, step = run.network(architecture, mem_len=mem_len, static_shapes=on_gpu)
    evaluator = Evaluator(model, jit_compile=on_gpu)
    evaluator(stream[:2], batch_size, seq_len)  # the first call builds the graph
    score = evaluator(stream, batch_size, seq_len)
    probability = costs.frequencies(stream, run.data["vocab_size"])  # [V]
    flops = costs.flops(model, batch_size, seq_len, probability)
    return {
        "run": str(run.folder), "step": step, "text": name,
        "within_search": SEARCH in run.settings.architecture,
        "architecture": as_letters(model.architecture),
        "most_likely": as_letters(model.most_likely()),
        "batch_size": batch_size, "seq_len": seq_len, "mem_len": mem_len, "device": device,
        **metrics(score.nll / score.targets, size),
        "targets": score.targets, "unknown_characters": size["unknown_characters"],
        "tokens_per_second": score.targets / sum(score.seconds),
        "ms_per_window": {f"p{p}": 1e3 * float(np.percentile(score.seconds, p))
                          for p in (50, 95, 99)},
        "flops_per_token": flops / (batch_size * seq_len),
        "parameters": model.count_params(),
    }


def table(reports: list[dict]) -> str:
    """One line per figure, one column per run."""
    rows = {
        "run": lambda r: Path(r["run"]).name,
        "text": lambda r: r["text"],
        "step": lambda r: f"{r['step']:,}",
        "architecture": _architecture,
        "rows x tokens + memory": lambda r: f"{r['batch_size']} x {r['seq_len']} + {r['mem_len']}",
        "loss": lambda r: f"{r['loss']:.4f}",
        "perplexity": lambda r: f"{r['perplexity']:.2f}",
        "word perplexity": lambda r: _not_given(r) or f"{r['word_perplexity']:.1f}",
        "bits per byte": lambda r: _not_given(r) or f"{r['bits_per_byte']:.4f}",
        "tokens scored": lambda r: f"{r['targets']:,}",
        "parameters": lambda r: f"{r['parameters']:,}",
        "MFLOPs per token": lambda r: f"{r['flops_per_token'] / 1e6:.3f}",
        "ms per window (p95, p99)": lambda r: "{p50:.1f} ({p95:.1f}, {p99:.1f})".format_map(
            r["ms_per_window"]),
        "tokens per second": lambda r: f"{r['tokens_per_second']:,.0f}",
    }
    columns = [rows, *([show(report) for show in rows.values()] for report in reports)]
    widths = [max(map(len, column)) for column in columns]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in zip(*columns))


def _architecture(report: dict) -> str:
    """The scored architecture, and the one found by the search if it differs."""
    scored, found = report["architecture"], report["most_likely"]
    return scored if scored == found else f"{scored} (found {found})"


def _not_given(report: dict) -> str:
    """The reason why a report lacks word perplexity and bits per byte; empty if it has them."""
    unknown = report["unknown_characters"]
    return f"not given: {unknown:,} characters are unknown to the tokenizer" if unknown else ""


def read_evaluations(folders: list[Path]) -> list[dict]:
    """The evaluations of some runs on the validation split, each at its last evaluated step.

    Each gets an entry `random`: whether the name of its run contains that word.

    Raises:
      InputError: a run has no evaluation, or one has no bits per byte.
    """
    reports = []
    for folder in folders:
        last = {}
        for path in folder.glob("evaluation_valid_*.json"):
            report = files.read_json(path, EVALUATION)
            if report["bits_per_byte"] is None:
                raise InputError(f"{path} has no bits per byte: the tokenizer does not know some "
                                 "characters")
            report["random"] = "random" in folder.name
            key = report["architecture"], *(report[name] for name in MEASURED_ON)
            if key not in last or report["step"] > last[key]["step"]:
                last[key] = report
        if not last:
            raise InputError(f"{folder} has no evaluation of the validation split: "
                             f"python evaluate.py --run={folder}")
        reports += [last[key] for key in sorted(last)]
    return reports


def means(reports: list[dict]) -> list[dict]:
    """The mean evaluation of each network, the lowest bits per byte first.

    Runs trained alone are one network if they have the same layers, identity aside, and as many
    parameters, however they were trained. Subnetworks are one per search. Evaluations measured on
    another text or device, or with other windows or memories, are kept apart. The spread is the
    range of the bits per byte.
    """
    alike = {}
    for report in reports:
        name, search = report["architecture"], report["run"]
        if not report["within_search"]:
            name, search = without_identity(name), None
        key = name, search, report["parameters"], *(report[name] for name in MEASURED_ON)
        alike.setdefault(key, []).append(report)
    networks = []
    for (name, *_), own in alike.items():
        bits = [report["bits_per_byte"] for report in own]
        words = [report["word_perplexity"] or np.inf for report in own]
        shared = ("within_search", "parameters", "flops_per_token", *MEASURED_ON)
        networks.append({key: own[0][key] for key in shared} | {
            "architecture": name, "bits_per_byte": np.mean(bits), "spread": np.ptp(bits),
            "evaluations": len(own), "word_perplexity": np.mean(words),
            "ms": np.mean([report["ms_per_window"]["p50"] for report in own]),
            "random": all(report["random"] for report in own)})
    return sorted(networks, key=lambda network: network["bits_per_byte"])


def main(_):
    FLAGS = flags.FLAGS
    for flag in ("split", "data_dir"):
        if FLAGS.text and FLAGS[flag].present:
            raise InputError(f"use --text or --{flag}, not both")
    text = FLAGS.text and Path(FLAGS.text)
    reports = []
    for folder in map(Path, FLAGS.run):
        run = TrainedRun(folder, FLAGS.checkpoint)
        reports.append(evaluate_run(
            run, FLAGS.split, text, FLAGS.data_dir, FLAGS.batch_size, FLAGS.seq_len, FLAGS.mem_len,
            FLAGS.architecture))
    print(table(reports))
    scored = f"text_{text.stem[:40]}_{files.sha256(text)[:8]}" if text else FLAGS.split
    for folder, report in zip(FLAGS.run, reports):
        single = f"{report['architecture']}_" if FLAGS.architecture else ""
        sizes = "B{batch_size}_T{seq_len}_M{mem_len}_step{step}".format_map(report)
        files.write_json(Path(folder) / f"evaluation_{scored}_{single}{sizes}.json", finite(report))


if __name__ == "__main__":
    cli.run(main)
