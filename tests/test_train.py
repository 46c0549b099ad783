import json
import math
import os
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import cli
import data_utils
import train
from cli import InputError
from conftest import BATCH_SIZE, PROJECT, SEQ_LEN, VOCAB_SIZE

flags.FLAGS(["train.py"])  # the defaults; a test sets its own

TINY = dict(num_layers=2, d_model=8, num_heads=2, d_ffn=16, mem_len=6, cutoffs=["20,60"], epochs=2, warmup_steps=20, max_lr=0.01, log_every=7)


@pytest.fixture
def run_train(data_dir, tmp_path, monkeypatch):
    """A function that trains with the given flags in an empty folder, and returns the folder of the run."""
    monkeypatch.chdir(tmp_path)

    def run(**settings):
        with flagsaver.flagsaver(**TINY | {"data_dir": str(data_dir)} | settings):
            try:
                train.main(None)
            finally:
                keras.config.set_dtype_policy("float32")
        return tmp_path / "logs" / settings.get("model_name", "supernet")

    return run


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def checkpoint_of(folder):
    reader = tf.train.load_checkpoint(str(folder / "checkpoints"))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "save_counter" not in name and "_CHECKPOINTABLE" not in name}


def events_of(folder):
    """{tag: {step: value}} of the scalars, and {tag: [steps]} of everything else, of a folder's TensorBoard events."""
    scalars, others = {}, {}
    for path in sorted(folder.glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor)
                if content.shape == () and value.metadata.plugin_data.plugin_name == "scalars":
                    assert event.step not in scalars.setdefault(value.tag, {})
                    scalars[value.tag][event.step] = float(content)
                else:
                    others.setdefault(value.tag, []).append(event.step)
    return scalars, others


def test_a_run_learns_and_leaves_everything_in_its_folder(run_train, data_dir, capsys):
    folder = run_train()
    metadata = data_utils.read_metadata(data_dir)
    steps = metadata["splits"]["train"]["steps"]
    results = results_of(folder)

    assert {path.name for path in folder.iterdir()} == {"config.json", "training_log.log", "results.json", "checkpoints", "train", "valid"}
    assert results["corpus"] == "markov" and results["steps"] == 2 * steps and results["parameters"] > 0
    assert results["wall_seconds"] > 0 and results["tokens_per_second"] > 0
    assert results["architecture"] == [train.KINDS[kind] for kind in np.argmax(results["pi"], axis=1)]
    assert np.shape(results["pi"]) == (2, 3) and np.allclose(np.sum(results["pi"], axis=1), 1)
    assert results["flags"]["d_model"] == 8 and results["versions"]["tensorflow"] == tf.__version__ and "CPU" in results["device"]
    for split in ("train", "valid", "test"):
        scores, entry = results[split], metadata["splits"][split]
        total = scores["loss"] * entry["targets"]
        assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
        assert scores["word_perplexity"] == pytest.approx(math.exp(total / entry["words"]))
        assert scores["bits_per_byte"] == pytest.approx(total / math.log(2) / entry["bytes"])
        assert scores["perplexity"] < VOCAB_SIZE / 2  # a uniform guess has VOCAB_SIZE

    scalars, others = events_of(folder / "train")
    lines = [step for step in range(1, 2 * steps + 1) if step % 7 == 0 or step % steps == 0]
    for tag in ("loss", "perplexity", "learning_rate", "tau", "tokens_per_second", "pi/block_1/attention", "pi/block_2/identity"):
        assert sorted(scalars[tag]) == lines, tag
    assert others["pi"] == [0, steps, 2 * steps] and others["configuration"] == [0]
    valid, _ = events_of(folder / "valid")
    assert sorted(valid["loss"]) == [steps, 2 * steps] and valid["loss"][2 * steps] == pytest.approx(results["valid"]["loss"])
    assert scalars["loss"][lines[-1]] < scalars["loss"][lines[0]] - 0.5

    log = (folder / "training_log.log").read_text()
    assert re.findall(r" step ([\d,]+)/", log) == [f"{step:,}" for step in lines]
    for part in ("flags {", "versions {", "Total params", "markov", "on CPU", "tokens/s  ETA 0:00", "valid  loss", "test ", "most likely architecture"):
        assert part in log, part
    console = capsys.readouterr().out
    assert "epoch 2 of 2" in console and "loss" in console and "valid  loss" in console and "Total params" not in console


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(run_train, data_dir):
    steps = data_utils.read_metadata(data_dir)["splits"]["train"]["steps"]
    whole = run_train(model_name="whole", dropout_rate=0.2, max_steps=steps + 25)
    for stop in (10, steps - 1, steps + 3, steps + 25):  # in the first epoch, before its end, in the second
        parts = run_train(model_name="parts", dropout_rate=0.2, max_steps=stop)
    one, other = checkpoint_of(whole), checkpoint_of(parts)
    seconds = [name for name in one if name.startswith("seconds")]
    assert one.keys() == other.keys() and len(seconds) == 1 and any(name.startswith("memory") for name in one)
    assert any("optimizer" in name for name in one)
    for name in one.keys() - set(seconds):
        assert np.array_equal(one[name], other[name]), name
    for key in ("train", "valid", "test", "pi", "steps"):
        assert results_of(whole)[key] == results_of(parts)[key]
    log = (parts / "training_log.log").read_text()
    assert [line for line in re.findall(r"resumed at step (\d+)", log)] == ["10", str(steps - 1), str(steps + 3)]


def test_two_runs_with_one_seed_are_equal_and_with_another_are_not(run_train):
    losses = [results_of(run_train(model_name=name, seed=seed, max_steps=12))["valid"]["loss"] for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert losses[0] == losses[1] != losses[2]


def test_max_steps_changes_no_schedule(run_train):
    short, long = run_train(model_name="short", max_steps=14), run_train(model_name="long", max_steps=28)
    for tag in ("loss", "learning_rate", "tau"):
        one, other = events_of(short / "train")[0][tag], events_of(long / "train")[0][tag]
        assert one[14] == other[14]


def test_a_finished_run_started_again_trains_no_further(run_train, capsys):
    first = results_of(run_train(max_steps=10))
    again = results_of(run_train(max_steps=10))
    assert {k: v for k, v in first.items()} == {k: v for k, v in again.items()}
    assert "resumed at step 10" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [
    dict(architecture=["attention", "dense"]), dict(architecture=["identity"]), dict(straight_through=True), dict(tau_is_trainable=True),
    dict(opt_name="sgd", clipnorm=1.0), dict(opt_name="adamw", clipvalue=0.5), dict(opt_name="nadam"), dict(opt_name="rmsprop"),
    dict(mem_len=0), dict(mem_len=20), dict(cutoffs=[]), dict(cutoffs=["20", "60"], proj_dims=["4,3"]), dict(jit_compile="true"),
    dict(mixed_precision=True), dict(max_lr=1e-3, warmup_steps=0)], ids=str)
def test_every_setting_trains(settings, run_train):
    folder = run_train(max_steps=15, log_every=5, **settings)
    losses = events_of(folder / "train")[0]["loss"]
    assert all(math.isfinite(loss) for loss in losses.values()) and results_of(folder)["steps"] == 15
    if settings.get("opt_name") != "sgd" and "max_lr" not in settings:
        assert losses[15] < losses[5]


def test_compiled_and_graph_mode_agree(run_train):
    losses = [events_of(run_train(model_name=mode, jit_compile=mode, max_steps=20, log_every=5) / "train")[0]["loss"] for mode in ("true", "false")]
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=1e-4)


def test_mixed_precision_learns_as_float32_does(run_train):
    losses = [events_of(run_train(model_name=f"mixed_{mixed}", mixed_precision=mixed, max_steps=60, log_every=20) / "train")[0]["loss"] for mixed in (True, False)]
    assert list(losses[0].values()) == pytest.approx(list(losses[1].values()), rel=0.01)
    assert losses[0] != losses[1] and losses[0][60] < losses[0][20] - 0.1


def test_a_fixed_architecture_has_no_search(run_train):
    folder = run_train(architecture=["attention", "dense"], max_steps=3)
    results = results_of(folder)
    assert results["pi"] == [[1, 0, 0], [0, 1, 0]] and results["architecture"] == ["attention", "dense"]
    assert not any("theta" in name for name in checkpoint_of(folder))
    assert not any(tag.startswith("pi/") for tag in events_of(folder / "train")[0])


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


def test_evaluation_and_the_start_of_an_epoch_equal_a_plain_loop(data_dir):
    metadata = data_utils.read_metadata(data_dir)
    steps = metadata["splits"]["train"]["steps"]
    with flagsaver.flagsaver(**TINY | {"dropout_rate": 0.0, "architecture": ["attention"], "opt_name": "sgd", "max_lr": 0.0, "mem_len": 20}):
        trainer = train.Trainer(data_dir, metadata, jit_compile=False)
        trainer.model.softmax.head.assign(np.random.default_rng(0).normal(size=trainer.model.softmax.head.shape))
        plain = {}
        for split in ("train", "valid"):
            memory, total, targets, losses = trainer.state.memory * 0, 0.0, 0.0, []
            for number, window in enumerate(data_utils.load_windows(data_dir, split, metadata)):
                filled = min(number * SEQ_LEN, 20)
                nll, count, memory = train.window_nll(trainer.model, window, memory, filled, 1.0)
                total, targets, losses = total + float(nll), targets + float(count), losses + [float(nll / count)]
            plain[split] = total / targets, targets, losses
        valid = trainer.evaluate("valid")
        assert valid["loss"] == pytest.approx(plain["valid"][0], rel=1e-5)
        assert plain["valid"][1] == metadata["splits"]["valid"]["targets"]
        trained = [trainer.train(1)[0] for _ in range(4)] + [trainer.train(steps - 4)[0]] + [trainer.train(1)[0] for _ in range(4)]
    assert trained[:4] == pytest.approx(plain["train"][2][:4], rel=1e-5)  # nothing is learned at a learning rate of 0 ...
    assert trained[5:] == pytest.approx(plain["train"][2][:4], rel=1e-5)  # ... so the next epoch, with empty memory, is the same
    assert len(set(trained[:4])) == 4


def test_an_infinite_metric_is_null_in_json(run_train, monkeypatch):
    monkeypatch.setattr(train, "exp", lambda nats: math.inf)
    results = (run_train(max_steps=3) / "results.json").read_text()
    assert "Infinity" not in results and json.loads(results)["valid"]["word_perplexity"] is None
    assert train.metrics(9.0, {"targets": 10_000, "words": 1, "bytes": 30_000})["bits_per_byte"] == pytest.approx(3 / math.log(2))


def test_exp_overflows_to_infinity():
    assert train.exp(1.0) == pytest.approx(math.e) and train.exp(1e6) == math.inf


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
        net, optimizer = train.build_model(VOCAB_SIZE, static_shapes=True), train.build_optimizer(0.1)
    assert isinstance(optimizer, keras.optimizers.AdamW) and optimizer.clipnorm == 0.5 and optimizer.clipvalue is None
    assert [variable.shape[1] for variable in net.softmax.projections] == [4, 3] and net.softmax.static_shapes
    assert net.straight_through and [block.dropout_rate for block in net.blocks] == [0.3, 0.3]
    with flagsaver.flagsaver(opt_name="sgd", clipvalue=0.25):
        optimizer = train.build_optimizer(0.1)
    assert isinstance(optimizer, keras.optimizers.SGD) and optimizer.clipvalue == 0.25 and optimizer.clipnorm is None


REPLICAS = """
import sys
from pathlib import Path
import tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from absl import flags
import data_utils, train
flags.FLAGS(["train.py", "--d_model=8", "--num_heads=2", "--d_ffn=16", "--num_layers=2", "--mem_len=6", "--cutoffs=20,60", "--dropout_rate=0", "--max_lr=0.01", "--warmup_steps=2"])
data_dir = Path(sys.argv[1])
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        trainer = train.Trainer(data_dir, data_utils.read_metadata(data_dir), jit_compile=False)
        print(*[trainer.train(3)[0] for _ in range(4)], trainer.evaluate("valid")["loss"], trainer.step)
"""


def test_two_replicas_equal_one(data_dir):
    done = subprocess.run([sys.executable, "-c", REPLICAS, data_dir], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(PROJECT)})
    one, two = ([float(number) for number in line.split()] for line in done.stdout.splitlines()[-2:])
    assert one[-1] == two[-1] == 12 and one == pytest.approx(two, rel=1e-5)


