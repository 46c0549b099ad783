"""Measures the speed of training, evaluation and generation, and the peak of the machine.

    python bench.py > figures.json
    python bench.py --only=train_step --d_model=256

The data are random ids with Zipf's distribution, so there is nothing to download. The network is
that of the default experiment unless flags change it. Training steps alternate with products of
large matrices, one on each core, whose speed is the peak. bfloat16 is measured only if its
products are faster than those of float32.

A training step counts three times the FLOPs of the forward pass (training/costs.py).

B batch, T sequence length, V vocabulary.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from training.settings import SEARCH, Settings, define_settings, settings_of

PARTS = ("train_step", "evaluation", "generation")

ONLY = flags.DEFINE_enum("only", None, PARTS, "measure only this part")
REPEATS = flags.DEFINE_integer("repeats", 9, "measurements of each part", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "B, rows of a window", lower_bound=1)
SEQ_LEN = flags.DEFINE_integer("seq_len", 32, "T, tokens per row and step", lower_bound=1)
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 12_000, "V, number of ids", lower_bound=5)


def define_flags():
    flags.DEFINE_string("architecture", SEARCH,
                        "search, in six blocks, or a letter for each block of a fixed network")
    flags.register_validator(
        "architecture", lambda text: text == SEARCH or set(text) <= set(letters()),
        "must be search or letters of layer types")
    define_settings("Network")


cli.begin(__name__, define_flags)

with cli.quiet():
    import keras
    import tensorflow as tf

    import data_utils
    from layers import from_letters, letters
    from support import devices
    from support.timing import peak_mebibytes, seconds
    from training import costs
    from training.scoring import Evaluator
    from training.trainer import Trainer, build_network
    from training.writer import Writer, memory_length

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
STEPS = 20  # per measurement of training


class Bench:
    """The parts that can be measured, on data in a folder. Each returns its figures."""

    def __init__(self, folder: Path, settings: Settings, jit_compile: bool):
        self._folder, self._settings, self._jit_compile = folder, settings, jit_compile
        self._metadata, self._probability = zipf_data(folder)

    def train_step(self) -> dict:
        """The training step, alternating with the peak."""
        trainer = Trainer(self._folder, self._metadata, self._settings, self._jit_compile)
        trainer.train(STEPS)
        products = matrix_products(trainer.model.compute_dtype)
        times, peaks = [], []
        for _ in range(REPEATS.value):
            times.append(trainer.train(STEPS) / STEPS)
            peaks.append(cli.CORES * 2 * 2048**3 / seconds(products))
        flops = 3 * costs.flops(trainer.model, BATCH_SIZE.value, SEQ_LEN.value, self._probability)
        return spread(times, BATCH_SIZE.value * SEQ_LEN.value) | {
            "gflop": flops / 1e9,
            "gflop_per_second": flops / np.median(times) / 1e9,
            "peak_gflop_per_second": np.median(peaks) / 1e9,
            "fraction_of_peak": np.median(flops / np.array(times) / np.array(peaks)),
            "parameters": trainer.model.count_params(),
        }

    def evaluation(self) -> dict:
        """Evaluation, per window."""
        evaluator = Evaluator(self._network(), self._jit_compile)
        stream = data_utils.load_stream(self._folder, "train", self._metadata)
        times = []
        for _ in range(REPEATS.value + 1):
            score = evaluator(stream, BATCH_SIZE.value, SEQ_LEN.value)
            times.append(np.mean(score.seconds))
        times = times[1:]  # the first call builds the graph
        return spread(times, BATCH_SIZE.value * SEQ_LEN.value)

    def generation(self) -> dict:
        """Greedy generation of one row, per token."""
        mem_len = memory_length(self._settings.mem_len, SEQ_LEN.value)
        writer = Writer(self._network(), mem_len, self._jit_compile)
        num_tokens = 10 + 40 * REPEATS.value
        tokens = writer.write([5], num_tokens, seed=0, temperature=0)
        times = [seconds(lambda: next(tokens)) for _ in range(num_tokens)][10:]
        return spread(times, 1) | {"ms_p95": 1e3 * float(np.percentile(times, 95)),
                                   "ms_p99": 1e3 * float(np.percentile(times, 99))}

    def _network(self):
        return build_network(self._settings, VOCAB_SIZE.value, static_shapes=self._jit_compile)


def settings() -> Settings:
    """The settings of the network, given by the flags."""
    text = flags.FLAGS.architecture
    architecture = Settings.architecture if text == SEARCH else from_letters(text)
    return settings_of(flags.FLAGS.flag_values_dict(), architecture)


def zipf_data(folder: Path) -> tuple[dict, np.ndarray]:
    """Writes 100 windows of random ids like those of make_data.sh.

    Zipf's distribution starts at rank 10, which resembles the pieces of a tokenizer.

    Returns:
      Metadata, and the probability of each id, [V]; special ids have 0.
    """
    B, T, V, steps = BATCH_SIZE.value, SEQ_LEN.value, VOCAB_SIZE.value, 100
    frequency = 1 / np.arange(10, 10 + V - 4)
    probability = np.concatenate([np.zeros(4), frequency / frequency.sum()])  # [V]
    num_tokens = B * (steps * T + 1)
    stream = np.random.default_rng(0).choice(V, num_tokens, p=probability).astype(np.int32)
    data_utils.write_records(stream, B, T, folder / "train")
    counts = np.bincount(stream, minlength=V)  # [V]
    np.savetxt(folder / "unigram_counts.txt", counts, fmt="%d")
    split = {"steps": steps, "tokens": num_tokens, "words": num_tokens, "bytes": num_tokens}
    metadata = {"batch_size": B, "seq_len": T, "vocab_size": V, "splits": {"train": split}}
    return metadata, probability


def matrix_products(dtype: str):
    """A function that multiplies a pair of 2048 x 2048 matrices on each core."""
    matrices = [tf.random.stateless_normal([2048, 2048], [1, i], dtype=dtype)
                for i in range(cli.CORES)]

    @tf.function
    def products():
        return tf.add_n([tf.matmul(matrix, matrix)[0, 0] for matrix in matrices])

    products()
    return lambda: products().numpy()


def precisions() -> list[str]:
    """float32, and bfloat16 if its products are faster."""
    times = {dtype: seconds(matrix_products(dtype)) for dtype in POLICIES}
    return [dtype for dtype, time in times.items() if time <= times["float32"]]


def spread(times: list[float], tokens: int) -> dict:
    """Milliseconds, median and range, and tokens per second, of times in seconds."""
    return {"ms_median": 1e3 * float(np.median(times)), "ms_min": 1e3 * min(times),
            "ms_max": 1e3 * max(times), "tokens_per_second": tokens / float(np.median(times))}


def main(_):
    device, on_gpu = devices.prepare(mixed_precision=False)
    results = {"device": device}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), settings(), on_gpu)
        dtypes = precisions()
        for part in [ONLY.value] if ONLY.value else PARTS:
            print(f"measuring {part}", file=sys.stderr)
            results[part] = {}
            for dtype in dtypes:
                keras.config.set_dtype_policy(POLICIES[dtype])
                results[part][dtype] = getattr(bench, part)()
    results["peak_memory_mib"] = peak_mebibytes()
    if on_gpu:
        memory = tf.config.experimental.get_memory_info("GPU:0")
        results["peak_gpu_memory_mib"] = memory["peak"] / 2**20
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    cli.run(main)
