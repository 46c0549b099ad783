"""The trainer: what a step does, and to which parameters."""

import concurrent.futures
import itertools
import math
import re
import shutil
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from chaos import state_of
from conftest import BATCH_SIZE, SEQ_LEN, VOCAB_SIZE, results_of, tiny_settings

import data_utils
from layers.draws import Draws
from layers.kind import Sizes
from support import timing
from support.errors import InputError
from support.tokenization import PAD
from training import scoring
from training import trainer as trainer_module
from training.latency import layer_latency
from training.trainer import Trainer, build_network


def loss_of(trainer, steps):
    """Trains, and gives the mean loss."""
    trainer.train(steps)
    return trainer.end_line()[0]


def weights_after(trainer, *steps):
    """Theta and one kernel after each of some numbers of steps."""
    seen = []
    for count in steps:
        trainer.train(count)
        seen.append((trainer.model.theta.numpy(), trainer.model.softmax.table.rows[0].numpy()))
    return seen


def test_the_windows_of_a_training_end_at_once(trainer_of):
    """With autotuning their iterator would wait for a second, and after a long run longer."""
    windows, end = trainer_of()._windows_from(0), time.monotonic() + 1.5
    while time.monotonic() < end:
        next(windows)
    start = time.monotonic()
    del windows
    assert time.monotonic() - start < 0.3


def test_the_settings_reach_the_network():
    settings = tiny_settings(proj_factor=2, dropout_rate=0.3, straight_through=True)
    network = build_network(settings, VOCAB_SIZE, static_shapes=True)
    assert [rows.shape[1] for rows in network.softmax.table.rows[1:]] == [4, 2]
    assert network.softmax.static_shapes and network.straight_through
    assert [block.dropout_rate for block in network.blocks] == [0.3, 0.3]


def test_an_alternating_search_trains_the_architecture_in_its_share_of_the_steps(trainer_of):
    trainer = trainer_of(search="alternating", arch_share=0.25, warmup_steps=8)
    trainer.train(6)
    seen = weights_after(trainer, *[1] * 18)
    theta, kernel = ([not np.array_equal(a, b) for a, b in zip(values, values[1:])]
                     for values in zip(*seen))
    turn = [False] + [False, False, False, True] * 4  # of steps 8 to 24: none in the warm-up
    assert theta == turn and kernel == [not own for own in turn]
    counts = {name: int(optimizer.iterations) for name, (optimizer, _) in trainer._groups.items()}
    assert counts == {"weights": 20, "architecture": 4}
    again = trainer_of(search="alternating", arch_share=0.25, warmup_steps=8)
    again.train(24)  # in one call
    assert np.array_equal(again.model.theta, seen[-1][0])
    assert np.array_equal(again.model.softmax.table.rows[0], seen[-1][1])


def test_a_joint_search_trains_both_in_every_step(trainer_of):
    trainer = trainer_of()
    weights_after(trainer, 5)
    assert {int(optimizer.iterations) for optimizer, _ in trainer._groups.values()} == {5}


@pytest.mark.parametrize("per_row", [False, True])
def test_a_search_of_uniform_draws_trains_the_drawn_layers_alone(per_row, trainer_of):
    trainer = trainer_of(search="uniform", gumbel_per_row=per_row, kinds=["dense", "identity"])
    weights, = weights_after(trainer, 5)
    assert np.all(weights[0] == 0) and np.allclose(trainer.model.pi(), 0.5)
    samples = np.concatenate([np.reshape(trainer.model.sample(
        tau=0.1, draws=Draws(0, step), rows=BATCH_SIZE), [-1, 2, 2]) for step in range(200)])
    assert len(samples) == 200 * (BATCH_SIZE if per_row else 1)
    assert np.all(np.sort(samples, axis=2) == [0, 1])
    assert samples.mean(axis=0) == pytest.approx(0.5 * np.ones([2, 2]), abs=0.1)


