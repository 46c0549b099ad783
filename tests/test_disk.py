"""Disks that are full or read-only: a clear error, and what was there stays as it was."""

import io
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import chaos
import pytest
from chaos import differences, state_of
from conftest import PROJECT, make_data, when_called

import data_utils
import tokenization
import train
from runs import TrainedRun
from support.checkpoints import Checkpoints


@pytest.fixture
def limit_files(monkeypatch):
    """A function after which no file can be written beyond so many bytes: the system's own stand-in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size=before[0]):
        monkeypatch.setattr(sys, "stdout", io.StringIO())  # else pytest writes the output to a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    limit()


def test_a_disk_that_is_full_while_training_stops_the_run_and_loses_nothing(limit_files, run_train, tmp_path, monkeypatch):
    settings, folder, left = dict(dropout_rate=0.2, save_every="20", log_every=5, max_steps=100), tmp_path / "logs" / "supernet", []
    whole, checkpoints = run_train(**settings).rename(tmp_path / "whole"), Checkpoints(folder / "checkpoints")
    for size, unwritable in [(0, "training_log.log"), (6000, "train"), (20_000, "checkpoints/40"), (56_000, "checkpoints/40")]:
        shutil.rmtree(folder, ignore_errors=True)
        with monkeypatch.context() as patch, pytest.raises(OSError, match=rf"^cannot write logs/supernet/{unwritable}: .*File too large") as error:
            when_called(patch, (train.Trainer, "train"), 9, lambda: limit_files(size))
            run_train(**settings)
        limit_files()
        assert "\n" not in str(error.value)
        assert [(step, checkpoints.damage(step)) for step in checkpoints.steps()] == [(20, None)] and not list(folder.rglob("*partial*"))
        left.append(state_of(folder))
    assert left == left[:1] * 4
    run_train(**settings)
    assert differences(whole, folder) == []


@pytest.mark.parametrize("place, size", [
    ((data_utils, "versions"), 0), ((tokenization, "train_tokenizer"), 100_000), ((data_utils, "Tokenizer"), 0), ((data_utils, "Stream"), 0),
    ((data_utils, "token_blocks"), 9000), ((data_utils, "write_records"), 0), ((data_utils, "write_records"), 9000), ((data_utils, "num_windows"), 0)], ids=str)
def test_a_disk_that_is_full_while_data_are_made_leaves_the_old_data(place, size, limit_files, corpus_dir, data_dir, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(data_dir, tmp_path / "data"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    when_called(monkeypatch, place, 1, lambda: limit_files(size))
    with pytest.raises(OSError, match=rf"^cannot write {tmp_path}/\S+: .*File too large") as error:
        make_data(corpus_dir, folder, batch_size=2)
    limit_files()
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# ---------------------------------------------------------------------------------------------------------------------
# A small disk that is really full, or really read-only, in a mount namespace of its own

SMALL_DISK = f"""
PATH={os.path.dirname(sys.executable)}:$PATH
make="python {PROJECT}/data_utils.py {' '.join(chaos.DATA_FLAGS)} --output_dir=data"
train="python {PROJECT}/train.py {' '.join(chaos.TRAIN_FLAGS)} --epochs=2 --d_ffn=512"
mount -t tmpfs -o size=6m tmpfs /mnt
cd /mnt
cp -r "$0/corpus" .
$make && $train --max_steps=60
fill() {{ dd if=/dev/zero of=filler bs=1k count=$(($(df --output=avail -k . | tail -n 1) - $1)); }}
fails() {{ if "$@" 2>"$0/errors"; then return 1; else echo "failed with $?: $(cat "$0/errors")"; fi; }}
fill 250
fails $train
cp -r logs/run "$0/kept"
rm filler
fill 100
fails $make --batch_size=8
rm filler
mount -o remount,ro /mnt
fails $train
fails $make --batch_size=8
mount -o remount,rw /mnt
$train
cp -r logs/run "$0/resumed"
cp -r data "$0"
"""


def small_disks_can_be_made() -> bool:
    try:
        return subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not small_disks_can_be_made(), reason="this system lets no user mount a file system")
def test_a_small_disk(corpus_dir, run_train, tmp_path):
    shutil.copytree(corpus_dir, tmp_path / "corpus")
    done = subprocess.run(["unshare", "-rm", "bash", "-ec", SMALL_DISK, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train_full, make_full, train_read_only, make_read_only = re.findall("failed with .*", done.stdout)
    assert re.match(r"failed with 1: error: cannot write logs/run/\S+: .*No space left on device", train_full), train_full
    assert re.match(r"failed with 1: error: cannot write \S+: .*No space left on device", make_full), make_full
    assert train_read_only == "failed with 1: error: cannot write logs/run: Read-only file system"
    assert re.match("failed with 1: error: cannot write /mnt/.data.partial: Read-only file system", make_read_only), make_read_only
    kept = Checkpoints(tmp_path / "kept" / "checkpoints")
    assert kept.steps()[0] <= 60 <= kept.steps()[-1] and not any(map(kept.damage, kept.steps()))
    assert TrainedRun(tmp_path / "resumed").architecture and data_utils.read_metadata(tmp_path / "data")["batch_size"] == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(run_train, data_dir, corpus_dir, tmp_path):
    (tmp_path / "logs").mkdir(mode=0o555)
    with pytest.raises(OSError, match="cannot write logs/supernet: Permission denied"):
        run_train()
    with pytest.raises(OSError, match="cannot write .*: Permission denied"):
        make_data(corpus_dir, tmp_path / "logs" / "data")
