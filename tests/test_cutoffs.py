"""The cheapest cutoffs, against brute force."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from commands import one_line, run_command
from conftest import PROJECT

import adaptive_softmax
import cutoffs
import data_utils
from support.errors import InputError


def plain_cost(probability, widths, starts):
    """Multiply-adds per token, token by token and id by id."""
    bounds, D = [0, *starts, len(probability)], widths[0]
    total = D * (bounds[1] + len(starts))
    for width, first, end in zip(widths[1:], bounds[1:], bounds[2:]):
        for y in range(first, end):
            total += probability[y] * (width * (end - first) + (D * width if width != D else 0))
    return total


def random_problem(rng, clusters, size):
    probability = rng.random(size) ** 4
    probability[rng.random(size) < 0.2] = 0  # ids that never occur
    probability[0] += 0.1
    if rng.random() < 0.5:
        probability = np.sort(probability)[::-1]
    return probability / probability.sum(), rng.choice([1, 2, 8, 32], clusters).tolist()


@pytest.mark.parametrize("clusters", [1, 2, 3, 4, 5])
def test_no_cutoffs_are_cheaper(clusters):
    rng = np.random.default_rng(clusters)
    for _ in range(100):
        size = int(rng.integers(clusters, 13))
        probability, widths = random_problem(rng, clusters, size)
        found = cutoffs.cheapest_cutoffs(probability, widths)
        assert len(found) == clusters - 1
        assert all(a < b for a, b in zip([0, *found], [*found, size]))
        every = itertools.combinations(range(1, size), clusters - 1)
        least = min(plain_cost(probability, widths, starts) for starts in every)
        assert plain_cost(probability, widths, found) == pytest.approx(least, rel=1e-12)
        layer = [cutoffs.Cluster(*each) for each in zip([0, *found], [*found, size], widths)]
        assert cutoffs.multiply_adds(layer, probability) == pytest.approx(least, rel=1e-12)


def test_a_large_vocabulary_has_no_cheaper_neighbours():
    probability = 1 / np.arange(1, 50_001)
    probability, widths = probability / probability.sum(), [512, 128, 32, 8]
    found = cutoffs.cheapest_cutoffs(probability, widths)

    def cost(starts):
        return cutoffs.multiply_adds(cutoffs.clusters_of(512, 50_000, starts, 4), probability)

    for i, shift in itertools.product(range(3), (-1, 1)):
        moved = [cutoff + shift * (i == j) for j, cutoff in enumerate(found)]
        assert cost(moved) >= cost(found)


@pytest.mark.parametrize("clusters, proj_factor", [(1, 4), (4, 4), (5, 3), (3, 1)])
def test_the_widths_are_those_of_the_layer(clusters, proj_factor):
    layer = adaptive_softmax.AdaptiveSoftmax(50, 20, list(range(1, clusters)), proj_factor)
    widths = [rows.shape[1] for rows in layer.table.rows]
    assert cutoffs.cluster_widths(clusters, 50, proj_factor) == widths


@pytest.mark.parametrize("content", ["", "a\nb\n", "1\n-2\n", "0\n0\n", "1 2\n3 4\n", "nan\n1\n"])
def test_a_file_without_counts_is_refused(content, tmp_path):
    (tmp_path / "counts.txt").write_text(content)
    with pytest.raises(InputError, match="counts.txt"):
        data_utils.read_counts(tmp_path / "counts.txt")


def test_the_command_prints_the_flag_for_training(tmp_path):
    counts = (1000 / np.arange(1, 501)).astype(int)
    np.savetxt(tmp_path / "counts.txt", counts, fmt="%d")
    given = [f"--counts_file={tmp_path}/counts.txt", "--d_model=64"]
    done = run_command(cutoffs, *given, "--proj_factor=2")
    probability, widths = counts / counts.sum(), [64, 32, 16]
    found = [cutoffs.cheapest_cutoffs(probability, widths[:n]) for n in (1, 2, 3)]
    assert done.returncode == 0 and done.stdout == f"--cutoffs={found[2][0]},{found[2][1]}\n"
    for line, number, each in zip(done.stderr.splitlines()[1:], (1, 2, 3), found, strict=True):
        cost = f"{plain_cost(probability, widths, each):,.0f}"
        assert line.split() == [str(number), cost, ",".join(map(str, each)) or "none"]
    assert run_command(cutoffs, *given, "--clusters=1").stdout == "--cutoffs=\n"


def test_the_command_does_not_load_tensorflow():
    program = "import sys, cutoffs; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT).returncode == 0


@pytest.mark.parametrize("bad, message", [
    ("--counts_file=missing", "no counts in missing"), ("--clusters=4", "is more than the 3 ids")])
def test_bad_flags_end_in_one_line(bad, message, tmp_path):
    (tmp_path / "counts.txt").write_text("3\n2\n1\n")
    assert message in one_line(
        run_command(cutoffs, f"--counts_file={tmp_path}/counts.txt", bad))
