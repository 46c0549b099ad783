"""Measures speed: training steps, evaluation, generation and reading, beside the machine's peak in the same process.

B batch, T sequence length, M memory length, C = M + T context, D model width, F dense width, V vocabulary. Data are random
ids with Zipf's distribution, so nothing has to be downloaded or made; the network is the default experiment unless train.py's
flags, which this program takes too, say otherwise.

Model FLOPs of a training step: 2 for each multiply-add, 3 products (one forward, two backward) for each matrix product, of
which a tail's counts for the tokens that fall into it, and nothing for all else. Multiply-adds of the products, forward:

    attention   B (T (4 D^2 + 3 C D) + 2 M D^2) + C D^2      q, k, v, output; two scores and the values; memory's k, v; positions
    dense       B T 2 D F
    softmax     B T (D (cutoffs[0] + tails) + sum_i p_i (D d_i + d_i n_i))
"""

import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags

import cli

with cli.quiet():
    import keras
    import tensorflow as tf

import data_utils
import train
from model import SEARCH

PARTS = ("train_step", "networks", "evaluation", "generation", "reading")

JSON = flags.DEFINE_string("json", None, "write the figures to this file")
ONLY = flags.DEFINE_enum("only", None, PARTS, "measure this part alone")
REPEATS = flags.DEFINE_integer("repeats", 9, "how often each part is measured", lower_bound=1)

PRODUCTS = 4  # at once, to measure the peak
STEPS = 20  # of training, in one measurement
BATCH_SIZE, SEQ_LEN, VOCAB_SIZE = 32, 32, 12_000


class Bench:
    """The parts that can be measured, on data in a folder; each returns its figures."""

    def __init__(self, folder: Path, jit_compile: bool):
        self._folder, self._jit_compile = folder, jit_compile
        self._metadata, self._probability = zipf_data(folder)

    def train_step(self) -> dict:
        """The training step in float32 and with mixed precision."""
        return {"float32": self._step("float32", "float32"), "bfloat16": self._step("mixed_bfloat16", "bfloat16")}

    def networks(self) -> dict:
        """The training step of the fixed networks of one kind."""
        results, searched = {}, train.ARCHITECTURE.value
        for kind in ("attention", "dense"):
            flags.FLAGS.architecture = [kind]
            results[kind] = self._step("float32", "float32")
        flags.FLAGS.architecture = searched
        return results

    def evaluation(self) -> dict:
        """Evaluation, per window."""
        trainer = train.Trainer(self._folder, self._metadata, self._jit_compile)
        trainer.evaluate("train")
        steps = self._metadata["splits"]["train"]["steps"]
        return spread([seconds(lambda: trainer.evaluate("train")) / steps for _ in range(REPEATS.value)])

    def generation(self) -> dict:
        """The most probable next token, one at a time, for one row, with memory carried along."""
        model = train.build_model(VOCAB_SIZE, static_shapes=self._jit_compile)

        @tf.function(jit_compile=self._jit_compile or None)
        def next_token(token, memory):
            hidden, memory = model(token, memory, filled=model.mem_len)
            return tf.argmax(model.softmax.log_prob(hidden[0]), axis=1, output_type=tf.int32)[None], memory

        token, memory = tf.constant([[5]]), model.empty_memory(1)
        times = []
        for _ in range(10 + 20 * REPEATS.value):
            start = time.perf_counter()
            token, memory = next_token(token, memory)
            token.numpy()
            times.append(time.perf_counter() - start)
        return spread(times[10:]) | {f"ms_p{p}": 1e3 * float(np.percentile(times[10:], p)) for p in (95, 99)}

    def reading(self) -> dict:
        """Reading TFRecords, per window."""
        dataset = data_utils.load_windows(self._folder, "train", self._metadata).prefetch(tf.data.AUTOTUNE)
        steps = self._metadata["splits"]["train"]["steps"]
        return spread([seconds(lambda: dataset.reduce(0, lambda count, window: count + 1)) / steps for _ in range(REPEATS.value)])

    def _step(self, policy: str, dtype: str) -> dict:
        """Training in turn with a large matrix product of the same dtype, the peak."""
        keras.config.set_dtype_policy(policy)
        trainer = train.Trainer(self._folder, self._metadata, self._jit_compile)
        keras.config.set_dtype_policy("float32")
        products = matrix_products(dtype)
        trainer.train(STEPS)
        times, peaks = [], []
        for _ in range(REPEATS.value):
            times.append(trainer.train(STEPS)[2] / STEPS)
            peaks.append(PRODUCTS * 2 * 2048**3 / seconds(products))
        flops = step_flops(trainer.model, self._probability)
        return spread(times) | {
            "tokens_per_second": BATCH_SIZE * SEQ_LEN / np.median(times), "gflop": flops / 1e9,
            "gflop_per_second": flops / np.median(times) / 1e9, "peak_gflop_per_second": np.median(peaks) / 1e9,
            "fraction_of_peak": np.median(flops / np.array(times) / np.array(peaks)),
        }


