"""How every command starts, and how it ends on bad input: in one line that says what is wrong, never in a traceback."""

import contextlib
import functools
import importlib.metadata
import os
import re
import signal
import sys
from typing import Iterator

from absl import app, flags, logging

flags.disclaim_key_flags()  # the functions below define the flags of the module that calls them, not of this one
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported; below 3 it tells that there is no GPU

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # that this process may use

# What ends a program from outside, by the names of the errors that Python and TensorFlow have for it.
FAILURES = {
    "MemoryError": "not enough memory", "ResourceExhaustedError": "not enough memory",
    "DataLossError": "a file was damaged while it was in use", "NotFoundError": "a file vanished while it was in use",
    "UnavailableError": "another worker has ended or cannot be reached: start all of them again, and they go on from the last checkpoint",
}


class InputError(ValueError):
    """Something the user gave cannot work; the message is one line that says what and what to do."""


class Interrupted(KeyboardInterrupt):
    """What asks the program to stop: Ctrl-C, a cluster that takes the machine away, a terminal that is closed."""

    def __init__(self, number: int):
        self.number = number


@contextlib.contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """A block that SIGINT, SIGTERM and SIGHUP do not break into: they wait in the list that it is given, or else take effect at its end."""
    waiting = []
    handlers = {number: signal.signal(number, lambda number, frame: waiting.append(number))
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield waiting
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if waiting:
        raise Interrupted(waiting[0])


@contextlib.contextmanager
def quiet():
    """Drops what native libraries print while they load, TensorFlow's greeting, which no setting turns off; Ctrl-C simply ends it."""
    sys.stderr.flush()
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL) if signal.getsignal(signal.SIGINT) == signal.default_int_handler else None
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        if interrupt:
            signal.signal(signal.SIGINT, interrupt)
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


@functools.cache
def tensorflow():
    """TensorFlow, imported when it is first used: some commands do without it."""
    with quiet():
        import tensorflow as tf

    return tf


@functools.cache
def tensorflow_text():
    """tensorflow-text, imported when it is first used.

    Raises:
      InputError: it cannot be imported, most often because it is of another minor version than TensorFlow.
    """
    version = tensorflow().__version__
    try:
        with quiet():
            import tensorflow_text
    except Exception as error:
        try:
            found = f"tensorflow-text {importlib.metadata.version('tensorflow-text')}"
        except importlib.metadata.PackageNotFoundError:
            found = "tensorflow-text, which is not installed,"
        wanted = ".".join(version.split(".")[:2])
        raise InputError(f"{found} does not load with TensorFlow {version} ({reason(error)}): "
                         f"{sys.executable} -m pip install 'tensorflow-text=={wanted}.*'") from None
    return tensorflow_text


def run(main):
    """Runs `main(argv)` with parsed absl flags.

    Bad flags, bad input, file errors and the other `FAILURES` exit with status 1 and one line, a signal with 128 and its number.
    """

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            message = " ".join(str(error).split())
            sys.exit("error: " + re.sub(r"^flag --(\w+)=None: .* other than None\.$", r"--\1 is missing", message))
        if rest[1:]:
            sys.exit(f"error: '{rest[1]}' is not a flag (flags are written --name=value; --help lists them)")
        for name, value in flags.FLAGS.flag_values_dict().items():
            if any(map(_is_not_utf8, value if isinstance(value, list) else [value])):
                sys.exit(f"error: the value of --{name} is not UTF-8")
            if type(value) is int and abs(value) >= 2**31 or type(value) is float and value and not 1e-37 < abs(value) < 1e38:
                sys.exit(f"error: --{name}={value} is out of range")  # of int32 or float32
        if _is_not_utf8(os.getcwd()):
            sys.exit("error: the name of the current folder is not UTF-8")
        return rest

    def guarded(argv):
        try:
            main(argv)
        except (InputError, OSError, FloatingPointError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt as interrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
            print("interrupted", file=sys.stderr)
            sys.exit(128 + getattr(interrupt, "number", signal.SIGINT))
        except Exception as error:
            if type(error).__name__ not in FAILURES:
                raise
            sys.exit(f"error: {FAILURES[type(error).__name__]} ({reason(error)})")

    logging.set_verbosity(logging.WARNING)  # not every checkpoint written
    app.run(guarded, flags_parser=parse)


def _is_not_utf8(value) -> bool:
    """Whether a text has bytes that Python could not decode."""
    return any("\ud800" <= character <= "\udfff" for character in str(value))


def reason(error: Exception) -> str:
    """What an error says, in one line, without the places in a graph that TensorFlow adds."""
    places = ("Graph execution error", "Detected at node", '  File "', "\t [[")
    text = " ".join(line for line in str(error).splitlines() if not line.startswith(places))
    return re.sub(r"\{\{.*?\}\}+|\[Op:.*", "", " ".join(text.split())).strip()


class _PathParser(flags.ArgumentParser):
    """Takes a path of the user's, where ~ is the home folder: a shell does not see it behind --name=."""

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError("is empty")
        return os.path.expanduser(argument)


class _PathsParser(flags.ListParser):
    """Takes several, comma-separated."""

    def parse(self, argument) -> list[str]:
        return [_PathParser().parse(path) for path in super().parse(argument) or [""]]


def define_path(name: str, default: str | None, help: str, **settings):
    """Defines a flag that is a path."""
    return flags.DEFINE(_PathParser(), name, default, help, **settings)


def define_paths(name: str, default: list[str] | None, help: str, **settings):
    """Defines a flag that is a list of paths."""
    return flags.DEFINE(_PathsParser(), name, default, help, **settings)


def define_integers(name: str, default: str, help: str):
    """Defines a flag of integers, comma-separated or repeated: --name=1,2 or --name=1 --name=2."""
    holder = flags.DEFINE_multi_string(name, default, help + " (comma-separated or repeated)")
    flags.register_validator(holder, lambda texts: integers(texts) is not None, "must be integers")
    return holder


def integers(texts: list[str]) -> list[int] | None:
    """The value of such a flag; None where it is not integers."""
    try:
        return [int(text) for text in ",".join(texts).split(",") if text.strip()]
    except ValueError:
        return None
