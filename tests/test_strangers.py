"""Untrusted runs are used or refused in one line, and write nothing outside their folder."""

import os
import shutil
from pathlib import Path

import pytest
from commands import one_line, run_command
from conftest import train_in

import export
import generate
import plot_search
from support import files
from support.checkpoints import HASHES
from training.trained_run import TrainedRun


def tree(folder: Path) -> dict:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def put(path: Path, what: str):
    """Puts something else in place of a file."""
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what.startswith("/dev"):
        os.symlink(what, path)
    elif what == "folder":
        path.mkdir()
    else:
        path.write_text(what)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", f"best/{{}}/{HASHES}"])
def test_something_other_than_a_file_is_refused(name, begun):
    path = begun / name.format(os.listdir(begun / "best")[0])
    for what in ("pipe", "/dev/null", "/dev/zero", "[" * 10**6, "9" * 10**5, "folder"):
        put(path, what)
        done = run_command(generate, f"--run={begun}", "--prompt=a", "--num_tokens=1")
        assert path.name in one_line(done)
        if what != "folder":
            path.unlink()
            path.touch()


def test_writing_does_not_leave_the_folder_of_the_run(begun, run_train, tmp_path):
    target = tmp_path / "mine.txt"
    target.write_text("mine")
    for name in ("search.gif", "search.gif.partial", "search.png"):
        (begun / name).unlink(missing_ok=True)
        os.symlink(target, begun / name)
    assert run_command(plot_search, f"--run={begun}").returncode == 0
    assert target.read_text() == "mine" and not (begun / "search.gif").is_symlink()
    for name in ("training_log.log", "checkpoints", "train"):
        moved = (begun / name).rename(tmp_path / name)
        os.symlink(moved, begun / name)
        before = tree(tmp_path)
        with pytest.raises(files.InputError, match=f"{name} is a symbolic link: links are not"):
            run_train()
        assert tree(tmp_path) == before
        (begun / name).unlink()
        moved.rename(begun / name)


@pytest.mark.parametrize("given", [[], ["--output_dir=logs/supernet/saved_model"]])
def test_an_export_does_not_leave_the_folder_of_the_run(given, begun, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for name in ("saved_model", ".saved_model.partial"):
        os.symlink("../../mine", begun / name)
        before = tree(tmp_path)
        done = run_command(export, f"--run={begun}", *given)
        assert f"{name} is a symbolic link" in one_line(done) and tree(tmp_path) == before
        (begun / name).unlink()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_folder_in_place_of_a_file_blocks_nobody(make, begun, run_train):
    events, log = begun / "train" / "events.out.tfevents.9999999999", begun / "training_log.log"
    log.unlink()
    make(events)
    make(log)
    assert "is not a regular file" in one_line(run_command(plot_search, f"--run={begun}"))
    with pytest.raises(files.InputError, match="training_log.log is not a regular file"):
        run_train()
    shutil.rmtree(log) if log.is_dir() else log.unlink()
    run_train()


@pytest.fixture
def other_run(data_dir, tmp_path):
    """The folder of a run of a fixed network, with the sizes and layer types of the search."""
    (tmp_path / "other").mkdir()
    return train_in(tmp_path / "other", data_dir=str(data_dir), architecture="ad", max_steps=8)


@pytest.mark.parametrize("to_search", [False, True])
def test_a_part_of_another_run_is_refused(to_search, begun, other_run, tmp_path):
    source, target = (other_run, begun) if to_search else (begun, other_run)
    for part in ("config.json", "results.json", "best", "checkpoints"):
        own = (target / part).rename(tmp_path / part)
        (shutil.copytree if own.is_dir() else shutil.copy)(source / part, target / part)
        with pytest.raises(files.InputError, match="belongs to another run"):
            run = TrainedRun(target, "latest" if part == "checkpoints" else "best")
            run.architecture, run.network()
        shutil.rmtree(target / part) if own.is_dir() else (target / part).unlink()
        own.rename(target / part)


def test_the_folder_of_runs_may_be_a_link(run_train, tmp_path):
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "logs")
    run_train(max_steps=2)
    assert (tmp_path / "disk" / "supernet" / "results.json").is_file()
