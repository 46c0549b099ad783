"""Several replicas, in one process and in several: they train as one does."""

import json
import os
import re
import signal
import subprocess
import time

import chaos
import cluster
import numpy as np
import pytest
import tiny
import warm
from conftest import PROJECT

from support.errors import InputError

NETWORK = tiny.NETWORK | {"num_layers": 1, "cutoffs": ""}
FLAGS = tiny.as_flags(**NETWORK, max_lr=0.01, warmup_steps=20)
ONE_BLOCK = {
    "architecture": ["search"], "d_model": 8, "num_heads": 2, "d_ffn": 16, "mem_len": 6,
    "cutoffs": [20, 60], "max_lr": 0.01, "warmup_steps": 20}
PLAIN = ONE_BLOCK | {"dropout_rate": 0.0}
CLIPPED = ONE_BLOCK | {
    "dropout_rate": 0.2, "embedding_dropout": 0.2, "weight_decay": 1e-3, "opt_name": "sgd",
    "max_lr": 3.0, "clipnorm": 0.1}
HALVES = CLIPPED | {"accumulate": 2}
ALTERNATING = PLAIN | {
    "search": "alternating", "arch_share": 0.5, "gumbel_per_row": True, "latency_weight": 0.1,
    "tie_embeddings": True, "proj_factor": 2}

TOO_FAST = ONE_BLOCK | {"opt_name": "sgd", "max_lr": 1e30, "warmup_steps": 0}


def mirrored(data_dir, replicas, *ways, device=()):
    """Losses, and what the state is like, after training with so many replicas in some ways.

    A way is changes of the settings, and whether to compile.
    """
    program = PROJECT / "tests" / "programs" / "mirrored.py"
    done = subprocess.run(
        [*warm.PYTHON, program, data_dir, str(replicas), json.dumps(ways), *device],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(PROJECT)})
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_replicas_and_accumulation_train_as_one_replica(data_dir):
    plain, clipped, compiled_halves, alternating = mirrored(
        data_dir, 1, (PLAIN, False), (CLIPPED, False), (HALVES, True), (ALTERNATING, False))
    two_compiled, two_halves, stopped = mirrored(
        data_dir, 2, (PLAIN, True), (HALVES, False), (TOO_FAST, False))
    elsewhere, = mirrored(data_dir, 2, (PLAIN, True), device=["CPU:1"])
    four_alternating, = mirrored(data_dir, 4, (ALTERNATING, False))
    for one, *others in (
            [plain, two_compiled, elsewhere], [clipped, compiled_halves, two_halves],
            [alternating, four_alternating]):
        losses, state, step = one
        assert np.mean(losses[:4]) - np.mean(losses[16:20]) > 0.05 and step == 100
        for other in others:
            assert other == [
                pytest.approx(losses, rel=1e-5), pytest.approx(state, rel=1e-4), 100]
    (told,), _, step = stopped
    assert told.startswith(f"the loss of step {step + 1} is not finite") and step < 5


# --------------------------------------------------------------------------------------------------
# Several processes, over loopback

TRAIN = [
    *warm.PYTHON, str(PROJECT / "train.py"), "--model_name=run", "--log_every=1", "--epochs=1",
    "--dropout_rate=0.2", *FLAGS]


@pytest.fixture
def start(data_dir, tmp_path):
    """A function: starts workers that train in the folder of the test, after a line of bash."""
    def start(workers, *given, before=""):
        bash = ["bash", "-c", f'{before}\nexec "$@"', "bash"] if before else []
        return cluster.start(
            workers, [*bash, *TRAIN, f"--data_dir={data_dir}", *given], cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def ends(processes, seconds=200):
    """The exit status and the last line on standard error of each process, within so long."""
    try:
        errors = [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, (error.splitlines() or [""])[-1])
            for process, error in zip(processes, errors)]


def wait_for(process, word):
    """Waits until a process has written a line with a word."""
    assert any(word in line for line in process.stdout), "it has ended before"


def losses(folder):
    curves, _ = chaos.events_of(folder / "logs" / "run" / "train")
    return [loss for _, loss in sorted(curves["metrics/loss"].items())]


