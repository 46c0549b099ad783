"""Protects work from interruption by SIGINT, SIGTERM and SIGHUP."""

import contextlib
import signal
import threading
from typing import Iterator


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop: Ctrl-C, a cluster's SIGTERM or a closed terminal."""

    def __init__(self, number: int):
        self.number = number


@contextlib.contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Defers signals to the end of the block; of nested blocks, to the end of the outermost one.

    Yields the numbers of the signals received so far. Only the main thread gets signals.

    Raises:
      Interrupted: a signal arrived. The end of the outermost block raises it.
    """
    waiting, handlers = [], {}
    if threading.current_thread() is not threading.main_thread():
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
