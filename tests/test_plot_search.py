"""Pictures of searches, attention and comparisons."""

import re
import shutil
import subprocess

import numpy as np
import pytest
import warm
from commands import one_line, run_command
from conftest import PROJECT, results_of
from matplotlib import pyplot
from PIL import Image

import evaluate
import plot_search
from support import files, pictures
from support.errors import InputError
from support.events import curves
from training.trained_run import TrainedRun


def test_curves_are_those_of_the_log(search_run):
    train = curves(search_run / "train")
    log = (search_run / "training_log.log").read_text()
    written = re.findall(r" step ([\d,]+)/.*  loss (\S+) .* tokens/s", log)
    steps, losses = train["metrics/loss"]
    assert steps.tolist() == [int(step.replace(",", "")) for step, _ in written]
    assert losses == pytest.approx([float(loss) for _, loss in written], abs=1e-4)
    steps_of_pi, pi = curves(search_run / "train", plugin="pi")["pi/all"]
    assert steps_of_pi.tolist() == steps.tolist()
    assert pi.shape == (len(steps), 2, 3) and np.allclose(pi.sum(axis=2), 1)
    assert np.allclose(pi[-1], results_of(search_run)["pi"])
    assert np.allclose(pi[:, :, 2].sum(axis=1), train["pi/identity_blocks"][1])


def test_entropy_by_hand():
    found = plot_search.entropy(np.array([[1 / 3] * 3, [1, 0, 0], [0.5, 0.5, 0]]))
    assert found == pytest.approx([np.log(3), 0, np.log(2)])


def test_the_animation_and_the_still_picture(search_run, tmp_path):
    run = shutil.copytree(search_run, tmp_path / "logs" / "run")
    config = files.read_json(run / "config.json")
    config["data"]["corpus"] = "Ba$$in {0} 红楼梦"  # is drawn as plain text
    files.write_json(run / "config.json", config)
    command = [*warm.PYTHON, PROJECT / "plot_search.py", f"--run={run}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout == f"wrote {run}/search.gif, {run}/search.png\n"
    steps = len(curves(run / "train")["metrics/loss"][0])
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
    heat_map, *curves = search.figure.axes

    def places():
        search.figure.canvas.draw()
        return [axes.get_legend().get_window_extent().bounds for axes in curves
                if axes.get_legend()]

    before, first = places(), [text.get_text() for text in heat_map.texts]
    search.show(len(search.steps) - 1)
    assert heat_map.get_title() == f"pi at step {search.steps[-1]:,} of supernet, markov"
    assert len(first) == 6 and first != [text.get_text() for text in heat_map.texts]
    assert [axes.lines[-1].get_xdata() for axes in curves] == [[search.steps[-1]] * 2] * 4
    assert [axes.get_title() for axes in curves] == [
        "loss, nats per token", "perplexity", "temperature tau", "entropy of pi, nats"]
    assert [axes.get_xlabel() for axes in curves] == ["", "", "step", "step"]
    assert places() == before and len(before) == 3  # legends stay in place
    pyplot.close(search.figure)


def test_shades_and_numbers_of_a_heat_map_are_those_of_its_place():
    pi = np.array([[0.7, 0.2, 0.1], [0.1, 0.0, 0.9], [0.3334, 0.3333, 0.3333]])
    axes = pyplot.figure().subplots()
    pictures.draw_pi(axes, pi, ["attention", "dense", "identity"], "title")
    shades = np.asarray(axes.images[0].get_array())
    assert np.array_equal(shades, pi.T)  # layer types down, blocks across
    for text in axes.texts:
        block, kind = text.get_position()
        assert text.get_text() == f"{pi[block, kind]:.2f}"
        is_largest = (block, kind) in [(0, 0), (1, 2)]  # all of block 2 are equal as shown
        assert (text.get_weight() == "bold") == is_largest


def test_a_fixed_network_has_no_search_to_draw(run_train):
    with pytest.raises(InputError, match="has no record of a search"):
        plot_search.SearchFigure(TrainedRun(run_train(architecture="a", max_steps=3)))


def test_the_picture_of_attention_is_grey_and_shows_tokens_and_windows(begun, capsys):
    run = TrainedRun(begun)
    text = "the city of the old king and the sea $ _ ^ {"
    paths = plot_search.draw_attention(run, text)
    assert paths == [begun / "attention_block_1.png", begun / "attention_block_2.png"]
    for path in paths:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert np.ptp(pixels, axis=2).max() == 0 and pixels.std() > 20
    weights, tokens = run.language_model.attention(text)
    figure = pictures.attention_figure(
        weights[0][..., -len(tokens):], tokens, run.data["seq_len"], "title")
    heads, sizes = [axes for axes in figure.axes if axes.images], run.language_model.model.sizes
    assert len(heads) == sizes.num_heads
    for axes, expected in zip(heads, weights[0]):
        assert np.array_equal(axes.images[0].get_array(), expected[:, sizes.mem_len:])
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            token.strip() or token for token in tokens]
    pyplot.close(figure)


