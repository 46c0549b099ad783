"""Turns errors into the one line that a command prints."""

import os
import re

# Failures from outside the program, by the class names of Python and TensorFlow.
FAILURES = {
    "MemoryError": "not enough memory",
    "ResourceExhaustedError": "not enough memory",
    "DataLossError": "a file was damaged while in use",
    "NotFoundError": "a file vanished while in use",
    "UnavailableError": "another worker has died or cannot be reached: restart all workers, "
                        "and they resume from the last checkpoint",
}


class InputError(ValueError):
    """Invalid user input. The message is one line: the problem and its remedy."""


def line_of(error: Exception) -> str | None:
    """The line for the user, or None if the error is a bug of this program."""
    if isinstance(error, (InputError, FloatingPointError)):
        return printable(str(error))
    if isinstance(error, OSError):
        return printable(_of_system(error))
    failure = FAILURES.get(type(error).__name__)
    return failure and f"{failure} ({reason(error)})"


def printable(text: str, most: int = 1000) -> str:
    """A text as one line of at most `most` characters, without terminal control characters."""
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
                    for character in text[:most])
    return f"{shown} ..." if len(text) > most else shown


def reason(error: Exception) -> str:
    """The message of an error as one line, without TensorFlow's graph locations."""
    places = ("Graph execution error", "Detected at node", '  File "', "\t [[")
    text = " ".join(line for line in str(error).splitlines() if not line.startswith(places))
    return re.sub(r"\{\{.*?\}\}+|\[Op:.*", "", " ".join(text.split())).strip()


def _of_system(error: OSError) -> str:
    """An operating system error without its number: `x: Permission denied`."""
    if error.strerror is None or error.filename is None:
        return error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror}"
