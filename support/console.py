"""Standard output that survives a closed pipe and a full disk, and a progress bar."""

import contextlib
import io
import logging
import os
import shutil
import sys
from typing import Iterator

BAR = 20  # columns


def open_standard_output():
    """Replaces `sys.stdout`: it writes each line at once and escapes characters it cannot show.

    Opens the standard streams that are closed, so that no other file gets their numbers.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))
    sys.stdout = _Output(sys.stdout.detach(), sys.stdout.encoding, "backslashreplace",
                         line_buffering=True)
    sys.__stdout__ = sys.stdout  # shutil asks it for the width of the terminal


class _Output(io.TextIOWrapper):
    """Standard output that discards everything after its first error, so that exit cannot fail.

    Attributes:
      ignores_errors: errors are not raised, and output resumes when a full disk has room again.
    """

    ignores_errors = False

    def write(self, text: str) -> int:
        with self._failing_once():
            super().write(text)
        return len(text)

    def flush(self):
        with self._failing_once():
            super().flush()

    @contextlib.contextmanager
    def _failing_once(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self.ignores_errors and not isinstance(error, BrokenPipeError):
                return
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())
            if self.ignores_errors:
                return
            if isinstance(error, BrokenPipeError):
                raise
            raise OSError(f"cannot write to standard output: {error.strerror}") from None


def redraw(text: str):
    """Replaces the current line of a terminal; does nothing if standard output is not one."""
    if sys.stdout.isatty():
        _write("\r" + _cut(text))


class Console(logging.Handler):
    """Log lines and a progress bar on standard output; its errors are ignored."""

    def __init__(self):
        super().__init__(logging.INFO)
        if isinstance(sys.stdout, _Output):
            sys.stdout.ignores_errors = True  # of all who print, Keras included
        self._bar = ""  # the bar now shown

    def emit(self, record: logging.LogRecord):
        """Writes a line."""
        _write(("\n" if self._bar else "") + self.format(record) + "\n")
        self._bar = ""

    def progress(self, fraction: float, text: str):
        """Redraws the bar with a text beside it; without a terminal, writes the text as a line."""
        if not sys.stdout.isatty():
            _write(text + "\n")
            return
        done = round(BAR * fraction)
        bar = _cut(f"[{'=' * done}{' ' * (BAR - done)}] {text}")
        _write("\r" + _cut(bar.ljust(len(self._bar))))
        self._bar = bar

def _write(text: str):
    print(text, end="", flush=True)


def _cut(text: str) -> str:
    """A text short enough not to wrap on the terminal."""
    return text[:shutil.get_terminal_size().columns - 1]