@pytest.mark.parametrize("text, message", [
    ("", "there is no attention to draw"), ("a b c d " * 40, "at most 80 can be drawn")])
def test_a_text_whose_attention_cannot_be_drawn(text, message, search_run):
    with pytest.raises(InputError, match=message):
        plot_search.draw_attention(TrainedRun(search_run), text)


def test_no_network_beats_one_on_the_front():
    rng = np.random.default_rng(0)
    for size in (1, 2, 30):
        costs, losses = rng.integers(0, 9, [2, size]).astype(float)
        found = pictures.front(costs, losses)
        beaten = [any(costs[other] <= costs[one] and losses[other] <= losses[one]
                      and (costs[other], losses[other]) != (costs[one], losses[one])
                      for other in range(size)) for one in range(size)]
        points = {(costs[one], losses[one]) for one in range(size) if not beaten[one]}
        assert {(costs[one], losses[one]) for one in found} == points
        assert len(found) == len(points) and np.all(np.diff(costs[found]) > 0)


def test_the_table_of_a_comparison_has_means_and_the_best_first():
    def report(architecture, bits, words, milliseconds, mem_len=16, random=False, within=False,
               batch_size=4):
        return {"architecture": architecture, "bits_per_byte": bits, "word_perplexity": words,
                "ms_per_window": {"p50": milliseconds}, "flops_per_token": 2.5e6, "text": "some",
                "parameters": 1000, "batch_size": batch_size, "seq_len": 32, "mem_len": mem_len,
                "random": random, "within_search": within, "run": f"logs/{bits}", "device": "CPU"}

    networks = evaluate.means([
        report("aa", 1.5, 300.0, 8.0, random=True), report("dd", 1.45, None, 3.0, random=True),
        report("iaai", 1.3, 200.0, 9.0), report("aa", 1.2, 100.0, 9.0, mem_len=64),
        report("aa", 1.35, 220.0, 1.0, batch_size=1),
        report("ia", 1.7, 400.0, 8.0, within=True), report("ia", 1.6, 350.0, 8.0, within=True)])
    assert [network["random"] for network in networks] == [
        False, False, False, True, False, False]
    lines = plot_search.table(networks).splitlines()
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "1.2000 0.0000 1 100.0 1,000 2.500 9.00 4 x 32 + 64 aa",
        "1.3500 0.0000 1 220.0 1,000 2.500 1.00 1 x 32 + 16 aa",
        "1.4000 0.2000 2 250.0 1,000 2.500 8.50 4 x 32 + 16 aa",
        "1.4500 0.0000 1 inf 1,000 2.500 3.00 4 x 32 + 16 dd",
        "1.6000 0.0000 1 350.0 1,000 2.500 8.00 4 x 32 + 16 ia",
        "1.7000 0.0000 1 400.0 1,000 2.500 8.00 4 x 32 + 16 ia"]
    figure = plot_search.comparison_figure(networks, {"aa", "ia"})  # ia was not trained alone
    for axes in figure.axes:
        points = {each.get_label(): len(each.get_offsets()) for each in axes.collections}
        assert points == {"found by a search": 3, "random": 1, "others": 2}
        bold = [text.get_text() for text in axes.texts if text.get_weight() == "bold"]
        assert bold == ["aa"] * 3
    pyplot.close(figure)


