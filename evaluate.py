"""Reports the loss, the cost and the speed of trained networks on a split of the data or a text.

    python evaluate.py --run=logs/supernet --split=test
    python evaluate.py --run=logs/a,logs/b --text=book.txt

N tokens of a text, V vocabulary.
"""

from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from support.cli import InputError


def define_flags():
    cli.define_paths("run", None, "the folder of a run, or several for columns side by side",
                     required=True)
    flags.DEFINE_string("checkpoint", "best", "best (lowest validation loss), latest, "
                        "or the step of one that is there")
    flags.DEFINE_string(
        "architecture", None, "of a search a letter for each block, to score only this layer of "
        "it, with the weights that it has in the search; found for the likeliest at this "
        "checkpoint (default: the mixture, as it was trained)")
    flags.DEFINE_enum("split", "valid", ["valid", "test", "train"], "of the data")
    cli.define_path("text", None, "a UTF-8 file to score instead")
    cli.define_path("data_dir", None, "where the data are (default: where they were in training)")
    flags.DEFINE_integer("mem_len", None, "M, memory length (default: as in training); "
                         "a longer one usually helps", lower_bound=0)
    flags.DEFINE_integer("seq_len", None, "T, tokens of a row of a window "
                         "(default: as in training)", lower_bound=1)
    flags.DEFINE_integer("batch_size", None, "rows side by side (default: as in training); "
                         "changes no score", lower_bound=1)


cli.begin(__name__, define_flags)

with cli.quiet():
    import data_utils
    from layers import as_letters
    from support import corpora, devices, files
    from support.tokenization import Tokenizer
    from training import costs
    from training.scoring import Evaluator, finite, metrics
    from training.trained_run import TrainedRun


def read_text(path: Path, tokenizer: Tokenizer, add_eos: bool) -> tuple[np.ndarray, dict]:
    """The tokens of a text file, int32 [N], and its size.

    That is how many tokens, words, bytes and unknown characters it has.

    Raises:
      InputError: it is no UTF-8 text, or empty.
    """
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise InputError(f"{path} is {kind}: --text takes a file")
    text = corpora.whole_file(path)
    corpora.checked_sha256(text)
    blocks = list(data_utils.token_blocks(text, tokenizer, add_eos))
    if not any(words for _, words, *_ in blocks):
        raise InputError(f"{text.name} is empty")
    ids, words, unknown, num_bytes = zip(*blocks)
    tokens = np.concatenate(ids)
    size = {"tokens": len(tokens), "words": int(sum(words)), "bytes": int(sum(num_bytes)),
            "unknown_characters": int(sum(unknown))}
    return tokens, size


def evaluate_run(run: TrainedRun, split: str = "valid", text: Path | None = None,
                 data_dir: Path | None = None, batch_size: int | None = None,
                 seq_len: int | None = None, mem_len: int | None = None,
                 architecture: str | None = None) -> dict:
    """Scores a split of the data, or a text, with the network of a run.

    What is None is as it was in training.

    Returns:
      What there is to report, under the names that the JSON file has.
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
        raise InputError(f"{name} is too short: it has no token to predict")
    batch_size = batch_size or run.data["batch_size"]
    seq_len = seq_len or run.data["seq_len"]
    mem_len = run.flags["mem_len"] if mem_len is None else mem_len
    model, step = run.network(architecture, mem_len=mem_len, static_shapes=on_gpu)
    evaluator = Evaluator(model, jit_compile=on_gpu)
    evaluator(stream[:2], batch_size, seq_len)  # the first call builds the graph
    score = evaluator(stream, batch_size, seq_len)
    probability = costs.frequencies(stream, run.data["vocab_size"])  # [V]
    flops = costs.flops(model, batch_size, seq_len, probability)
    percentiles = {f"p{p}": 1e3 * float(np.percentile(score.seconds, p)) for p in (50, 95, 99)}
    return {
        "run": str(run.folder), "step": step, "text": name,
        "within_search": "s" in run.flags["architecture"],
        "architecture": as_letters(model.architecture),
        "most_likely": as_letters(model.most_likely()),
        "batch_size": batch_size, "seq_len": seq_len, "mem_len": mem_len, "device": device,
        **metrics(score.nll / score.targets, size),
        "targets": score.targets, "unknown_characters": size["unknown_characters"],
        "tokens_per_second": score.targets / sum(score.seconds),
        "ms_per_window": percentiles,
        "flops_per_token": flops / (batch_size * seq_len),
        "parameters": model.count_params(),
    }


def table(reports: list[dict]) -> str:
    """A line for each figure, a column for each run."""
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
        "FLOPs per token, million": lambda r: f"{r['flops_per_token'] / 1e6:.3f}",
        "ms per window (p95, p99)": _percentiles,
        "tokens scored/s": lambda r: f"{r['tokens_per_second']:,.0f}",
    }
    columns = [list(rows)]
    for report in reports:
        columns.append([show(report) for show in rows.values()])
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = []
    for cells in zip(*columns):
        padded = [cell.ljust(width) for cell, width in zip(cells, widths)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _architecture(report: dict) -> str:
    """The architecture that was scored, and what the search found where that is another."""
    scored, found = report["architecture"], report["most_likely"]
    return scored if scored == found else f"{scored} (found {found})"


def _percentiles(report: dict) -> str:
    return "{p50:.1f} ({p95:.1f}, {p99:.1f})".format_map(report["ms_per_window"])


def _not_given(report: dict) -> str:
    """Why a report lacks the figures of the raw text; nothing if it has them."""
    unknown = report["unknown_characters"]
    return f"not given: {unknown:,} characters are unknown to the tokenizer" if unknown else ""


def main(_):
    FLAGS = flags.FLAGS
    for flag in ("split", "data_dir"):
        if FLAGS.text and FLAGS[flag].present:
            raise InputError(f"--text and --{flag} exclude each other")
    text = FLAGS.text and Path(FLAGS.text)
    data_dir = FLAGS.data_dir and Path(FLAGS.data_dir)
    reports = []
    for folder in map(Path, FLAGS.run):
        run = TrainedRun(folder, FLAGS.checkpoint)
        reports.append(evaluate_run(
            run, FLAGS.split, text, data_dir, batch_size=FLAGS.batch_size, seq_len=FLAGS.seq_len,
            mem_len=FLAGS.mem_len, architecture=FLAGS.architecture))
    print(table(reports))
    scored = f"text_{text.stem[:40]}_{files.sha256(text)[:8]}" if text else FLAGS.split
    for folder, report in zip(FLAGS.run, reports):
        single = f"{report['architecture']}_" if FLAGS.architecture else ""
        sizes = "B{batch_size}_T{seq_len}_M{mem_len}_step{step}".format_map(report)
        files.write_json(Path(folder) / f"evaluation_{scored}_{single}{sizes}.json", finite(report))


if __name__ == "__main__":
    cli.run(main)