def test_a_step_descends_the_mean_loss_and_the_architecture_at_its_own_rate(trainer_of, data_dir):
    sgd = dict(opt_name="sgd", warmup_steps=0, dropout_rate=0.0, cutoffs=())
    trainer = trainer_of(arch_lr_factor=1.0, **sgd)
    bias, = trainer.model.softmax.biases
    before = bias.numpy()
    trainer.train(1)  # while the softmax kernels are zero, the gradient is that of the frequencies
    window = next(data_utils.load_windows(data_dir, "train", trainer.metadata).as_numpy_iterator())
    share = np.bincount(window[:, 1:].ravel(), minlength=VOCAB_SIZE) / window[:, 1:].size
    assert np.allclose((bias - before) / 0.01, share - tf.nn.softmax(before), atol=1e-4)
    once, = weights_after(trainer, 1)
    thrice, = weights_after(trainer_of(arch_lr_factor=3.0, **sgd), 2)
    assert np.abs(once[0]).max() > 0 and np.allclose(thrice[0], 3 * once[0], rtol=0.02)
    assert np.allclose(once[1], thrice[1], rtol=1e-3)


def test_max_steps_changes_no_schedule(trainer_of):
    short, whole = trainer_of(fresh=True, max_steps=30), trainer_of(fresh=True)
    for trainer in (short, whole):
        trainer.state.step.assign(25)
    assert (short.last_step, short.learning_rate, short.tau) == (
        30, whole.learning_rate, whole.tau)
    assert short.learning_rate > 0


def test_part_of_an_epoch_is_a_whole_schedule(run_train):
    folder = run_train(epochs=0.1, warmup_steps=5, log_every=1)
    results, log = results_of(folder), (folder / "training_log.log").read_text()
    whole = data_utils.read_metadata(Path(results["flags"]["data_dir"]))["splits"]["train"]["steps"]
    steps = results["steps"]
    assert steps == pytest.approx(0.1 * whole, abs=0.5) and steps > 10
    assert f"epoch 1 of 0.1, steps 1 to {steps} of {steps}" in log
    assert f"step {steps}/{steps}  loss" in log
    rates = [float(rate) for rate in re.findall(r"lr (\S+)", log)]
    assert max(rates) == rates[4] == 0.01 and rates[-1] == 0 and len(rates) == steps
    assert "tau 0.1000" in log


def test_a_search_that_pays_for_time_prefers_what_is_quick(run_train):
    table = np.array([5.0, 1.0, 2.0])
    settings = dict(latency_weight=1.0, warmup_steps=0, accumulate=2)

    def measured(kinds, sizes, B, T, jit_compile):  # of the whole batch, whatever --accumulate is
        assert (B, T) == (4, 8)
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "layer_latency", measured)
        folder = run_train(max_steps=40, **settings)
        doubled = 2 * table  # measured only once
        patch.setattr(trainer_module, "layer_latency", lambda *arguments: doubled)
        resumed = run_train(max_steps=41, **settings)
    results = results_of(folder)
    assert results["architecture"] == "dd" and min(row[0] for row in results["pi"]) < 0.3
    assert np.array_equal(np.frombuffer(state_of(resumed)["latency"], np.float32), table)
    log = (folder / "training_log.log").read_text()
    assert "milliseconds per window: attention 5.00, dense 1.00, identity 2.00" in log


def test_expected_latency_is_the_sampled_mixture_of_the_table(trainer_of):
    trainer = trainer_of()
    trainer.state.latency.assign([5.0, 1.0, 2.0])
    draws, step = Draws(0, 3), trainer._train_steps.python_function.__self__
    sample = trainer.model.sample(0.5, draws).numpy()  # [S, K]
    expected = (sample @ [5, 1, 2]).sum()
    assert float(step.latency(0.5, draws, 4)) == pytest.approx(expected, rel=1e-5)


def test_layers_are_timed():
    attention, dense, identity = layer_latency(
        ["attention", "dense", "identity"], Sizes(128, 4, 1024, 16), 32, 32, jit_compile=False)
    assert 0 < identity < min(attention, dense) and max(attention, dense) < 1000


def test_the_times_of_layers_are_milliseconds(monkeypatch):
    clock = itertools.count(step=0.002)  # seconds from look to look
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    times = layer_latency(["dense", "identity"], Sizes(8, 2, 16, 6), 2, 4, jit_compile=False)
    assert times == pytest.approx([2, 2])


