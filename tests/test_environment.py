"""Which Python the scripts take, and what they install for it."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tiny
from commands import one_line
from conftest import PROJECT, copy_project, write_corpus
from packaging.requirements import Requirement

ENVIRONMENT = PROJECT / "support" / "environment.sh"
TOOLS = ("bash", "dirname", "readlink", "grep", "tail", "head", "mkdir", "chmod", "cat", "paste",
         "mktemp", "rm", "sed")

# What Colab had on 2026-08-19 (its GPU image: Ubuntu 22.04, Python 3.13), of what we need.
COLAB = {
    "absl-py": "1.4.0", "matplotlib": "3.10.0", "numpy": "2.1.3", "sentencepiece": "0.2.2",
    "tensorboard": "2.20.0", "tensorflow": "2.20.0", "tensorflow-text": "2.20.1"}


def test_colab_has_what_is_required():
    for line in (PROJECT / "requirements.txt").read_text().splitlines():
        requirement = Requirement(line)
        assert requirement.specifier.contains(COLAB[requirement.name]), line


def python_of(folder, *files, path=None, script=ENVIRONMENT, **environment):
    """What `use_python` does in a folder, and the Python that it chooses, on standard output."""
    choose = 'source "$0"; use_python "$@"; echo "chose $PYTHON"'
    return subprocess.run(
        ["bash", "-c", choose, script, *files],
        cwd=folder,
        env={"PATH": path or f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("requirement, lacks", [
    ("numpy>=1", ""), ("numpy<1", "numpy<1"), ("# nothing", ""), ("nothing-such", "nothing-such"),
    ("tensorflow-text>=2", ""), ("tensorflow>=2\ntensorflow-text<2", "")])
@pytest.mark.parametrize("optimize", ["0", "1"])
def test_packages_are_looked_at_with_their_versions(requirement, lacks, optimize, tmp_path):
    (tmp_path / "requirements.txt").write_text(f"{requirement}\nabsl-py\n")
    (tmp_path / "packaging.py").write_text("raise SystemExit('a file of the current folder ran')")
    look = subprocess.run(
        [sys.executable, PROJECT / "support" / "missing_packages.py", "requirements.txt"],
        cwd=tmp_path, env={"PYTHONOPTIMIZE": optimize}, capture_output=True, text=True)
    assert look.returncode == 0 and look.stdout.strip() == lacks, look.stderr


def dist_info(folder: Path, name: str, version: str):
    """A folder that looks as pip leaves it for a package."""
    folder = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("have, needs", [
    ({"tensorflow-cpu": "2.20.1", "tensorflow-text": "2.19.0"}, {"tensorflow-text==2.20.*"}),
    ({"tensorflow": "2.20.0+nv25.1", "tensorflow-text": "2.20.1"}, set()),
    ({"tensorflow": "2.21.0", "tensorflow-text": "2.21.0"}, {"tensorflow-text!=2.21.0,==2.21.*"}),
    ({"tensorflow": "2.21.0", "tensorflow-text": "2.21.1"}, set()),
    ({"tensorflow": "2.17.0", "tensorflow-text": "2.17.0"},
     {"tensorflow<2.22,>=2.18", "tensorflow-text!=2.21.0,<2.22,>=2.18"})])
def test_tensorflow_text_must_fit_tensorflow(have, needs, tmp_path):
    for name, version in have.items():
        dist_info(tmp_path, name, version)
    os.symlink(Path(sys.modules["packaging"].__file__).parent, tmp_path / "packaging")
    look = [sys.executable, "-S", PROJECT / "support" / "missing_packages.py"]
    done = subprocess.run([*look, PROJECT / "requirements.txt"], capture_output=True, text=True,
                          env={"PYTHONPATH": str(tmp_path)})
    found = {line for line in done.stdout.split() if re.match("tensorflow(-text)?[^a-z-]", line)}
    assert found == needs, done.stderr


@pytest.fixture
def project(tmp_path):
    """The scripts in a folder with a space, where none of the packages is needed."""
    folder = tmp_path / "my project"
    (folder / "support").mkdir(parents=True)
    for name in ("make_data.sh", "support/environment.sh", "support/missing_packages.py"):
        shutil.copy(PROJECT / name, folder / name)
    (folder / "requirements.txt").write_text("absl-py\n")
    (folder / "sibling.py").write_text("import sys; print('ran', *sys.argv[1:])")
    (folder / "data_utils.py").write_text("import sibling")
    return folder


def test_the_scripts_work_through_a_link_from_any_folder(project, tmp_path):
    (tmp_path / "bin").mkdir()
    os.symlink(project / "make_data.sh", tmp_path / "bin" / "make")
    for name in ("my project", "support"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
    for variables in ({}, {"CDPATH": str(tmp_path / "elsewhere")}, {"PYTHONSAFEPATH": "1"}):
        environment = {"PATH": f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"} | variables
        before = set(tmp_path.rglob("*"))
        for folder, command in (
                (tmp_path / "elsewhere", tmp_path / "bin" / "make"), (project, "./make_data.sh"),
                (tmp_path, "my project/make_data.sh")):
            done = subprocess.run([command, "--a b"], cwd=folder, env=environment,
                                  capture_output=True, text=True)
            assert done.stdout == "ran --a b\n", done.stderr
        sourced = python_of(project, "requirements.txt", script="support/environment.sh",
                            **variables)  # as the notebook does
        assert sourced.stdout == "chose python3\n", sourced.stderr
        before |= {*tmp_path.rglob("__pycache__"), *tmp_path.rglob("*.pyc")}
        assert set(tmp_path.rglob("*")) == before


def wheel(folder: Path, name: str, version: str, *needs: str):
    """A package for pip that holds nothing."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}",
             *(f"Requires-Dist: {requirement}" for requirement in needs)]
    contents = {
        "METADATA": "\n".join(lines) + "\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": ""}
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        for part, content in contents.items():
            file.writestr(f"{name}-{version}.dist-info/{part}", content)


