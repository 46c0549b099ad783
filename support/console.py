"""Standard output: what it cannot show, when it goes away, and a bar for long work."""

import io
import logging
import os
import shutil
import sys

BAR = 20  # columns


def open_standard_streams():
    """Gives this process the streams that it was started without, and a better standard output.

    That shows what it can of a text, writes each line at once, and tells in its errors what it is.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed: no other file may get its number
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))
    sys.stdout = _Output(sys.stdout.detach(), sys.stdout.encoding, "backslashreplace",
                         line_buffering=True)
    sys.__stdout__ = sys.stdout  # where shutil looks for the width of the terminal


def redraw(text: str):
    """Draws a line over the last one; nothing where standard output is no terminal."""
    if sys.stdout.isatty():
        print(f"\r{text}", end="", flush=True)


class _Output(io.TextIOWrapper):
    """Standard output. After an error what is written goes nowhere."""

    may_fail = False  # if true, errors are dropped

    def write(self, text: str) -> int:
        try:
            super().write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self):
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError):
        if self.may_fail and not isinstance(error, BrokenPipeError):
            return  # a disk may get room again
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if self.may_fail:
            return
        if isinstance(error, BrokenPipeError):
            raise error
        raise OSError(f"cannot write to standard output: {error.strerror}") from None


class Console(logging.Handler):
    """Lines on the console, and a bar on a terminal; the program goes on when it has gone."""

    def __init__(self):
        super().__init__(logging.INFO)
        if isinstance(sys.stdout, _Output):
            sys.stdout.may_fail = True
        self._bar = ""  # that is being shown

    def emit(self, record: logging.LogRecord):
        """Writes a line."""
        self._write(("\n" if self._bar else "") + self.format(record) + "\n")
        self._bar = ""

    def progress(self, fraction: float, text: str):
        """Draws a bar over the last one, and a text beside it; or writes the text as a line."""
        if not sys.stdout.isatty():
            self._write(text + "\n")
            return
        done = round(BAR * fraction)
        columns = shutil.get_terminal_size().columns - 1
        bar = f"[{'=' * done}{' ' * (BAR - done)}] {text}"[:columns]
        self._write("\r" + bar.ljust(len(self._bar)))
        self._bar = bar

    def _write(self, text: str):
        print(text, end="", flush=True)
