"""Figures of speed: FLOPs against the graph, memory against a process, times against a clock."""

import math
import os
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
import warm
from absl import flags
from absl.testing import flagsaver
from conftest import PROJECT

import bench
import data_utils
from support import cli, files
from training import costs, scoring
from training.settings import settings_of_flags
from training.trainer import Trainer, build_network

flags.FLAGS(["bench.py"])
SMALL = dict(architecture="ss", d_model=16, num_heads=2, d_ffn=48, mem_len=8, cutoffs=[100, 3000])


def matrix_product_flops(graph) -> int:
    """2 m n k of every matrix product in a graph."""
    total = 0
    for op in graph.get_operations():
        if op.type in ("MatMul", "BatchMatMulV2"):
            transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
            k = op.inputs[0].shape[-2 if transposed else -1]
            total += 2 * math.prod(op.outputs[0].shape) * k
    return total


@pytest.mark.parametrize("settings", [
    {"architecture": "ss"}, {"architecture": "ad"}, {"architecture": "ia", "proj_factor": 1},
    {"architecture": "a", "tie_embeddings": True}], ids=str)
def test_the_flops_are_those_of_the_matrix_products_in_the_graph(settings):
    with flagsaver.flagsaver(**SMALL | settings):
        settings = settings_of_flags(bench.architecture())
        model = build_network(settings, bench.VOCAB_SIZE.value, static_shapes=True)
        window = tf.TensorSpec([bench.BATCH_SIZE.value, bench.SEQ_LEN.value + 1], tf.int32)
        memory = tf.TensorSpec(model.empty_memory(bench.BATCH_SIZE.value).shape, tf.float32)
        loss = tf.function(lambda window, memory: scoring.window_nll(model, window, memory, 0, 1.0))
        graph = loss.get_concrete_function(window, memory).graph
        every_token_in_every_tail = np.zeros(bench.VOCAB_SIZE.value)  # as static shapes compute it
        every_token_in_every_tail[[100, 3000]] = 1
        tokens, attentions = bench.BATCH_SIZE.value * bench.SEQ_LEN.value, model.num_memories
        # Not counted: what the positions are padded with before the relative shift.
        padding = 2 * attentions * (tokens * 16 + 16 * 16)
        sizes = bench.BATCH_SIZE.value, bench.SEQ_LEN.value
        flops = costs.flops(model, *sizes, every_token_in_every_tail)
        assert flops == matrix_product_flops(graph) - padding


def test_zipf_data_are_data(tmp_path):
    metadata, probability = bench.zipf_data(tmp_path, bench.BATCH_SIZE.value)
    windows = list(data_utils.load_windows(tmp_path, "train", metadata).as_numpy_iterator())
    shape = bench.BATCH_SIZE.value, bench.SEQ_LEN.value + 1
    assert len(windows) == 100 and windows[0].shape == shape
    assert min(window.min() for window in windows) >= 4
    counts = np.loadtxt(tmp_path / "unigram_counts.txt")
    assert (
        probability.sum() == pytest.approx(1)
        and counts[:4].sum() == 0
        and counts[4] / counts.sum() == pytest.approx(probability[4], rel=0.1)
    )


def test_every_part_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "NETWORKS", {"dense": "d", "mixed": "ai"})
    monkeypatch.setattr(bench, "WORDS", 40_000)
    with flagsaver.flagsaver(
        **SMALL
        | {"repeats": 2, "batch_size": 8, "seq_len": 16, "json": str(tmp_path / "bench.json")}
    ):
        bench.main(None)
    results = files.read_json(tmp_path / "bench.json")
    assert (
        results.keys() == {"device", *bench.PARTS, "peak_memory_mib"}
        and results["peak_memory_mib"] > 100
    )
    assert results["networks"].keys() == {"dense", "mixed"}
    for part in (
        results["train_step"],
        *results["networks"].values(),
        results["evaluation"],
        results["generation"],
    ):
        assert "float32" in part and part.keys() <= {"float32", "bfloat16"}
        for figures in part.values():
            assert 0 < figures["ms_min"] <= figures["ms_median"] <= figures["ms_max"]
    for step in (results["train_step"]["float32"], results["networks"]["mixed"]["float32"]):
        assert step["gflop_per_second"] == pytest.approx(step["gflop"] / step["ms_median"] * 1e3)
        assert step["tokens_per_second"] == pytest.approx(8 * 16 / step["ms_median"] * 1e3)
        assert step["fraction_of_peak"] == pytest.approx(
            step["gflop_per_second"] / step["peak_gflop_per_second"], rel=0.5
        )
    assert results["evaluation"]["float32"]["tokens_per_second"] == pytest.approx(
        8 * 16 / results["evaluation"]["float32"]["ms_median"] * 1e3
    )
    assert (
        results["generation"]["float32"]["ms_median"]
        <= results["generation"]["float32"]["ms_p95"]
        <= results["generation"]["float32"]["ms_p99"]
    )
    assert (
        results["tokenizing"]["tokens_per_second"] > 40_000 / results["tokenizing"]["ms_max"] * 1e3
        and results["reading"]["ms_median"] > 0
    )