BASE_PYTHON = Path(sys.base_prefix) / "bin"  # without packages


def link_packages(folder: Path, *left_out: str):
    """A folder for PYTHONPATH that has the packages of this Python, but some."""
    folder.mkdir()
    for path in Path(sys.modules["numpy"].__file__).parent.parent.iterdir():
        if not path.name.startswith(left_out):
            os.symlink(path, folder / path.name)


@pytest.fixture
def module_of_a_cluster(tmp_path):
    """Environment variables with which a bare Python has TensorFlow, and pip another package."""
    link_packages(tmp_path / "packages", "pip", "wheel", "setuptools")
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "lacking", "1.5")
    return {
        "path": f"{BASE_PYTHON}:/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "packages"),
        "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels")}


needs_a_bare_python = pytest.mark.skipif(
    sys.prefix == sys.base_prefix, reason="needs a Python without the packages")


@needs_a_bare_python
def test_all_runs_with_tensorflow_cpu(tmp_path):
    """It has another name for pip, and the modules of tensorflow."""
    version = importlib.metadata.version("tensorflow")
    link_packages(tmp_path / "packages", "tensorflow-", "tensorflow_cpu-")
    dist_info(tmp_path / "packages", "tensorflow-cpu", version)
    project = copy_project(tmp_path / "project", "tests")
    write_corpus(project / "mine")
    environment = {"PATH": f"{BASE_PYTHON}:/usr/bin:/bin", "HOME": str(tmp_path),
                   "PYTHONPATH": str(tmp_path / "packages")}
    network = tiny.as_flags(**tiny.NETWORK, max_steps=5)
    for command in (["./make_data.sh", "--input_dir=mine", *tiny.as_flags(**tiny.DATA)],
                    ["./train.sh", *network], ["python3", "evaluate.py", "--run=logs/supernet"]):
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    results = json.loads((project / "logs" / "supernet" / "results.json").read_text())
    assert results["versions"]["tensorflow"] == version


