"""How every command starts, and how it ends on bad input.

It ends in one line that says what is wrong, never in a traceback.
"""

import contextlib
import functools
import importlib.metadata
import os
import re
import signal
import sys
import threading
from typing import Callable, Iterator, Sequence

from absl import app, flags, logging

from support import console
from support.missing_packages import text_requirement

# The functions below define the flags of the module that calls them, not of this one.
flags.disclaim_key_flags()
# TensorFlow reads it when it is imported; below 3 it tells that there is no GPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Whatever the environment or ~/.keras/keras.json says: Keras 3 on TensorFlow, without XLA unless
# a function asks for it.
os.environ |= {
    "KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "0",
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": "0"}

if hasattr(os, "sched_getaffinity"):
    CORES = len(os.sched_getaffinity(0))  # that this process may use
else:
    CORES = os.cpu_count()

# What ends a program from outside, by the names that Python and TensorFlow have for the errors.
FAILURES = {
    "MemoryError": "not enough memory",
    "ResourceExhaustedError": "not enough memory",
    "DataLossError": "a file was damaged while it was in use",
    "NotFoundError": "a file vanished while it was in use",
    "UnavailableError": "another worker has ended or cannot be reached: start all of them again, "
                        "and they go on from the last checkpoint",
}

# How the loader and the system say that there is too little memory.
NO_MEMORY = re.compile("failed to map segment|annot allocate memory(?! in static TLS)")
# Held while the number of quiet blocks changes, and with it where standard error leads.
QUIET, _quiet_blocks, _standard_error = threading.Lock(), 0, None

HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}


class InputError(ValueError):
    """Something the user gave cannot work; the message is a line that says what and what to do."""


class Interrupted(KeyboardInterrupt):
    """What asks the program to stop.

    That is Ctrl-C, a cluster that takes the machine away, or a terminal that is closed.
    """

    def __init__(self, number: int):
        self.number = number


@contextlib.contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """A block that SIGINT, SIGTERM and SIGHUP do not break into.

    They wait in the list that it is given, or else take effect at its end, in a block around it if
    there is one. Only the main thread gets signals at all.
    """
    waiting, handlers = [], {}
    if not in_main_thread():
        yield waiting
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            handlers[number] = signal.signal(number, lambda number, frame: waiting.append(number))
    try:
        yield waiting
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number in waiting:
        if callable(outer := handlers[number]) and outer is not signal.default_int_handler:
            outer(number, None)
        else:
            raise Interrupted(number)


@contextlib.contextmanager
def quiet():
    """Drops what native libraries print while they load; Ctrl-C simply ends it.

    No setting turns TensorFlow's greeting off.

    Raises:
      InputError: there is too little memory to load them.
    """
    sys.stderr.flush()
    interrupts = signal.getsignal(signal.SIGINT) == signal.default_int_handler
    ends_at_once = interrupts and in_main_thread()
    if ends_at_once:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _redirect(+1)
    try:
        yield
    except Exception as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        raise InputError("not enough memory to load a library "
                         f"({reason(error) or type(error).__name__})") from None
    finally:
        _redirect(-1)
        if ends_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _redirect(blocks: int):
    """Standard error leads nowhere while any block is quiet, in whatever thread."""
    global _quiet_blocks, _standard_error
    with QUIET:
        if not _quiet_blocks:
            _standard_error, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        _quiet_blocks += blocks
        if not _quiet_blocks:
            os.dup2(_standard_error, 2)
            os.close(_standard_error)


