"""A run that is stopped, in whatever way and wherever, ends as one that was not."""

import re
import shutil
import signal

import pytest
from chaos import differences, events_of, state_of
from conftest import results_of, when_called

import data_utils
import train
from support import files
from support.checkpoints import Checkpoints
from support.errors import InputError
from training.recording import Recorder
from training.scoring import Evaluator
from training.trainer import Trainer

PLACES = {  # in the program, and the number of the call
    "first steps": ((Trainer, "train"), 1), "before the first line": ((Trainer, "train"), 3),
    "a line": ((Trainer, "end_line"), 12), "a checkpoint": ((Checkpoints, "save"), 1),
    "another": ((Checkpoints, "save"), 3), "the end of an epoch": ((Recorder, "heat_map"), 1),
    "a validation": ((Evaluator, "__call__"), 1), "its result": ((Recorder, "evaluation"), 1),
    "the last validation": ((Evaluator, "__call__"), 1), "the test": ((Evaluator, "__call__"), 2),
    "the end": ((Recorder, "finish"), 1)}


def validated(folder):
    return events_of(folder / "valid")[0]["metrics/loss"]


def test_a_run_that_is_interrupted_anywhere_equals_one_that_is_not(
        run_train, tmp_path, monkeypatch):
    settings = dict(max_steps=230, save_every="50")  # an epoch has 210
    whole = run_train(**settings).rename(tmp_path / "whole")
    signals = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
    for turn, (place, count) in enumerate(PLACES.values()):
        number = signals[turn % 3]

        def interrupt(number=number):
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGINT)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as interrupted:
            when_called(patch, place, count, interrupt)
            run_train(**settings)
        assert place[1] == "finish" or interrupted.value.number == number
    parts = run_train(fresh=True, **settings)
    assert differences(whole, parts) == []
    log = (parts / "training_log.log").read_text()
    stops = re.findall(r"interrupted at step (\d+) and saved", log)
    assert re.findall(r"resumed at step (\d+)", log) == [*stops, "230"]
    assert len(stops) >= 3 and any(int(stop) % 7 for stop in stops)


def test_a_run_that_dies_at_any_moment_equals_one_that_does_not(run_train, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die():
        raise Killed

    settings = dict(max_steps=230, save_every="30")
    whole = run_train(**settings).rename(tmp_path / "whole")
    for place, count in [
            ((Trainer, "end_line"), 3), ((files, "sync"), 3), ((Recorder, "heat_map"), 1),
            ((Evaluator, "__call__"), 1), ((Recorder, "evaluation"), 1), ((Recorder, "finish"), 1)]:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            when_called(patch, place, count, die)
            run_train(**settings)
    assert differences(whole, run_train(**settings)) == []


def test_max_steps_may_grow(run_train, data_dir):
    steps = data_utils.read_metadata(data_dir)["splits"]["train"]["steps"]
    whole = run_train(model_name="whole", max_steps=steps + 25)
    for stop in (10, steps + 3, steps + 25):  # in the first epoch, in the second
        parts = run_train(model_name="parts", max_steps=stop)
    best = {"best_loss": state_of(whole)["best_loss"]}
    assert state_of(whole) == state_of(parts) | best
    assert sorted(validated(parts)) == [10, steps, steps + 3, steps + 25]
    for key in ("train", "valid", "test", "pi", "steps"):
        assert results_of(whole)[key] == results_of(parts)[key]


@pytest.mark.parametrize("every, expected", [("8", [16, 24, 25]), ("1000m", [25])])
def test_checkpoints_are_written_after_so_many_steps(every, expected, run_train):
    folder = run_train(save_every=every, max_steps=25)
    assert Checkpoints(folder / "checkpoints").steps() == expected


def test_checkpoints_are_written_after_so_many_minutes(run_train, monkeypatch):
    clock, train_steps = [0], Trainer.train

    def four_seconds_a_step(trainer, num_steps):
        clock[0] += 4 * num_steps
        return train_steps(trainer, num_steps)

    monkeypatch.setattr(Trainer, "train", four_seconds_a_step)
    monkeypatch.setattr(train.time, "monotonic", lambda: clock[0])
    folder = run_train(save_every="1m", max_steps=25)
    assert len(Checkpoints(folder / "checkpoints").steps()) == 2


def test_a_finished_run_started_again_trains_no_further(run_train, capsys):
    once, again = (results_of(run_train(max_steps=10)) for _ in range(2))
    for results in (once, again):
        del results["wall_seconds"], results["tokens_per_second"], results["checksum"]
    assert once == again
    assert "resumed at step 10" in capsys.readouterr().out


def test_a_run_stopped_in_an_epoch_may_end_there_but_not_before(run_train, tmp_path, monkeypatch):
    run_train(log_every=1000, max_steps=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        when_called(patch, (Trainer, "train"), 3, lambda: signal.raise_signal(signal.SIGTERM))
        run_train(log_every=1000)
    saved = Checkpoints(tmp_path / "logs" / "supernet" / "checkpoints").steps()
    step = saved[-1]  # a fast machine has ended an epoch before
    assert not (tmp_path / "logs" / "supernet" / "results.json").exists()
    refusal = f"logs/supernet is already at step {step}: --max_steps must be at least that"
    with pytest.raises(InputError, match=refusal):
        run_train(log_every=1000, max_steps=1)
    folder = run_train(log_every=1000, max_steps=step)
    results = results_of(folder)
    assert results["steps"] == step and list(validated(folder)) == saved
    assert results["train"]["loss"] > 3 and results["tokens_per_second"] > 0


def test_a_run_goes_on_though_what_it_began_from_is_gone(search_run, run_train, tmp_path):
    shutil.copytree(search_run, tmp_path / "logs" / "from")
    whole = run_train(model_name="whole", init_from="logs/from", max_steps=20)
    run_train(model_name="parts", init_from="logs/from", max_steps=10)
    shutil.rmtree(tmp_path / "logs" / "from")
    parts = run_train(model_name="parts", init_from="logs/from", max_steps=20)
    assert state_of(whole) == state_of(parts) | {"best_loss": state_of(whole)["best_loss"]}
    assert results_of(parts)["architecture"] == results_of(whole)["architecture"]
