import re

import numpy as np
import pytest
from absl.testing import flagsaver
from chaos import events_of
from conftest import PROJECT, TINY

import data_utils
import train
from runs import NullRun, Run, TrainedRun
from support.cli import InputError


def open_run(data_dir, folder):
    """A run in a folder, with the trainer whose state it keeps."""
    with flagsaver.flagsaver(**TINY | {"data_dir": str(data_dir)}):
        metadata = data_utils.read_metadata(data_dir)
        trainer = train.Trainer(data_dir, metadata, jit_compile=False)
        return Run(folder, train.configuration(metadata), data_dir, trainer.state), trainer


def mark_and_evaluate(run, trainer, step, loss):
    """Validates weights that can be told from those of other steps."""
    trainer.model.theta.assign(np.full([2, 3], step))
    run.evaluation(step, {"loss": loss, "perplexity": np.exp(loss)})
    run.save(step)


def theta_of(folder, checkpoint):
    model, _, step = TrainedRun(folder).network(checkpoint)
    return step, model.theta.numpy()[0, 0]


def test_the_best_network_is_kept_also_when_training_is_resumed(data_dir, tmp_path):
    run, trainer = open_run(data_dir, tmp_path)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 4.0)):
        mark_and_evaluate(run, trainer, step, loss)
    assert theta_of(tmp_path, "best") == (2, 2) and theta_of(tmp_path, "latest") == (3, 3)
    run.close()
    run, trainer = open_run(data_dir, tmp_path)
    assert trainer.model.theta.numpy()[0, 0] == 3
    mark_and_evaluate(run, trainer, 4, 2.5)
    assert theta_of(tmp_path, "best") == (2, 2) and theta_of(tmp_path, "4") == (4, 4) and theta_of(tmp_path, "3") == (3, 3)
    mark_and_evaluate(run, trainer, 5, 1.5)
    assert theta_of(tmp_path, "best") == (5, 5)


def test_a_network_has_every_weight_and_the_temperature_of_its_checkpoint(search_run, data_dir):
    one, tau, step = TrainedRun(search_run).network("latest")
    again, _, _ = TrainedRun(search_run).network(str(step), mem_len=20)
    untrained = open_run(data_dir, search_run.parent.parent / "untrained")[1].model
    assert abs(tau - 0.1) < 1e-6 and again.mem_len == 20  # tau_end
    for weight, same, other in zip(one.weights, again.weights, untrained.weights):
        assert np.array_equal(weight, same) and not np.array_equal(weight, other), weight.path


def test_a_run_keeps_the_tokenizer_of_its_data(search_run, data_dir):
    for name in ("tokenizer.model", "tokenizer.vocab"):
        assert (search_run / name).read_bytes() == (data_dir / name).read_bytes()


def test_a_run_that_goes_on_elsewhere_is_refused(data_dir, tmp_path):
    run, _ = open_run(data_dir, tmp_path)
    with pytest.raises(InputError, match="is being trained by another process"):
        open_run(data_dir, tmp_path)
    run.close()
    open_run(data_dir, tmp_path)[0].close()


@pytest.mark.parametrize("torn", [1, 9, 40])
def test_curves_have_every_step_once_though_the_process_was_killed(torn, data_dir, tmp_path):
    run, trainer = open_run(data_dir, tmp_path)
    for step in (1, 2, 3):
        run.scalars("train", step, {"loss": step})
        if step == 2:
            run.save(step)
    run.close()
    events, = tmp_path.glob("train/events*")
    whole = events.read_bytes()
    events.write_bytes(whole[:-torn])
    run, trainer = open_run(data_dir, tmp_path)
    assert run.resumed == 2
    for step in (3, 4):
        run.scalars("train", step, {"loss": 10 * step})
    run.close()
    assert events_of(tmp_path / "train")[0]["loss"] == {1: 1, 2: 2, 3: 30, 4: 40}
    assert TrainedRun(tmp_path).scalars("train")["loss"][1].tolist() == [1, 2, 30, 40]


def test_nothing_that_is_read_can_be_executed():
    """No file of the project asks for pickled objects, or makes code of text."""
    for path in PROJECT.glob("*.py"):
        found = re.search(r"pickle|(?<![.\w])(eval|exec|compile|__import__)\(|allow_pickle=True|load_model|joblib|torch\.load|yaml\.load|shell=True|os\.system", path.read_text())
        assert not found, f"{path.name}: {found[0]}"


def test_a_null_run_takes_every_call_of_a_run_and_records_nothing(data_dir, tmp_path):
    run, trainer = open_run(data_dir, tmp_path / "run")
    run.close()
    null = NullRun(tmp_path / "null", {}, data_dir, trainer.state)
    calls = {name for name in dir(run) if not name.startswith("_") and callable(getattr(run, name))}
    assert {"say", "note", "save", "evaluation", "finish", "close"} <= calls
    for name in calls:
        assert getattr(null, name)("train", 1, {}) is None
    with pytest.raises(AttributeError):
        null.sav()
    assert not (tmp_path / "null").exists()
