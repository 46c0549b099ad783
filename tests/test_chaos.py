"""Whole processes: killed a few times (chaos.py does it as often as you like), and left alone for a long time."""

import os
import shutil
from pathlib import Path

import chaos
import numpy as np


def test_training_that_is_killed_ends_as_if_it_had_not_been(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    assert chaos.disturb_training(tmp_path, kills=3, seed=3, longest=2) == []  # one by each signal


def test_data_that_are_made_anew_are_the_old_or_the_new_when_that_is_killed(corpus_dir, tmp_path):
    shutil.copytree(corpus_dir, tmp_path / "corpus")
    assert chaos.disturb_data(tmp_path, kills=2, seed=3) == []


def test_a_long_run_keeps_its_size(data_dir, tmp_path):
    process, sizes = chaos.start(tmp_path, "train.py", *chaos.TRAIN_FLAGS, f"--data_dir={data_dir}", "--log_every=20", "--save_every=10m", "--epochs=18"), []
    for line in process.stdout:
        if line.startswith(f"epoch {len(sizes) + 2} "):  # all has been done once: trained, validated, saved
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            events = sum(path.stat().st_size for path in tmp_path.rglob("events*"))
            sizes.append((pages, len(os.listdir(f"/proc/{process.pid}/fd")), events))
    chaos.finish(process)
    pages, handles, events = np.transpose(sizes)
    assert len(sizes) == 17 and pages[-1] < 1.01 * pages[0] and handles[-1] == handles[0]  # 3,072 steps
    assert np.ptp(np.diff(events)) < 0.2 * np.diff(events).mean()  # as much in every epoch
