"""Commands where the console, the locale or the folder is not what one hopes for."""

import fcntl
import itertools
import json
import logging
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import keras
import pytest
import tensorflow as tf
import tiny
from chaos import differences, events_of
from commands import one_line, run_command
from conftest import PROJECT, results_of, train_in, write_corpus

import evaluate
import generate
from support import console, devices
from support.cli import InputError

COMMANDS = ("data_utils", "train", "evaluate", "generate", "plot_search", "choose", "cutoffs",
            "bench")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TRAIN = [sys.executable, PROJECT / "train.py", "--max_steps=8", "--log_every=4", *tiny.as_flags(
    **tiny.NETWORK | tiny.QUICK)]


def run(*command, cwd, **settings):
    """Runs a whole process, with some environment variables instead of others."""
    variables = settings.pop("env", {})
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.run(command, cwd=cwd, env=os.environ | variables, text=True, **settings)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_soon_there_without_tensorflow(command, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was loaded')")
    done = run(sys.executable, PROJECT / f"{command}.py", "--help", cwd=tmp_path,
               env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count(f"{command}.py") + done.stdout.count(".sh") >= 1  # examples
    assert "\n  --" in done.stdout and max(map(len, done.stdout.splitlines())) <= 100


def test_help_may_be_cut_and_is_in_groups(tmp_path):
    command = f"{sys.executable} {PROJECT / 'train.py'} --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = run("bash", "-c", command, cwd=tmp_path)
    assert done.stdout.endswith("writes logs/<model_name>.\n0\n") and done.stderr == ""
    text = run(sys.executable, PROJECT / "train.py", "--help", cwd=tmp_path).stdout
    titles = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["Data:", "Network:", "Search:", "Schedule:", "Optimizer:", "Run:", "Devices:"]


def test_files_are_utf8_and_an_ascii_console_shows_what_it_can(tmp_path):
    corpus = write_corpus(tmp_path / "красная")
    with open(corpus / "train.txt", "a", encoding="utf-8") as file:
        file.write("Ωmega 红楼梦 ☃ .\n" * 30)
    flags = tiny.as_flags(**tiny.DATA)
    made = run(sys.executable, PROJECT / "data_utils.py", "--input_dir=красная", *flags,
               cwd=tmp_path, env=ASCII | {"PYTHONIOENCODING": "ascii"})
    assert made.returncode == 0 and "corpus \\u043a" in made.stdout, made.stderr
    metadata = json.loads((tmp_path / "data" / "tfrecords" / "metadata.json").read_text("utf-8"))
    assert metadata["corpus"] == "красная"
    trained = run(*TRAIN, "--model_name=名", cwd=tmp_path, env=ASCII)
    assert trained.returncode == 0, trained.stderr
    assert "красная" in (tmp_path / "logs" / "名" / "training_log.log").read_text("utf-8")
    written = run(sys.executable, PROJECT / "generate.py", "--run=logs/名", "--prompt=Ωmega ☃",
                  "--num_tokens=3", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert written.returncode == 0 and written.stdout.startswith("\\u03a9mega \\u2603")


def test_a_line_is_drawn_over_on_a_terminal_alone(capsys, monkeypatch):
    console.redraw("1 MB")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    bar = console.Console()
    console.redraw("2 MB\n")
    bar.progress(0.5, "step 5/10")
    bar.progress(1.0, "end")
    bar.emit(logging.makeLogRecord({"msg": "interrupted at step 10"}))
    drawn = ["2 MB\n", f"[{'=' * 10}{' ' * 10}] step 5/10", f"[{'=' * 20}] end".ljust(32)]
    assert capsys.readouterr().out == "\r" + "\r".join(drawn) + "\ninterrupted at step 10\n"


@pytest.mark.parametrize("columns", [60, 200])
def test_the_bar_is_as_wide_as_the_terminal(columns):
    program = ("from support import console; console.open_standard_streams(); "
               "console.Console().progress(0.5, 'x' * 300)")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
    here = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, stdout=theirs, env=here)
    drawn = os.read(ours, 1000).decode()
    for descriptor in (ours, theirs):
        os.close(descriptor)
    assert done.returncode == 0
    assert drawn == f"\r[{'=' * 10}{' ' * 10}] ".ljust(columns, "x")


def test_output_that_is_no_terminal_has_plain_lines(data_dir, tmp_path):
    done = run(*TRAIN, f"--data_dir={data_dir}", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert not set("\r\b\x1b") & set(done.stdout)
    lines = [line for line in done.stdout.splitlines() if line.startswith("step ")]
    log = (tmp_path / "logs" / "supernet" / "training_log.log").read_text()
    assert len(lines) == 3 and all(f" {line}\n" in log for line in lines)
    assert "ETA" in lines[0]


@pytest.mark.parametrize("redirection", [">&-", "<&- >&- 2>&-", ">/dev/full", "| head -n 1"])
def test_training_goes_on_without_its_console(redirection, data_dir, tmp_path):
    command = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    done = run("bash", "-c", command, "bash", *TRAIN, f"--data_dir={data_dir}", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    log = (tmp_path / "logs" / "supernet" / "training_log.log").read_text()
    assert "step 4/" in log and "results in" in log


def test_a_full_standard_output_is_named(search_run, tmp_path):
    with open("/dev/full", "w") as full:
        done = run(sys.executable, PROJECT / "evaluate.py", f"--run={search_run}", cwd=tmp_path,
                   stdout=full)
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"


def test_a_table_is_printed_though_its_file_cannot_be_written(begun, monkeypatch):
    def refuse(path, content):
        raise OSError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(evaluate.files, "write_json", refuse)
    done = run_command(evaluate, f"--run={begun}")
    assert done.returncode == 1 and "bits per byte" in done.stdout
    assert done.stderr.startswith("error: cannot write ") and done.stderr.count("\n") == 1


def test_texts_of_one_name_have_their_own_scores(begun, corpus_dir, tmp_path):
    name = "long" * 60 + ".txt"
    for folder, split in (("one", "valid"), ("two", "test")):
        (tmp_path / folder).mkdir()
        shutil.copy(corpus_dir / f"{split}.txt", tmp_path / folder / name)
        done = run_command(evaluate, f"--run={begun}", f"--text={tmp_path / folder / name}")
        assert done.returncode == 0, done.stderr
    reports = [json.loads(path.read_text()) for path in begun.glob("evaluation_text_long*.json")]
    assert len(reports) == 2 and len({report["loss"] for report in reports}) == 2


def test_a_run_without_name_is_named(search_run):
    assert "is empty" in one_line(run_command(evaluate, f"--run={search_run},"))


def test_each_typed_line_has_a_draw_of_its_own(search_run):
    given = [f"--run={search_run}", "--num_tokens=12", "--seed=3"]
    once, again = (run_command(generate, *given, stdin=b"the same\nthe same\n") for _ in range(2))
    first, second = once.stdout.splitlines()
    assert first != second and again.stdout == once.stdout


@pytest.mark.parametrize("config", ["{}", '{"cluster": {"chief": ["a:1"]}}', ""])
def test_a_cluster_without_workers_is_one_machine(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    assert devices.strategy("auto").num_replicas_in_sync == 1


def test_a_cluster_that_is_not_understood_can_be_left(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": 3}}')
    with pytest.raises(InputError, match="or --distribute=none"):
        devices.strategy("auto")


def test_events_of_a_clock_that_was_ahead_come_first(data_dir, tmp_path):
    train = dict(data_dir=str(data_dir), log_every=2, num_layers=1)
    folder = train_in(tmp_path, max_steps=4, **train)
    events, = folder.glob("train/events*")
    events.rename(events.with_name(events.name.replace("tfevents.0", "tfevents.9")))
    train_in(tmp_path, max_steps=8, **train)
    names = sorted(folder.glob("train/events*"))  # TensorBoard reads them in this order
    assert len(names) == 2 and sorted(events_of(folder / "train")[0]["loss"]) == [2, 4, 6, 8]
    steps = []
    for number, name in enumerate(names):
        (tmp_path / str(number)).mkdir()
        shutil.copy(name, tmp_path / str(number))
        steps += sorted(events_of(tmp_path / str(number))[0]["loss"])
    assert steps == [2, 4, 6, 8]


def test_a_clock_that_jumps_changes_nothing(data_dir, tmp_path, monkeypatch):
    train = dict(data_dir=str(data_dir), log_every=2, num_layers=1, save_every="3")
    for name in ("steady", "jumping"):
        (tmp_path / name).mkdir()
        if name == "jumping":
            hours = itertools.cycle([0, 5, -7, 3])
            now = time.time
            monkeypatch.setattr(time, "time", lambda: now() + 3600 * next(hours))
        for max_steps in (5, 9):
            train_in(tmp_path / name, max_steps=max_steps, **train)
    runs = [tmp_path / name / "logs" / "supernet" for name in ("steady", "jumping")]
    assert differences(*runs) == []
    assert results_of(runs[1])["wall_seconds"] < 600


# What people set for other programs.
OF_OTHERS = {
    "TF_USE_LEGACY_KERAS": "1", "KERAS_BACKEND": "torch", "MPLBACKEND": "nonsense",
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": "1"}


@pytest.mark.parametrize("command", [
    ["data_utils.py", "--input_dir={corpus_dir}", "--output_dir=made", *tiny.as_flags(**tiny.DATA)],
    ["train.py", "--data_dir={data_dir}", "--max_steps=2", "--model_name=other",
     *tiny.as_flags(**tiny.NETWORK | tiny.QUICK)],
    ["evaluate.py", "--run={begun}"],
    ["generate.py", "--run={begun}", "--prompt=a word", "--num_tokens=2"],
    ["export.py", "--run={begun}"],
    ["plot_search.py", "--run={begun}"],
], ids=lambda command: command[0])
def test_commands_work_whatever_the_environment_says_for_others(
        command, corpus_dir, data_dir, begun, tmp_path):
    given = {"corpus_dir": corpus_dir, "data_dir": data_dir, "begun": begun}
    program, *arguments = (argument.format_map(given) for argument in command)
    done = run(sys.executable, PROJECT / program, *arguments, cwd=tmp_path, env=OF_OTHERS)
    assert done.returncode == 0, done.stderr


def test_a_path_that_tensorflow_takes_for_a_pattern_is_refused_before_the_work(data_dir, tmp_path):
    with pytest.raises(InputError, match=r"TensorFlow reads . as part of a pattern"):
        train_in(tmp_path, data_dir=str(data_dir), logs_dir="runs [1]")
    assert not (tmp_path / "runs [1]").exists()


def test_a_gpu_without_bfloat16_computes_in_float32_and_says_so(monkeypatch, request):
    request.addfinalizer(lambda: keras.config.set_dtype_policy("float32"))
    details = {"device_name": "Tesla T4", "compute_capability": (7, 5)}
    monkeypatch.setattr(devices, "usable_gpus", lambda: ["a GPU"])
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details", lambda gpu: details)
    assert devices.prepare(mixed_precision=False) == ("Tesla T4", True)
    name, _ = devices.prepare(mixed_precision=True)
    assert name == "Tesla T4, in float32: it has no bfloat16, which --mixed_precision needs"
    assert keras.config.dtype_policy().name == devices.dtype_policy(True) == "float32"
    details["compute_capability"] = (8, 0)
    assert devices.prepare(mixed_precision=True) == ("Tesla T4", True)
    assert keras.config.dtype_policy().name == devices.dtype_policy(True) == "mixed_bfloat16"


def test_a_run_in_mixed_precision_is_resumed_where_there_is_no_bfloat16(
        data_dir, tmp_path, monkeypatch):
    given = dict(data_dir=str(data_dir), mixed_precision=True, fresh=True)
    train_in(tmp_path, max_steps=4, **given)
    monkeypatch.setattr(devices, "has_bfloat16", lambda gpus: False)
    folder = train_in(tmp_path, max_steps=8, **given)
    log = (folder / "training_log.log").read_text()
    assert "resumed at step 4" in log and results_of(folder)["steps"] == 8


def test_keras_computes_with_tensorflow_whatever_its_settings_say(tmp_path):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"backend": "jax", "floatx": "float16"}')
    program = "from training import trained_run; import keras; print(keras.backend.backend())"
    done = run(sys.executable, "-c", program, cwd=PROJECT,
               env={"HOME": str(tmp_path), "KERAS_BACKEND": "jax"})
    assert (done.stdout, done.stderr) == ("tensorflow\n", "")  # importing is quiet
    assert Path(tmp_path / ".keras" / "keras.json").exists()
