import json
import math

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import bench
import data_utils
import train

flags.FLAGS(["bench.py"])
SMALL = dict(num_layers=2, d_model=16, num_heads=2, d_ffn=48, mem_len=8, cutoffs=["100,3000"])


def matrix_product_flops(graph) -> int:
    """2 m n k of every matrix product in a graph."""
    total = 0
    for op in graph.get_operations():
        if op.type in ("MatMul", "BatchMatMulV2"):
            transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
            k = op.inputs[0].shape[-2 if transposed else -1]
            total += 2 * math.prod(op.outputs[0].shape) * k
    return total


@pytest.mark.parametrize("architecture", [["search", "search"], ["attention", "dense"], ["identity", "attention"]], ids=", ".join)
def test_the_flops_are_those_of_the_matrix_products_in_the_graph(architecture):
    with flagsaver.flagsaver(**SMALL | {"architecture": architecture}):
        model = train.build_model(bench.VOCAB_SIZE, static_shapes=True)
        window = tf.TensorSpec([bench.BATCH_SIZE, bench.SEQ_LEN + 1], tf.int32)
        memory = tf.TensorSpec(model.empty_memory(bench.BATCH_SIZE).shape, tf.float32)
        graph = tf.function(lambda window, memory: train.window_nll(model, window, memory, 0, 1.0)).get_concrete_function(window, memory).graph
        every_token_in_every_tail = np.zeros(bench.VOCAB_SIZE)  # as static shapes compute it
        every_token_in_every_tail[[100, 3000]] = 1
        tokens, attentions = bench.BATCH_SIZE * bench.SEQ_LEN, model.num_memories
        biases = 2 * tokens * sum(kernel.shape[1] for kernel in [model.softmax.head, *model.softmax.outputs])  # last rows of the kernels
        padding = 2 * attentions * (tokens * 16 + 16 * 16)  # of the positions, before the relative shift
        assert bench.step_flops(model, every_token_in_every_tail) == 3 * (matrix_product_flops(graph) - biases - padding)


def test_zipf_data_are_data(tmp_path):
    metadata, probability = bench.zipf_data(tmp_path)
    windows = list(data_utils.load_windows(tmp_path, "train", metadata).as_numpy_iterator())
    assert len(windows) == 100 and windows[0].shape == (bench.BATCH_SIZE, bench.SEQ_LEN + 1) and min(window.min() for window in windows) >= 4
    counts = np.loadtxt(tmp_path / "unigram_counts.txt")
    assert probability.sum() == pytest.approx(1) and counts[:4].sum() == 0 and counts[4] / counts.sum() == pytest.approx(probability[4], rel=0.1)


def test_every_part_is_measured(tmp_path, capsys):
    with flagsaver.flagsaver(**SMALL | {"repeats": 2, "json": str(tmp_path / "bench.json")}):
        bench.main(None)
    results = json.loads((tmp_path / "bench.json").read_text())
    steps = [*results["train_step"].values(), *results["networks"].values()]
    assert results["train_step"].keys() == {"float32", "bfloat16"} and results["networks"].keys() == {"attention", "dense"}
    for step in steps:
        assert 0 < step["ms_min"] <= step["ms_median"] <= step["ms_max"]
        assert step["gflop_per_second"] == pytest.approx(step["gflop"] / step["ms_median"] * 1e3)
        assert step["fraction_of_peak"] == pytest.approx(step["gflop_per_second"] / step["peak_gflop_per_second"], rel=0.5)
    assert results["evaluation"]["ms_median"] > 0 and results["reading"]["ms_median"] > 0 and results["peak_memory_mib"] > 100
    assert results["generation"]["ms_median"] <= results["generation"]["ms_p95"] <= results["generation"]["ms_p99"]
    assert train.ARCHITECTURE.value == ["search"]


def test_one_part_alone(tmp_path):
    with flagsaver.flagsaver(**SMALL | {"repeats": 1, "only": "reading", "json": str(tmp_path / "bench.json")}):
        bench.main(None)
    assert json.loads((tmp_path / "bench.json").read_text()).keys() == {"device", "reading", "peak_memory_mib"}
