import contextlib
import dataclasses
import itertools
import json
import math
import re
import shutil
import signal
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver
from chaos import differences, events_of, state_of
from conftest import SEQ_LEN, TINY, VOCAB_SIZE, make_data, when_called, write_corpus

import data_utils
import evaluate
import runs
import tokenization
import train
from evaluate import Evaluator
from runs import Run, TrainedRun
from support import files
from support.checkpoints import Checkpoints
from support.cli import InputError


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def loss_of(trainer, steps):
    """Trains, and gives the mean loss."""
    trainer.train(steps)
    return trainer.end_line()[0]


def test_a_run_learns_and_leaves_everything_in_its_folder(run_train, data_dir, capsys):
    folder = run_train(epochs=4)
    metadata = data_utils.read_metadata(data_dir)
    steps = metadata["splits"]["train"]["steps"]
    results = results_of(folder)

    assert {path.name for path in folder.iterdir()} == {
        "config.json", "tokenizer.model", "tokenizer.vocab", "training_log.log", "results.json", "checkpoints", "best", "train", "valid"}
    assert results["corpus"] == "markov" and results["steps"] == 4 * steps and results["parameters"] > 0
    assert results["wall_seconds"] > 0 and results["tokens_per_second"] > 0
    assert results["architecture"] == "".join("adi"[kind] for kind in np.argmax(results["pi"], axis=1))
    assert np.shape(results["pi"]) == (2, 3) and np.allclose(np.sum(results["pi"], axis=1), 1)
    assert results["flags"]["d_model"] == 8 and results["versions"]["tensorflow"] == tf.__version__ and "CPU" in results["device"]
    for split in ("train", "valid", "test"):
        scores, entry = results[split], metadata["splits"][split]
        total = scores["loss"] * (entry["tokens"] - 1)
        assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
        assert scores["word_perplexity"] == pytest.approx(math.exp(total / entry["words"]))
        assert scores["bits_per_byte"] == pytest.approx(total / math.log(2) / entry["bytes"])
        assert scores["perplexity"] < VOCAB_SIZE / 2  # a uniform guess has VOCAB_SIZE

    scalars, others = events_of(folder / "train")
    lines = [step for step in range(1, 4 * steps + 1) if step % 7 == 0 or step % steps == 0]
    for tag in ("loss", "perplexity", "training/learning_rate", "training/tau", "training/tokens_per_second", "pi/block_1/attention", "pi/block_2/identity"):
        assert sorted(scalars[tag]) == lines, tag
    assert others["pi"] == [0, steps, 2 * steps, 3 * steps, 4 * steps] and others["configuration"] == [0]
    valid, _ = events_of(folder / "valid")
    assert valid.keys() == {"loss", "perplexity", "raw_text/word_perplexity", "raw_text/bits_per_byte"}
    assert sorted(valid["loss"]) == [steps, 2 * steps, 3 * steps, 4 * steps] and valid["loss"][4 * steps] == pytest.approx(results["valid"]["loss"])
    assert scalars["loss"][lines[-1]] < scalars["loss"][lines[0]] - 0.5

    log = (folder / "training_log.log").read_text()
    assert re.findall(r" step ([\d,]+)/", log) == [f"{step:,}" for step in lines]
    for part in ("flags {", "versions {", "Total params", "markov", "on CPU", "tokens/s  ETA 0:00", "valid  loss", "test ", "architecture "):
        assert part in log, part
    console = capsys.readouterr().out
    assert "epoch 4 of 4" in console and "loss" in console and "valid  loss" in console and "Total params" not in console


def test_a_run_that_is_interrupted_anywhere_equals_one_that_is_not(run_train, tmp_path, monkeypatch):
    settings = dict(dropout_rate=0.2, max_steps=230, save_every="50")  # an epoch has 192
    whole = run_train(**settings).rename(tmp_path / "whole")
    places = [((train.Trainer, "train"), 1), ((train.Trainer, "train"), 3), ((train.Trainer, "end_line"), 12), ((Checkpoints, "save"), 1),
              ((Checkpoints, "save"), 3), ((Run, "heat_map"), 1), ((Evaluator, "__call__"), 1), ((Run, "evaluation"), 1), ((Evaluator, "__call__"), 1),
              ((Evaluator, "__call__"), 2), ((Run, "finish"), 1)]
    for (place, count), number in zip(places, itertools.cycle([signal.SIGTERM, signal.SIGHUP, signal.SIGINT])):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as interrupt:
            when_called(patch, place, count, lambda: [signal.raise_signal(each) for each in (number, signal.SIGINT)])
            run_train(**settings)
        assert place[1] == "finish" or interrupt.value.number == number
    parts = run_train(**settings)
    assert differences(whole, parts) == []
    log = (parts / "training_log.log").read_text()
    stops, starts = (re.findall(pattern, log) for pattern in (r"interrupted at step (\d+) and saved", r"resumed at step (\d+)"))
    assert [*stops, "230"] == starts and len(stops) >= 3 and any(int(stop) % 7 for stop in stops)


