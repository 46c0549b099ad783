"""Measures speed, beside the machine's peak in the same process.

The parts are training, evaluation, generation, tokenizing and reading.

    python bench.py --json=figures.json
    python bench.py --only=train_step --d_model=256

B batch, T sequence length, M memory length, C = M + T context, D model width, F dense width, V
vocabulary. Data are random ids, or made-up words, with Zipf's distribution, so nothing has to be
downloaded or made; the network is the default experiment unless the flags say otherwise. The peak
is what large matrix products of the same dtype, one for each core, reach in turn with the training
steps. bfloat16 is measured where its peak is the higher one.

Model FLOPs of a training step are those of `costs.flops` three times: forward, and two products
backward for each.
"""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from support import cli
from training.settings import SEARCH, Settings, define_settings, settings_of_flags

PARTS = ("train_step", "batches", "networks", "evaluation", "generation", "tokenizing", "reading")

JSON = cli.define_path("json", None, "write the figures to this file")
ONLY = flags.DEFINE_enum("only", None, PARTS, "measure this part alone")
REPEATS = flags.DEFINE_integer("repeats", 9, "how often each part is measured", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "B, rows side by side", lower_bound=1)
SEQ_LEN = flags.DEFINE_integer("seq_len", 32, "T, tokens per row and step", lower_bound=1)
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 12_000, "V, ids", lower_bound=5)


def define_flags():
    flags.DEFINE_string("architecture", SEARCH, "search, in six blocks; or a letter for each "
                        "block of a fixed network")
    flags.register_validator(
        "architecture", lambda text: text == SEARCH or set(text) <= set(letters()),
        "must be search or letters of layers")
    define_settings(first="d_model", last="tie_embeddings")
    define_settings(first="accumulate")


cli.begin(__name__, define_flags)

with cli.quiet():
    import keras
    import tensorflow as tf

    import data_utils
    from layers import from_letters, letters
    from support import corpora, devices, files, tokenization
    from support.timing import peak_mebibytes, seconds
    from training import costs
    from training.scoring import Evaluator
    from training.trainer import PREFETCHED, Trainer, build_network
    from training.writer import Writer, memory_length

NETWORKS = {  # besides the SuperNet; of six blocks
    "attention": "aaaaaa",
    "mixed": "adaddd",  # attention seldom, and early, as the paper found
    "dense": "dddddd",
}
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
STEPS = 20  # of training, in one measurement
BATCHES = (1, 4, 16)  # times the batch
WIKITEXT_2 = 2_639_537  # training tokens of the default experiment
WORDS = 400_000  # of the text to tokenize