def test_on_a_gpu_the_step_is_measured_by_rows_and_by_steps_sent_together(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BATCHES", (1, 2))
    sent = []

    def trained(trainer, num_steps):
        assert trainer.jit_compile
        sent.append((trainer.metadata["batch_size"], trainer.steps_per_execution, num_steps))
        return 0.25 * num_steps

    monkeypatch.setattr(Trainer, "train", trained)
    with flagsaver.flagsaver(**SMALL | {"repeats": 2, "batch_size": 8, "seq_len": 16}):
        settings = settings_of_flags(bench.architecture())
        assert bench.Bench(tmp_path / "cpu", settings, jit_compile=False).batches() == {}
        results = bench.Bench(tmp_path / "gpu", settings, jit_compile=True).batches()
    assert sent == [(rows, together, 20) for rows in (8, 16) for together in (1, 20)
                    for _ in range(3)]
    figures = results["16 rows, 20 steps together"]
    assert len(results) == 4 and figures["ms_median"] == pytest.approx(250)
    assert figures["tokens_per_second"] == pytest.approx(16 * 16 / 0.25)
    assert figures["seconds_per_epoch"] == pytest.approx(2_639_537 / (16 * 16 / 0.25))


def test_the_peak_is_that_of_all_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "seconds", lambda function: 0.5)
    monkeypatch.setattr(cli, "CORES", 3)
    with flagsaver.flagsaver(**SMALL | {"repeats": 1}):
        monkeypatch.setattr(bench, "matrix_products", lambda dtype: None)
        monkeypatch.setattr(Trainer, "train", lambda trainer, num_steps: 0.25 * num_steps)
        step = bench.Bench(tmp_path, settings_of_flags(bench.architecture()), False)._train_step()
    assert step["ms_median"] == step["ms_min"] == step["ms_max"] == pytest.approx(250)
    assert step["peak_gflop_per_second"] == pytest.approx(3 * 2 * 2048**3 / 0.5 / 1e9)
    assert step["fraction_of_peak"] == pytest.approx(
        step["gflop_per_second"] / step["peak_gflop_per_second"]
    )


@pytest.mark.parametrize("faster", [False, True])
def test_bfloat16_is_measured_where_its_products_are_faster(faster, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "matrix_products", lambda dtype: dtype)
    monkeypatch.setattr(
        bench, "seconds", lambda dtype: 2.0 if (dtype == "bfloat16") == faster else 3.0
    )
    measure = bench.Bench(tmp_path, settings_of_flags(bench.architecture()), False)._each_dtype
    measured = measure(lambda: keras.config.dtype_policy().name)
    assert measured == {"float32": "float32"} | ({"bfloat16": "mixed_bfloat16"} if faster else {})
    assert keras.config.dtype_policy().name == "float32"


def test_one_part_alone(tmp_path):
    with flagsaver.flagsaver(
        **SMALL | {"repeats": 1, "only": "reading", "json": str(tmp_path / "bench.json")}
    ):
        bench.main(None)
    assert files.read_json(tmp_path / "bench.json").keys() == {
        "device",
        "reading",
        "peak_memory_mib",
    }


SIZES = "--seq_len=128 --mem_len=128 --vocab_size=2000 --cutoffs=250"


@pytest.mark.parametrize(
    "fixed, less, more",
    [
        ("--d_model=256 --architecture=ssss", "--batch_size=2", "--batch_size=20"),
        ("--d_model=256 --architecture=dddd --batch_size=2", "--d_ffn=1024", "--d_ffn=8192"),
    ],
)
def test_memory_grows_as_the_formula_says(fixed, less, more):
    peaks, predicted = zip(*(measured_memory(f"{SIZES} {fixed} {flag}") for flag in (less, more)))
    assert predicted[1] - predicted[0] > 200e6
    assert (peaks[1] - peaks[0]) / (predicted[1] - predicted[0]) == pytest.approx(1, abs=0.25)


def measured_memory(given):
    """Bytes that a process has at most which trains, and what the formula says."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [*warm.PYTHON, PROJECT / "tests" / "programs" / "peak_memory.py", *given.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]