def test_a_run_that_dies_at_any_moment_equals_one_that_does_not(run_train, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die():
        raise Killed

    settings = dict(dropout_rate=0.2, max_steps=230, save_every="30")
    whole = run_train(**settings).rename(tmp_path / "whole")
    for place, count in [((train.Trainer, "end_line"), 3), ((files, "sync"), 3), ((Run, "heat_map"), 1), ((Evaluator, "__call__"), 1), ((Run, "evaluation"), 1),
                         ((Run, "finish"), 1)]:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            when_called(patch, place, count, die)
            run_train(**settings)
    parts = run_train(**settings)
    assert differences(whole, parts) == []


def test_max_steps_may_grow(run_train, data_dir):
    steps = data_utils.read_metadata(data_dir)["splits"]["train"]["steps"]
    whole = run_train(model_name="whole", dropout_rate=0.2, max_steps=steps + 25)
    for stop in (10, steps + 3, steps + 25):  # in the first epoch, in the second
        parts = run_train(model_name="parts", dropout_rate=0.2, max_steps=stop)
    assert state_of(whole) == state_of(parts) | {name: state_of(whole)[name] for name in ("best_loss",)}
    assert sorted(events_of(parts / "valid")[0]["loss"]) == [10, steps, steps + 3, steps + 25]
    for key in ("train", "valid", "test", "pi", "steps"):
        assert results_of(whole)[key] == results_of(parts)[key]


@pytest.mark.parametrize("every, expected", [("8", [16, 24, 25]), ("1000m", [25])])
def test_checkpoints_are_written_after_so_many_steps(every, expected, run_train):
    folder = run_train(save_every=every, max_steps=25)
    assert Checkpoints(folder / "checkpoints").steps() == expected


def test_checkpoints_are_written_after_so_many_minutes(run_train, monkeypatch):
    monkeypatch.setattr(train.time, "monotonic", lambda clock=iter(range(0, 10**6, 25)): next(clock))  # 25 seconds from look to look
    folder = run_train(save_every="1m", max_steps=25)
    assert len(Checkpoints(folder / "checkpoints").steps()) == 2


def test_two_runs_with_one_seed_are_equal_and_with_another_are_not(run_train):
    losses = [results_of(run_train(model_name=name, seed=seed, max_steps=12))["valid"]["loss"] for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert losses[0] == losses[1] != losses[2]


def test_a_finished_run_started_again_trains_no_further(run_train, capsys):
    first = results_of(run_train(max_steps=10))
    again = results_of(run_train(max_steps=10))
    assert {k: v for k, v in first.items()} == {k: v for k, v in again.items()}
    assert "resumed at step 10" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [
    dict(architecture="ad", mem_len=20, opt_name="rmsprop"), dict(architecture="i", cutoffs=["20", "60"], proj_dims=["4,3"], opt_name="nadam"),
    dict(architecture="sds", cutoffs=[]), dict(architecture="random", opt_name="adamw", clipvalue=0.5), dict(straight_through=True, mem_len=0),
    dict(tau_is_trainable=True, search="alternating"), dict(opt_name="sgd", clipnorm=1.0), dict(gumbel_per_row=True, latency_weight=0.1),
    dict(gumbel_per_row=True, straight_through=True), dict(max_lr=1e-3, warmup_steps=0)], ids=str)
def test_every_setting_trains(settings, run_train):
    folder = run_train(max_steps=40, log_every=10, **settings)
    losses = events_of(folder / "train")[0]["loss"]
    assert all(math.isfinite(loss) for loss in losses.values()) and results_of(folder)["steps"] == 40
    if settings.get("opt_name") != "sgd" and "max_lr" not in settings:
        assert losses[40] < losses[10]


def test_compiled_and_graph_mode_agree(run_train):
    losses = [events_of(run_train(model_name=mode, jit_compile=mode, max_steps=20, log_every=5) / "train")[0]["loss"] for mode in ("true", "false")]
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=1e-4)