def names_of(folder):
    return sorted(str(path.relative_to(folder)).split(".tfevents")[0] for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The losses of 100 steps of one worker, and the names of the files of its run."""
    folder = tmp_path_factory.mktemp("alone")
    command = [*TRAIN, f"--data_dir={data_dir}", "--max_steps=100"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return losses(folder), names_of(folder)


def test_workers_train_as_one_and_the_chief_alone_writes(alone, start, tmp_path):
    processes = start(4, "--max_steps=100")  # two are tested below
    outputs, errors = zip(*(process.communicate() for process in processes))
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert losses(tmp_path) == pytest.approx(alone[0], rel=1e-5) and names_of(tmp_path) == alone[1]
    assert "results in" in outputs[0] and outputs[1:] == ("",) * 3 and errors == ("",) * 4


def test_a_worker_that_dies_ends_the_others_and_all_go_on_from_the_last_checkpoint(
        alone, start, tmp_path):
    given = "--max_steps=100", "--save_every=20"
    for victim, step in [(0, 20), (1, 60)]:
        processes = start(2, *given)
        while not (tmp_path / "logs" / "run" / "checkpoints" / f"{step}").exists():
            time.sleep(0.05)
            assert processes[0].poll() is None, processes[0].communicate()
        processes[victim].kill()
        status, line = ends(processes, seconds=60)[1 - victim]
        message = "error: another worker has died or cannot be reached: restart all workers"
        assert status == 1 and line.startswith(message)
    assert ends(start(2, *given)) == [(0, "")] * 2
    log = (tmp_path / "logs" / "run" / "training_log.log").read_text()
    assert log.count("resumed at step") == 2
    assert losses(tmp_path) == pytest.approx(alone[0], rel=1e-5)


def test_all_stop_and_save_when_one_is_told_and_any_number_that_divides_the_batch_goes_on(
        alone, start, tmp_path):
    processes = start(2, "--max_steps=80")
    wait_for(processes[0], "epoch 1")
    time.sleep(3)
    processes[1].send_signal(signal.SIGTERM)
    assert ends(processes) == [(143, "interrupted")] * 2
    log = (tmp_path / "logs" / "run" / "training_log.log").read_text()
    assert re.search(r"interrupted at step \d+ and saved", log)
    one = start(1, "--max_steps=90", "--accumulate=2", "--distribute=none")
    assert ends(one) == [(0, "")]
    assert ends(start(2, "--max_steps=100", "--accumulate=2")) == [(0, "")] * 2
    assert losses(tmp_path) == pytest.approx(alone[0], rel=1e-5)


IS_SECOND = 'echo "$TF_CONFIG" | grep -q 1}}'


def test_workers_with_different_flags_are_refused(start, tmp_path):
    processes = start(2, before=f'if {IS_SECOND}; then set -- "$@" --num_layers=4; fi')
    message = "error: the workers have different flags, or different data"
    assert ends(processes) == [(1, message)] * 2
    assert not list(tmp_path.iterdir())


def test_workers_with_different_checkpoints_are_refused(start, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    assert ends(start(1, "--max_steps=3", before="cd a")) == [(0, "")]
    message = ("error: the workers see different checkpoints: "
               "--logs_dir must be a folder that all of them share")
    processes = start(2, "--max_steps=9", before=f"if {IS_SECOND}; then cd b; else cd a; fi")
    assert ends(processes) == [(1, message)] * 2


def test_a_batch_that_cannot_be_divided_is_refused(run_train):
    message = r"cannot be divided evenly among 1 device\(s\), in --accumulate=3 part\(s\) each"
    with pytest.raises(InputError, match=message):
        run_train(accumulate=3)


@pytest.mark.parametrize("config", [
    None, "", "{", "[]", "{}", '{"cluster": {"worker": 3}}', '{"cluster": {"worker": ["a:1"]}}',
    '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "x"}}'])
def test_a_cluster_that_is_not_told_is_refused(config, run_train, monkeypatch):
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    message = "--distribute=multi_worker needs the environment variable TF_CONFIG, such as"
    with pytest.raises(InputError, match=message):
        run_train(distribute="multi_worker")
