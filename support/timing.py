"""The time of a call, and the peak memory of this process."""

import resource
import sys
import time
from typing import Callable


def seconds(function: Callable) -> float:
    """The seconds that a call without arguments takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_mebibytes() -> float:
    """The peak memory of this process."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
