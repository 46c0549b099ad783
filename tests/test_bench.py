"""Speed figures: FLOPs against the graph, times and rates against each other."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import bench
import data_utils
from support import cli
from training import costs, scoring
from training.trainer import Trainer, build_network

flags.FLAGS(["bench.py"])
SMALL = dict(architecture="ss", d_model=16, num_heads=2, d_ffn=48, mem_len=8, cutoffs=[100, 3000])


@pytest.fixture(autouse=True)
def small():
    with flagsaver.flagsaver(**SMALL, repeats=2, batch_size=8, seq_len=16):
        yield
    keras.config.set_dtype_policy("float32")


def matrix_product_flops(graph) -> int:
    """2 m n k of every matrix product in a graph."""
    total = 0
    for op in graph.get_operations():
        if op.type in ("MatMul", "BatchMatMulV2"):
            transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
            k = op.inputs[0].shape[-2 if transposed else -1]
            total += 2 * math.prod(op.outputs[0].shape) * k
    return total


@pytest.mark.parametrize("changes", [
    {"architecture": "ss"}, {"architecture": "ad"}, {"architecture": "ia", "proj_factor": 1},
    {"architecture": "a", "tie_embeddings": True}], ids=str)
def test_the_flops_are_those_of_the_matrix_products_in_the_graph(changes):
    with flagsaver.flagsaver(**changes):
        model = build_network(bench.settings(), 12_000, static_shapes=True)
    window = tf.TensorSpec([8, 16 + 1], tf.int32)
    memory = tf.TensorSpec(model.empty_memory(8).shape, tf.float32)
    loss = tf.function(lambda window, memory: scoring.window_nll(model, window, memory, 0, 1.0))
    graph = loss.get_concrete_function(window, memory).graph
    every_token_in_every_tail = np.zeros(12_000)  # as static shapes compute it
    every_token_in_every_tail[[100, 3000]] = 1
    # Not counted: the padding of positions before the relative shift.
    padding = 2 * model.num_memories * (8 * 16 * 16 + 16 * 16)
    flops = costs.flops(model, 8, 16, every_token_in_every_tail)
    assert flops == matrix_product_flops(graph) - padding


def test_zipf_data_are_data(tmp_path):
    metadata, probability = bench.zipf_data(tmp_path)
    windows = list(data_utils.load_windows(tmp_path, "train", metadata).as_numpy_iterator())
    assert len(windows) == 100 and windows[0].shape == (8, 16 + 1)
    assert min(window.min() for window in windows) >= 4
    counts = np.loadtxt(tmp_path / "unigram_counts.txt")
    assert probability.sum() == pytest.approx(1) and counts[:4].sum() == 0
    assert counts[:100].sum() / counts.sum() == pytest.approx(probability[:100].sum(), rel=0.05)


def test_every_part_is_measured(capsys):
    bench.main(None)
    results = json.loads(capsys.readouterr().out)
    assert results.keys() == {"device", *bench.PARTS, "peak_memory_mib"}
    assert results["peak_memory_mib"] > 100
    for part, tokens in (("train_step", 8 * 16), ("evaluation", 8 * 16), ("generation", 1)):
        assert "float32" in results[part]
        for figures in results[part].values():
            assert 0 < figures["ms_min"] <= figures["ms_median"] <= figures["ms_max"]
            speed = 1e3 * tokens / figures["ms_median"]
            assert figures["tokens_per_second"] == pytest.approx(speed)
    step, generation = results["train_step"]["float32"], results["generation"]["float32"]
    assert step["gflop_per_second"] == pytest.approx(step["gflop"] / step["ms_median"] * 1e3)
    assert generation["ms_median"] <= generation["ms_p95"] <= generation["ms_p99"]


def test_the_peak_is_that_of_all_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "seconds", lambda function: 0.5)
    monkeypatch.setattr(cli, "CORES", 3)
    monkeypatch.setattr(bench, "matrix_products", lambda dtype: None)
    monkeypatch.setattr(Trainer, "train", lambda trainer, num_steps: 0.25 * num_steps)
    step = bench.Bench(tmp_path, bench.settings(), False).train_step()
    assert step["ms_median"] == step["ms_min"] == step["ms_max"] == pytest.approx(250)
    assert step["peak_gflop_per_second"] == pytest.approx(3 * 2 * 2048**3 / 0.5 / 1e9)
    assert step["fraction_of_peak"] == pytest.approx(
        step["gflop_per_second"] / step["peak_gflop_per_second"])


@pytest.mark.parametrize("faster", [False, True])
def test_bfloat16_is_measured_if_its_products_are_faster(faster, monkeypatch):
    monkeypatch.setattr(bench, "matrix_products", lambda dtype: dtype)
    monkeypatch.setattr(
        bench, "seconds", lambda dtype: 2.0 if (dtype == "bfloat16") == faster else 3.0)
    assert bench.precisions() == ["float32"] + ["bfloat16"] * faster


def test_one_part_alone_in_each_precision(capsys, monkeypatch):
    monkeypatch.setattr(bench, "precisions", lambda: ["float32", "bfloat16"])
    monkeypatch.setattr(
        bench.Bench, "generation", lambda _: {"policy": keras.config.dtype_policy().name})
    with flagsaver.flagsaver(only="generation"):
        bench.main(None)
    assert json.loads(capsys.readouterr().out)["generation"] == {
        "float32": {"policy": "float32"}, "bfloat16": {"policy": "mixed_bfloat16"}}
