"""Checkpoints, damaged and interrupted in every way."""

import random
import shutil

import numpy as np
import pytest
import tensorflow as tf

from support import checkpoints
from support.checkpoints import Checkpoints
from support.errors import InputError


class Killed(BaseException):
    """Stands for the end of the process."""


def state(value=0.0, size=50):
    return tf.train.Checkpoint(
        a=tf.Variable(tf.fill([size], float(value))), b=tf.Variable(value, dtype=tf.float64)
    )


def value_of(folder, step):
    restored = state()
    Checkpoints(folder).restore(restored, step)
    assert float(restored.b) == restored.a.numpy().mean()
    return float(restored.b)


def test_a_checkpoint_comes_back_and_the_last_few_are_kept(tmp_path):
    kept = Checkpoints(tmp_path / "here", keep=2)
    assert kept.steps() == []
    for step in (9, 10, 200):
        kept.save(state(step), step)
    assert kept.steps() == [10, 200] and [kept.damage(step) for step in (10, 200)] == [None, None]
    assert value_of(tmp_path / "here", 10) == 10 and value_of(tmp_path / "here", 200) == 200
    assert {path.name for path in (tmp_path / "here" / "10").iterdir()} == {
        "sha256.json",
        "state.index",
        "state.data-00000-of-00001",
    }


def test_a_checkpoint_of_the_same_step_is_replaced_when_the_new_one_is_complete(
    tmp_path, monkeypatch
):
    kept = Checkpoints(tmp_path)
    kept.save(state(1.0), 5)
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match="cannot write .*/5: No space left on device"),
    ):
        patch.setattr(
            checkpoints.files,
            "sync",
            lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        kept.save(state(2.0), 5)
    assert value_of(tmp_path, 5) == 1 and kept.damage(5) is None
    kept.save(state(3.0), 5)
    assert value_of(tmp_path, 5) == 3 and [path.name for path in tmp_path.iterdir()] == ["5"]


def test_a_process_that_is_killed_while_it_replaces_a_checkpoint_leaves_the_earlier_one(
    tmp_path, monkeypatch
):
    kept, rename = Checkpoints(tmp_path), type(tmp_path).rename
    kept.save(state(1.0), 5)

    def kill(path, target):
        if path.name == "partial":
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(type(tmp_path), "rename", kill)
        kept.save(state(2.0), 5)
    assert kept.steps() == []
    restored = state()
    assert (
        kept.restore_last(restored, print) == 5
        and float(restored.b) == 1
        and kept.damage(5) is None
    )
    kept.save(state(3.0), 5)
    assert value_of(tmp_path, 5) == 3 and [path.name for path in tmp_path.iterdir()] == ["5"]


def test_checkpoints_of_later_steps_go_when_an_earlier_one_is_written(tmp_path):
    kept = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 4):
        kept.save(state(step), step)
    kept.save(state(3.0), 3)
    assert kept.steps() == [1, 2, 3]


@pytest.mark.parametrize("name", ["state.index", "state.data-00000-of-00001", "sha256.json"])
def test_every_kind_of_damage_is_noticed_and_named(name, tmp_path):
    kept, rng = Checkpoints(tmp_path), random.Random(0)
    kept.save(state(1.0), 1)
    path = tmp_path / "1" / name
    written = path.read_bytes()

    def flipped():
        changed = bytearray(written)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    torn = [written[:length] for length in (0, 1, len(written) // 2, len(written) - 1)]
    for damaged in [*torn, written + b"x", written[::-1], *(flipped() for _ in range(60))]:
        path.write_bytes(damaged)
        damage = kept.damage(1)
        assert (
            damage is not None
            and name in damage
            or damage is None
            and name == "sha256.json"
            and damaged.split() == written.split()
        )
    path.unlink()
    assert f"{name}: No such file" in kept.damage(1)
    path.mkdir()
    assert name in kept.damage(1)


@pytest.mark.parametrize("failing", ["write_json", "sync", "sha256"])
def test_a_process_that_is_killed_while_it_writes_leaves_the_earlier_ones(
    failing, tmp_path, monkeypatch
):
    kept = Checkpoints(tmp_path, keep=2)
    kept.save(state(1.0), 1)

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.files, failing, kill)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # nor does it clear up
        with pytest.raises(Killed):
            kept.save(state(2.0), 2)
    assert kept.steps() == [1] and kept.damage(1) is None and (tmp_path / "partial").exists()
    kept.save(state(2.0), 2)
    assert (
        kept.steps() == [1, 2]
        and value_of(tmp_path, 2) == 2
        and not (tmp_path / "partial").exists()
    )


def test_a_process_that_is_killed_while_it_removes_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    kept, rmtree = Checkpoints(tmp_path), shutil.rmtree
    kept.save(state(1.0), 1)

    def kill(path, **settings):
        if (path / "sha256.json").exists():
            (path / "sha256.json").unlink()
            raise Killed
        rmtree(path, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", kill)
        with pytest.raises(Killed):
            kept.save(state(2.0), 2)
    assert [(step, kept.damage(step)) for step in kept.steps()] == [(2, None)]


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    Checkpoints(tmp_path).save(state(1.0), 1)
    for other in (state(size=51), tf.train.Checkpoint(c=tf.Variable(1.0))):
        with pytest.raises(InputError, match="cannot restore .*1/state") as error:
            Checkpoints(tmp_path).restore(other, 1)
        assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
    for name in ("notes", "1x", "-1"):
        (tmp_path / name).mkdir()
    Checkpoints(tmp_path).save(state(1.0), 1)
    assert Checkpoints(tmp_path).steps() == [1] and {path.name for path in tmp_path.iterdir()} == {
        "notes",
        "1x",
        "-1",
        "1",
    }


def test_a_variable_of_any_kind_comes_back(tmp_path):
    one = tf.train.Checkpoint(
        flag=tf.Variable(True),
        number=tf.Variable(7, dtype=tf.int64),
        empty=tf.Variable(tf.zeros([0, 3])),
        half=tf.Variable([1.5], dtype=tf.bfloat16),
    )
    other = tf.train.Checkpoint(
        flag=tf.Variable(False),
        number=tf.Variable(0, dtype=tf.int64),
        empty=tf.Variable(tf.zeros([0, 3])),
        half=tf.Variable([0.0], dtype=tf.bfloat16),
    )
    Checkpoints(tmp_path).save(one, 3)
    Checkpoints(tmp_path).restore(other, 3)
    assert (
        bool(other.flag)
        and int(other.number) == 7
        and np.array_equal(other.half.numpy(), one.half.numpy())
    )
