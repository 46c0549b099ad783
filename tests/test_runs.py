"""The folder of a run, written and read."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from conftest import PROJECT, TINY, shared_trainer, tiny_settings
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

import data_utils
import train
from support import devices
from support.errors import InputError
from support.events import curves
from training.recording import NullRecorder, Recorder, configuration
from training.trained_run import TrainedRun


def open_run(data_dir, folder):
    """A run in a folder, with the trainer whose state it keeps."""
    metadata, settings = data_utils.read_metadata(data_dir), tiny_settings()
    trainer = shared_trainer(data_dir, metadata, settings)
    with flagsaver.flagsaver(**TINY | {"data_dir": str(data_dir)}):
        config = configuration(train.flag_values(None), settings, metadata)
    return Recorder(folder, config, data_dir, trainer.state), trainer


def mark_and_evaluate(run, trainer, step, loss):
    """Validates weights that can be told from those of other steps."""
    trainer.model.theta.assign(np.full([2, 3], step))
    run.evaluation(step, {"loss": loss, "perplexity": np.exp(loss)})
    run.save(step)


def theta_of(folder, checkpoint):
    model, step = TrainedRun(folder, checkpoint).network()
    return step, model.theta.numpy()[0, 0]


def test_the_best_network_is_kept_also_when_training_is_resumed(data_dir, tmp_path):
    run, trainer = open_run(data_dir, tmp_path)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.001)):
        mark_and_evaluate(run, trainer, step, loss)
    assert theta_of(tmp_path, "best") == (2, 2) and theta_of(tmp_path, "latest") == (3, 3)
    run.close()
    run, trainer = open_run(data_dir, tmp_path)
    assert trainer.model.theta.numpy()[0, 0] == 3
    mark_and_evaluate(run, trainer, 4, 2.5)
    for checkpoint, step in (("best", 2), ("4", 4), ("3", 3)):
        assert theta_of(tmp_path, checkpoint) == (step, step)
    mark_and_evaluate(run, trainer, 5, 1.5)
    assert theta_of(tmp_path, "best") == (5, 5)


def test_a_network_has_every_weight_and_the_temperature_of_its_checkpoint(search_run, data_dir):
    one, step = TrainedRun(search_run, "latest").network()
    again, _ = TrainedRun(search_run, step).network(mem_len=20)
    untrained = open_run(data_dir, search_run.parent.parent / "untrained")[1].model
    assert abs(one.tau - 0.1) < 1e-6 and again.sizes.mem_len == 20  # tau_end
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


def test_a_run_whose_folder_is_removed_stops(data_dir, tmp_path):
    for act in (lambda run: run.say("a line"), lambda run: run.save(1),
                lambda run: run.finish({})):
        old, _ = open_run(data_dir, tmp_path / "run")
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(InputError, match="was removed or replaced while it was being trained"):
            act(old)
        assert not (tmp_path / "run").exists()
        new, _ = open_run(data_dir, tmp_path / "run")
        with pytest.raises(InputError, match="was removed or replaced while it was being trained"):
            act(old)
        new.save(1)
        new.close()
        shutil.rmtree(tmp_path / "run")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "I/O")])
def test_checkpoints_that_cannot_be_read_are_no_new_run(error, data_dir, begun, monkeypatch):
    listdir, before = os.listdir, sorted(begun.rglob("*"))

    def refuse(path="."):
        if Path(path).name == "checkpoints":
            raise error
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(InputError, match="checkpoints cannot be read: "):
        open_run(data_dir, begun)
    with pytest.raises(InputError, match="checkpoints cannot be read: "):
        TrainedRun(begun).network()
    assert sorted(begun.rglob("*")) == before


def test_a_network_that_training_replaces_is_read_all_the_same(begun, monkeypatch):
    run, listed = TrainedRun(begun), []
    checkpoints = run._checkpoints

    def once_too_early():
        there = checkpoints()
        listed.append(there)
        if len(listed) == 1:  # what was there before; it is gone when it is read
            owner, step = there["best"]
            return {"best": (owner, step + 1), str(step + 1): (owner, step + 1)}
        return there

    monkeypatch.setattr(run, "_checkpoints", once_too_early)
    assert run.network()[1] == listed[0]["best"][1]


@pytest.mark.parametrize("torn", [1, 9, 40])
def test_curves_have_every_step_once_though_the_process_was_killed(torn, data_dir, tmp_path):
    recorder, _ = open_run(data_dir, tmp_path)
    for step in (1, 2, 3, 4):
        recorder.scalars("train", step, {"loss": step})
        if step == 2:
            recorder.save(step)
    recorder.close()
    path, = tmp_path.glob("train/events*")
    path.write_bytes(path.read_bytes()[:-torn])
    recorder, _ = open_run(data_dir, tmp_path)
    assert recorder.resumed == 2
    for step in (3, 5):
        recorder.scalars("train", step, {"loss": 10 * step})
    recorder.close()
    steps, values = curves(tmp_path / "train")["loss"]
    assert (steps.tolist(), values.tolist()) == ([1, 2, 3, 5], [1, 2, 30, 50])
    shown = EventAccumulator(str(tmp_path / "train")).Reload().Tensors("loss")
    assert [event.step for event in shown] == [1, 2, 3, 5]
    assert [tf.make_ndarray(event.tensor_proto) for event in shown] == [1, 2, 30, 50]


def test_nothing_that_is_read_can_be_executed():
    """No file of the project asks for pickled objects, or makes code of text."""
    forbidden = re.compile(
        r"pickle|(?<![.\w])(eval|exec|compile|__import__)\(|load_model|joblib|torch\.load"
        r"|yaml\.load|shell=True|os\.system")
    folders = ("", "layers", "training", "support")
    paths = [path for folder in folders for path in (PROJECT / folder).glob("*.py")]
    assert len(paths) > 30
    for path in paths:
        found = forbidden.search(path.read_text())
        assert not found, f"{path.name}: {found[0]}"


def test_a_null_run_takes_every_call_of_a_run_and_records_nothing(data_dir, tmp_path):
    run, trainer = open_run(data_dir, tmp_path / "run")
    run.close()
    null = NullRecorder(tmp_path / "null", {}, data_dir, trainer.state)
    calls = {name for name in dir(run) if not name.startswith("_") and callable(getattr(run, name))}
    assert {"say", "save", "evaluation", "finish", "close"} <= calls
    for name in calls:
        assert getattr(null, name)("train", 1, {}) is None
    with pytest.raises(AttributeError):
        null.sav()
    assert not (tmp_path / "null").exists()


def test_a_gpu_that_is_in_use_already_is_used_as_it_is(monkeypatch):
    def in_use(gpu, grow):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", in_use)
    assert devices.usable_gpus() == ["a GPU"]