class Bench:
    """The parts that can be measured, on data in a folder; each returns its figures."""

    def __init__(self, folder: Path, settings: Settings, jit_compile: bool):
        self._folder, self._settings, self._jit_compile = folder, settings, jit_compile
        self._metadata, self._probability = zipf_data(folder, BATCH_SIZE.value)
        self._products = {dtype: matrix_products(dtype) for dtype in POLICIES}
        faster = seconds(self._products["bfloat16"]) < seconds(self._products["float32"])
        self._dtypes = ["float32", "bfloat16"] if faster else ["float32"]

    def train_step(self) -> dict:
        """The training step, in turn with the peak."""
        return self._each_dtype(self._train_step)

    def batches(self) -> dict:
        """The training step on a GPU by rows, and by how many steps are sent to it together."""
        results = {}
        if not self._jit_compile:
            return results
        for factor in BATCHES:
            folder, rows = self._folder / f"times_{factor}", factor * BATCH_SIZE.value
            metadata, _ = zipf_data(folder, rows)
            for together in (1, STEPS):
                trainer = Trainer(folder, metadata, self._settings, self._jit_compile,
                                  steps_per_execution=together)
                trainer.train(STEPS)
                times = [trainer.train(STEPS) / STEPS for _ in range(REPEATS.value)]
                speed = rows * SEQ_LEN.value / np.median(times)
                results[f"{rows} rows, {together} steps together"] = spread(times) | {
                    "tokens_per_second": speed, "seconds_per_epoch": WIKITEXT_2 / speed}
        return results

    def networks(self) -> dict:
        """The training step of networks without search."""
        results = {}
        for name, architecture in NETWORKS.items():
            kinds = from_letters(architecture)
            results[name] = self._each_dtype(lambda: self._train_step(architecture=kinds))
        return results

    def evaluation(self) -> dict:
        """Evaluation, per window."""
        return self._each_dtype(self._evaluation)

    def generation(self) -> dict:
        """The most probable next token, one at a time, for one row, with memory carried along."""
        return self._each_dtype(self._generation)

    def tokenizing(self) -> dict:
        """Text to tokens, as make_data.sh does it, by all cores."""
        path, model = self._folder / "text.txt", self._folder / "tokenizer.model"
        path.write_text(zipf_text())
        text = corpora.whole_file(path)
        settings = tokenization.Settings(vocab_size=2000)
        model.write_bytes(tokenization.train_tokenizer(text, settings))
        tokenizer = tokenization.Tokenizer(model)

        def tokenize() -> int:
            blocks = data_utils.token_blocks(text, tokenizer, add_eos=False)
            return sum(len(ids) for ids, *_ in blocks)

        num_tokens = tokenize()
        times = [seconds(tokenize) for _ in range(REPEATS.value)]
        return spread(times) | {"tokens_per_second": num_tokens / np.median(times)}

    def reading(self) -> dict:
        """Reading TFRecords, per window."""
        windows = data_utils.load_windows(self._folder, "train", self._metadata)
        dataset = windows.prefetch(PREFETCHED)
        steps = self._metadata["splits"]["train"]["steps"]

        def read():
            dataset.reduce(0, lambda count, window: count + 1)

        times = [seconds(read) / steps for _ in range(REPEATS.value)]
        return spread(times) | {"tokens_per_second": window_tokens() / np.median(times)}

    def _each_dtype(self, measure) -> dict:
        results = {}
        for dtype in self._dtypes:
            keras.config.set_dtype_policy(POLICIES[dtype])
            results[dtype] = measure()
        keras.config.set_dtype_policy("float32")
        return results

    def _train_step(self, **changes) -> dict:
        settings = dataclasses.replace(self._settings, **changes)
        trainer = Trainer(self._folder, self._metadata, settings, self._jit_compile)
        trainer.train(STEPS)
        times, peaks = [], []
        for _ in range(REPEATS.value):
            times.append(trainer.train(STEPS) / STEPS)
            products = self._products[trainer.model.compute_dtype]
            peaks.append(cli.CORES * 2 * 2048**3 / seconds(products))
        rows = BATCH_SIZE.value // settings.accumulate
        flops = 3 * costs.flops(trainer.model, BATCH_SIZE.value, SEQ_LEN.value, self._probability)
        memory = costs.training_memory(trainer.model, rows, SEQ_LEN.value, self._probability)
        return spread(times) | {
            "tokens_per_second": window_tokens() / np.median(times),
            "gflop": flops / 1e9,
            "gflop_per_second": flops / np.median(times) / 1e9,
            "peak_gflop_per_second": np.median(peaks) / 1e9,
            "fraction_of_peak": np.median(flops / np.array(times) / np.array(peaks)),
            "parameters": trainer.model.count_params(),
            "memory_mib": memory / 2**20,  # in float32
        }

    def _evaluation(self) -> dict:
        evaluator = Evaluator(self._network(), self._jit_compile)
        stream = data_utils.load_stream(self._folder, "train", self._metadata)
        times = []
        for _ in range(REPEATS.value + 1):
            score = evaluator(stream, BATCH_SIZE.value, SEQ_LEN.value, 1.0)
            times.append(np.mean(score.seconds))
        times = times[1:]  # not the first
        return spread(times) | {"tokens_per_second": window_tokens() / np.median(times)}

    def _generation(self) -> dict:
        mem_len = memory_length(self._settings.mem_len, SEQ_LEN.value)
        writer = Writer(self._network(), mem_len, self._jit_compile)
        num_tokens = 10 + 40 * REPEATS.value
        tokens = writer.write([5], num_tokens, seed=0, temperature=0)
        times = [seconds(lambda: next(tokens)) for _ in range(num_tokens)][10:]
        return spread(times) | {
            "ms_p95": 1e3 * float(np.percentile(times, 95)),
            "ms_p99": 1e3 * float(np.percentile(times, 99)),
            "tokens_per_second": 1 / np.median(times),
        }

    def _network(self):
        return build_network(self._settings, VOCAB_SIZE.value, static_shapes=self._jit_compile)


