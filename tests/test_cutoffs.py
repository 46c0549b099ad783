import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import PROJECT

import cutoffs
from support.cli import InputError


def plain_cost(probability, starts, width):
    """The cost of section 4 of Grave et al., id by id."""
    ends = [*starts[1:], len(probability)] if starts else []
    head = (starts[0] if starts else len(probability)) + len(starts)
    cost = width[0] * head
    for tail, (first, end) in enumerate(zip(starts, ends), start=1):
        for y in range(first, end):
            cost += probability[y] * (end - first) * width[tail]
    return cost


@pytest.mark.parametrize("clusters", [1, 2, 3, 4])
def test_optimal_cutoffs_equal_brute_force(clusters):
    rng = np.random.default_rng(clusters)
    for trial in range(100):
        size = int(rng.integers(clusters, 15))
        probability = rng.random(size) ** 4
        probability[rng.random(size) < 0.2] = 0  # ids that never occur
        probability[0] += 0.1
        probability /= probability.sum()
        if trial % 2:
            probability = np.sort(probability)[::-1]
        width = rng.choice([1.0, 2.0, 8.0, 32.0, 100.0], clusters).tolist()
        found = cutoffs.optimal_cutoffs(probability, width)
        assert len(found) == clusters - 1 and all(a < b for a, b in zip([0, *found], [*found, size]))
        best = min(plain_cost(probability, starts, width) for starts in itertools.combinations(range(1, size), clusters - 1))
        assert plain_cost(probability, found, width) == pytest.approx(best, rel=1e-12)
        assert cutoffs.expected_cost(probability, found, width) == pytest.approx(best, rel=1e-12)


def test_a_vocabulary_of_wikitext103_is_no_trouble():
    probability = 1 / np.arange(1, 267_736)
    probability /= probability.sum()
    start = time.perf_counter()
    found = cutoffs.optimal_cutoffs(probability, [512, 128, 32, 8])
    assert time.perf_counter() - start < 60  # half a second; comparing all pairs would take hours
    cost = cutoffs.expected_cost(probability, found, [512, 128, 32, 8])
    for i, shift in itertools.product(range(3), (-1, 1)):  # no neighbour is better
        moved = [cutoff + shift * (i == j) for j, cutoff in enumerate(found)]
        assert cutoffs.expected_cost(probability, moved, [512, 128, 32, 8]) >= cost


def test_a_fixed_cost_counts_once_per_cluster():
    probability = np.full(10, 0.1)
    plain = cutoffs.expected_cost(probability, [2, 5], [8, 4, 2])
    assert cutoffs.expected_cost(probability, [2, 5], [8, 4, 2], fixed_cost=7) == pytest.approx(plain + 21)


def run(*flags):
    return subprocess.run([sys.executable, PROJECT / "cutoffs.py", *flags], capture_output=True, text=True)


def test_the_command_prints_the_flag_for_training(tmp_path):
    counts = (1000 / np.arange(1, 501)).astype(int)
    np.savetxt(tmp_path / "counts.txt", counts, fmt="%d")
    done = run(f"--counts_file={tmp_path}/counts.txt", "--clusters=3", "--d_model=64", "--proj_factor=2")
    found = cutoffs.optimal_cutoffs(counts / counts.sum(), [64, 32, 16])
    assert done.returncode == 0 and done.stdout == f"--cutoffs={found[0]},{found[1]}\n"
    plain, cost = 64 * 500, cutoffs.expected_cost(counts / counts.sum(), found, [64, 32, 16])
    assert f"{cost:,.0f} multiply-adds" in done.stderr and f"{plain / cost:.1f} times fewer than the {plain:,}" in done.stderr
    narrow = run(f"--counts_file={tmp_path}/counts.txt", "--clusters=3", "--d_model=64", "--proj_dims=32,16")
    assert narrow.stdout == done.stdout


@pytest.mark.parametrize("content", ["", "a\nb\n", "1\n-2\n", "0\n0\n", "1 2\n3 4\n", "nan\n1\n"])
def test_counts_that_are_none_are_refused(content, tmp_path):
    (tmp_path / "counts.txt").write_text(content)
    with pytest.raises(InputError, match="counts.txt"):
        cutoffs.read_counts(tmp_path / "counts.txt")


def test_bad_flags_end_in_one_line(tmp_path):
    (tmp_path / "counts.txt").write_text("3\n2\n1\n")
    for flags in (["--counts_file=missing"], ["--clusters=0"], ["--clusters=4"], ["--proj_dims=1,2,3"], ["--proj_dims=a"], ["--unknown=1"], ["word"]):
        done = run(f"--counts_file={tmp_path}/counts.txt", *flags)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
