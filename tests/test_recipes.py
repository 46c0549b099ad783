"""The rank correlation of a search, against known numbers."""

import numpy as np
import pytest
from commands import one_line, run_command

from evaluate import evaluate_run
from recipes import rank_correlation
from support import files
from training.trained_run import TrainedRun


def test_rank_correlations_are_those_of_their_formulas():
    """Spearman 1904: 1 - 6 sum d^2 / (P (P^2 - 1)). Kendall 1938: pairs counted one by one."""
    rng = np.random.default_rng(0)
    for P in (3, 4, 20):
        x, y = rng.permutation(P), rng.permutation(P)
        expected = 1 - 6 * np.sum((x - y)**2) / (P * (P**2 - 1))
        assert rank_correlation.spearman(x, y**3) == pytest.approx(expected)
        agree = [(x[i] < x[j]) == (y[i] < y[j]) for i in range(P) for j in range(i)]
        assert rank_correlation.kendall(x, y**3) == pytest.approx(2 * np.mean(agree) - 1)
    # The ranks are 1, 2.5, 2.5, 4 and 1, 2, 3, 4: the correlation is 4.5 / sqrt(4.5 x 5).
    assert rank_correlation.spearman([7, 8, 8, 9], range(4)) == pytest.approx(0.9**0.5)


def test_subnetworks_are_ranked_against_networks_trained_alone(search_run, tmp_path):
    bits = {"one": ("aa", 1.0), "two": ("ad", 1.5), "three": ("di", 2.0), "again": ("ad", 3.5),
            "longer": ("aai", 1.0)}
    for name, (letters, alone) in bits.items():
        (tmp_path / name).mkdir()
        files.write_json(tmp_path / name / "results.json", {
            "architecture": letters, "valid": {"bits_per_byte": alone}})

    def rank(*names):
        folders = ",".join(str(tmp_path / name) for name in names)
        return run_command(
            rank_correlation, f"--search={search_run}", f"--run={folders}", "--num_windows=999")

    done = rank("one", "two", "three", "again")
    assert done.returncode == 0, done.stderr
    _, *lines, last = done.stdout.splitlines()
    rows = [line.split() for line in lines]
    assert [row[:2] for row in rows] == [["aa", "1.0000"], ["di", "2.0000"], ["ad", "2.5000"]]
    for letters, _, loss in rows:
        whole = evaluate_run(TrainedRun(search_run), architecture=letters)["loss"]
        assert float(loss) == pytest.approx(whole, abs=0.05)  # here, rows do not read ahead
    within = [float(row[2]) for row in rows]
    expected = rank_correlation.spearman(within, [1, 2, 2.5])
    assert last.startswith(f"rank correlation of 3 networks: Spearman {expected:.3f}, Kendall ")
    assert "at least three networks" in one_line(rank("one", "two", "again"))
    assert "does not contain aai" in one_line(rank("one", "two", "three", "longer"))
