"""How well a network predicts, and what it costs: the loss of a window, the metrics of a text, and the command that scores runs.

B batch, T sequence length, M memory length, A blocks with attention, D model width, V vocabulary, N tokens of a text.

The command scores the whole text, every token after the first, without noise. The result depends neither on the batch size nor
on the number of replicas: where a text is cut into rows, each row first reads what came before it, as far back as a memory
can reach.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
from absl import flags

from support import cli, devices

with cli.quiet():
    import tensorflow as tf

import data_utils
from model import KINDS
from runs import TrainedRun
from support import corpora, files
from support.cli import InputError
from tokenization import PAD, Tokenizer


def window_nll(model, window, memory, filled, tau, draws=None):
    """The loss of one window.

    Args:
      model: the network.
      window: int32 [B, T + 1].
      memory, filled, tau, draws: as the model takes them.

    Returns:
      The negative log-likelihood of each target, float32 [B, T], 0 for padding; and the next memory.
    """
    inputs, targets = window[:, :-1], window[:, 1:]  # [B, T]
    hidden, memory = model(inputs, memory, filled=filled, tau=tau, draws=draws)
    nll = model.softmax(tf.reshape(hidden, [-1, hidden.shape[-1]]), tf.reshape(targets, [-1]))  # [B T]
    return tf.reshape(nll, targets.shape) * real_targets(window), memory


def real_targets(window):
    """Which targets of a window [B, T + 1] are tokens, 1, and which are padding, 0: float32 [B, T]."""
    return tf.cast(window[:, 1:] != PAD, tf.float32)


def filled_memory(model, window, number):
    """How many memory positions hold tokens at window `number` of a text, which starts with none."""
    return tf.minimum(number * (window.shape[1] - 1), model.mem_len)


@dataclass
class Score:
    """What a network makes of a text: the summed negative log-likelihood of `targets` tokens, and the seconds of each window."""

    nll: float
    targets: int
    seconds: list[float]


class Evaluator:
    """Scores texts with a network, without noise.

    Args:
      model: the network.
      jit_compile: compile with XLA.
      strategy: whose replicas share the rows; None for one device.
    """

    def __init__(self, model, jit_compile: bool, strategy: tf.distribute.Strategy | None = None):
        self._model, self._strategy = model, strategy or tf.distribute.get_strategy()
        self._compiled = tf.function(self._window, jit_compile=jit_compile or None)

    def __call__(self, stream: np.ndarray, batch_size: int, seq_len: int, tau: float, between: Callable[[], None] = lambda: None) -> Score:
        """Scores the tokens of a stream [N], in as many rows side by side as `batch_size` says; calls `between` after each window."""
        lead = self._model.num_memories * -(-self._model.mem_len // seq_len)  # a memory reaches so many windows back, through all blocks
        memory = devices.split_rows(self._strategy, self._model.empty_memory(batch_size), axis=1)  # [A, B, M, D]
        score = Score(0.0, 0, [])
        for number, (window, scored) in enumerate(data_utils.scoring_windows(stream, batch_size, seq_len, lead)):
            start = time.perf_counter()
            rows = [devices.split_rows(self._strategy, tf.constant(part)) for part in (window, scored.astype(np.float32)[:, None])]
            sums, memory = self._everywhere(*rows, memory, tf.constant(number), tf.constant(tau))
            nll, targets = sums.numpy().tolist()
            score.nll += nll
            score.targets += int(targets)
            score.seconds.append(time.perf_counter() - start)
            between()
        return score

    @tf.function
    def _everywhere(self, *arguments):
        """`_window` on every replica, the sums of all together."""
        sums, memory = self._strategy.run(lambda *own: self._compiled(*own), args=arguments)
        return self._strategy.reduce("sum", sums, axis=None), memory

    def _window(self, window, scored, memory, number, tau):
        """One window on one replica. Returns the loss and the number of the targets in rows to be scored, [2], and the next memory."""
        nll, memory = window_nll(self._model, window, memory, filled_memory(self._model, window, number), tau)
        return tf.stack([tf.reduce_sum(nll * scored), tf.reduce_sum(real_targets(window) * scored)]), memory


def metrics(loss: float, text: dict) -> dict:
    """Loss in nats per token, and what does not depend on the tokenizer.

    Word perplexity and bits per byte spread the negative log-likelihood of all tokens but the first over the raw text. A
    language without spaces has no words worth the name, and its word perplexity may be infinite. Where characters are unknown to
    the tokenizer both are None: no figure shall be better because text was left out.

    Args:
      loss: in nats per token.
      text: how many `tokens`, `words`, `bytes` and `unknown_characters` it has, as metadata.json says of each split.
    """
    total, whole = loss * (text["tokens"] - 1), not text["unknown_characters"]
    return {
        "loss": loss,
        "perplexity": exp(loss),
        "word_perplexity": exp(total / text["words"]) if whole else None,
        "bits_per_byte": total / math.log(2) / text["bytes"] if whole else None,
    }


def exp(nats: float) -> float:
    """e^nats, infinite where that overflows."""
    return math.exp(nats) if nats < 700 else math.inf


# ---------------------------------------------------------------------------------------------------------------------
# The command


def read_text(path: Path, tokenizer: Tokenizer, add_eos: bool) -> tuple[np.ndarray, dict]:
    """The tokens of a text file, int32 [N], and how many tokens, words, bytes and unknown characters it has.

    Raises:
      InputError: it is no UTF-8 text, or empty.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: --text takes a file")
    text = corpora.whole_file(path)
    corpora.checked_sha256(text)
    ids, words, unknown = zip(*data_utils.token_blocks(text, tokenizer, add_eos))
    if not sum(words):
        raise InputError(f"{text.name} is empty")
    tokens = np.concatenate(ids)
    return tokens, {"tokens": len(tokens), "words": int(sum(words)), "bytes": text.size, "unknown_characters": int(sum(unknown))}


