"""How commands start, and how they end."""

import os
import re
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
import export
import generate
import plot_search
import train
from support import cli, errors

PROGRAMS = (choose, cutoffs, data_utils, evaluate, export, generate, plot_search, train)
PATHS = r"\w*_(dir|text|file|prefix|from)|run|text|compare|json"  # names of flags
GRAPH = "OOM when allocating\n\t [[{{node x}}]]\nGraph execution error"


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


@pytest.mark.parametrize("error, line", [
    (errors.InputError("no such thing"), "no such thing"),
    (errors.InputError("two\nlines \x1b[2J"), "two\N{REPLACEMENT CHARACTER}lines "
     "\N{REPLACEMENT CHARACTER}[2J"),
    (errors.InputError("x" * 9000), "x" * 1000 + " ..."),
    (FloatingPointError("not finite"), "not finite"),
    (PermissionError(13, "Permission denied", "notes.txt"), "notes.txt: Permission denied"),
    (PermissionError(13, "Permission denied", b"notes.txt"), "notes.txt: Permission denied"),
    (OSError(13, "Permission denied"), "Permission denied"),
    (OSError("cannot write x"), "cannot write x"),
    (MemoryError("9 GiB"), "not enough memory (9 GiB)"),
    (tf.errors.ResourceExhaustedError(None, None, GRAPH),
     "not enough memory (OOM when allocating)"),
    (tf.errors.DataLossError(None, None, "corrupted record"),
     "a file was damaged while in use (corrupted record)"),
    (tf.errors.NotFoundError(None, None, "train/0; No such file"),
     "a file vanished while in use (train/0; No such file)"),
], ids=lambda value: type(value).__name__)
def test_a_failure_is_reported_in_one_line(error, line, end_of):
    assert end_of(error) == f"error: {line}"


@pytest.mark.parametrize("error, status", [
    (KeyboardInterrupt(), 130), (cli.Interrupted(signal.SIGTERM), 143),
    (cli.Interrupted(signal.SIGHUP), 129), (BrokenPipeError(), 141)])
def test_a_signal_is_reported_by_the_status(error, status, end_of):
    assert end_of(error) == status


def test_a_bug_raises(end_of):
    with pytest.raises(ZeroDivisionError):
        end_of(ZeroDivisionError())


@pytest.mark.parametrize("argument", [
    "--no_such_flag=1", "word", "--d_model", "--d_model=2147483648", "--max_lr=1e38",
    "--max_lr=nan", "--data_dir=caf\udce9"])
def test_a_wrong_flag_is_refused_before_the_command_starts(argument, end_of):
    line = end_of(AssertionError("started"), argument)
    assert line.startswith("error: ") and "\n" not in line
    assert argument.split("=")[0].strip("-") in line


def test_a_removed_current_folder_is_reported(end_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    line = end_of(AssertionError("started"))
    assert line == "error: the current folder has been removed: change to one that exists"


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_path_is_local_and_a_tilde_is_the_home_folder(program, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    with flags_of(program):
        own = flags.FLAGS.get_key_flags_for_module(program)
        paths = [flag for flag in own if re.fullmatch(PATHS, flag.name)]
        assert paths
        for flag in paths:
            flag.parse("~/book.txt")
            assert flag.value in ("/home/someone/book.txt", ["/home/someone/book.txt"])
            before = "x," if isinstance(flag.value, list) else ""
            for path, reason in [("", "is empty"), ("gs://bucket/x", "is not a local path"),
                                 ("https:/host/x", "is not a local path")]:
                with pytest.raises(flags.IllegalFlagValueError, match=f"{flag.name}=.*: {reason}"):
                    flag.parse(before + path)


def test_a_signal_waits_for_the_end_of_all_blocks():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with cli.uninterrupted() as waiting:
            with cli.uninterrupted():
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGINT)
                done.append("within")
            done.append("between")
            assert waiting == [signal.SIGTERM, signal.SIGINT]
        done.append("after")
    assert done == ["within", "between"]


def test_a_thread_gets_no_signals():
    def work():
        with cli.uninterrupted() as waiting:
            done.append(waiting)

    done = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [[]]


def test_quiet_drops_the_errors_of_native_code_alone(capfd):
    with cli.quiet():
        with cli.quiet():
            os.write(2, b"greeting")
        os.write(2, b"greeting")
    os.write(2, b"error")
    assert capfd.readouterr().err == "error"
