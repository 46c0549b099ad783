"""Commands in odd environments: consoles, locales, clocks, devices and other programs' settings."""

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

import keras
import pytest
import tensorflow as tf
import tiny
import warm
from chaos import differences, events_of
from commands import run_command
from conftest import PROJECT, results_of, train_in, write_corpus

import evaluate
import generate
from support import console, devices
from support.errors import InputError

COMMANDS = ("data_utils", "train", "evaluate", "generate", "plot_search", "choose", "cutoffs",
            "export", "bench")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
OF_OTHERS = {  # set for other programs
    "TF_USE_LEGACY_KERAS": "1", "KERAS_BACKEND": "torch", "MPLBACKEND": "nonsense",
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": "1"}
TRAIN = [PROJECT / "train.py", "--max_steps=8", "--log_every=4", *tiny.as_flags(
    **tiny.NETWORK | tiny.QUICK)]


def run(*command, cwd, **settings):
    """Runs a whole process, with changes of the environment variables."""
    variables = settings.pop("env", {})
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.run(command, cwd=cwd, env=os.environ | variables, text=True, **settings)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_tensorflow_and_has_examples(command, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was loaded')")
    done = run(sys.executable, PROJECT / f"{command}.py", "--help", cwd=tmp_path,
               env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count(f"{command}.py") + done.stdout.count(".sh") >= 1
    assert "\n  --" in done.stdout and max(map(len, done.stdout.splitlines())) <= 100


def test_help_may_be_cut_and_is_in_groups(tmp_path):
    command = f"{sys.executable} {PROJECT / 'train.py'} --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = run("bash", "-c", command, cwd=tmp_path)
    assert done.stdout.endswith("writes logs/<model_name>.\n0\n") and done.stderr == ""
    text = run(sys.executable, PROJECT / "train.py", "--help", cwd=tmp_path).stdout
    titles = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["Data:", "Network:", "Search:", "Schedule:", "Optimizer:", "Run:", "Devices:"]


def test_locale_and_settings_of_other_programs_change_nothing(tmp_path):
    """Files are UTF-8, an ASCII console shows what it can, Keras computes with TensorFlow."""
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"backend": "jax", "floatx": "float16"}')
    odd = ASCII | OF_OTHERS | {"HOME": str(tmp_path)}
    corpus = write_corpus(tmp_path / "красная")
    with open(corpus / "train.txt", "a", encoding="utf-8") as file:
        file.write("Ωmega 红楼梦 ☃ .\n" * 30)
    made = run(sys.executable, PROJECT / "data_utils.py", "--input_dir=красная",
               *tiny.as_flags(**tiny.DATA), cwd=tmp_path, env=odd)
    assert made.returncode == 0 and "corpus \\u043a" in made.stdout, made.stderr
    metadata = json.loads((tmp_path / "data" / "tfrecords" / "metadata.json").read_text("utf-8"))
    assert metadata["corpus"] == "красная"
    trained = run(sys.executable, *TRAIN, "--model_name=名", cwd=tmp_path, env=odd)
    assert trained.returncode == 0 and trained.stderr == "", trained.stderr
    assert "красная" in (tmp_path / "logs" / "名" / "training_log.log").read_text("utf-8")
    (tmp_path / ".keras" / "keras.json").write_text('{"backend": "jax"}')
    library = ("from training.trained_run import TrainedRun; import keras; "
               "language_model = TrainedRun('logs/名').language_model; "
               "print(keras.backend.backend(), language_model.generate('Ωmega', 3))")
    here = {"HOME": str(tmp_path), "PYTHONPATH": str(PROJECT), "MPLBACKEND": "agg"}
    used = run(sys.executable, "-c", library, cwd=tmp_path, env=OF_OTHERS | here)
    assert used.stdout.startswith("tensorflow Ωmega") and used.stderr == ""  # it loads quietly
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


@pytest.mark.parametrize("columns", [10, 60, 200])
def test_the_bar_is_as_wide_as_the_terminal_and_does_not_wrap(columns):
    program = ("from support import console; console.open_standard_output(); "
               "console.Console().progress(0.5, 'x' * 300); console.redraw('y' * 300)")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
    here = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, stdout=theirs, env=here)
    drawn = os.read(ours, 1000).decode()
    for descriptor in (ours, theirs):
        os.close(descriptor)
    assert done.returncode == 0
    bar = f"[{'=' * 10}{' ' * 10}] ".ljust(columns, "x")[:columns - 1]
    assert drawn == f"\r{bar}\r{'y' * (columns - 1)}"


def test_training_outlives_its_console(data_dir, tmp_path):
    """A file gets plain lines, a closed pipe what it takes, a full disk and closed streams none."""
    for name, redirection in [("file", ">out"), ("pipe", "| head -n 1"), ("full", ">/dev/full"),
                              ("closed", "<&- >&- 2>&-")]:
        python = [sys.executable] if name == "closed" else warm.PYTHON  # which passes them on
        command = ("bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash",
                   *python, *TRAIN, f"--data_dir={data_dir}", f"--model_name={name}")
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        log = (tmp_path / "logs" / name / "training_log.log").read_text()
        assert "step 4/" in log and "results in" in log
    out, log = ((tmp_path / path).read_text() for path in ("out", "logs/file/training_log.log"))
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert not set("\r\b\x1b") & set(out) and len(lines) == 3 and "ETA" in lines[0]
    assert all(f" {line}\n" in log for line in lines)


def test_a_full_standard_output_is_named(search_run, tmp_path):
    with open("/dev/full", "w") as full:
        done = run(*warm.PYTHON, PROJECT / "evaluate.py", f"--run={search_run}", cwd=tmp_path,
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


def test_each_typed_line_has_a_draw_of_its_own(search_run):
    given = [f"--run={search_run}", "--num_tokens=12", "--seed=3"]
    once, again = (run_command(generate, *given, stdin=b"the same\nthe same\n") for _ in range(2))
    first, second = once.stdout.splitlines()
    assert first != second and again.stdout == once.stdout


@pytest.mark.parametrize("config", ["{}", '{"cluster": {"chief": ["a:1"]}}', ""])
def test_a_cluster_without_workers_is_one_machine(config, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", config)
    assert devices.strategy("auto").num_replicas_in_sync == 1


def test_events_of_a_clock_that_was_ahead_come_first(data_dir, tmp_path):
    train = dict(data_dir=str(data_dir), log_every=2, num_layers=1)
    folder = train_in(tmp_path, max_steps=4, **train)
    events, = folder.glob("train/events*")
    events.rename(events.with_name(events.name.replace("tfevents.0", "tfevents.9")))
    train_in(tmp_path, max_steps=8, **train)
    names = sorted(folder.glob("train/events*"))  # TensorBoard reads them in this order
    losses = events_of(folder / "train")[0]["metrics/loss"]
    assert len(names) == 2 and sorted(losses) == [2, 4, 6, 8]
    steps = []
    for number, name in enumerate(names):
        (tmp_path / str(number)).mkdir()
        shutil.copy(name, tmp_path / str(number))
        steps += sorted(events_of(tmp_path / str(number))[0]["metrics/loss"])
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
    given = dict(data_dir=str(data_dir), mixed_precision=True)
    train_in(tmp_path, max_steps=4, **given)
    monkeypatch.setattr(devices, "has_bfloat16", lambda gpus: False)
    folder = train_in(tmp_path, max_steps=8, **given)
    log = (folder / "training_log.log").read_text()
    assert "resumed at step 4" in log and results_of(folder)["steps"] == 8
