"""How commands start, and how they end."""

import os
import signal
import sys

import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver
from commands import flags_of

import bench
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
            "error: [Errno 28] No space left on device: 'here'",
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
        (plot_search, ["run", "compare"]),
        (choose, ["run", "data_dir"]),
        (cutoffs, ["counts_file"]),
        (train, ["data_dir", "architecture", "init_from", "logs_dir"]),
        (bench, ["json"]),
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