@needs_a_bare_python
def test_a_tensorflow_that_is_there_is_used(project, module_of_a_cluster):
    needs = project / "needs.txt"
    needs.write_text("tensorflow>=2\ntensorflow-text>=2\nabsl-py\n")
    script = project / "support" / "environment.sh"
    there = python_of(project, needs, script=script, **module_of_a_cluster)
    assert there.stdout == "chose python3\n" and not (project / ".venv").exists(), there.stderr
    needs.write_text("tensorflow>=2\ntensorflow-text>=2\nabsl-py\nlacking>=1\n")
    beside = python_of(project, needs, script=script, **module_of_a_cluster)
    message, chosen = beside.stdout.splitlines()
    assert message == "installing lacking>=1 into .venv, beside the TensorFlow of python3, once"
    assert chosen == f"chose {project}/.venv/bin/python"
    installed = {path.name for path in (project / ".venv").glob("lib/python*/site-packages/*")}
    assert installed == {"lacking-1.5.dist-info"}
    again = python_of(project, needs, script=script, **module_of_a_cluster)
    assert again.stdout == f"{chosen}\n"
    shutil.rmtree(project / ".venv")
    dry = python_of(project, needs, script=script, PIP_DRY_RUN="1", **module_of_a_cluster)
    assert "still lacks lacking>=1: does a setting of pip" in one_line(dry)