def evaluate_run(run: TrainedRun, split: str = "valid", text: Path | None = None, checkpoint: str = "best", data_dir: Path | None = None,
                 batch_size: int | None = None, seq_len: int | None = None, mem_len: int | None = None) -> dict:
    """Scores a split of the data, or a text, with the network of a run; what is None is as it was in training.

    Returns:
      What there is to report, under the names that the JSON file has.
    """
    device, on_gpu = devices.prepare(run.flags["mixed_precision"])
    if text:
        name = str(text)
        stream, size = read_text(text, Tokenizer(run.tokenizer), run.data["add_eos"])
    else:
        data_dir = data_dir or Path(run.flags["data_dir"])
        metadata = data_utils.read_metadata(data_dir)
        if data_utils.tokenizer_sha256(metadata) != run.data["tokenizer_sha256"]:
            raise InputError(f"{data_dir} was made with another tokenizer than {run.folder}: --data_dir says where the data are")
        name = f"{metadata['corpus']}, {split}"
        stream, size = data_utils.load_stream(data_dir, split, metadata), metadata["splits"][split]
    if len(stream) < 2:
        raise InputError(f"{name} is too short: it has no token to predict")
    batch_size, seq_len = batch_size or run.data["batch_size"], seq_len or run.data["seq_len"]
    mem_len = run.flags["mem_len"] if mem_len is None else mem_len
    model, tau, step = run.network(checkpoint, mem_len=mem_len, static_shapes=on_gpu)
    evaluator = Evaluator(model, jit_compile=on_gpu)
    evaluator(stream[:2], batch_size, seq_len, tau)  # the first call builds the graph
    score = evaluator(stream, batch_size, seq_len, tau)
    probability = np.bincount(stream[1:], minlength=run.data["vocab_size"]) / (len(stream) - 1)  # [V]
    return {
        "run": str(run.folder), "step": step, "text": name, "architecture": "".join(kind[0] for kind in model.architecture),
        "most_likely": "".join(KINDS[kind][0] for kind in model.pi().argmax(axis=1)),
        "batch_size": batch_size, "seq_len": seq_len, "mem_len": mem_len, "device": device,
        **metrics(score.nll / score.targets, size),
        "targets": score.targets, "unknown_characters": size["unknown_characters"],
        "tokens_per_second": score.targets / sum(score.seconds),
        "ms_per_window": {f"p{p}": 1e3 * float(np.percentile(score.seconds, p)) for p in (50, 95, 99)},
        "flops_per_token": model.flops(batch_size, seq_len, probability) / (batch_size * seq_len),
        "parameters": model.count_params(),
    }


