import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image

import plot_search
from runs import TrainedRun
from support import files
from support.cli import InputError


def test_curves_are_those_that_training_wrote(search_run):
    curves = TrainedRun(search_run).scalars("train")
    log = (search_run / "training_log.log").read_text()
    written = [(int(line.split("step ")[1].split("/")[0].replace(",", "")), float(line.split("loss ")[1].split()[0]))
               for line in log.splitlines() if "tokens/s" in line]
    steps, losses = curves["loss"]
    assert steps.tolist() == [step for step, _ in written] and losses == pytest.approx([loss for _, loss in written], abs=1e-4)
    steps, pi = plot_search.recorded_pi(curves)
    assert steps.tolist() == curves["loss"][0].tolist() and pi.shape == (len(steps), 2, 3) and np.allclose(pi.sum(axis=2), 1)
    assert np.allclose(pi[:, 1, 2], curves["pi/block_2/identity"][1])


def test_entropy_by_hand():
    assert plot_search.entropy(np.array([[1 / 3] * 3, [1, 0, 0], [0.5, 0.5, 0]])) == pytest.approx([np.log(3), 0, np.log(2)])


def test_the_animation_and_the_still_picture(search_run, tmp_path):
    run = shutil.copytree(search_run, tmp_path / "logs" / "run")
    config = files.read_json(run / "config.json")
    files.write_json(run / "config.json", config | {"data": config["data"] | {"corpus": "Ba$$in {0} 红楼梦"}})  # a name is plain text
    done = subprocess.run([sys.executable, PROJECT / "plot_search.py", f"--run={run}"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    steps = len(TrainedRun(run).scalars("train")["loss"][0])
    with Image.open(run / "search.gif") as movie:
        assert movie.is_animated and movie.n_frames == min(steps, plot_search.FRAMES)
        first = np.asarray(movie.convert("L"))
        movie.seek(movie.n_frames - 1)
        assert np.mean(first != np.asarray(movie.convert("L"))) > 0.001
    assert (run / "search.gif").stat().st_size < 1_000_000
    with Image.open(run / "search.png") as still:
        assert still.width > 800


def test_every_picture_names_run_corpus_and_step(search_run):
    search = plot_search.SearchFigure(TrainedRun(search_run))
    search.show(0)
    first = [text.get_text() for text in search.figure.axes[0].texts]
    search.show(len(search.steps) - 1)
    axes = search.figure.axes[0]
    assert axes.get_title() == f"pi at step {search.steps[-1]:,} of supernet, markov"
    assert len(first) == len(axes.texts) == 6 and first != [text.get_text() for text in axes.texts]
    assert [axes.get_title() for axes in search.figure.axes[1:]] == ["loss, nats per token", "perplexity", "temperature tau", "entropy of pi, nats"]


def test_a_fixed_network_has_no_search_to_draw(run_train):
    with pytest.raises(InputError, match="has no record of a search"):
        plot_search.SearchFigure(TrainedRun(run_train(architecture="a", max_steps=3)))
