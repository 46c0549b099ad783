"""Runs that somebody else has made: they are read as they are, or refused in one line."""

import copy
import os
import shutil
import time
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from commands import one_line, run_command
from conftest import VOCAB_SIZE, make_data, results_of, train_in

import evaluate
import export
import generate
import plot_search
from support import files, timing, tokenization
from support.checkpoints import HASHES
from support.events import EventLog, summary_values
from training import schema
from training.trained_run import TrainedRun

ODD = [None, True, -1, 0, 1.5, "x", "", [], {}, ["x"], [[]], 10**9, 10**30, "a/b", "x" * 10**6]
HUGE = {
    "vocab_size": 10**9, "d_ffn": 10**8, "d_model": 10**6, "mem_len": 10**9,
    "cutoffs": list(range(1, 999))}


def hostile_configurations(config):
    """Every value that the schema knows, replaced by odd ones, or left out; and some others."""
    for part in ("flags", "data", "layers", "model"):
        yield config | {part: None}
        for name in getattr(schema, part.upper()):
            yield config | {part: {key: config[part][key] for key in config[part] if key != name}}
            for value in ODD:
                yield config | {part: config[part] | {name: value}}
    for name, value in HUGE.items():
        changed = copy.deepcopy(config)
        for part in changed.values():
            if name in part:
                part[name] = value
        yield changed
    yield config | {"model": config["model"] | {"__class__": "os.system"}}
    yield config | {"model": config["model"] | {"architecture": ["identity"] * 100_000}}
    yield config | {"model": config["model"] | {"architecture": ["pooling"] * 2}}
    yield config | {"data": config["data"] | {"batch_size": 100_000, "seq_len": 100_000}}


def tree(folder: Path) -> dict:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_configuration_of_a_stranger_is_used_or_refused_in_one_line(begun, tmp_path):
    """What is odd and harmless, such as another name of the corpus, may work."""
    config, refused, longest = files.read_json(begun / "config.json"), 0, 0
    generate_a_token = (generate, f"--run={begun}", "--prompt=a word", "--num_tokens=1")
    assert run_command(*generate_a_token).returncode == 0
    memory = timing.peak_mebibytes()
    for number, hostile in enumerate(hostile_configurations(config)):
        if hostile == config:
            continue
        files.write_json(begun / "config.json", hostile)
        before, start = tree(tmp_path), time.monotonic()
        done = run_command(*generate_a_token)
        longest = max(longest, time.monotonic() - start)
        if done.returncode:
            refused += 1
            assert one_line(done).startswith("error: ") and len(done.stderr) < 400
        assert tree(tmp_path) == before
    grown = timing.peak_mebibytes() - memory
    print(f"{number + 1} runs, {refused} refused, {longest:.1f} s, {grown:.0f} MiB")
    assert number > 200 and refused > number * 0.9 and longest < 10 and grown < 500


def test_a_network_that_is_refused_leaves_nothing_to_initialize(begun):
    config = files.read_json(begun / "config.json")
    config["model"]["d_ffn"] = 10**8  # gigabytes
    files.write_json(begun / "config.json", config)
    with pytest.raises(files.InputError, match="is of another network"):
        TrainedRun(begun).network()
    before = timing.peak_mebibytes()
    with keras.StatelessScope():
        pass
    assert timing.peak_mebibytes() - before < 100


def test_windows_as_long_as_those_of_the_papers_are_believed(search_run):
    """Transformer-XL's largest, on enwik8: 64 rows, 768 tokens, as many of memory."""
    config = files.read_json(search_run / "config.json")
    config["data"] |= {"batch_size": 64, "seq_len": 768}
    config["flags"]["mem_len"] = config["model"]["mem_len"] = 768
    assert schema.fault(config) is None
    config["model"]["num_heads"] = 8
    assert schema.fault(config) is None
    config["model"]["num_heads"] = 16
    assert schema.fault(config) == "its batch, window, memory and heads are too large together"