@pytest.fixture
def active(project, tmp_path):
    """Environment variables of an active environment with a TensorFlow, and an older numpy."""
    venv = tmp_path / "active"
    make = [BASE_PYTHON / "python3", "-m", "venv", "--system-site-packages", "--without-pip", venv]
    subprocess.run(make, check=True)
    packages, = venv.glob("lib/python*/site-packages")
    dist_info(packages, "tensorflow", "2.19.1+nv25.3")
    dist_info(packages, "numpy", "1.26.4")
    os.symlink(Path(sys.modules["packaging"].__file__).parent, packages / "packaging")
    (tmp_path / "wheels").mkdir()
    for version in ("1.26.4", "2.5.0"):
        wheel(tmp_path / "wheels", "numpy", version)
    wheel(tmp_path / "wheels", "lacking", "2.0", "numpy>=2")
    return {"path": f"{venv / 'bin'}:/usr/bin:/bin", "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(tmp_path / "wheels")}


def versions_in(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("lib/python*/site-packages/*.dist-info")}


@needs_a_bare_python
def test_what_is_installed_stays_as_it_is(active, project, tmp_path):
    needs, script = project / "needs.txt", project / "support" / "environment.sh"
    before = versions_in(tmp_path / "active")
    for line in ("lacking>=1", "numpy>=2"):
        needs.write_text(f"tensorflow>=2\n{line}\n")
        told = one_line(python_of(project, needs, script=script, **active))
        assert f"cannot install {line} and leave numpy==1.26.4 as it is:" in told
        assert versions_in(tmp_path / "active") == before
    wheel(tmp_path / "wheels", "lacking", "1.5", "numpy")  # an older one fits
    needs.write_text("tensorflow>=2\nlacking>=1\n")
    beside = python_of(project, needs, script=script, **active)
    message, chosen = beside.stdout.splitlines()
    assert message == "installing lacking>=1 beside its TensorFlow, once", beside.stderr
    assert chosen == "chose python3"
    assert versions_in(tmp_path / "active") == before | {"lacking-1.5"}


@needs_a_bare_python
def test_what_a_venv_builds_upon_stays_as_it_is(active, project, tmp_path):
    """The packages are the system's here; what .venv itself has may be replaced."""
    packages, = (tmp_path / "active").glob("lib/python*/site-packages")
    active |= {"path": f"{BASE_PYTHON}:/usr/bin:/bin", "PYTHONPATH": str(packages)}
    needs, script = project / "needs.txt", project / "support" / "environment.sh"
    needs.write_text("tensorflow>=2\nlacking>=1\n")
    told = one_line(python_of(project, needs, script=script, **active))
    assert "cannot install lacking>=1 and leave numpy==1.26.4 as it is:" in told
    for version in ("1.5", "1.7"):
        needs.write_text(f"tensorflow>=2\nlacking=={version}\n")
        wheel(tmp_path / "wheels", "lacking", version, "numpy")
        done = python_of(project, needs, script=script, **active)
        assert done.stdout.endswith(f"chose {project}/.venv/bin/python\n"), done.stderr
        assert versions_in(project / ".venv") == {f"lacking-{version}"}


@pytest.mark.parametrize("make", [
    lambda venv: venv.write_text(""),
    lambda venv: (venv / "bin").mkdir(parents=True),
    lambda venv: os.symlink("/nowhere", venv)])
def test_an_environment_that_is_broken_is_told(make, project):
    make(project / ".venv")
    needs = project / "needs.txt"
    needs.write_text("nothing-such\n")
    done = python_of(project, needs, script=project / "support" / "environment.sh")
    assert "has no Python that starts: delete it, and run this again" in one_line(done)


def fake_python(folder: Path, version: str, lacks: str) -> str:
    """A PATH whose only python3 has a given version, absl-py, and not the module `lacks`."""
    folder.mkdir()
    for tool in TOOLS:
        os.symlink(shutil.which(tool), folder / tool)
    script = folder / "python3"
    script.write_text(f"""#!{shutil.which("bash")}
case "$*" in
  *version_info*) [[ {version} == 3.12 ]] ;;
  *python_version*) echo {version} ;;
  *missing_packages*) echo "tensorflow>=2"; if [[ $0 == */.venv/* ]]; then echo absl-py; fi ;;
  *"{lacks}"*) exit 1 ;;
  *"-m venv"*) mkdir -p "$3/bin"; cat "$0" > "$3/bin/python"; chmod +x "$3/bin/python" ;;
  *"-m pip"*)
    while read -r line; do echo "wanted $line"; done
    echo "ERROR: no such index"; exit 1 ;;
esac
""")
    script.chmod(0o755)
    return str(folder)


def test_a_gpu_gets_its_libraries_in_a_second_try_too(project, tmp_path):
    path = fake_python(tmp_path / "bin", "3.12", "nothing")
    (tmp_path / "bin" / "nvidia-smi").write_text(f"#!{shutil.which('bash')}\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    for _ in range(2):
        done = subprocess.run(["./make_data.sh"], cwd=project, env={"PATH": path},
                              capture_output=True, text=True)
        log = re.search(r"all of it is in (\S+);", one_line(done))[1]
        assert "wanted tensorflow[and-cuda]" in Path(log).read_text()
        assert "wanted absl-py" in Path(log).read_text()  # what python3 has, .venv lacks


@pytest.mark.parametrize(
    "version, lacks, message",
    [
        ("3.9.1", "nothing", "Python 3.10 to 3.13 is needed, and python3 says 3.9.1: install one"),
        ("3.12", "import venv", "python3 has no venv module: install it"),
        ("3.12", "nothing", "the installation failed (ERROR: no such index)"),
    ],
)
def test_an_environment_that_cannot_be_made_says_what_to_do(
    version, lacks, message, project, tmp_path
):
    path = fake_python(tmp_path / "bin", version, lacks)
    done = subprocess.run(["./make_data.sh"], cwd=project, env={"PATH": path},
                          capture_output=True, text=True)
    assert message in one_line(done)


@pytest.mark.parametrize("has_venv", [False, True])
def test_a_python_that_does_not_start_is_told(has_venv, project):
    if has_venv:  # it is not to blame
        (project / ".venv" / "bin").mkdir(parents=True)
        os.symlink(sys.executable, project / ".venv" / "bin" / "python")
    done = python_of(project, project / "requirements.txt", PYTHONHOME="/nowhere",
                     script=project / "support" / "environment.sh")
    assert "python3 says ModuleNotFoundError: No module named 'encodings'" in one_line(done)
