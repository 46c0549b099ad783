"""Runs commands in the process of the tests, so that they need not load TensorFlow."""

import contextlib
import io
import subprocess
import sys

import keras
import pytest
from absl import flags
from absl.testing import flagsaver

from support import cli


@contextlib.contextmanager
def flags_of(program):
    """In this block the flags are those of a program, as in its own process."""
    if not hasattr(program, "define_flags"):  # its import defined them
        with flagsaver.flagsaver():
            yield
        return
    before, fresh = flags.FLAGS.__dict__, flags.FlagValues()
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("absl.") or module == program.__name__:
            for flag in defined:
                fresh[flag.name] = flag
                fresh.register_key_flag_for_module(module, flag)
    object.__setattr__(flags.FLAGS, "__dict__", fresh.__dict__)
    try:
        program.define_flags()
        yield
    finally:
        object.__setattr__(flags.FLAGS, "__dict__", before)


def run_command(program, *arguments, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """Runs the `main` of a command, with the result that its process would have.

    Raises any error that the command does not report as one line.
    """
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(flags_of(program))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(errors))
        stack.callback(keras.config.set_dtype_policy, "float32")
        patch.setattr(sys, "argv", [f"{program.__name__}.py", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as end:
            cli.run(program.main)
    status = end.value.code or 0
    if isinstance(status, str):  # as Python exits with a message
        errors.write(f"{status}\n")
        status = 1
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), errors.getvalue())


def one_line(done: subprocess.CompletedProcess) -> str:
    """The only line on standard error of a failed command."""
    assert done.returncode == 1 and done.stdout.count("Traceback") == 0, done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr
