"""Impossible trainings are refused in one line, before anything is written."""

import copy
import shutil

import pytest
from conftest import VOCAB_SIZE, make_data, tiny_settings, when_called, write_corpus

import data_utils
from support import files, tokenization
from support.checkpoints import Checkpoints
from support.errors import InputError
from training import recording
from training.scoring import Evaluator
from training.trainer import Trainer


def test_weights_that_do_not_fit_are_refused(run_train, search_run, tmp_path):
    run = str(search_run)
    for settings, message in [
        ({"init_from": run, "architecture": "ada"},
         "has no block_3/.*: its architecture lacks a layer that this one has"),
        ({"init_from": "nowhere", "architecture": "ad"}, "nowhere is not a run"),
        ({"init_from": "nowhere"}, "nowhere is not a run"),
        ({"architecture": str(tmp_path)}, "is not a run"),
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
    data = config["data"] | {"tokenizer_sha256": 64 * "0"}
    files.write_json(other / "config.json", config | {"data": data})
    with pytest.raises(InputError, match="trained with another tokenizer"):
        run_train(init_from=str(other))


def test_another_configuration_or_other_data_under_the_same_name_is_refused(
        begun, run_train, data_dir, tmp_path):
    config = (begun / "config.json").read_text()
    message = r"another configuration \(d_ffn: 16 before, 32 now\): choose another --model_name"
    with pytest.raises(InputError, match=message):
        run_train(d_ffn=32)
    other = shutil.copytree(data_dir, tmp_path / "other")
    metadata = data_utils.read_metadata(data_dir) | {"corpus": "another"}
    files.write_json(other / "metadata.json", metadata)
    with pytest.raises(InputError, match="corpus: markov before, another now"):
        run_train(data_dir=str(other))
    assert (begun / "config.json").read_text() == config


@pytest.mark.parametrize("flags, message", [
    ({"cutoffs": [20, VOCAB_SIZE]}, f"cutoffs .* below the vocabulary size {VOCAB_SIZE}"),
    ({"cutoffs": [60, 20]}, "must rise"),
    ({"cutoffs": [0, 20]}, "must rise, from 1 or more"),
    ({"architecture": "ada", "num_layers": 2},
     "--num_layers=2 has no effect: the architecture, ada, has 3 blocks"),
    ({"architecture": "pooling"}, "unknown architecture 'pooling'"),
    ({"kinds": ["pooling"]}, "unknown layer type 'pooling'"),
    ({"architecture": "random", "kinds": ["pooling"]}, "--kinds=pooling: choose from attention"),
    ({"architecture": "random", "kinds": []}, "--kinds=: choose from attention"),
    ({"d_model": 10, "num_heads": 4}, "d_model=10 is not divisible by num_heads=4"),
    ({"search": "alternating", "warmup_steps": 4000},
     "--warmup_steps=4000 leaves none of the 420 steps"),
    ({"data_dir": "nowhere"}, "run ./make_data.sh first"),
    ({"accumulate": 3}, "4 rows, the --batch_size of the data, cannot be divided evenly among"),
], ids=str)
def test_flags_that_do_not_fit_the_data_or_the_network_are_refused(flags, message, run_train):
    with pytest.raises(InputError, match=message) as error:
        run_train(**flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings, message", [
    ({"arch_share": 0.0, "search": "alternating"}, "--arch_share must be between 0 and 1"),
    ({"arch_share": 0.5}, "--arch_share needs --search=alternating"),
    ({"tau_is_trainable": True, "tau_end": 0.5}, "--tau_end has no effect"),
    *(({"architecture": ["dense"], name: value},
       f"--{name} has no effect: the architecture is fixed") for name, value in {
        "search": "alternating", "arch_lr_factor": 2.0, "gumbel_per_row": True,
        "latency_weight": 0.1, "straight_through": True, "tau_is_trainable": True,
        "tau_start": 2.0, "tau_end": 0.5}.items()),
], ids=str)
def test_settings_that_do_not_suit_each_other_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        tiny_settings(**settings)


FREE = ("logs_dir", "data_dir", "max_steps", "log_every", "save_every", "distribute", "accumulate",
        "steps_per_execution")


def test_every_flag_that_changes_what_is_learned_is_refused_when_a_run_goes_on(
        search_run, tmp_path):
    config = files.read_json(search_run / "config.json")
    folder = shutil.copytree(search_run, tmp_path / "run")
    for part in ("flags", "data"):
        for name in config[part]:
            changed = {part: config[part] | {name: "another"}}
            files.write_json(folder / "config.json", config | changed)
            if name in FREE:
                recording._checked_same(folder, config)
                continue
            message = f"another configuration .{name}: another before, .* now.: choose another"
            with pytest.raises(InputError, match=message):
                recording._checked_same(folder, config)
    assert {"seed", "max_lr", "epochs", "warmup_steps"} <= config["flags"].keys()
    assert "files_sha256" in config["data"]


def test_a_run_from_before_a_flag_was_there_goes_on_with_the_default(search_run, tmp_path):
    config = files.read_json(search_run / "config.json")
    folder = shutil.copytree(search_run, tmp_path / "run")
    before = copy.deepcopy(config)
    del before["flags"]["weight_decay"], before["flags"]["kinds"]
    files.write_json(folder / "config.json", before)
    recording._checked_same(folder, config)
    config["flags"]["weight_decay"] = 0.1
    with pytest.raises(InputError, match="configuration .weight_decay: 0.0 before, 0.1 now"):
        recording._checked_same(folder, config)


@pytest.mark.parametrize("changes, place, kept", [
    ({}, ((Trainer, "train"), 5), []),
    ({"tokenizer": tokenization.TokenizerSettings(vocab_size=330)}, ((Trainer, "train"), 5), []),
    ({"batch_size": 2}, ((Evaluator, "__call__"), 1), [100, 150, 200])],  # 210 steps are an epoch
    ids=["text", "tokenizer", "batch size"])
def test_data_that_are_made_anew_while_a_run_goes_on_stop_it(
        changes, place, kept, data_dir, run_train, tmp_path, monkeypatch):
    data = shutil.copytree(data_dir, tmp_path / "data")
    other = write_corpus(tmp_path / "other")
    (other / "train.txt").write_text((other / "train.txt").read_text()[::-1])
    when_called(monkeypatch, *place, lambda: make_data(other, data, **changes))
    with pytest.raises(InputError, match="data was replaced while it was in use: stopped"):
        run_train(data_dir=str(data), save_every="50")
    assert Checkpoints(tmp_path / "logs" / "supernet" / "checkpoints").steps() == kept


def test_a_run_without_its_configuration_is_refused(begun, run_train):
    (begun / "config.json").unlink()
    message = "supernet is not a run: logs/supernet/config.json is missing"
    with pytest.raises(InputError, match=message):
        run_train()