def test_mixed_precision_learns_as_float32_does(run_train):
    losses = [events_of(run_train(model_name=f"mixed_{mixed}", mixed_precision=mixed, max_steps=120, log_every=20) / "train")[0]["loss"] for mixed in (True, False)]
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=0.01)
    assert losses[0] != losses[1] and losses[0][120] < losses[0][20] - 0.1


def test_a_fixed_architecture_has_no_search(run_train):
    folder = run_train(architecture="ad", max_steps=3)
    results = results_of(folder)
    assert results["pi"] == [[1, 0, 0], [0, 1, 0]] and results["architecture"] == "ad"
    assert not any("theta" in name for name in state_of(folder))
    assert not any(tag.startswith("pi/") for tag in events_of(folder / "train")[0])


def test_an_architecture_is_letters_a_finished_run_or_a_random_draw(run_train, search_run):
    found = results_of(search_run)["architecture"]
    with flagsaver.flagsaver(architecture=str(search_run)):
        assert "".join(kind[0] for kind in train.architecture()) == found and len(found) == 2
    with flagsaver.flagsaver(architecture="aaddis"):
        assert train.architecture() == ["attention", "attention", "dense", "dense", "identity", "search"]
    with flagsaver.flagsaver(num_layers=3):
        assert train.architecture() == ["search"] * 3
    drawn = set()
    for seed in range(6):
        with flagsaver.flagsaver(architecture="random", num_layers=9, seed=seed):
            assert train.architecture() == train.architecture() and len(train.architecture()) == 9
            drawn.add(tuple(train.architecture()))
    assert len(drawn) == 6 and {kind for kinds in drawn for kind in kinds} == set(train.KINDS)
    folder = run_train(architecture=str(search_run), max_steps=3, model_name="fixed")
    assert results_of(folder)["architecture"] == found and results_of(folder)["flags"]["architecture"] == found


def test_fine_tuning_starts_from_the_weights_of_the_chosen_branches(run_train, search_run, data_dir):
    trained, _, _ = TrainedRun(search_run).network()
    with flagsaver.flagsaver(**TINY | {"architecture": "da"}):
        model = train.build_model(VOCAB_SIZE, static_shapes=False)
        train.take_weights(model, search_run, train.configuration(data_utils.read_metadata(data_dir))["data"])
    x, memory, bias = tf.random.normal([1, 3, 8]), tf.random.normal([1, 6, 8]), tf.zeros([3, 9])
    dense, attention = trained.blocks[0], trained.blocks[1]
    assert np.array_equal(model.blocks[0](x), dense.dense_norm(x + dense.dense(x)))
    assert np.array_equal(model.blocks[1](x, memory, bias), attention.attention_norm(x + attention.attention(x, memory, bias)))
    assert np.array_equal(model.embedding.embeddings, trained.embedding.embeddings)
    assert np.array_equal(model.softmax.log_prob(x[0]), trained.softmax.log_prob(x[0]))

    tuned = run_train(model_name="tuned", init_from=str(search_run), max_steps=7)
    assert results_of(tuned)["architecture"] == results_of(search_run)["architecture"]
    scratch = run_train(model_name="scratch", architecture=str(search_run), max_steps=7)
    assert events_of(tuned / "train")[0]["loss"][7] < events_of(scratch / "train")[0]["loss"][7] - 0.3
    again = run_train(model_name="tuned", init_from=str(search_run), max_steps=9)  # resumes, and does not start over
    assert np.frombuffer(state_of(again)["step"], np.int64) == 9