def test_the_start_of_an_epoch_equals_a_plain_loop(trainer_of, data_dir):
    architecture = ["attention"] * 2
    trainer = trainer_of(
        architecture=architecture, mem_len=20, dropout_rate=0.0, opt_name="sgd", max_lr=0.0)
    head = trainer.model.softmax.table.rows[0]
    head.assign(np.random.default_rng(0).normal(size=head.shape))
    memory, plain = trainer.state.memory * 0, []
    windows = data_utils.load_windows(data_dir, "train", trainer.metadata)
    for number, window in enumerate(windows.take(4)):
        filled = min(number * SEQ_LEN, 20)
        nll, memory = scoring.window_nll(trainer.model, window, memory, filled, 1.0)
        plain.append(np.sum(nll) / np.sum(scoring.real_targets(window)))
    first = [loss_of(trainer, 1) for _ in range(4)]
    loss_of(trainer, trainer.steps_per_epoch - 4)
    padded = [np.sum(window[:, 1:] != PAD) for window in windows.as_numpy_iterator()]
    assert float(trainer.state.epoch.targets) == sum(padded) < len(padded) * BATCH_SIZE * SEQ_LEN
    second = [loss_of(trainer, 1) for _ in range(4)]
    assert first == pytest.approx(plain, rel=1e-5)  # nothing is learned at a learning rate of 0 ...
    assert second == pytest.approx(plain, rel=1e-5)  # ... so the next epoch begins alike
    assert len(set(first)) == 4


def test_an_id_that_occurs_twice_moves_by_the_sum_of_its_gradients(trainer_of):
    trainer = trainer_of(opt_name="rmsprop", max_lr=0.01, warmup_steps=0)
    trainer.train(1)  # while the softmax kernels are zero, no gradient reaches the embedding
    before = trainer.model.embedding.rows[0].numpy()
    trainer.train(1)
    moved = np.abs(trainer.model.embedding.rows[0].numpy() - before) / 0.01
    # RMSprop's first gradient: g / sqrt(0.1 g^2), whatever g
    assert moved.max() == pytest.approx(math.sqrt(10), rel=1e-3)


def test_totals_are_of_what_was_trained(trainer_of):
    trainer = trainer_of()
    losses = [loss_of(trainer, 1) for _ in range(3)]
    trainer.train(4)
    targets = [int(tf.reduce_sum(scoring.real_targets(window))) for window in
               data_utils.load_windows(trainer._data_dir, "train", trainer.metadata).take(7)]
    assert float(trainer.state.epoch.targets) == float(trainer.state.run.targets) == sum(targets)
    assert float(trainer.state.line.targets) == sum(targets[3:])
    assert trainer.state.epoch.loss == pytest.approx(trainer.epoch_metrics()["loss"])
    assert len(set(losses)) == 3
    trainer.train(trainer.steps_per_epoch)  # to the seventh step of the next epoch, in one call
    assert float(trainer.state.epoch.targets) == sum(targets)
    whole = trainer.metadata["splits"]["train"]["tokens"] - BATCH_SIZE
    assert float(trainer.state.run.targets) == whole + sum(targets)


def test_a_step_samples_at_the_temperature_of_its_own_step(trainer_of, data_dir):
    """The loss of each step, with everything about it computed anew by the equations."""
    trainer = trainer_of(
        fresh=True, dropout_rate=0.0, mem_len=0, opt_name="sgd", max_lr=0.0, epochs=1,
        tau_start=8.0, tau_end=1e-3, seed=3)
    model, rng = trainer.model, np.random.default_rng(0)
    rows = model.softmax.table.rows[0]
    rows.assign(rng.normal(size=rows.shape))
    for block in model.blocks:
        block.norms["dense"].scale.assign(rng.normal(size=model.sizes.d_model))
    for step, window in enumerate(data_utils.load_windows(
            data_dir, "train", trainer.metadata).take(4)):
        tau = 8.0 * (1e-3 / 8.0) ** (step / trainer.total_steps)
        nll, _ = scoring.window_nll(
            model, window, model.empty_memory(BATCH_SIZE), 0, tau, Draws(3, step))
        plain = np.sum(nll) / np.sum(scoring.real_targets(window))
        assert loss_of(trainer, 1) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_training_that_was_interrupted_continues_as_if_it_was_not(when, trainer_of, monkeypatch):
    straight = trainer_of(fresh=True)
    straight.train(9)
    trainer = trainer_of(fresh=True)
    trainer.train(2)
    original = trainer._train_steps

    def interrupted(*arguments):
        if when == "before":
            signal.raise_signal(signal.SIGINT)
        memory = original(*arguments)
        signal.raise_signal(signal.SIGINT)
        return memory

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "_train_steps", interrupted)
        trainer.train(3)
    assert trainer.step == 5
    trainer.train(4)
    for mine, other in zip(trainer.model.weights, straight.model.weights):
        assert np.array_equal(mine, other), mine.path


WAYS = {
    "alternating": dict(
        search="alternating", arch_share=0.3, warmup_steps=4, gumbel_per_row=True,
        latency_weight=0.1, dropout_rate=0.2, embedding_dropout=0.1, tie_embeddings=True),
    "fixed": dict(architecture=("attention",), accumulate=2, opt_name="rmsprop", clipnorm=0.1),
    "mixed": dict(straight_through=True, tau_is_trainable=True),
}


@pytest.mark.parametrize("way", WAYS)
def test_many_steps_in_one_program_train_as_one_at_a_time(way, data_dir):
    """To the bit with 7 and 20; nearly with 1, which XLA compiles otherwise, and in graph mode."""
    settings = tiny_settings(**{"architecture": ("search",)} | WAYS[way])
    metadata = data_utils.read_metadata(data_dir)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if way == "mixed" else "float32")

    def trained(jit_compile, steps_per_execution, *parts):
        trainer = Trainer(data_dir, metadata, settings, jit_compile,
                          steps_per_execution=steps_per_execution)
        trainer.state.latency.assign([3.0, 2.0, 1.0])
        losses = []
        for part in parts:
            trainer.train(part)
            losses.append(trainer.end_line()[0])
        trainer.complete_state()
        variables = {**trainer.state.weights, **trainer.state.optimizers["weights"]}
        return trainer, losses, [variable.numpy() for variable in variables.values()]

    try:
        many, losses, expected = trained(True, 20, 10, 13)
        fewer, same, found = trained(True, 7, 5, 5, 13)
        assert np.mean(same[:2]) == pytest.approx(losses[0]) and same[2] == losses[1]
        assert np.array_equal(many.state.memory, fewer.state.memory)
        assert many.step == fewer.step == 23
        for mine, theirs in zip(found, expected, strict=True):
            assert np.array_equal(mine, theirs)
        rel, tolerance = (0.01, 0.05) if way == "mixed" else (1e-6, 1e-4)
        for jit_compile, steps_per_execution in ((True, 1), (False, 20))[way != "fixed":]:
            _, near, found = trained(jit_compile, steps_per_execution, 10, 13)
            assert near == pytest.approx(losses, rel=rel)
            for mine, theirs in zip(found, expected, strict=True):
                assert np.allclose(mine, theirs, rtol=tolerance, atol=tolerance)
    finally:
        keras.config.set_dtype_policy(policy)


def test_compiled_steps_are_few_programs(trainer_of, data_dir, monkeypatch):
    """100 steps are five, each compiled as a whole."""
    trainer = Trainer(data_dir, data_utils.read_metadata(data_dir),
                      tiny_settings(architecture=["dense"]), jit_compile=True)
    programs, counts = trainer._train_steps, []

    def counted(windows, num_steps, *others):
        counts.append(int(num_steps))
        return programs(windows, num_steps, *others)

    monkeypatch.setattr(trainer, "_train_steps", counted)
    trainer.train(100)
    assert counts == [20] * 5 and trainer.step == 100 and trainer.steps_per_epoch > 100
    program, = programs._list_all_concrete_functions()  # one, whatever the number of steps
    assert program.function_def.attr["_XlaMustCompile"].b
    trainer.train(trainer.steps_per_epoch - 95)
    assert sum(counts[5:]) == trainer.steps_per_epoch - 95 and max(counts) == 20
    ends = np.cumsum(counts)
    assert trainer.steps_per_epoch in ends  # never across the end of an epoch
    assert len(programs._list_all_concrete_functions()) == 1