def architecture() -> list[str]:
    """The kind of each block of the network, but for the part `networks`."""
    text = flags.FLAGS.architecture or SEARCH
    return [SEARCH] * 6 if text == SEARCH else from_letters(text)


def window_tokens() -> int:
    """The tokens of a window, or of a training step."""
    return BATCH_SIZE.value * SEQ_LEN.value


def zipf(size: int) -> np.ndarray:
    """Zipf's distribution over ranks 10, 11 ..., which suits the pieces of a tokenizer: [size]."""
    probability = 1 / np.arange(10, 10 + size)
    return probability / probability.sum()


def zipf_data(folder: Path, B: int) -> tuple[dict, np.ndarray]:
    """Windows of random ids with Zipf's distribution, as make_data.sh leaves them.

    Returns:
      Metadata, and probabilities [V].
    """
    T, steps = SEQ_LEN.value, 100
    folder.mkdir(exist_ok=True)
    probability = np.concatenate([np.zeros(4), zipf(VOCAB_SIZE.value - 4)])  # no special ids
    num_tokens = B * (steps * T + 1)
    rng = np.random.default_rng(0)
    stream = rng.choice(VOCAB_SIZE.value, num_tokens, p=probability).astype(np.int32)
    records = data_utils.write_records(stream, B, T, 1, folder / "train")
    counts = np.bincount(stream, minlength=VOCAB_SIZE.value)  # [V]
    np.savetxt(folder / "unigram_counts.txt", counts, fmt="%d")
    split = {"steps": steps, "tokens": num_tokens, "words": num_tokens, "bytes": num_tokens}
    metadata = {
        "batch_size": B, "seq_len": T, "vocab_size": VOCAB_SIZE.value, "splits": {"train": split},
        "sha256": {f"train/{path.name}": "" for path in records},
    }
    return metadata, probability


def zipf_text() -> str:
    """`WORDS` words in lines of 20: 20,000 different ones, made up, with Zipf's distribution."""
    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlcumwfgypbvkjxqz"))
    lengths = rng.integers(2, 10, 20_000)
    vocabulary = ["".join(rng.choice(letters, length, p=zipf(26))) for length in lengths]
    words = rng.choice(vocabulary, WORDS, p=zipf(20_000))
    return "".join(" ".join(line) + "\n" for line in words.reshape(-1, 20))


def matrix_products(dtype: str):
    """A function that multiplies matrices of 2048 x 2048, a pair for each core side by side."""
    matrices = [tf.random.stateless_normal([2048, 2048], [1, i], dtype=dtype)
                for i in range(cli.CORES)]

    @tf.function
    def products():
        return tf.add_n([tf.matmul(matrix, matrix)[0, 0] for matrix in matrices])

    products()
    return lambda: products().numpy()


def spread(times: list[float]) -> dict:
    """Median, least and most of times in seconds, in milliseconds."""
    return {
        "ms_median": 1e3 * float(np.median(times)),
        "ms_min": 1e3 * min(times),
        "ms_max": 1e3 * max(times),
    }


def main(_):
    path = None if JSON.value in (None, os.devnull) else Path(JSON.value)
    if path:
        files.check_own(path)
        with files.named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    device, jit_compile = devices.prepare(mixed_precision=False)
    print(device)
    results = {"device": device}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), settings_of_flags(architecture()), jit_compile)
        for part in [ONLY.value] if ONLY.value else PARTS:
            results[part] = getattr(bench, part)()
            print(part, json.dumps(results[part], indent=2))
    results["peak_memory_mib"] = peak_mebibytes()
    if tf.config.list_physical_devices("GPU"):
        memory = tf.config.experimental.get_memory_info("GPU:0")
        results["peak_gpu_memory_mib"] = memory["peak"] / 2**20
    for name, value in results.items():
        if name.startswith("peak"):
            print(f"{name} {value:,.0f}")
    if path:
        files.write_json(path, results)


if __name__ == "__main__":
    cli.run(main)
