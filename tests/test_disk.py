"""Disks that are full or read-only: a clear error, and what was there stays as it was."""

import io
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import chaos
import pytest
import tiny
import warm
from chaos import differences
from conftest import PROJECT, make_data, train_in, when_called

import data_utils
from support import console, tokenization
from support.checkpoints import Checkpoints
from training import recording
from training.trained_run import TrainedRun
from training.trainer import Trainer

LOG_LINE = r"(step [\d,]+/.*?)  ETA \S+  \S+ tokens/s  (perplexity .*)"  # but times
SETTINGS = tiny.QUICK | dict(dropout_rate=0.2, save_every="44", log_every=11,
                             max_steps=230)


@pytest.fixture(scope="module")
def whole_run(data_dir, tmp_path_factory):
    """The folder of a run whose disk was never full."""
    return train_in(tmp_path_factory.mktemp("whole"), data_dir=str(data_dir), **SETTINGS)


@pytest.fixture
def limit_files(monkeypatch):
    """A function after which no file can be written beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size=before[0]):
        monkeypatch.setattr(sys, "stdout", io.StringIO())  # else pytest writes the output to a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    limit()


@pytest.fixture
def full_disk(limit_files, monkeypatch):
    """A function: no file can be written beyond `size` bytes while a run is between two steps."""
    train = Trainer.train

    def between(first, last, size):
        def limited(trainer, num_steps):
            limit_files(size) if first <= trainer.step < last else limit_files()
            return train(trainer, num_steps)

        monkeypatch.setattr(Trainer, "train", limited)

    return between


SIZES = 0, 6000, 16_000, 30_000  # log, events and checkpoints grow beyond one after another
UNWRITABLE = r"cannot write logs/supernet/\S+: .*File too large"


@pytest.mark.parametrize("size", SIZES)
def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_alone(
    size, whole_run, full_disk, run_train, tmp_path, monkeypatch
):
    """It is full at the save of step 176, and at the validation of step 210."""
    folder, saved, save = tmp_path / "logs" / "supernet", [], Checkpoints.save

    def noted(checkpoints, state, step):
        save(checkpoints, state, step)
        saved.append((checkpoints._folder.name, step))

    monkeypatch.setattr(Checkpoints, "save", noted)
    full_disk(150, 210, size)
    run_train(**SETTINGS)
    log = (folder / "training_log.log").read_text()
    for step in (176, 210):
        told = f"{UNWRITABLE}.*: not saved at step {step}; the next save will try again\n"
        assert re.search(told, log)
    assert saved[:6] == [("checkpoints", step) for step in (44, 88, 132)] + [
        ("best", 210), ("checkpoints", 220), ("best", 230)]
    assert differences(whole_run, folder) == []
    whole_log = (whole_run / "training_log.log").read_text()
    assert re.findall(LOG_LINE, log) == re.findall(LOG_LINE, whole_log)


@pytest.mark.parametrize("size", SIZES)
def test_a_disk_that_stays_full_stops_the_run_at_its_end_and_loses_nothing(
    size, whole_run, full_disk, limit_files, run_train, tmp_path, monkeypatch
):
    folder = tmp_path / "logs" / "supernet"
    checkpoints = Checkpoints(folder / "checkpoints")
    full_disk(60, 1000, size)
    with pytest.raises(OSError, match=UNWRITABLE) as error:
        run_train(**SETTINGS)
    monkeypatch.undo()
    limit_files()
    assert "\n" not in str(error.value) and not list(folder.rglob("*partial*"))
    assert [(step, checkpoints.damage(step)) for step in checkpoints.steps()] == [(44, None)]
    run_train(**SETTINGS)
    assert "resumed at step 44" in (folder / "training_log.log").read_text()
    assert differences(whole_run, folder) == []


def test_a_console_on_a_full_disk_shows_what_comes_after(limit_files, tmp_path):
    with open(tmp_path / "output", "wb") as file:
        output = console._Output(file, "utf-8", line_buffering=True)
        output.ignores_errors = True
        limit_files(0)
        output.write("first\n")
        limit_files()
        output.write("second\n")
    assert (tmp_path / "output").read_text().endswith("second\n")


def test_a_line_of_the_log_that_a_disk_takes_in_part_is_completed(limit_files, tmp_path):
    log = recording._LogFile(tmp_path / "log")
    limit_files(8)
    log.emit(logging.makeLogRecord({"msg": "the first"}))
    assert (tmp_path / "log").read_text() == "the firs"
    limit_files()
    log.emit(logging.makeLogRecord({"msg": "the second"}))
    log.close()
    assert (tmp_path / "log").read_text() == "the first\nthe second\n"


@pytest.mark.parametrize(
    "place, size",
    [
        ((data_utils, "versions"), 0),
        ((tokenization, "train_tokenizer"), 100_000),
        ((data_utils, "Tokenizer"), 0),
        ((data_utils, "Stream"), 0),
        ((data_utils, "token_blocks"), 9000),
        ((data_utils, "write_records"), 0),
        ((data_utils, "write_records"), 9000),
        ((data_utils, "num_windows"), 0),
    ],
    ids=str,
)
def test_a_disk_that_is_full_while_data_are_made_leaves_the_old_data(
    place, size, limit_files, corpus_dir, data_dir, tmp_path, monkeypatch
):
    folder = Path(shutil.copytree(data_dir, tmp_path / "data"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    when_called(monkeypatch, place, 1, lambda: limit_files(size))
    with pytest.raises(OSError, match=rf"^cannot write {tmp_path}/\S+: .*File too large") as error:
        make_data(corpus_dir, folder, batch_size=2)
    limit_files()
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# -------------------------------------------------------------------------------------------------
# A small disk that is really full, or really read-only, in a mount namespace of its own


def small_disks_can_be_made() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(
    not small_disks_can_be_made(), reason="this system lets no user mount a file system"
)
def test_a_small_disk(corpus_dir, tmp_path):
    shutil.copytree(corpus_dir, tmp_path / "corpus")
    given = {
        "PYTHON": sys.executable,
        "WARM": warm.__file__,
        "PROJECT": str(PROJECT),
        "DATA_FLAGS": " ".join(chaos.DATA_FLAGS),
        "TRAIN_FLAGS": " ".join([*chaos.TRAIN_FLAGS, "--epochs=1", "--d_ffn=1024"]),
    }
    command = ["unshare", "-rm", "bash", "-e", PROJECT / "tests/programs/small_disk.sh", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | given)
    assert done.returncode == 0, done.stderr
    failures = re.findall("failed with 1: error: cannot write (.*)", done.stdout)
    train_full, make_full, train_read_only, make_read_only = failures
    assert re.match(r"logs/run/\S+: .*No space left on device", train_full), train_full
    assert re.match(r"\S+: .*No space left on device", make_full), make_full
    assert train_read_only == "logs/run: Read-only file system"
    assert make_read_only.startswith("/mnt/.data.partial: Read-only file system"), make_read_only
    kept = Checkpoints(tmp_path / "kept" / "checkpoints")
    assert kept.steps()[0] <= 60 <= kept.steps()[-1] and not any(map(kept.damage, kept.steps()))
    assert TrainedRun(tmp_path / "resumed").architecture
    assert data_utils.read_metadata(tmp_path / "data")["batch_size"] == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(run_train, data_dir, corpus_dir, tmp_path):
    (tmp_path / "logs").mkdir(mode=0o555)
    with pytest.raises(OSError, match="cannot write logs/supernet: Permission denied"):
        run_train()
    with pytest.raises(OSError, match="cannot write .*: Permission denied"):
        make_data(corpus_dir, tmp_path / "logs" / "data")
