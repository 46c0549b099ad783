"""How long a call takes."""

import time
from typing import Callable


def seconds(function: Callable) -> float:
    """How long a call without arguments takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