def table(reports: list[dict]) -> str:
    """A line for each figure, a column for each run."""
    rows = {
        "run": lambda r: Path(r["run"]).name,
        "text": lambda r: r["text"],
        "step": lambda r: f"{r['step']:,}",
        "architecture": lambda r: r["architecture"] + (f" (found {r['most_likely']})" if r["most_likely"] != r["architecture"] else ""),
        "rows x tokens + memory": lambda r: f"{r['batch_size']} x {r['seq_len']} + {r['mem_len']}",
        "loss": lambda r: f"{r['loss']:.4f}",
        "perplexity": lambda r: f"{r['perplexity']:.2f}",
        "word perplexity": lambda r: _not_given(r) or f"{r['word_perplexity']:.1f}",
        "bits per byte": lambda r: _not_given(r) or f"{r['bits_per_byte']:.4f}",
        "tokens scored": lambda r: f"{r['targets']:,}",
        "parameters": lambda r: f"{r['parameters']:,}",
        "FLOPs per token, million": lambda r: f"{r['flops_per_token'] / 1e6:.3f}",
        "ms per window (p95, p99)": lambda r: "{p50:.1f} ({p95:.1f}, {p99:.1f})".format_map(r["ms_per_window"]),
        "tokens scored/s": lambda r: f"{r['tokens_per_second']:,.0f}",
    }
    columns = [list(rows), *([show(report) for show in rows.values()] for report in reports)]
    widths = [max(len(cell) for cell in column) for column in columns]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in zip(*columns))


def _not_given(report: dict) -> str:
    """Why a report lacks the figures of the raw text; nothing if it has them."""
    unknown = report["unknown_characters"]
    return f"not given: {unknown:,} characters are unknown to the tokenizer" if unknown else ""


def define_flags():
    cli.define_paths("run", None, "the folder of a run, or several for columns side by side", required=True)
    flags.DEFINE_string("checkpoint", "best", "best (lowest validation loss), latest, or the step of one that is there")
    flags.DEFINE_enum("split", "valid", ["valid", "test", "train"], "of the data")
    cli.define_path("text", None, "a UTF-8 file to score instead")
    cli.define_path("data_dir", None, "where the data are (default: where they were in training)")
    flags.DEFINE_integer("mem_len", None, "M, memory length (default: as in training); a longer one usually helps", lower_bound=0)
    flags.DEFINE_integer("seq_len", None, "T, tokens of a row of a window (default: as in training)", lower_bound=1)
    flags.DEFINE_integer("batch_size", None, "rows side by side (default: as in training); changes no score", lower_bound=1)


def main(_):
    FLAGS = flags.FLAGS
    for flag in ("split", "data_dir"):
        if FLAGS.text and FLAGS[flag].present:
            raise InputError(f"--text and --{flag} exclude each other")
    reports = []
    for folder in map(Path, FLAGS.run):
        report = evaluate_run(TrainedRun(folder), FLAGS.split, FLAGS.text and Path(FLAGS.text), FLAGS.checkpoint, FLAGS.data_dir and Path(FLAGS.data_dir),
                              FLAGS.batch_size, FLAGS.seq_len, FLAGS.mem_len)
        scored = f"text_{Path(FLAGS.text).stem}" if FLAGS.text else FLAGS.split
        files.write_json(folder / f"evaluation_{scored}_T{report['seq_len']}_M{report['mem_len']}_step{report['step']}.json", report)
        reports.append(report)
    print(table(reports))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
