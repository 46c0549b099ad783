"""The tests themselves: they see none of the user's files and settings, and leave nothing."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import PROJECT, copy_project

HOSTILE = {
    "KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1", "MPLBACKEND": "nonsense", "COLUMNS": "20",
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": "1", "PYTHONWARNINGS": "error", "HOME": "/nowhere"}


def run(project, *command, **variables):
    """Runs a command in a folder, with some environment variables of a user."""
    path = f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"
    return subprocess.run(command, cwd=project, env={"PATH": path} | variables,
                          capture_output=True, text=True)


def add_own_files(project, program):
    """Adds texts and programs of a user that look like tests and would run a line."""
    own = project / "data" / "own"
    own.mkdir(parents=True)
    (own / "test_x.txt").write_text(f">>> {program}\n")
    (own / "test_x.py").write_text(f"import os\n{program}\n")  # ruff would object too
    shutil.copy(own / "test_x.txt", project)


def files_of(project):
    return {path for path in project.rglob("*")
            if not {"__pycache__", ".pytest_cache"} & set(path.parts)}


def test_nothing_of_the_user_is_seen_or_changed(tmp_path):
    project = copy_project(tmp_path / "project")
    temporary = Path(tempfile.mkdtemp())  # of a short name, for a socket
    add_own_files(project, f"open({str(tmp_path / 'ran')!r}, 'w')")
    before = files_of(project)
    options = ("-q", "--numprocesses=0", "-k", "drawn_over or sees_the_users_environment")
    done = run(project, "sh", "tests/run.sh", *options, TMPDIR=str(temporary), **HOSTILE)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "ran").exists() and not list(temporary.iterdir())
    assert files_of(project) == before


def test_no_test_sees_the_users_environment():
    assert not any(os.environ.get(name) == value for name, value in HOSTILE.items())
    assert os.environ["HOME"] == os.environ["TMPDIR"] and not os.path.exists("data")


@pytest.mark.parametrize("options, collected", [
    (["-k", "x"], "1 passed"), (["."], "no tests ran"),
    (["data", "--doctest-glob=*.txt"], "no tests ran")])
def test_no_file_outside_of_tests_is_collected(options, collected, tmp_path):
    add_own_files(tmp_path, "open('ran', 'w')")
    shutil.copy(PROJECT / ".pytest.ini", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("def test_x():\n    pass\n")
    done = run(tmp_path, "python3", "-m", "pytest", *options)
    assert collected in done.stdout and not (tmp_path / "ran").exists(), done.stdout + done.stderr