def test_padding_carries_no_loss(run_train, data_dir):
    with flagsaver.flagsaver(**TINY):
        model = train.build_model(VOCAB_SIZE, static_shapes=False)
    window = np.random.default_rng(0).integers(4, VOCAB_SIZE, [BATCH_SIZE, SEQ_LEN + 1])
    padded = window.copy()
    padded[:, 5:] = data_utils.PAD
    nll, targets, _ = train.window_nll(model, tf.constant(padded), model.empty_memory(BATCH_SIZE), 0, 1.0)
    short, short_targets, _ = train.window_nll(model, tf.constant(padded[:, :5]), model.empty_memory(BATCH_SIZE), 0, 1.0)
    assert float(targets) == float(short_targets) == BATCH_SIZE * 4 and float(nll) == pytest.approx(float(short), rel=1e-5)


def test_numbers_that_run_away_stop_the_run_and_keep_the_checkpoint(run_train, monkeypatch):
    folder = run_train(max_steps=10)
    before = checkpoint_of(folder)
    window_nll = train.window_nll

    def overflowing(*arguments):
        nll, targets, memory = window_nll(*arguments)
        return nll * 1e30 * 1e30, targets, memory

    monkeypatch.setattr(train, "window_nll", overflowing)
    with pytest.raises(FloatingPointError, match="the loss is (nan|inf) at step 14: .* the last checkpoint is from before"):
        run_train(max_steps=90)
    after = checkpoint_of(folder)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_another_configuration_or_other_data_under_the_same_name_is_refused(run_train, data_dir, tmp_path):
    run_train(max_steps=3)
    config = (tmp_path / "logs" / "supernet" / "config.json").read_text()
    with pytest.raises(InputError, match=r"another configuration \(d_ffn: 16 before, 32 now\): choose another --model_name"):
        run_train(max_steps=3, d_ffn=32)
    other = shutil.copytree(data_dir, tmp_path / "other")
    metadata = json.loads((other / "metadata.json").read_text())
    (other / "metadata.json").write_text(json.dumps(metadata | {"corpus": "another"}))
    with pytest.raises(InputError, match="corpus: markov before, another now"):
        run_train(max_steps=3, data_dir=str(other))
    assert (tmp_path / "logs" / "supernet" / "config.json").read_text() == config


def test_a_checkpoint_that_cannot_be_read_is_named(run_train, tmp_path):
    folder = run_train(max_steps=3)
    shard = next((folder / "checkpoints").glob("*.data-*"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot restore logs/supernet/checkpoints/ckpt-3"):
        run_train(max_steps=5)


def test_settings_that_do_not_fit_the_data_are_refused(run_train):
    for settings, message in [
        (dict(cutoffs=["20", str(VOCAB_SIZE)]), f"cutoffs .* below the vocabulary size {VOCAB_SIZE}"),
        (dict(cutoffs=["60,20"]), "must rise"),
        (dict(architecture=["attention", "pooling"]), "unknown layer type 'pooling'"),
        (dict(proj_dims=["3"]), "one positive width for each of the 2 tails"),
        (dict(data_dir="nowhere"), "run ./make_data.sh first"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            run_train(**settings)
        assert "\n" not in str(error.value)


def test_a_damaged_configuration_is_named(run_train):
    folder = run_train(max_steps=3)
    for damaged in ("{", "{}", "[]", '{"flags": 1, "data": 2}'):
        (folder / "config.json").write_text(damaged)
        with pytest.raises(InputError, match="config.json is damaged"):
            run_train(max_steps=3)


@pytest.mark.parametrize("given", [
    "--model_name=", "--model_name=../x", "--model_name=.", "--d_model=10 --num_heads=4", "--num_layers=0", "--num_layers=3 --architecture=dense,dense", "--mem_len=-1", "--d_ffn=-5", "--epochs=0",
    "--cutoffs=a", "--dropout_rate=1.5", "--opt_name=newton", "--jit_compile=maybe", "--clipvalue=1 --clipnorm=1", "--tau_end=0", "--seed=-1",
    "--no_such_flag=1", "word"])
def test_bad_flags_end_in_one_line_and_status_1(given, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", *given.split()])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        cli.run(train.main)
    assert isinstance(end.value.code, str) and end.value.code.startswith("error: ") and "\n" not in end.value.code
