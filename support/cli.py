"""Starts and ends a command: bad input produces one line, never a traceback."""

import contextlib
import os
import re
import signal
import sys
from typing import Callable

from absl import app, flags, logging

from support import console, flag_help
from support.errors import line_of
from support.flag_types import define_integers, define_path, define_paths, group
from support.loading import quiet, tensorflow, tensorflow_text
from support.signals import Interrupted, uninterrupted

__all__ = [  # all that a command needs, in one place
    "CORES", "Interrupted", "begin", "define_integers", "define_path", "define_paths", "group",
    "quiet", "run", "tensorflow", "tensorflow_text", "uninterrupted"]

if hasattr(os, "sched_getaffinity"):
    CORES = len(os.sched_getaffinity(0))  # that this process may use
else:
    CORES = os.cpu_count()

HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}


def begin(name: str, define_flags: Callable[[], None] | None = None):
    """Starts a command if its module is run rather than imported, before TensorFlow loads.

    Defines the flags, unless the module has, and answers --help. Files are UTF-8 in any locale.
    `name` is the `__name__` of the module.
    """
    if name != "__main__":
        return
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    console.open_standard_output()
    os.environ["MPLBACKEND"] = "agg"  # Colab sets a backend that works only in notebooks
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while libraries load
    if define_flags:
        define_flags()
    if HELP & set(sys.argv[1:]):
        with contextlib.suppress(BrokenPipeError):  # `| head`
            print(flag_help.help_text(sys.argv[0], sys.modules[name].__doc__))
        sys.exit()


def run(main: Callable[[list[str]], None]):
    """Runs `main(argv)` with parsed flags, and exits.

    Exit status: 1, with one line, for bad input and external failures; 128 plus its number for
    a signal. Any other error propagates.
    """
    def guarded(argv):
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main(argv)
        except BrokenPipeError:
            sys.exit(128 + signal.SIGPIPE)
        except KeyboardInterrupt as interrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
            print("interrupted", file=sys.stderr)
            sys.exit(128 + getattr(interrupt, "number", signal.SIGINT))
        except Exception as error:
            if (line := line_of(error)) is None:
                raise
            sys.exit(f"error: {line}")

    logging.set_verbosity(logging.WARNING)  # INFO reports every checkpoint
    app.run(guarded, flags_parser=_parsed)


def _parsed(argv: list[str]) -> list[str]:
    """Parses the flags, or exits with one line."""
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
        os.getcwd()
    except FileNotFoundError:
        sys.exit("error: the current folder has been removed: change to one that exists")
    return rest


def _is_not_utf8(value) -> bool:
    """Whether a text contains bytes that Python could not decode."""
    return any("\ud800" <= character <= "\udfff" for character in str(value))


def _is_out_of_range(value) -> bool:
    """Whether a number does not fit int32 or float32."""
    if type(value) is int:
        return abs(value) >= 2**31
    return type(value) is float and value != 0 and not 1e-37 < abs(value) < 1e38
