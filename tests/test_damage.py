"""Numbers that are not finite, and files that are not as they were written."""

import dataclasses
import math
import re
import shutil

import pytest
import tensorflow as tf
from chaos import events_of, state_of

import train  # noqa: F401, its flags
from support.checkpoints import Checkpoints
from support.errors import InputError
from training import step as step_module
from training.scoring import Evaluator, window_nll
from training.trained_run import TrainedRun
from training.trainer import Trainer


def losses_of(folder):
    return events_of(folder / "train")[0]["metrics/loss"]


def test_a_loss_that_overflows_stops_the_run_at_its_step(run_train, monkeypatch):
    folder = run_train(max_steps=10)
    before = state_of(folder)

    def overflowing(*arguments):
        nll, memory = window_nll(*arguments)
        return nll * 1e30 * 1e30, memory

    monkeypatch.setattr(step_module, "window_nll", overflowing)
    message = (r"the loss of step 11 is not finite "
               r"\(all weights are finite; those of \S+ are the largest\): .*last checkpoint")
    with pytest.raises(FloatingPointError, match=message):
        run_train(max_steps=90, fresh=True)
    assert state_of(folder) == before


@pytest.mark.parametrize("name, number", [
    ("theta", math.nan), ("dense/inner_kernel", -math.inf), ("softmax/table/rows_0", math.inf),
    ("softmax/table/rows_0", 3e38)])
def test_the_first_weight_that_is_not_finite_is_named(name, number, run_train, monkeypatch):
    train_steps, poisoned = Trainer.train, []

    def train_and_poison(trainer, num_steps):
        seconds = train_steps(trainer, num_steps)
        if trainer.step == 14:
            for path, weight in reversed(trainer.state.weights.items()):
                if name in path:
                    weight.assign(tf.fill(weight.shape, number))
                    poisoned.append(path)
        return seconds

    monkeypatch.setattr(Trainer, "train", train_and_poison)
    compiled = "true" if number == math.inf else "false"
    with pytest.raises(FloatingPointError) as error:
        run_train(num_layers=1, jit_compile=compiled, save_every="1000")
    told = str(error.value)
    assert "\n" not in told
    if number == 3e38:
        assert re.match(r"the loss of step (15|16|17) is not finite", told)
    else:
        where = f"(the first such variable is {poisoned[-1]})"
        assert told.startswith(f"the loss of step 15 is not finite {where}")


def test_a_state_that_is_not_finite_is_never_saved(run_train, monkeypatch):
    folder = run_train(max_steps=10)
    before, end_line = state_of(folder), Trainer.end_line

    def poisoned(trainer):
        if trainer.step == 21:
            state = trainer.state
            parts = {"weights": state.weights, "optimizers": state.optimizers["weights"]}
            if part == "memory":
                trainer._memory *= math.nan
            else:
                path = next(path for path in parts[part] if where in path)
                variable = parts[part][path]
                variable.assign(tf.fill(variable.shape, math.nan))
        return end_line(trainer)

    monkeypatch.setattr(Trainer, "end_line", poisoned)
    for part, where in [("weights", "embedding"), ("optimizers", "velocity"), ("memory", "memory")]:
        message = rf"the state after step 21 is not finite \(the first such variable is \S*{where}"
        with pytest.raises(FloatingPointError, match=message):
            run_train(max_steps=90, save_every="21")
        assert state_of(folder) == before


def test_a_learning_rate_that_is_too_high_is_told(run_train):
    message = r"the loss of step \d+ is not finite .*A lower --max_lr or --clipnorm may help"
    with pytest.raises(FloatingPointError, match=message):
        run_train(max_lr=1e30, warmup_steps=0)


def test_an_evaluation_that_is_not_finite_is_named(run_train, monkeypatch):
    call = Evaluator.__call__

    def not_finite(*arguments):
        return dataclasses.replace(call(*arguments), nll=math.nan)

    monkeypatch.setattr(Evaluator, "__call__", not_finite)
    with pytest.raises(FloatingPointError, match="the loss of valid after step 5 is not finite"):
        run_train(max_steps=5)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(run_train, tmp_path, capsys):
    settings = {"max_steps": 40, "save_every": "10"}
    whole = run_train(model_name="whole", **settings)
    folder = run_train(**settings | {"max_steps": 30})
    unfinished = folder.rename(tmp_path / "unfinished")
    for damaged in ("state.index", "state.data-00000-of-00001", "sha256.json"):
        shutil.copytree(unfinished, folder)
        path = folder / "checkpoints" / "30" / damaged
        path.write_bytes(path.read_bytes()[:-30])
        capsys.readouterr()
        run_train(**settings)
        told = capsys.readouterr().out
        assert f"{damaged} is damaged" in told and "using the checkpoint before it" in told
        assert "resumed at step 20" in told
        assert state_of(folder) == state_of(whole)
        assert losses_of(folder) == losses_of(whole)
        assert Checkpoints(folder / "checkpoints").damage(30) is None  # written anew
        shutil.rmtree(folder)


def test_a_run_none_of_whose_checkpoints_is_whole_is_refused(begun, run_train):
    checkpoints = list(begun.glob("checkpoints/*/state.index"))
    for path in checkpoints:
        path.unlink()
    message = ("no checkpoint in logs/supernet/checkpoints can be restored: "
               "delete logs/supernet to train")
    with pytest.raises(InputError, match=message):
        run_train()
    assert len(checkpoints) > 1


def test_a_damaged_best_network_is_told_and_replaced(run_train, capsys):
    folder = run_train(max_steps=10)
    path = next((folder / "best" / "10").glob("state.data*"))
    path.write_bytes(path.read_bytes()[:-9])
    message = "state.data.* is damaged; intact checkpoints: latest, 10"
    with pytest.raises(InputError, match=message):
        TrainedRun(folder).network()
    run_train(max_steps=20)
    assert "is damaged: keeping the best network from now on" in capsys.readouterr().out
    assert TrainedRun(folder).network()[1] == 20
    shutil.rmtree(folder / "best")
    run_train(max_steps=21)
    assert "best is gone: keeping the best network from now on" in capsys.readouterr().out
    assert TrainedRun(folder).network()[1] == 21


def test_a_damaged_configuration_is_named(begun, run_train):
    for damaged in ("{", "{}", "[]", '{"flags": 1, "data": 2}'):
        (begun / "config.json").write_text(damaged)
        with pytest.raises(InputError, match="config.json is damaged"):
            run_train()