def zipf_data(folder: Path) -> tuple[dict, np.ndarray]:
    """Windows of random ids with Zipf's distribution, as make_data.sh leaves them. Returns metadata, and probabilities [V]."""
    probability = np.concatenate([np.zeros(4), 1 / np.arange(10, 6 + VOCAB_SIZE)])  # no special ids
    probability /= probability.sum()
    num_tokens = BATCH_SIZE * (100 * SEQ_LEN + 1)
    stream = np.random.default_rng(0).choice(VOCAB_SIZE, num_tokens, p=probability).astype(np.int32)
    records = data_utils.write_records(stream, BATCH_SIZE, SEQ_LEN, 1, folder / "train")
    np.savetxt(folder / "unigram_counts.txt", np.bincount(stream, minlength=VOCAB_SIZE), fmt="%d")
    split = {"steps": 100, "targets": num_tokens - BATCH_SIZE, "words": num_tokens, "bytes": num_tokens}
    metadata = {"batch_size": BATCH_SIZE, "seq_len": SEQ_LEN, "vocab_size": VOCAB_SIZE, "splits": {"train": split},
                "sha256": {f"train/{path.name}": "" for path in records}}
    return metadata, probability


def step_flops(model, probability: np.ndarray) -> float:
    """Model FLOPs of a training step, by the formula above.

    Args:
      model: the network.
      probability: of each id, [V]; decides how many tokens fall into a tail.
    """
    B, T, M, D, F = BATCH_SIZE, SEQ_LEN, model.mem_len, model.d_model, train.D_FFN.value
    C = M + T
    attention = B * (T * (4 * D * D + 3 * C * D) + 2 * M * D * D) + C * D * D
    dense = B * T * 2 * D * F
    softmax = D * (model.softmax.head_size + len(model.softmax.tails))
    for (first, end), kernel in zip(model.softmax.tails, model.softmax.projections):
        softmax += probability[first:end].sum() * kernel.shape[1] * (D + end - first)
    counts = {kind: model.architecture.count(kind) + model.architecture.count(SEARCH) for kind in ("attention", "dense")}
    return 2 * 3 * (counts["attention"] * attention + counts["dense"] * dense + B * T * softmax)


def matrix_products(dtype: str):
    """A function that multiplies `PRODUCTS` pairs of 2048 x 2048 matrices side by side, which keeps all cores busy."""
    matrices = [tf.random.stateless_normal([2048, 2048], [1, i], dtype=dtype) for i in range(PRODUCTS)]
    products = tf.function(lambda: tf.add_n([tf.matmul(matrix, matrix)[0, 0] for matrix in matrices]))
    products()
    return lambda: products().numpy()


def seconds(function) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def spread(times: list[float]) -> dict:
    """Median, least and most of times in seconds, in milliseconds."""
    return {"ms_median": 1e3 * float(np.median(times)), "ms_min": 1e3 * min(times), "ms_max": 1e3 * max(times)}


def main(_):
    device, jit_compile = train.prepare_device()
    print(device)
    results = {"device": device}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), jit_compile)
        for part in [ONLY.value] if ONLY.value else PARTS:
            results[part] = getattr(bench, part)()
            print(part, json.dumps(results[part], indent=2))
    results["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {results['peak_memory_mib']:,.0f} MiB")
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