def test_runs_are_compared_by_their_evaluations(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(begun, tmp_path / "logs" / "random_1")
    compare = "--compare=logs/supernet,logs/random_1"
    lacking = run_command(plot_search, compare)
    assert "has no evaluation of the validation split: python evaluate.py" in one_line(lacking)
    assert run_command(evaluate, "--run=logs/supernet").returncode == 0
    for run, single in (("supernet", "da"), ("random_1", "da"), ("random_1", "ad")):
        done = run_command(evaluate, f"--run=logs/{run}", f"--architecture={single}")
        assert done.returncode == 0
    path, = (tmp_path / "logs" / "random_1").glob("evaluation_valid_ad_*.json")
    report = files.read_json(path)
    earlier = report | {"step": 1, "bits_per_byte": 9.0}  # does not count
    files.write_json(path.with_name("evaluation_valid_ad_earlier.json"), earlier)
    results = files.read_json(begun / "results.json")
    files.write_json(begun / "results.json", results | {"architecture": "ia"})
    drawn, found = [], []
    monkeypatch.setattr(pictures.pyplot, "close", drawn.append)
    draw = plot_search.comparison_figure
    monkeypatch.setattr(plot_search, "comparison_figure",
                        lambda networks, names: found.append(names) or draw(networks, names))
    done = run_command(plot_search, compare, "--searches=logs/supernet")
    lines = done.stdout.splitlines()
    assert lines[-1] == "wrote logs/supernet/comparison.png, logs/supernet/depth.png", done.stderr
    assert found == [{"a"}]
    assert sorted(line.split()[-1] for line in lines[1:-1]) == ["ad", "da", "da", "ss"]
    assert not any(line.strip().startswith("9.0000") for line in lines)
    figure, depth = drawn
    rows = [text.get_text() for text in depth.axes[0].get_yticklabels()]
    assert rows == sorted(rows) and len(rows) == 4
    for axes in figure.axes:
        names = sorted(text.get_text().split()[0] for text in axes.texts)
        assert names == ["ad", "da", "da", "ss"]
    points = [x for points in figure.axes[1].collections for x, _ in points.get_offsets()]
    assert pytest.approx(report["flops_per_token"] / 1e6) in points
    with Image.open("logs/supernet/comparison.png") as picture:
        assert np.ptp(np.asarray(picture.convert("RGB")), axis=2).max() == 0
    assert "either --run or --compare" in one_line(run_command(plot_search, compare, "--run=x"))
    attention = run_command(plot_search, compare, "--attention=the king")
    assert "--attention needs --run" in one_line(attention)
    searches = run_command(plot_search, "--run=x", "--searches=y")
    assert "--searches needs --compare" in one_line(searches)


def test_a_network_far_worse_than_the_others_leaves_them_room():
    """Also if it is the cheapest, has no name, or no loss at all."""
    losses = np.array([1.65, 1.42, 1.44, 1.40, 1.43, 1.41, 1.45, 1.46, 1.9, np.inf, np.nan])
    names, grey = ["worst", *"bcdefgh", "", "", ""], np.arange(11) % 2 == 1
    figure = pictures.trade_off_figure(
        names, {"odd": (grey, pictures.GREY), "even": (~grey, pictures.BLACK)}, losses,
        {"cost": np.arange(11.0)}, "loss", "")
    axes, = figure.axes
    odd, even, worse = (points.get_offsets() for points in axes.collections)
    assert dict([*odd, *even]) == {number: losses[number] for number in range(1, 8)}
    assert list(worse[:, 0]) == [0, 8, 9, 10]
    assert 1.46 < min(worse[:, 1]) == max(worse[:, 1]) < 1.48
    assert "worst 1.650" in [text.get_text() for text in axes.texts]
    pyplot.close(figure)


def test_names_of_a_crowd_do_not_overlap():
    everyone = np.ones(8, bool)
    losses = np.array([1.80, 1.801, 1.802, 1.80, 1.803, 1.86, 1.90, 1.85])
    figure = pictures.trade_off_figure(
        ["adadadadadad"] * 8, {"all": (everyone, pictures.BLACK)}, losses,
        {"cost": np.array([10, 10.1, 10.2, 10.4, 10.1, 8, 20, 12])}, "loss", "")
    figure.canvas.draw()
    axes, = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 8
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
    pyplot.close(figure)


def test_equal_layers_of_several_widths_are_named_by_their_parameters():
    networks = [{"architecture": letters, "parameters": parameters} for letters, parameters in (
        ("ad", 1_250_925), ("dd", 1_000_000), ("ad", 1_908_845), ("dd", 1_000_000))]
    assert plot_search.names(networks) == ["ad 1.25M", "dd", "ad 1.91M", "dd"]


def test_attention_is_dark_over_depth():
    networks = [{"architecture": letters, "bits_per_byte": bits, "text": ""}
                for letters, bits in (("ladd", 1.401), ("dd", 1.5))]
    figure = plot_search.depth_figure(networks)
    axes, = figure.axes
    shades = axes.images[0].get_array()
    assert (shades < 0.5).tolist() == [[True, True, False, False], [False] * 4]
    assert list(shades[1, 2:]) == [1, 1]  # white: no layer
    assert "".join(text.get_text() for text in axes.texts) == "ladddd"
    assert [text.get_text() for text in axes.get_yticklabels()] == ["1.401", "1.500"]
    pyplot.close(figure)


@pytest.mark.parametrize("losses", [[1.4], [1.4, 1.4, 1.4, 1.4, 1.5]])
def test_if_most_networks_are_alike_none_is_worse(losses):
    losses, everyone = np.array(losses), np.ones(len(losses), bool)
    figure = pictures.trade_off_figure(
        ["a"] * len(losses), {"all": (everyone, pictures.BLACK)}, losses, {"cost": losses}, "", "")
    points, = figure.axes[0].collections
    assert list(points.get_offsets()[:, 1]) == list(losses)
    pyplot.close(figure)