@pytest.mark.parametrize("jit_compile, steps_per_execution", [(False, 3), (True, 20)])
def test_a_step_whose_loss_is_not_finite_changes_nothing(
        jit_compile, steps_per_execution, data_dir):
    """Steps after it are left out, and training may go on where it was."""
    settings = tiny_settings(architecture=["attention"], max_lr=0.02, dropout_rate=0.0)
    plain, spoilt = (
        Trainer(data_dir, data_utils.read_metadata(data_dir), settings, jit_compile,
                steps_per_execution=steps_per_execution) for _ in range(2))
    windows = list(itertools.islice(spoilt._windows_from(0), 20))
    read = [set(window[:, :-1].ravel()) for window in windows]
    step = next(n for n in range(5, 15) if read[n] - set().union(*read[:n]))
    new = min(read[step] - set().union(*read[:step]))  # an id that no step before has read
    rows = spoilt.model.embedding.rows[0]
    own = rows.numpy()[new]

    def put(values):
        rows.assign(np.where(np.arange(VOCAB_SIZE)[:, None] == new, values, rows))

    put(np.inf)
    with pytest.raises(FloatingPointError,
                       match=f"the loss of step {step + 1} is not finite .*embedding"):
        spoilt.train(20)
    put(own)
    for more in (0, 4):
        plain.train(more or step)
        spoilt.train(more)
        for trainer in (plain, spoilt):
            trainer.complete_state()
        parts = zip(*(tf.train.TrackableView(trainer.state).descendants()
                      for trainer in (plain, spoilt)), strict=True)
        for mine, other in parts:
            if isinstance(mine, tf.Variable) and mine.dtype != tf.float64:  # those hold seconds too
                assert np.array_equal(mine, other), mine.name
        for name in ("line", "epoch", "run"):
            mine, other = getattr(spoilt.state, name), getattr(plain.state, name)
            assert (mine.loss, float(mine.targets)) == (other.loss, float(other.targets))
    assert spoilt.step == step + 4


def test_the_language_model_of_a_trainer_is_its_network_now(trainer_of):
    trainer = trainer_of(tau_start=4.0)
    for steps in (5, 60):  # other weights, and another temperature
        trainer.train(steps)
        text = trainer.language_model.generate("ab", num_tokens=4, seed=1)
        ids, _ = trainer.language_model.encode(text)
        tokens, log_prob = trainer.language_model.log_prob(text)
        memory = trainer.model.empty_memory(1)
        nll, _ = scoring.window_nll(trainer.model, tf.constant(ids[None]), memory, 0, trainer.tau)
        assert 4 < len(tokens) <= SEQ_LEN and np.isnan(log_prob[0])
        assert np.allclose(log_prob[1:], -nll[0], atol=1e-4)


def test_trainers_of_one_seed_start_alike_even_in_threads_and_of_another_do_not(trainer_of):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = [pool.submit(trainer_of, fresh=True, seed=seed) for seed in (1, 2)]
    one, other = (trainer_of(fresh=True, seed=seed).model for seed in (1, 2))
    for alone, future in zip((one, other), made):
        for mine, theirs in zip(future.result().model.weights, alone.weights):
            assert np.array_equal(mine, theirs), mine.path
    for mine, theirs in zip(one.weights, other.weights):
        if "kernel" in mine.path or "embedding" in mine.path:
            assert not np.array_equal(mine, theirs), mine.path


@pytest.mark.parametrize("call, name", [
    (lambda trainer: trainer.train(-1), "num_steps"),
    (lambda trainer: trainer.evaluate("nope"), "split"),
    (lambda trainer: tiny_settings(search="x"), "search"),
    (lambda trainer: tiny_settings(seed=1.5), "seed"),
    (lambda trainer: tiny_settings(seed=True), "seed"),
    (lambda trainer: tiny_settings(accumulate=0), "accumulate"),
    (lambda trainer: tiny_settings(dropout_rate=1.0), "dropout_rate"),
    (lambda trainer: tiny_settings(max_lr=math.nan), "max_lr"),
    (lambda trainer: tiny_settings(cutoffs=(0.5,)), "cutoffs"),
    (lambda trainer: tiny_settings(architecture=[]), "architecture")])
def test_an_argument_out_of_range_is_named(call, name, trainer_of):
    with pytest.raises(ValueError, match=rf"^(--)?{name} must "):
        call(trainer_of())


def test_the_data_are_blamed_by_name_for_damage_seen_in_training(trainer_of, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    path = sorted((tmp_path / "data" / "train").iterdir())[0]
    trainer = trainer_of(fresh=True)
    trainer._data_dir = tmp_path / "data"
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path} is missing or damaged"):
        trainer.train(trainer.steps_per_epoch)
