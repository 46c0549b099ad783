"""The cheapest cutoffs, against brute force."""

import dataclasses
import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import run_command
from conftest import PROJECT

import adaptive_softmax
import cutoffs
import data_utils
from cutoffs import Constants, Problem
from support.cli import InputError

LINEAR = Constants(floor=0, fixed=0, product=1, logit=0)


def plain_time(problem, starts):
    """The cost of section 4 of Grave et al., id by id, in ms."""
    machine, width, tokens = problem.constants, problem.width, problem.tokens
    ends = [*starts, len(problem.probability)]
    head_logits = tokens * (ends[0] + len(starts))
    work = [head_logits * width[0] * machine.product + head_logits * machine.logit]
    for tail, start in enumerate(starts, start=1):
        share = sum(problem.probability[y] for y in range(start, ends[tail]))
        logits = share * tokens * (ends[tail] - start)
        projected = share * tokens * width[0] * width[tail] if width[tail] != width[0] else 0
        work.append(logits * (width[tail] * machine.product + machine.logit)
                    + projected * machine.product)
    return sum(max(machine.floor, machine.fixed + cluster / 1e6) for cluster in work)


def random_problem(rng, clusters, size, constants):
    probability = rng.random(size) ** 4
    probability[rng.random(size) < 0.2] = 0  # ids that never occur
    probability[0] += 0.1
    if rng.random() < 0.5:
        probability = np.sort(probability)[::-1]
    width = rng.choice([1, 2, 8, 32, 100], clusters).tolist()
    return Problem(probability / probability.sum(), width, int(rng.integers(1, 2000)), constants)


def random_constants(rng, problem):
    """Constants for which the floor holds for some clusters and the line for others."""
    scale = 10.0 ** rng.integers(-5, 2)
    fixed, product, logit = scale * rng.random(), rng.random(), 10 * rng.random()
    return Constants(fixed + scale * rng.random(), fixed, product, logit)


@pytest.mark.parametrize("clusters", [1, 2, 3, 4, 5])
def test_no_cutoffs_are_cheaper(clusters):
    rng = np.random.default_rng(clusters)
    on_the_floor = above = 0
    for trial in range(100):
        size = int(rng.integers(clusters, 13))
        problem = random_problem(rng, clusters, size, LINEAR)
        if trial % 4:
            problem = dataclasses.replace(problem, constants=random_constants(rng, problem))
        found = cutoffs.cheapest_cutoffs(problem, clusters)
        assert len(found) == clusters - 1
        assert all(a < b for a, b in zip([0, *found], [*found, size]))
        every = [list(starts) for starts in itertools.combinations(range(1, size), clusters - 1)]
        least = min(plain_time(problem, starts) for starts in every)
        assert plain_time(problem, found) == pytest.approx(least, rel=1e-12)
        assert cutoffs.expected_time(problem, found) == pytest.approx(least, rel=1e-12)
        without_floor = dataclasses.replace(problem.constants, floor=0)
        lower = plain_time(dataclasses.replace(problem, constants=without_floor), found)
        on_the_floor += lower < least * (1 - 1e-9)
        above += least > clusters * problem.constants.floor * (1 + 1e-9)
    assert on_the_floor > 20 and above > 20  # both sides of the max were tried


def test_without_floor_the_cost_is_the_linear_one():
    # D (k + K - 1) + the sum of p_i n_i d_i, plus the projections p_i D d_i; all pairs are tried.
    probability = 1 / np.arange(1, 61)
    probability /= probability.sum()

    def linear(a, b):
        middle, rare = probability[a:b].sum(), probability[b:].sum()
        products = 16 * (a + 2) + middle * (b - a) * 4 + rare * (60 - b) * 1
        return products + 16 * (middle * 4 + rare * 1)

    least = min(itertools.combinations(range(1, 60), 2), key=lambda pair: linear(*pair))
    problem = Problem(probability, [16, 4, 1], 1024, LINEAR)
    assert cutoffs.cheapest_cutoffs(problem, 3) == list(least)
    in_ms = linear(*least) * 1024 / 1e6
    assert cutoffs.expected_time(problem, list(least)) == pytest.approx(in_ms)


