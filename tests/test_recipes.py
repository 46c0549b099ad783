"""The measurements of the recipes, against known numbers."""

import numpy as np
import pytest
import tensorflow as tf
from commands import one_line, run_command

import data_utils
from evaluate import evaluate_run
from recipes import continuous_cache, pi_gradient, rank_correlation
from support import files
from training.trained_run import TrainedRun


def test_the_size_of_a_gradient_is_separated_from_its_noise():
    rng = np.random.default_rng(0)
    for size in (0.0, 0.3, 2.0):
        gradients = size + rng.normal(size=[20, 6000, 3])  # few windows, many entries
        found, noise, moved = pi_gradient.size_noise_and_step(gradients)
        assert found == pytest.approx(size, abs=0.03) and noise == pytest.approx(1, abs=0.03)
        assert moved == pytest.approx(size / np.hypot(size, 1), abs=0.03)


def test_each_temperature_is_measured_with_one_draw_and_with_one_for_each_row(
    search_run, monkeypatch
):
    monkeypatch.chdir(search_run.parent.parent)
    done = run_command(pi_gradient, "--run=logs/supernet", "--num_windows=4", "--tau=1", "--tau=.1")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [line[0] for line in lines] == ["1.00", "1.00", "0.10", "0.10"]
    assert len({line[-2] for line in lines}) == 4


def test_the_gradient_of_theta_is_that_of_finite_differences(search_run, data_dir):
    """At two thetas nearby, with the same draws."""
    model, _ = TrainedRun(search_run).network()
    metadata = data_utils.read_metadata(data_dir)
    windows = list(data_utils.load_windows(data_dir, "train", metadata).take(2).as_numpy_iterator())
    found = pi_gradient.theta_gradients(model, windows, tau=0.7)
    theta, losses = model.theta.numpy(), []
    for change in (-0.01, 0.01):
        moved = theta.copy()
        moved[1, 0] += change
        model.theta.assign(moved)
        draws = pi_gradient.Draws(0, tf.constant(0))
        nll, _ = pi_gradient.window_nll(
            model, tf.constant(windows[0]), model.empty_memory(len(windows[0])), 0, 0.7, draws)
        losses.append(float(tf.reduce_mean(nll)))
    assert found[0, 1, 0] == pytest.approx((losses[1] - losses[0]) / 0.02, rel=0.02, abs=1e-5)


def test_the_rank_correlation_is_that_of_the_squared_distances():
    """Spearman 1904: without equal ranks it is 1 - 6 sum d^2 / (P (P^2 - 1))."""
    rng = np.random.default_rng(0)
    for P in (3, 4, 20):
        x, y = rng.permutation(P), rng.permutation(P)
        expected = 1 - 6 * np.sum((x - y)**2) / (P * (P**2 - 1))
        assert rank_correlation.spearman(x, y**3) == pytest.approx(expected)
    # The ranks are 1, 2.5, 2.5, 4 and 1, 2, 3, 4: the correlation is 4.5 / sqrt(4.5 x 5).
    found = rank_correlation.spearman(np.array([7.0, 8.0, 8.0, 9.0]), np.arange(4.0))
    assert found == pytest.approx(0.9**0.5)


def write_evaluation(run, architecture, bits, within=False, step=9):
    run.mkdir(parents=True, exist_ok=True)
    files.write_json(run / f"evaluation_valid_{architecture}.json", {
        "run": str(run), "step": step, "architecture": architecture, "bits_per_byte": bits,
        "within_search": within, "device": "CPU", "batch_size": 4,
        "word_perplexity": 2**bits, "ms_per_window": {"p50": 1.0}, "flops_per_token": 1.0,
        "parameters": 1, "seq_len": 8, "mem_len": 6, "text": "some"})


def test_subnetworks_are_ranked_against_networks_trained_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logs, search = tmp_path / "logs", tmp_path / "logs" / "search"
    search.mkdir(parents=True)

    def rank(*names):
        runs = ",".join(f"logs/{name}" for name in names)
        return run_command(rank_correlation, "--search=logs/search", f"--run={runs}")

    write_evaluation(logs / "one", "aa", 1.0)
    assert "python choose.py --run=logs/search" in one_line(rank("one"))
    earlier, later = {"aa": 1, "ad": 2, "di": 3}, {"aa": 3, "ad": 1, "di": 4, "id": 2}
    for step, losses in ((5, earlier), (12, later)):
        choices = [{"architecture": name, "loss": loss} for name, loss in losses.items()]
        files.write_json(search / f"choices_step{step}.json", {"step": step, "choices": choices})
    (logs / "two").mkdir()
    assert "python evaluate.py --run=logs/two" in one_line(rank("one", "two"))
    write_evaluation(logs / "two", "ad", 3.0)
    assert "at least three networks" in one_line(rank("one", "two"))
    write_evaluation(logs / "three", "di", 1.5)
    write_evaluation(logs / "four", "id", 2.5)  # the same network
    done = rank("one", "two", "three", "four")
    assert [line.split() for line in done.stdout.splitlines()[1:4]] == [
        ["aa", "1.0000", "3.0000"], ["d", "2.0000", "2.0000"], ["ad", "3.0000", "1.0000"]]
    assert done.stdout.endswith("correlation of 3 networks: -1.000\n"), done.stderr
    write_evaluation(logs / "five", "ii", 1.0)
    assert "logs/search does not contain ii" in one_line(rank("one", "five"))
    write_evaluation(search, "di", 1.0, within=True)
    assert "within a search, or was trained in two ways" in one_line(rank("one", "search"))


def test_the_cache_is_that_of_a_loop_over_what_it_remembers():
    rng = np.random.default_rng(0)
    N, size, thetas = 1200, 700, [0.1, 0.5]  # more than two blocks
    hidden, targets = rng.normal(size=[N, 8]).astype(np.float32), rng.integers(0, 40, N)
    found = continuous_cache.cache_probability(hidden, targets, size, thetas)
    for t in (0, 1, 2, 499, 500, 501, 699, 700, 701, 999, 1000, N - 1):
        for i, theta in enumerate(thetas):
            weight = {True: 0.0, False: 0.0}
            for before in range(max(0, t - size), t):
                scored = np.exp(theta * float(hidden[t].astype(float) @ hidden[before]))
                weight[bool(targets[before] == targets[t])] += scored
            expected = weight[True] / (sum(weight.values()) or 1)
            assert found[i, t] == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_without_a_cache_the_loss_is_that_of_evaluate(search_run, data_dir):
    run, stream = TrainedRun(search_run), data_utils.load_stream(
        data_dir, "valid", data_utils.read_metadata(data_dir))
    model, _ = run.network()
    hidden, nll = continuous_cache.hidden_and_nll(model, stream, run.data["seq_len"])
    assert nll.mean() == pytest.approx(evaluate_run(run)["loss"], rel=1e-5)
    assert np.linalg.norm(hidden, axis=1) == pytest.approx(model.sizes.d_model**0.5, rel=1e-4)
    assert continuous_cache.loss(nll, np.ones(len(nll)), 0.0) == pytest.approx(nll.mean(), rel=1e-6)


def test_the_cache_improves_a_repetitive_text(search_run):
    done = run_command(continuous_cache, f"--run={search_run}", "--size=500")
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines()[2:]:
        _, alone, cached = line.split()
        assert float(cached) < float(alone)
