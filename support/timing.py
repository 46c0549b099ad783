"""How long a call takes, and how much memory this process has taken."""

import resource
import sys
import time
from typing import Callable


def seconds(function: Callable) -> float:
    """How long a call without arguments takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_mebibytes() -> float:
    """The most memory that this process has had at once."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