def test_a_vocabulary_of_wikitext103_is_no_trouble():
    probability = 1 / np.arange(1, 267_736)
    machine = Constants(floor=0.8, fixed=0.5, product=0.2, logit=3)
    problem = Problem(probability / probability.sum(), [512, 128, 32, 8], 1024, machine)
    start = time.perf_counter()
    found = cutoffs.cheapest_cutoffs(problem, 4)
    assert time.perf_counter() - start < 60  # a second; comparing all pairs would take hours
    least = cutoffs.expected_time(problem, found)
    for i, shift in itertools.product(range(3), (-1, 1)):  # no neighbour is cheaper
        moved = [cutoff + shift * (i == j) for j, cutoff in enumerate(found)]
        assert cutoffs.expected_time(problem, moved) >= least


def test_a_cluster_takes_the_floor_then_a_line():
    machine = Constants(floor=2, fixed=1, product=0.5, logit=4)
    columns = np.array([10, 1000, 10_000])
    times = machine.milliseconds(1000, columns, width=16)  # 12 ns a logit
    assert times == pytest.approx([2, 1 + 12, 1 + 120])
    projected = machine.milliseconds(1000, 1000, width=16, projected_from=64)
    assert projected == pytest.approx(1 + 12 + 1000 * 64 * 16 * 0.5 / 1e6)


def test_the_fit_finds_constants_and_makes_none_negative():
    rng = np.random.default_rng(0)
    parts = rng.random([12, 3])
    times = parts @ [0.3, 2, 5]
    assert cutoffs.nonnegative_fit(parts / times[:, None]) == pytest.approx([0.3, 2, 5])
    times = parts @ [-0.1, 2, 5]  # the nearest by a fine grid has none of the first part
    fit = cutoffs.nonnegative_fit(parts / times[:, None])
    axes = np.linspace(0, 0.2, 5), np.linspace(1, 6, 101), np.linspace(1, 6, 101)
    grid = [np.array(weights) for weights in itertools.product(*axes)]
    errors = [((parts / times[:, None] @ weights - 1) ** 2).sum() for weights in grid]
    assert fit[0] == 0 and fit == pytest.approx(grid[int(np.argmin(errors))], abs=0.05)


def test_the_constants_are_measured():
    machine = cutoffs.measure(vocab_size=8000, tokens=64, width=[16, 4, 1], seconds=0)
    assert machine.floor > 0 and machine.fixed >= 0 and machine.product + machine.logit > 0
    # A layer of 8,000 ids is predicted within a factor that a busy machine may cause, not a unit.
    seconds = cutoffs._medians([cutoffs._random_step(64, 16, 8000, [])], 0)[0]
    assert 0.1 < machine.milliseconds(64, 8000, 16) / seconds < 10


def test_measured_times_become_the_constants_that_made_them(monkeypatch):
    machine = Constants(floor=0.7, fixed=0.4, product=0.3, logit=5)

    def milliseconds(calls, seconds):
        """Four clusters cost four floors, and others what the line says."""
        return [4 * machine.floor if cutoffs
                else machine.fixed + rows * columns * (machine.product * d + machine.logit) / 1e6
                for rows, d, columns, cutoffs in calls]

    monkeypatch.setattr(cutoffs, "_random_step", lambda *sizes, cutoffs: (*sizes, cutoffs))
    monkeypatch.setattr(cutoffs, "_medians", milliseconds)
    found = cutoffs.measure(vocab_size=9000, tokens=1024, width=[128, 32, 8])
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(machine))


def test_medians_are_in_milliseconds_and_of_each_call():
    five, twenty = cutoffs._medians([lambda: time.sleep(0.005), lambda: time.sleep(0.02)], 0)
    assert 5 <= five < twenty < 1000 and twenty >= 20


CASES = [(1, 4, []), (4, 4, []), (5, 3, []), (3, 4, [9, 2])]


