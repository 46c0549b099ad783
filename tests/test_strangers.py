"""Untrusted runs are used or refused in one line, and write nothing outside their folder."""

import os
import shutil
import time
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from commands import one_line, run_command
from conftest import VOCAB_SIZE, make_data, train_in

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
    """Every value in the schema, replaced by odd ones or left out; and some others."""
    for part in ("flags", "data", "layers", "model"):
        yield config | {part: None}
        for name in getattr(schema, part.upper()):
            yield config | {part: {key: config[part][key] for key in config[part] if key != name}}
            for value in ODD:
                yield config | {part: config[part] | {name: value}}
    for name, value in HUGE.items():
        yield {part: values | {name: value} if name in values else values
               for part, values in config.items() if isinstance(values, dict)} | {
                   "run_id": config["run_id"]}
    model, data = config["model"], config["data"]
    yield config | {"model": model | {"__class__": "os.system"}}
    yield config | {"model": model | {"architecture": ["identity"] * 100_000}}
    yield config | {"model": model | {"architecture": ["pooling"] * 2}}
    yield config | {"data": data | {"batch_size": 100_000, "seq_len": 100_000}}


def tree(folder: Path) -> dict:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_an_untrusted_configuration_is_used_or_refused_in_one_line(begun, tmp_path):
    """The schema judges them all. Those that it accepts, and some others, are used."""
    config, refused, longest = files.read_json(begun / "config.json"), 0, 0
    generate_a_token = (generate, f"--run={begun}", "--prompt=a word", "--num_tokens=1")
    assert run_command(*generate_a_token).returncode == 0
    memory = timing.peak_mebibytes()
    hostile = [each for each in hostile_configurations(config) if each != config]
    faults = [schema.fault(each) for each in hostile]
    used = [each for n, (each, fault) in enumerate(zip(hostile, faults)) if not fault or n % 9 == 0]
    for each in used:
        files.write_json(begun / "config.json", each)
        before, start = tree(tmp_path), time.monotonic()
        done = run_command(*generate_a_token)
        longest = max(longest, time.monotonic() - start)
        if done.returncode:
            refused += 1
            assert one_line(done).startswith("error: ") and len(done.stderr) < 400
        assert tree(tmp_path) == before
    grown = timing.peak_mebibytes() - memory
    print(f"{len(hostile)} configurations, {len(used)} used, {refused} refused, {longest:.1f} s, "
          f"{grown:.0f} MiB")
    assert len(hostile) > 200 and sum(map(bool, faults)) > 0.8 * len(hostile)
    assert refused > 0.5 * len(used) and longest < 10 and grown < 500


def test_a_refused_network_leaves_nothing_to_initialize(begun):
    config = files.read_json(begun / "config.json")
    config["model"]["d_ffn"] = 10**8  # gigabytes
    files.write_json(begun / "config.json", config)
    with pytest.raises(files.InputError, match="is of another network"):
        TrainedRun(begun).network()
    before = timing.peak_mebibytes()
    with keras.StatelessScope():
        pass
    assert timing.peak_mebibytes() - before < 100


def test_windows_as_long_as_those_of_the_papers_are_accepted(search_run):
    """Transformer-XL's largest, on enwik8: 64 rows, 768 tokens and 768 positions of memory."""
    config = files.read_json(search_run / "config.json")
    config["data"] |= {"batch_size": 64, "seq_len": 768}
    config["flags"]["mem_len"] = config["model"]["mem_len"] = 768
    too_large = "its batch, window, memory and heads are too large together"
    for num_heads, fault in [(2, None), (8, None), (16, too_large)]:
        config["model"]["num_heads"] = num_heads
        assert schema.fault(config) == fault


@pytest.mark.parametrize("part, name", [("model", "tie_embeddings"), (None, "run_id")])
def test_a_run_of_an_earlier_version_is_refused_in_one_line(part, name, begun):
    config = files.read_json(begun / "config.json")
    del (config[part] if part else config)[name]
    files.write_json(begun / "config.json", config)
    done = run_command(generate, f"--run={begun}", "--prompt=a", "--num_tokens=1")
    assert "is of another version of this program, or damaged: it lacks" in one_line(done)
    assert name in done.stderr and done.stdout == ""