@pytest.mark.parametrize("part, name", [("model", "tie_embeddings"), (None, "run_id")])
def test_a_run_of_an_earlier_version_is_refused_in_one_line(part, name, begun):
    config = files.read_json(begun / "config.json")
    del (config[part] if part else config)[name]
    files.write_json(begun / "config.json", config)
    done = run_command(generate, f"--run={begun}", "--prompt=a", "--num_tokens=1")
    assert "is of another version of this program, or damaged: it lacks" in one_line(done)
    assert name in done.stderr and done.stdout == ""


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", f"best/{{}}/{HASHES}"])
@pytest.mark.parametrize("what", ["pipe", "device", "endless", "large", "deep", "digits", "folder"])
def test_a_file_of_a_stranger_that_is_none(name, what, begun):
    step = results_of(begun) and os.listdir(begun / "best")[0]
    path = begun / name.format(step)
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what in ("device", "endless"):
        os.symlink({"device": "/dev/null", "endless": "/dev/zero"}[what], path)
    elif what == "folder":
        path.mkdir()
    elif what == "large":
        with open(path, "w") as file:
            file.truncate(1 << 40)
    else:
        path.write_text({"deep": "[" * 10**6, "digits": "9" * 10**5}[what])
    done = run_command(generate, f"--run={begun}", "--prompt=a", "--num_tokens=1")
    assert path.name in one_line(done)


@pytest.mark.parametrize("hashes", [
    {"checkpoint": {}}, {"checkpoint": []}, {"checkpoint": {"../state.index": "0"}}, {}])
def test_hashes_that_leave_a_file_out_are_no_hashes(hashes, begun):
    step = os.listdir(begun / "best")[0]
    files.write_json(begun / "best" / step / HASHES, hashes)
    done = run_command(evaluate, f"--run={begun}")
    assert HASHES in one_line(done)


@pytest.mark.parametrize("found", [7, None, "", "a" * 2000, ["a"]])
def test_an_architecture_of_a_stranger(found, begun):
    results = files.read_json(begun / "results.json")
    files.write_json(begun / "results.json", results | {"architecture": found})
    with pytest.raises(files.InputError, match="results.json is no result"):
        TrainedRun(begun).architecture


def test_what_a_run_is_written_with_does_not_leave_its_folder(begun, run_train, tmp_path):
    target = tmp_path / "mine.txt"
    for name in ("search.gif", "search.gif.partial", "search.png"):
        target.write_text("mine")
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


