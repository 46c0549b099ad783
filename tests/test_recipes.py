"""The measurements of the recipes, against known numbers."""

import numpy as np
import pytest
from commands import one_line, run_command

from recipes import rank_correlation
from support import files


def test_the_rank_correlation_is_that_of_the_squared_distances():
    """Spearman 1904: without equal ranks it is 1 - 6 sum d^2 / (P (P^2 - 1))."""
    rng = np.random.default_rng(0)
    for P in (3, 4, 20):
        x, y = rng.permutation(P), rng.permutation(P)
        expected = 1 - 6 * np.sum((x - y)**2) / (P * (P**2 - 1))
        assert rank_correlation.spearman(x, y**3) == pytest.approx(expected)


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
