"""How commands start, and how they end."""

import builtins
import os
import signal
import sys
import threading

import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from commands import flags_of

import choose
import cutoffs
import data_utils
import evaluate
import generate
import plot_search
import train
from support import cli


@pytest.fixture
def end_of(monkeypatch):
    """A function: the exit status, or the last line, of a command whose `main` raises an error."""

    def end_of(error, *arguments):
        def main(_):
            raise error

        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
            cli.run(main)
        return end.value.code

    return end_of


@pytest.mark.parametrize(
    "error, line",
    [
        (cli.InputError("no such thing"), "error: no such thing"),
        (
            OSError(28, "No space left on device", "here"),
            "error: here: No space left on device",
        ),
        (FloatingPointError("not finite"), "error: not finite"),
        (MemoryError("9 GiB"), "error: not enough memory (9 GiB)"),
        (
            tf.errors.ResourceExhaustedError(
                None, None, "OOM when allocating\n\t [[{{node x}}]]\nGraph execution error"
            ),
            "error: not enough memory (OOM when allocating)",
        ),
        (
            tf.errors.DataLossError(None, None, "corrupted record"),
            "error: a file was damaged while it was in use (corrupted record)",
        ),
        (
            tf.errors.NotFoundError(None, None, "train/0; No such file"),
            "error: a file vanished while it was in use (train/0; No such file)",
        ),
        (KeyboardInterrupt(), 130),
        (cli.Interrupted(signal.SIGTERM), 143),
        (cli.Interrupted(signal.SIGHUP), 129),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_told_in_one_line_or_by_the_status(error, line, end_of):
    assert end_of(error) == line


def test_a_mistake_of_the_program_is_no_mistake_of_the_user(end_of):
    with pytest.raises(ZeroDivisionError):
        end_of(ZeroDivisionError())


@pytest.mark.parametrize(
    "argument",
    [
        "--no_such_flag=1",
        "word",
        "--d_model",
        "--d_model=2147483648",
        "--max_lr=1e38",
        "--max_lr=nan",
    ],
)
def test_what_is_no_flag_and_no_number_is_refused_before_the_command_begins(argument, end_of):
    code = end_of(AssertionError("begun"), argument)
    assert (
        code.startswith("error: ")
        and "\n" not in code
        and argument.split("=")[0].strip("-") in code
    )


@pytest.mark.parametrize(
    "program, names",
    [
        (data_utils, ["input_text", "input_dir", "sp_model_prefix", "output_dir"]),
        (evaluate, ["run", "text", "data_dir"]),
        (generate, ["run"]),
        (plot_search, ["run", "compare", "searches"]),
        (choose, ["run", "data_dir"]),
        (cutoffs, ["counts_file"]),
        (train, ["data_dir", "architecture", "init_from", "logs_dir"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_home_folder_stands_for_a_tilde_in_every_path(program, names, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    with flags_of(program):
        for name in names:
            flags.FLAGS[name].parse("~/book.txt")
            assert flags.FLAGS[name].value in ("/home/someone/book.txt", ["/home/someone/book.txt"])
        paths = {
            flag.name
            for flag in flags.FLAGS.get_key_flags_for_module(program)
            if type(flag.parser).__name__.startswith("_Path")
        }
        assert paths == set(names)


@pytest.mark.parametrize(
    "path, reason",
    [
        ("gs://bucket/x", "is not a local path"),
        ("s3://bucket/x", "is not a local path"),
        ("https:/host/x", "is not a local path"),
        ("~nosuchuser/x", "names a home folder that does not exist"),
    ],
)
@pytest.mark.parametrize(
    "program, name", [(train, "logs_dir"), (data_utils, "output_dir"), (evaluate, "run")]
)
def test_a_path_that_is_not_of_this_machine_is_refused(program, name, path, reason):
    with (
        flags_of(program),
        pytest.raises(flags.IllegalFlagValueError, match=f"flag --{name}=.*: {reason}"),
    ):
        flags.FLAGS[name].parse(path)


def test_a_current_folder_that_was_deleted_is_named(end_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    told = end_of(AssertionError("begun"))
    assert told == "error: the current folder has been removed: change to one that exists"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("x.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_too_little_memory_for_a_library_is_the_reason_that_is_given(error, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    monkeypatch.setattr("builtins.__import__", raising(error, "tensorflow_text"))
    with pytest.raises(cli.InputError, match="^not enough memory to load a library") as raised:
        cli.tensorflow_text.__wrapped__()
    assert "pip install" not in str(raised.value)


def raising(error, package):
    """`__import__` that fails for a package."""
    original = builtins.__import__

    def load(name, *arguments, **settings):
        if name == package:
            raise error
        return original(name, *arguments, **settings)

    return load


def test_a_library_that_cannot_be_loaded_ends_a_command_in_one_line(capsys):
    cli._end_in_one_line(cli.InputError, cli.InputError("not enough memory"), None)
    assert capsys.readouterr().err == "error: not enough memory\n"


@pytest.mark.parametrize(
    "error, line",
    [
        (PermissionError(13, "Permission denied", "notes.txt"), "notes.txt: Permission denied"),
        (OSError(13, "Permission denied"), "Permission denied"),
        (OSError("cannot write x"), "cannot write x"),
        (cli.InputError("two\nlines \x1b[2J"), "two\N{REPLACEMENT CHARACTER}lines "
         "\N{REPLACEMENT CHARACTER}[2J"),
        (cli.InputError("x" * 9000), "x" * 1000 + " ..."),
    ],
)
def test_an_error_is_one_line_for_people(error, line, end_of):
    assert end_of(error) == f"error: {line}"


def test_a_flag_that_is_not_utf8_is_refused(end_of):
    assert (
        end_of(AssertionError("begun"), "--data_dir=caf\udce9")
        == "error: the value of --data_dir is not UTF-8"
    )


@pytest.mark.parametrize(
    "program, name", [(data_utils, "input_text"), (evaluate, "run"), (evaluate, "text")]
)
def test_a_path_is_not_empty(program, name):
    with (
        flags_of(program),
        pytest.raises(flags.IllegalFlagValueError, match=f"flag --{name}=.*: is empty"),
    ):
        flags.FLAGS[name].parse("")


def test_a_folder_whose_name_is_not_utf8_is_refused(end_of, tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert end_of(AssertionError("begun")) == "error: the name of the current folder is not UTF-8"


def test_a_signal_waits_for_the_end_of_what_must_not_be_interrupted():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with cli.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("within")
        done.append("after")
    assert done == ["within"]


def test_a_signal_waits_for_the_end_of_all_blocks_around():
    with pytest.raises(KeyboardInterrupt):
        with cli.uninterrupted() as waiting:
            with cli.uninterrupted():
                signal.raise_signal(signal.SIGTERM)
            assert waiting == [signal.SIGTERM]


def test_a_thread_gets_no_signals():
    def work():
        with cli.uninterrupted() as waiting:
            done.append(waiting)

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [[]]