@pytest.mark.parametrize("name", ["saved_model", ".saved_model.partial"])
@pytest.mark.parametrize("output_dir", [None, "logs/supernet/saved_model"])
def test_an_export_does_not_leave_the_folder_of_the_run(
        output_dir, name, begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    os.symlink("../../mine", begun / name)
    before = tree(tmp_path)
    given = [f"--output_dir={output_dir}"] if output_dir else []
    done = run_command(export, f"--run={begun}", *given)
    assert f"{name} is a symbolic link" in one_line(done) and tree(tmp_path) == before


@pytest.mark.parametrize("name", ["train/events.out.tfevents.9999999999", "training_log.log"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_should_be_a_file_and_is_none_blocks_nobody(
        name, make, begun, run_train, monkeypatch):
    (begun / name).unlink(missing_ok=True)
    make(begun / name)
    assert run_command(plot_search, f"--run={begun}").returncode == 0
    if name.endswith(".log"):
        with pytest.raises(files.InputError, match="training_log.log is not a regular file"):
            run_train()
    else:
        run_train()
        assert (begun / "train" / f"set-aside-{Path(name).name}").exists()


@pytest.mark.parametrize("step, value", [
    ("scalars", tf.constant([1.0, 2.0])), ("scalars", tf.constant("one")),
    ("pi", tf.zeros([5, 3])), ("pi", tf.constant(1.0))])
def test_curves_of_a_stranger_are_refused_in_one_line(step, value, begun):
    log = EventLog(begun / "train", after=10**9, tell=print)
    tag = "loss" if step == "scalars" else "pi/all"
    log.record(1, summary_values(step, {tag: value}))
    log.close()
    assert "was not written by this program" in one_line(
        run_command(plot_search, f"--run={begun}"))


@pytest.fixture
def other_run(data_dir, tmp_path):
    """The folder of a run of a fixed network, of the sizes and letters of the search."""
    (tmp_path / "other").mkdir()
    return train_in(tmp_path / "other", data_dir=str(data_dir), architecture="ad", max_steps=8)


def copied(source: Path, target: Path):
    shutil.rmtree(target, ignore_errors=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


@pytest.mark.parametrize("part", ["best", "checkpoints", "config.json", "results.json"])
@pytest.mark.parametrize("to_search", [False, True])
def test_a_part_of_another_run_is_refused(part, to_search, begun, other_run):
    source, target = (other_run, begun) if to_search else (begun, other_run)
    copied(source / part, target / part)
    with pytest.raises(files.InputError, match="belongs to another run"):
        run = TrainedRun(target, "latest" if part == "checkpoints" else "best")
        run.architecture, run.network()


@pytest.mark.parametrize("to_search", [False, True])
def test_a_part_of_another_network_is_refused_though_the_ids_are_alike(
        to_search, begun, other_run):
    source, target = (other_run, begun) if to_search else (begun, other_run)
    for folder in (begun, other_run):
        for path in (folder / "config.json", *folder.glob(f"*/*/{HASHES}")):
            files.write_json(path, files.read_json(path) | {"run_id": "0" * 32})
        TrainedRun(folder).network()
    copied(source / "best", target / "best")
    with pytest.raises(files.InputError, match="config.json is of another network"):
        TrainedRun(target).network()


def test_an_architecture_of_another_length_or_of_no_layers_is_no_result(begun):
    results = files.read_json(begun / "results.json")
    for found in ("a", "aaa", "ss"):
        files.write_json(begun / "results.json", results | {"architecture": found})
        with pytest.raises(files.InputError, match="results.json is no result"):
            TrainedRun(begun).architecture


def test_letters_and_kinds_of_a_configuration_must_agree(begun):
    config = files.read_json(begun / "config.json")
    config["flags"]["architecture"] = "ad"
    config["model"]["architecture"] = ["dense", "attention"]
    files.write_json(begun / "config.json", config)
    with pytest.raises(files.InputError, match="flags.architecture and model.architecture differ"):
        TrainedRun(begun)


def test_a_tokenizer_of_another_size_is_refused(begun, corpus_dir, tmp_path):
    make_data(corpus_dir, tmp_path / "data", tokenization.Settings(vocab_size=VOCAB_SIZE - 10))
    shutil.copy(tmp_path / "data" / "tokenizer.model", begun)
    config = files.read_json(begun / "config.json")
    config["data"]["tokenizer_sha256"] = files.sha256(begun / "tokenizer.model")
    files.write_json(begun / "config.json", config)
    run = TrainedRun(begun)
    for use in (lambda: run.log_prob("a word"), lambda: run.generate("a word")):
        with pytest.raises(files.InputError, match=f"pieces, and the network {VOCAB_SIZE} ids"):
            use()


@pytest.mark.parametrize("name", ["99999", "7"])
def test_a_checkpoint_under_the_name_of_another_step_is_not_taken(
        name, begun, data_dir, run_train):
    *others, last = sorted(os.listdir(begun / "checkpoints"), key=int)
    for other in others:
        shutil.rmtree(begun / "checkpoints" / other)
    (begun / "checkpoints" / last).rename(begun / "checkpoints" / name)
    with pytest.raises(files.InputError, match=f"{name} was renamed"):
        TrainedRun(begun, name).network()
    before = (begun / "config.json").read_bytes()
    with pytest.raises(files.InputError, match="no checkpoint .* can be restored"):
        run_train(data_dir=str(data_dir))
    assert (begun / "config.json").read_bytes() == before


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "two\nlines", "x" * 9000])
def test_names_of_files_that_are_none_are_refused_in_one_line(name, begun):
    step = os.listdir(begun / "best")[0]
    path = begun / "best" / step / HASHES
    record = files.read_json(path)
    record["checkpoint"][name] = "0" * 64
    files.write_json(path, record)
    done = run_command(evaluate, f"--run={begun}")
    assert HASHES in one_line(done) and len(done.stderr) < 400


def test_the_folder_of_runs_may_be_a_link(run_train, tmp_path):
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "logs")
    run_train(max_steps=2)
    assert (tmp_path / "disk" / "supernet" / "results.json").is_file()