@pytest.mark.parametrize("clusters, proj_factor, proj_dims", CASES)
def test_the_widths_are_those_of_the_layer(clusters, proj_factor, proj_dims):
    layer = adaptive_softmax.AdaptiveSoftmax(
        50, 20, list(range(1, clusters)), proj_factor, proj_dims)
    widths = [rows.shape[1] for rows in layer.table.rows]
    assert cutoffs.cluster_widths(clusters, 50, proj_factor, proj_dims) == widths


@pytest.mark.parametrize(
    "metadata, tokens", [(None, 1024), ('{"batch_size": 4, "seq_len": 8}', 32)])
def test_the_tokens_of_a_step_are_those_of_the_data(metadata, tokens, tmp_path):
    if metadata:
        (tmp_path / "metadata.json").write_text(metadata)
    assert cutoffs.step_tokens(tmp_path) == tokens


@pytest.mark.parametrize("metadata", ["", "[]", "{}", '{"batch_size": 4}'])
def test_metadata_that_do_not_say_it_are_refused(metadata, tmp_path):
    (tmp_path / "metadata.json").write_text(metadata)
    with pytest.raises(InputError, match="batch_tokens"):
        cutoffs.step_tokens(tmp_path)


@pytest.mark.parametrize("text", ["", "1", "1,2,3,x", "1,2,3,-1", "1,2,nan,4", "1,2,3,4,5"])
def test_constants_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="--constants"):
        cutoffs.parse_constants(text.split(","))


@pytest.mark.parametrize("content", ["", "a\nb\n", "1\n-2\n", "0\n0\n", "1 2\n3 4\n", "nan\n1\n"])
def test_counts_that_are_none_are_refused(content, tmp_path):
    (tmp_path / "counts.txt").write_text(content)
    with pytest.raises(InputError, match="counts.txt"):
        data_utils.read_counts(tmp_path / "counts.txt")


@pytest.mark.parametrize("proj_dims", [[1], [1, 2, 3], [0, 1]])
def test_widths_that_do_not_suit_the_clusters_are_refused(proj_dims):
    with pytest.raises(InputError, match="proj_dims .* must be one positive width"):
        cutoffs.cluster_widths(3, 50, 4, proj_dims)


def run(*flags):
    return run_command(cutoffs, *flags)


def test_the_command_prints_the_flag_for_training(tmp_path):
    counts = (1000 / np.arange(1, 501)).astype(int)
    np.savetxt(tmp_path / "counts.txt", counts, fmt="%d")
    flags = [f"--counts_file={tmp_path}/counts.txt", "--d_model=64", "--batch_tokens=100",
             "--constants=0.01,0.002,0.5,1"]
    done = run(*flags, "--proj_factor=2")
    machine = Constants(0.01, 0.002, 0.5, 1)
    problem = Problem(counts / counts.sum(), [64, 32, 16], 100, machine)
    found = [cutoffs.cheapest_cutoffs(problem, clusters) for clusters in (1, 2, 3)]
    times = [cutoffs.expected_time(problem, each) for each in found]
    assert times[2] < times[1] < times[0]
    assert done.returncode == 0 and done.stdout == f"--cutoffs={found[2][0]},{found[2][1]}\n"
    printed = [line.split()[-1] for line in done.stderr.splitlines()[1:]]
    assert printed == [f"{milliseconds:.2f}" for milliseconds in times]
    # The widths by name; and clusters so dear that fewer are cheapest.
    assert run(*flags, "--proj_dims=32,16").stdout == done.stdout
    assert run(*flags, "--constants=9,1,0.5,1").stdout == "--cutoffs=\n"


def test_the_command_does_without_tensorflow():
    program = "import sys, cutoffs; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT).returncode == 0


def test_bad_flags_end_in_one_line(tmp_path):
    (tmp_path / "counts.txt").write_text("3\n2\n1\n")
    both = ["--measure", "--constants=1,1,1,1"]
    for bad in [["--counts_file=missing"], ["--clusters=4"], ["--constants=1,2"], ["--unknown=1"],
                both]:
        done = run(f"--counts_file={tmp_path}/counts.txt", *bad)
        assert done.returncode == 1 and done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr
