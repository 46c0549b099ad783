"""The tests themselves: they see none of the user's files and settings, and leave nothing."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import copy_project

HOSTILE = {
    "KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1", "MPLBACKEND": "nonsense", "COLUMNS": "20",
    "TF_FUNCTION_JIT_COMPILE_DEFAULT": "1", "PYTHONWARNINGS": "error", "HOME": "/nowhere"}


@pytest.fixture
def project(tmp_path):
    """A copy of the project with files of a user that look like tests and would make a file."""
    project = copy_project(tmp_path / "project")
    own = project / "data" / "own"
    own.mkdir(parents=True)
    make = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (own / "test_x.txt").write_text(f">>> {make}\n")
    (own / "test_x.py").write_text(f"import os\n{make}\n")  # ruff would object too
    shutil.copy(own / "test_x.txt", project)
    yield project
    assert not (tmp_path / "ran").exists()


def run(project, *command, **variables):
    """The output of a command in a folder, with some environment variables."""
    path = f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"
    return subprocess.run(command, cwd=project, env={"PATH": path} | variables, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout


def files_of(project):
    return {path for path in project.rglob("*")
            if not {"__pycache__", ".pytest_cache"} & set(path.parts)}


def test_nothing_of_the_user_is_seen_or_changed(project):
    temporary = Path(tempfile.mkdtemp())  # its name is short enough for a socket
    before = files_of(project)
    options = ("-q", "--numprocesses=0", "-k", "drawn_over or sees_the_users_environment")
    done = run(project, "sh", "tests/run.sh", *options, TMPDIR=str(temporary), **HOSTILE)
    assert "2 passed" in done and not list(temporary.iterdir()), done
    assert files_of(project) == before


def test_no_test_sees_the_users_environment():
    assert not any(os.environ.get(name) == value for name, value in HOSTILE.items())
    assert os.environ["HOME"] == os.environ["TMPDIR"] and not os.path.exists("data")


def test_no_file_outside_of_tests_is_collected(project):
    shutil.rmtree(project / "tests")
    (project / "tests").mkdir()
    (project / "tests" / "test_x.py").write_text("def test_x():\n    pass\n")
    for options, collected in [(["-k", "x"], "1 passed"), (["."], "no tests ran"),
                               (["data", "--doctest-glob=*.txt"], "no tests ran")]:
        assert collected in run(project, "python3", "-m", "pytest", *options)