def put(path: Path, what: str):
    """Puts something else in place of a file."""
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what.startswith("/dev"):
        os.symlink(what, path)
    elif what == "folder":
        path.mkdir()
    elif what == "large":
        with open(path, "w") as file:
            file.truncate(1 << 40)
    else:
        path.write_text(what)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", f"best/{{}}/{HASHES}"])
def test_something_other_than_a_file_is_refused(name, begun):
    path = begun / name.format(os.listdir(begun / "best")[0])
    for what in ("pipe", "/dev/null", "/dev/zero", "large", "[" * 10**6, "9" * 10**5, "folder"):
        put(path, what)
        done = run_command(generate, f"--run={begun}", "--prompt=a", "--num_tokens=1")
        assert path.name in one_line(done)
        if what != "folder":
            path.unlink()
            path.touch()


def test_hashes_must_cover_the_files_and_name_possible_ones(begun):
    path = begun / "best" / os.listdir(begun / "best")[0] / HASHES
    record = files.read_json(path)
    impossible = ("a\0b", "\ud800", "two\nlines", "x" * 9000)
    more = [{"checkpoint": record["checkpoint"] | {name: "0"}} for name in impossible]
    for wrong in [{"checkpoint": {}}, {"checkpoint": []}, {"checkpoint": {"../state": "0"}}, *more]:
        files.write_json(path, record | wrong)
        done = run_command(evaluate, f"--run={begun}")
        assert HASHES in one_line(done) and len(done.stderr) < 400


@pytest.mark.parametrize("found", [7, None, "", "a" * 2000, ["a"], "a", "aaa", "ss"])
def test_an_untrusted_architecture_is_refused(found, begun):
    results = files.read_json(begun / "results.json")
    files.write_json(begun / "results.json", results | {"architecture": found})
    with pytest.raises(files.InputError, match="results.json is no result"):
        TrainedRun(begun).architecture


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
    assert run_command(plot_search, f"--run={begun}").returncode == 0
    with pytest.raises(files.InputError, match="training_log.log is not a regular file"):
        run_train()
    shutil.rmtree(log) if log.is_dir() else log.unlink()
    run_train()
    assert (begun / "train" / f"set-aside-{events.name}").exists()


@pytest.mark.parametrize("step, value", [
    ("scalars", tf.constant([1.0, 2.0])), ("scalars", tf.constant("one")),
    ("pi", tf.zeros([5, 3])), ("pi", tf.constant(1.0))])
def test_untrusted_curves_are_refused_in_one_line(step, value, begun):
    log = EventLog(begun / "train", after=10**9, tell=print)
    log.record(1, summary_values(step, {"loss" if step == "scalars" else "pi/all": value}))
    log.close()
    done = run_command(plot_search, f"--run={begun}")
    assert "was not written by this program" in one_line(done)


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
    for folder in (begun, other_run):  # with equal ids, the weights do not fit
        for path in (folder / "config.json", *folder.glob(f"*/*/{HASHES}")):
            files.write_json(path, files.read_json(path) | {"run_id": "0" * 32})
        TrainedRun(folder).network()
    shutil.rmtree(target / "best")
    shutil.copytree(source / "best", target / "best")
    with pytest.raises(files.InputError, match="config.json is of another network"):
        TrainedRun(target).network()


def test_the_two_architectures_of_a_configuration_must_agree(begun):
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
def test_a_renamed_checkpoint_is_not_used(name, begun, data_dir, run_train):
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


def test_the_folder_of_runs_may_be_a_link(run_train, tmp_path):
    (tmp_path / "disk").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "logs")
    run_train(max_steps=2)
    assert (tmp_path / "disk" / "supernet" / "results.json").is_file()