def test_weights_that_do_not_fit_are_refused(run_train, search_run, tmp_path):
    for settings, message in [
        (dict(init_from=str(search_run), d_model=16), r"\S+ is \[.*\] in \S+ and \[.*\] here: --init_from needs a network of the same sizes"),
        (dict(init_from=str(search_run), architecture="ada"), "has no block_2/.*: its architecture lacks what this one needs"),
        (dict(init_from="nowhere", architecture="ad"), "nowhere is no run"),
        (dict(init_from="nowhere"), "nowhere is no run"),
        (dict(architecture=str(tmp_path)), "is no run"),
    ]:
        with pytest.raises(InputError, match=message):
            run_train(model_name="refused", **settings)
    assert not (tmp_path / "logs" / "refused").exists()
    unfinished = shutil.copytree(search_run, tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    with pytest.raises(InputError, match="has no results.json: it has not finished"):
        run_train(architecture=str(unfinished))
    config = files.read_json(search_run / "config.json")
    other = shutil.copytree(search_run, tmp_path / "other")
    files.write_json(other / "config.json", config | {"data": config["data"] | {"tokenizer_sha256": "0"}})
    with pytest.raises(InputError, match="trained with another tokenizer"):
        run_train(init_from=str(other))


def weights_after(data_dir, *steps, **settings):
    """The trainer, and theta and one kernel after each of some numbers of steps."""
    with flagsaver.flagsaver(**TINY | {"data_dir": str(data_dir)} | settings):
        keras.utils.set_random_seed(0)
        trainer, seen = train.Trainer(data_dir, data_utils.read_metadata(data_dir), jit_compile=False), []
        for count in steps:
            trainer.train(count)
            seen.append((trainer.model.theta.numpy(), trainer.model.softmax.head.numpy()))
    return trainer, seen


def test_an_alternating_search_trains_the_architecture_in_its_share_of_the_steps(data_dir):
    _, seen = weights_after(data_dir, *[1] * 24, search="alternating", arch_share=0.25, warmup_steps=8)
    theta, kernel = ([not np.array_equal(a, b) for a, b in zip(values, values[1:])] for values in zip(*seen))
    turn = [False] * 7 + [False, False, False, True] * 4  # of steps 2 to 24: none in the warm-up, then every fourth
    assert theta == turn and kernel == [not own for own in turn]


def test_the_architecture_has_an_optimizer_of_its_own(data_dir):
    trainer, _ = weights_after(data_dir, 20, search="alternating", arch_share=0.5, warmup_steps=4)
    counts = {name: int(optimizer.iterations) for name, (optimizer, _) in trainer._groups.items()}
    assert counts == {"weights": 12, "architecture": 8}
    joint, _ = weights_after(data_dir, 5)
    assert {int(optimizer.iterations) for optimizer, _ in joint._groups.values()} == {5}


@pytest.mark.parametrize("share", [0.1, 0.2, 1 / 3, 0.7])
def test_the_share_of_the_architecture_is_kept_and_spread(share):
    turns = [train.trains_architecture(step, 10, share) for step in range(310)]
    assert not any(turns[:10]) and sum(turns) == math.floor(300 * share + 1e-9)
    gaps = np.diff(np.flatnonzero(turns))
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_the_learning_rate_of_the_architecture_is_scaled(data_dir):
    sgd = dict(opt_name="sgd", warmup_steps=0, dropout_rate=0.0)
    (once,), (thrice,) = (weights_after(data_dir, 2, arch_lr_factor=factor, **sgd)[1] for factor in (1.0, 3.0))
    assert np.abs(once[0]).max() > 0 and np.allclose(thrice[0], 3 * once[0], rtol=0.02)
    assert np.allclose(once[1], thrice[1], rtol=1e-3)


def test_a_search_that_pays_for_time_prefers_what_is_quick(run_train):
    table = np.array([5.0, 1.0, 2.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "layer_latency", lambda *arguments: table)
        folder = run_train(latency_weight=1.0, warmup_steps=0, max_steps=40)
        patch.setattr(train, "layer_latency", lambda *arguments: 2 * table)  # measured once, when a run begins
        resumed = run_train(latency_weight=1.0, warmup_steps=0, max_steps=41)
    assert results_of(folder)["architecture"] == "dd" and min(row[0] for row in results_of(folder)["pi"]) < 0.3
    assert np.array_equal(np.frombuffer(state_of(resumed)["latency"], np.float32), table)
    assert "milliseconds per window: attention 5.00, dense 1.00, identity 2.00" in (folder / "training_log.log").read_text()


def test_expected_latency_is_the_sampled_mixture_of_the_table(data_dir):
    with flagsaver.flagsaver(**TINY):
        trainer = train.Trainer(data_dir, data_utils.read_metadata(data_dir), jit_compile=False)
        trainer.state.latency.assign([5.0, 1.0, 2.0])
        draws = train.Draws(0, 3)
        sample = trainer.model.sample(trainer._tau_at(3), draws).numpy()  # [S, K]
        assert float(trainer._latency(3, draws, 4)) == pytest.approx((sample @ [5, 1, 2]).sum(), rel=1e-5)


def test_layers_are_timed():
    with flagsaver.flagsaver(num_layers=1, d_model=64, d_ffn=512):
        attention, dense, identity = train.layer_latency(16, 16, jit_compile=False)
    assert 0 < identity < min(attention, dense) and max(attention, dense) < 1000


def test_learning_rate_at_its_corners():
    schedule = train.learning_rate_schedule(1e-3, 100, 1100)
    for step, expected in [(0, 0), (50, 5e-4), (100, 1e-3), (600, 5e-4), (1100, 0), (350, 1e-3 * (1 + math.cos(math.pi / 4)) / 2)]:
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert float(train.learning_rate_schedule(1e-3, 0, 10)(0)) == pytest.approx(1e-3)
    assert float(train.learning_rate_schedule(1e-3, 4000, 40)(40)) == pytest.approx(1e-5)  # a run shorter than its warm-up


def test_temperature_at_its_corners():
    tau_at = train.tau_schedule(1.0, 0.1, 1000)
    for step, expected in [(0, 1.0), (500, 10**-0.5), (1000, 0.1)]:
        assert float(tau_at(tf.constant(step))) == pytest.approx(expected, rel=1e-5)


def test_the_start_of_an_epoch_equals_a_plain_loop(data_dir):
    metadata = data_utils.read_metadata(data_dir)
    steps = metadata["splits"]["train"]["steps"]
    with flagsaver.flagsaver(**TINY | {"dropout_rate": 0.0, "architecture": "aa", "opt_name": "sgd", "max_lr": 0.0, "mem_len": 20}):
        trainer = train.Trainer(data_dir, metadata, jit_compile=False)
        trainer.model.softmax.head.assign(np.random.default_rng(0).normal(size=trainer.model.softmax.head.shape))
        memory, plain = trainer.state.memory * 0, []
        for number, window in enumerate(data_utils.load_windows(data_dir, "train", metadata).take(4)):
            nll, memory = train.window_nll(trainer.model, window, memory, min(number * SEQ_LEN, 20), 1.0)
            plain.append(np.sum(nll) / np.sum(train.real_targets(window)))
        trained = [loss_of(trainer, 1) for _ in range(4)] + [loss_of(trainer, steps - 4)] + [loss_of(trainer, 1) for _ in range(4)]
    assert trained[:4] == pytest.approx(plain, rel=1e-5)  # nothing is learned at a learning rate of 0 ...
    assert trained[5:] == pytest.approx(plain, rel=1e-5)  # ... so the next epoch, with empty memory, is the same
    assert len(set(trained[:4])) == 4


def test_an_infinite_metric_is_null_in_json(run_train, monkeypatch):
    monkeypatch.setattr(evaluate, "exp", lambda nats: math.inf)
    results = (run_train(max_steps=3) / "results.json").read_text()
    assert "Infinity" not in results and json.loads(results)["valid"]["word_perplexity"] is None


def plain_adam(weight, gradients, rates):
    """Kingma & Ba 2014, algorithm 1, in float64."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t, (gradient, rate) in enumerate(zip(gradients, rates), 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        weight = weight - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
    return weight


def test_fused_adam_is_adam():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=[5, 3]), rng.normal(size=[6, 5, 3])
    variable, schedule = keras.Variable(start, dtype="float32"), keras.optimizers.schedules.CosineDecay(0.1, 10)
    optimizer = train.FusedAdam(learning_rate=schedule)
    optimizer.build([variable])
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
    expected = plain_adam(start, gradients, [float(schedule(step)) for step in range(6)])
    assert np.allclose(variable.numpy(), expected, atol=1e-5) and not np.allclose(start, expected, atol=0.1)


def test_an_id_that_occurs_twice_moves_by_the_sum_of_its_gradients(data_dir):
    with flagsaver.flagsaver(**TINY | dict(opt_name="rmsprop", max_lr=0.01, warmup_steps=0)):
        trainer = train.Trainer(data_dir, data_utils.read_metadata(data_dir), jit_compile=False)
        trainer.train(1)  # while the softmax kernels are zero, no gradient reaches the embedding
        before = trainer.model.embedding.embeddings.numpy()
        trainer.train(1)
    moved = np.abs(trainer.model.embedding.embeddings.numpy() - before) / 0.01
    assert moved.max() == pytest.approx(math.sqrt(10), rel=1e-3)  # RMSprop's first gradient: g / sqrt(0.1 g^2), whatever g


def test_the_flags_reach_the_model_and_the_optimizer():
    with flagsaver.flagsaver(**TINY | dict(opt_name="adamw", clipnorm=0.5, proj_dims=["4,3"], dropout_rate=0.3, straight_through=True)):
        net, optimizer = train.build_model(VOCAB_SIZE, static_shapes=True), train.build_optimizer("weights", lambda: 0.1, [])
    assert isinstance(optimizer, keras.optimizers.AdamW)
    assert [variable.shape[1] for variable in net.softmax.projections] == [4, 3] and net.softmax.static_shapes
    assert net.straight_through and [block.dropout_rate for block in net.blocks] == [0.3, 0.3]


@pytest.mark.parametrize("clip, moved", [({}, [3.0, -4.0]), ({"clipvalue": 0.25}, [0.25, -0.25]), ({"clipnorm": 0.5}, [0.3, -0.4]), ({"clipnorm": 9.0}, [3.0, -4.0])], ids=str)
def test_gradients_are_clipped(clip, moved):
    variable = keras.Variable([0.0, 0.0])
    with flagsaver.flagsaver(opt_name="sgd", **clip):
        optimizer = train.build_optimizer("weights", lambda: 0.1, [variable])
        optimizer.apply([tf.constant([3.0, -4.0])], [variable])
    assert isinstance(optimizer, keras.optimizers.SGD) and np.allclose(variable.numpy(), -0.1 * np.array(moved))


def test_a_loss_that_overflows_stops_the_run_at_its_step(run_train, monkeypatch):
    folder = run_train(max_steps=10)
    before, window_nll = state_of(folder), train.window_nll

    def overflowing(*arguments):
        nll, memory = window_nll(*arguments)
        return nll * 1e30 * 1e30, memory

    monkeypatch.setattr(train, "window_nll", overflowing)
    with pytest.raises(FloatingPointError, match=r"the loss of step 11 is not finite \(all weights are, those of \S+ are the largest\): .*last checkpoint"):
        run_train(max_steps=90)
    assert state_of(folder) == before


@pytest.mark.parametrize("name, number", [("theta", math.nan), ("dense/inner_kernel", -math.inf), ("softmax/head", math.inf), ("softmax/head", 3e38)])
def test_the_first_weight_that_is_not_finite_is_named(name, number, run_train, monkeypatch):
    train_steps = train.Trainer.train

    def poisoned(trainer, num_steps):
        seconds = train_steps(trainer, num_steps)
        if trainer.step == 14:
            for path, weight in list(trainer.state.weights.items())[::-1]:
                if name in path:
                    weight.assign(tf.fill(weight.shape, number))
                    last.append(path)
        return seconds

    last = []
    monkeypatch.setattr(train.Trainer, "train", poisoned)
    with pytest.raises(FloatingPointError) as error:
        run_train(jit_compile="true" if number == math.inf else "false", save_every="1000")
    assert "\n" not in str(error.value)
    if number == 3e38:
        assert re.match(r"the loss of step (15|16|17) is not finite", str(error.value))
    else:
        assert str(error.value).startswith(f"the loss of step 15 is not finite (the first such variable is {last[-1]})")


def test_a_state_that_is_not_finite_is_never_saved(run_train, monkeypatch):
    folder = run_train(max_steps=10)
    before, end_line = state_of(folder), train.Trainer.end_line

    def poisoned(trainer):
        if trainer.step == 21:
            if part == "memory":
                trainer._memory *= math.nan
            else:
                variables = {"weights": trainer.state.weights, "optimizers": trainer.state.optimizers["weights"]}[part]
                variable = next(variable for path, variable in variables.items() if where in path)
                variable.assign(tf.fill(variable.shape, math.nan))
        return end_line(trainer)

    monkeypatch.setattr(train.Trainer, "end_line", poisoned)
    for part, where in [("weights", "embedding"), ("optimizers", "velocity"), ("memory", "memory")]:
        with pytest.raises(FloatingPointError, match=rf"what step 21 left is not finite \(the first such variable is \S*{where}"):
            run_train(max_steps=90, save_every="21")
        assert state_of(folder) == before


def test_a_learning_rate_that_is_too_high_is_told(run_train):
    with pytest.raises(FloatingPointError, match=r"the loss of step \d+ is not finite .*A lower --max_lr or --clipnorm may help"):
        run_train(max_lr=1e30, warmup_steps=0)


def test_an_evaluation_that_is_not_finite_is_named(run_train, monkeypatch):
    call = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", lambda *arguments: dataclasses.replace(call(*arguments), nll=math.nan))
    with pytest.raises(FloatingPointError, match="the loss of valid after step 5 is not finite"):
        run_train(max_steps=5)


@pytest.fixture
def begun(search_run, tmp_path):
    """The folder of a run that a test may go on with, or damage."""
    return Path(shutil.copytree(search_run, tmp_path / "logs" / "supernet"))


def test_another_configuration_or_other_data_under_the_same_name_is_refused(begun, run_train, data_dir, tmp_path):
    config = (begun / "config.json").read_text()
    with pytest.raises(InputError, match=r"another configuration \(d_ffn: 16 before, 32 now\): choose another --model_name"):
        run_train(d_ffn=32)
    other = shutil.copytree(data_dir, tmp_path / "other")
    files.write_json(other / "metadata.json", data_utils.read_metadata(data_dir) | {"corpus": "another"})
    with pytest.raises(InputError, match="corpus: markov before, another now"):
        run_train(data_dir=str(other))
    assert (begun / "config.json").read_text() == config


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(run_train, tmp_path, capsys):
    settings = dict(max_steps=40, save_every="10", dropout_rate=0.2)
    whole, folder = run_train(model_name="whole", **settings), run_train(**settings | {"max_steps": 30})
    unfinished = folder.rename(tmp_path / "unfinished")
    for damaged in ("state.index", "state.data-00000-of-00001", "sha256.json"):
        shutil.copytree(unfinished, folder)
        path = folder / "checkpoints" / "30" / damaged
        path.write_bytes(path.read_bytes()[:-30])
        capsys.readouterr()
        run_train(**settings)
        told = capsys.readouterr().out
        assert f"{damaged} is damaged" in told and "the checkpoint before is taken" in told and "resumed at step 20" in told
        assert state_of(folder) == state_of(whole) and events_of(folder / "train")[0]["loss"] == events_of(whole / "train")[0]["loss"]
        assert Checkpoints(folder / "checkpoints").damage(30) is None  # written anew
        shutil.rmtree(folder)


def test_a_run_none_of_whose_checkpoints_is_whole_is_refused(begun, run_train):
    checkpoints = list(begun.glob("checkpoints/*/state.index"))
    for path in checkpoints:
        path.unlink()
    with pytest.raises(InputError, match="no checkpoint in logs/supernet/checkpoints can be restored: delete logs/supernet to train"):
        run_train()
    assert len(checkpoints) > 1


def test_settings_that_do_not_fit_the_data_are_refused(run_train):
    for settings, message in [
        (dict(cutoffs=["20", str(VOCAB_SIZE)]), f"cutoffs .* below the vocabulary size {VOCAB_SIZE}"),
        (dict(cutoffs=["60,20"]), "must rise"),
        (dict(architecture="pooling"), "unknown architecture 'pooling'"),
        (dict(proj_dims=["3"]), "one positive width for each of the 2 tails"),
        (dict(architecture="ad", search="alternating"), "--search is about a search, and the architecture ad is fixed"),
        (dict(architecture="ad", latency_weight=0.1), "--latency_weight is about a search"),
        (dict(architecture="ad", straight_through=True), "--straight_through is about a search"),
        (dict(search="alternating", warmup_steps=4000), "--warmup_steps=4000 leaves none of the 420 steps"),
        (dict(data_dir="nowhere"), "run ./make_data.sh first"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            run_train(**settings)
        assert "\n" not in str(error.value)


def test_every_flag_that_changes_what_is_learned_is_refused_when_a_run_goes_on(search_run, tmp_path):
    config = files.read_json(search_run / "config.json")
    folder = shutil.copytree(search_run, tmp_path / "run")
    for name, value in [*config["flags"].items(), *config["data"].items()]:
        part = "flags" if name in config["flags"] else "data"
        changed = {**config, part: config[part] | {name: "another"}}
        files.write_json(folder / "config.json", changed)
        if name in ("data_dir", "max_steps", "log_every", "save_every", "distribute", "accumulate"):
            runs._check_same(folder, config)
        else:
            with pytest.raises(InputError, match=f"another configuration .{name}: another before, .* now.: choose another --model_name"):
                runs._check_same(folder, config)
    assert {"seed", "max_lr", "epochs", "warmup_steps"} <= config["flags"].keys() and "files_sha256" in config["data"]


def test_data_that_are_made_anew_while_a_run_goes_on_stop_it(corpus_dir, data_dir, run_train, tmp_path, monkeypatch):
    data = shutil.copytree(data_dir, tmp_path / "data")
    other = write_corpus(tmp_path / "other")
    (other / "train.txt").write_text((other / "train.txt").read_text()[::-1])

    def replace(**changes):
        make_data(other, data, **dict(shards=2) | changes)

    for changes, place in [({}, ((train.Trainer, "train"), 5)), (dict(tokenizer=tokenization.Settings(vocab_size=330)), ((train.Trainer, "train"), 5)), (dict(batch_size=2), ((Evaluator, "__call__"), 1))]:
        with monkeypatch.context() as patch, pytest.raises(InputError, match="data has been made anew while it was in use: stopped"):
            when_called(patch, *place, lambda: replace(**changes))
            run_train(data_dir=str(data), save_every="50")
        kept = Checkpoints(tmp_path / "logs" / "supernet" / "checkpoints").steps()
        assert kept in ([], [100, 150, 200]), kept  # 210 steps are an epoch
        shutil.rmtree(data), shutil.copytree(data_dir, data), shutil.rmtree(tmp_path / "logs")


def test_a_run_without_its_configuration_is_refused(begun, run_train):
    (begun / "config.json").unlink()
    with pytest.raises(InputError, match="logs/supernet is no run: logs/supernet/config.json is missing"):
        run_train()


def test_a_run_stopped_in_an_epoch_may_end_there_but_not_before(run_train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        when_called(patch, (train.Trainer, "train"), 3, lambda: signal.raise_signal(signal.SIGTERM))
        run_train(log_every=1000)
    step, = Checkpoints(tmp_path / "logs" / "supernet" / "checkpoints").steps()
    with pytest.raises(InputError, match=f"logs/supernet is at step {step} already: --max_steps must not be less"):
        run_train(log_every=1000, max_steps=1)
    folder = run_train(log_every=1000, max_steps=step)
    results = results_of(folder)
    assert results["steps"] == step and results["train"]["loss"] > 3 and results["tokens_per_second"] > 0 and list(events_of(folder / "valid")[0]["loss"]) == [step]


def test_a_run_goes_on_though_what_it_began_from_is_gone(search_run, run_train, tmp_path):
    shutil.copytree(search_run, tmp_path / "logs" / "from")
    whole = run_train(model_name="whole", init_from="logs/from", max_steps=20)
    run_train(model_name="parts", init_from="logs/from", max_steps=10)
    shutil.rmtree(tmp_path / "logs" / "from")
    parts = run_train(model_name="parts", init_from="logs/from", max_steps=20)
    assert state_of(whole) == state_of(parts) | {"best_loss": state_of(whole)["best_loss"]} and results_of(parts)["architecture"] == results_of(whole)["architecture"]


def test_a_damaged_best_network_is_told_and_replaced(run_train, capsys):
    folder = run_train(max_steps=10)
    path = next((folder / "best" / "10").glob("state.data*"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="state.data.* is damaged: choose another with --checkpoint, of latest, 10"):
        TrainedRun(folder).network()
    run_train(max_steps=20)
    assert "is damaged: the best network from now on is kept" in capsys.readouterr().out and TrainedRun(folder).network()[2] == 20


def test_a_console_that_goes_stops_nothing(run_train, monkeypatch):
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        folder = run_train(max_steps=5)
        monkeypatch.undo()
    assert results_of(folder)["steps"] == 5


def test_a_damaged_configuration_is_named(begun, run_train):
    for damaged in ("{", "{}", "[]", '{"flags": 1, "data": 2}'):
        (begun / "config.json").write_text(damaged)
        with pytest.raises(InputError, match="config.json is damaged"):
            run_train()
