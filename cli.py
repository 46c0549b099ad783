"""How every command starts, and how it ends on bad input: in one line that says what is wrong, never in a traceback."""

import contextlib
import os
import re
import signal
import sys

from absl import app, flags, logging

flags.disclaim_key_flags()  # `define_integers` defines the flags of the module that calls it, not of this one


class InputError(ValueError):
    """Something the user gave cannot work; the message is one line that says what and what to do."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which then takes the way of SIGINT: a cluster asks for what a user asks for with Ctrl-C."""


def handle_sigterm():
    """Lets SIGTERM raise `Terminated` from here on."""
    def terminate(number, frame):
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


@contextlib.contextmanager
def uninterrupted():
    """A block that SIGINT and SIGTERM do not break into: they take effect at its end."""
    waiting = []
    handlers = {number: signal.signal(number, lambda number, frame: waiting.append(number)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(waiting[0])


@contextlib.contextmanager
def quiet():
    """Drops what native libraries print while they load: TensorFlow's greeting, which no setting turns off."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def run(main):
    """Runs `main(argv)` with parsed absl flags.

    Bad flags, bad input and file errors exit with status 1 and one line; SIGINT with 130, and SIGTERM where it is handled with 143.
    """

    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            message = " ".join(str(error).split())
            sys.exit("error: " + re.sub(r"^flag --(\w+)=None: .* other than None\.$", r"--\1 is missing", message))
        if rest[1:]:
            sys.exit(f"error: '{rest[1]}' is not a flag (flags are written --name=value; --help lists them)")
        return rest

    def guarded(argv):
        try:
            main(argv)
        except (InputError, OSError, FloatingPointError) as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt as interrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT))

    logging.set_verbosity(logging.WARNING)  # not every checkpoint written
    app.run(guarded, flags_parser=parse)


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
