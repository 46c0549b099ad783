"""Loads TensorFlow and tensorflow-text when first used, without their startup messages."""

import contextlib
import functools
import importlib.metadata
import os
import sys
import threading
from typing import Iterator

from support.errors import InputError, reason
from support.missing_packages import text_requirement

# TensorFlow reads these at import. At levels below 3, it reports that it found no GPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Keras 3 on TensorFlow, whatever the environment or ~/.keras/keras.json says; XLA only on request.
os.environ |= {
    "KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "0",
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": "0"}

QUIET = threading.RLock()  # held while standard error is discarded


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops the standard error of native libraries, which no setting silences."""
    with QUIET, open(os.devnull, "w") as nowhere:
        sys.stderr.flush()
        standard_error = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


@functools.cache
def tensorflow():
    """The module tensorflow."""
    with quiet():
        import tensorflow as tf

    return tf


@functools.cache
def tensorflow_text():
    """The module tensorflow_text.

    Raises:
      InputError: it does not load. The usual cause is a minor version other than TensorFlow's.
    """
    version = tensorflow().__version__
    try:
        with quiet():
            import tensorflow_text
    except Exception as error:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed = importlib.metadata.version("tensorflow-text")
            raise InputError(
                f"tensorflow-text {installed} does not load with TensorFlow {version} "
                f"({reason(error)}): {_command(version)}") from None
        raise InputError(f"tensorflow-text is not installed: {_command(version)}") from None
    return tensorflow_text


def _command(version: str) -> str:
    return f"{sys.executable} -m pip install '{text_requirement(version)}'"