def in_main_thread() -> bool:
    """Whether this thread is the one that gets signals, and may set what they do."""
    return threading.current_thread() is threading.main_thread()


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
      InputError: it cannot be imported, most often because its minor version differs from
        TensorFlow's.
    """
    version = tensorflow().__version__
    try:
        with quiet():
            import tensorflow_text
    except InputError:
        raise
    except Exception as error:
        try:
            found = f"tensorflow-text {importlib.metadata.version('tensorflow-text')}"
        except importlib.metadata.PackageNotFoundError:
            found = "tensorflow-text, which is not installed,"
        raise InputError(
            f"{found} does not load with TensorFlow {version} ({reason(error)}): "
            f"{sys.executable} -m pip install '{text_requirement(version)}'") from None
    return tensorflow_text


def begin(name: str, define_flags: Callable[[], None] | None = None):
    """Begins a command, before TensorFlow is loaded, where its module is run and not imported.

    Defines its flags and answers --help. Files are UTF-8, whatever the locale says.

    Args:
      name: `__name__` of the module.
      define_flags: defines its flags; None where it has defined them.
    """
    if name != "__main__":
        return
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    console.open_standard_streams()
    os.environ["MPLBACKEND"] = "agg"  # pictures are files
    sys.excepthook = _end_in_one_line
    if define_flags:
        define_flags()
    if HELP & set(sys.argv[1:]):
        from support import flag_help

        with contextlib.suppress(OSError):  # `| head` has seen enough
            print(flag_help.help_text(sys.argv[0], sys.modules[name].__doc__))
        sys.exit()


def _end_in_one_line(kind: type, error: Exception, traceback):
    """An excepthook: reports a library that cannot be loaded, before `run` guards, in one line."""
    if kind is InputError:
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


def run(main):
    """Runs `main(argv)` with parsed absl flags.

    Bad flags, bad input, file errors and the other `FAILURES` exit with status 1 and one line, a
    signal with 128 and its number.
    """

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            message = " ".join(str(error).split())
            missing = r"^flag --(\w+)=None: .* other than None\.$"
            sys.exit("error: " + re.sub(missing, r"--\1 is missing", message))
        if rest[1:]:
            sys.exit(f"error: '{rest[1]}' is not a flag "
                     "(flags are written --name=value; --help lists them)")
        for name, value in flags.FLAGS.flag_values_dict().items():
            if any(map(_is_not_utf8, value if isinstance(value, list) else [value])):
                sys.exit(f"error: the value of --{name} is not UTF-8")
            if _is_out_of_range(value):
                sys.exit(f"error: --{name}={value} is out of range")
        try:
            if _is_not_utf8(os.getcwd()):
                sys.exit("error: the name of the current folder is not UTF-8")
        except FileNotFoundError:
            sys.exit("error: the current folder has been removed: change to one that exists")
        return rest

    def guarded(argv):
        try:
            main(argv)
        except BrokenPipeError:  # whoever read has seen enough
            sys.exit(128 + signal.SIGPIPE)
        except (InputError, FloatingPointError) as error:
            sys.exit(f"error: {printable(str(error))}")
        except OSError as error:
            sys.exit(f"error: {printable(_of_system(error))}")
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


def _is_out_of_range(value) -> bool:
    """Whether a value is a number that is too large, or too small, for int32 or float32."""
    if type(value) is int:
        return abs(value) >= 2**31
    return type(value) is float and value != 0 and not 1e-37 < abs(value) < 1e38


def _of_system(error: OSError) -> str:
    """An error of the system for people: `x: Permission denied`, without the number."""
    if error.strerror is None or error.filename is None:
        return error.strerror or str(error)
    name = error.filename
    return f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {error.strerror}"


def printable(text: str, most: int = 1000) -> str:
    """A text in one line, cut if it is long, without what a terminal might take for a command."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
                    for character in text[:most])
    return f"{shown} ..." if len(text) > most else shown


def reason(error: Exception) -> str:
    """What an error says, in one line, without the places in a graph that TensorFlow adds."""
    places = ("Graph execution error", "Detected at node", '  File "', "\t [[")
    text = " ".join(line for line in str(error).splitlines() if not line.startswith(places))
    return re.sub(r"\{\{.*?\}\}+|\[Op:.*", "", " ".join(text.split())).strip()


class _PathParser(flags.ArgumentParser):
    """Takes a local path. ~ is the home folder: a shell does not expand it behind --name=."""

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError("is empty")
        if re.match(r"[A-Za-z][\w+.-]*:/", argument):
            raise ValueError("is not a local path: mount or copy it first")
        path = os.path.expanduser(argument)
        if path.startswith("~"):
            raise ValueError(f"names a home folder that does not exist: write ./{path} "
                             "for a folder of this name")
        return path


class _PathsParser(flags.ListParser):
    """Takes several, comma-separated."""

    def parse(self, argument) -> list[str]:
        return [_PathParser().parse(path) for path in super().parse(argument) or [""]]


GROUPS: dict[str, list[str]] = {}  # the names of flags under the title of their group, in order


@contextlib.contextmanager
def group(title: str):
    """The flags that are defined in this block belong together."""
    before = set(flags.FLAGS)
    yield
    GROUPS.setdefault(title, []).extend(name for name in flags.FLAGS if name not in before)


def define_path(name: str, default: str | None, help: str, **settings):
    """Defines a flag that is a path."""
    return flags.DEFINE(_PathParser(), name, default, help, **settings)


def define_paths(name: str, default: list[str] | None, help: str, **settings):
    """Defines a flag that is a list of paths."""
    return flags.DEFINE(_PathsParser(), name, default, help, **settings)


class IntegersParser(flags.ListParser):
    """Takes integers, comma-separated, or none."""

    def __init__(self):
        super().__init__()
        self.syntactic_help = "integers, comma-separated"

    def parse(self, argument) -> list[int]:
        if not isinstance(argument, str):
            return list(argument)
        try:
            return [int(text) for text in argument.split(",") if text.strip()]
        except ValueError:
            raise ValueError("must be integers, comma-separated") from None


def define_integers(name: str, default: Sequence[int], help: str):
    """Defines a flag of integers, comma-separated: --name=1,2."""
    return flags.DEFINE(IntegersParser(), name, list(default), help,
                        serializer=flags.CsvListSerializer(","))
