"""Whole processes: killed a few times, and left alone for long. chaos.py kills more often."""

import os
import shutil
import sys
from pathlib import Path

import chaos
import numpy as np
import tiny


def test_a_killed_training_ends_like_an_undisturbed_one(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    assert chaos.disturb_training(tmp_path, kills=2, seed=3, longest=2) == []


def test_data_whose_making_is_killed_are_the_old_or_the_new(corpus_dir, tmp_path):
    shutil.copytree(corpus_dir, tmp_path / "corpus")
    assert chaos.disturb_data(tmp_path, kills=2, seed=3) == []


def test_a_long_run_does_not_grow(data_dir, tmp_path):
    given = dict(data_dir=data_dir, log_every=20, save_every="10m", epochs=13)  # 2,730 steps
    settings = tiny.NETWORK | tiny.TRAINING | chaos.OF_A_RUN | tiny.QUICK | given
    flags = tiny.as_flags(**settings)
    process = chaos.start(tmp_path, "train.py", *flags, python=[sys.executable])  # not a warm one
    sizes = []
    for line in process.stdout:
        if line.startswith(f"epoch {len(sizes) + 2} "):  # trained, validated and saved before
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            opened = [os.path.realpath(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
            handles = sum(not path.endswith(".ttf") for path in opened)  # bold is loaded when used
            events = sum(path.stat().st_size for path in tmp_path.rglob("events*"))
            sizes.append((pages, handles, events))
    chaos.finish(process)
    pages, handles, events = np.transpose(sizes)
    assert len(sizes) == 12 and pages[-1] < 1.007 * pages[0] and handles[-1] == handles[0]
    assert np.ptp(np.diff(events)) < 0.2 * np.diff(events).mean()  # as much in every epoch
