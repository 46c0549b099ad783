"""The Python that the scripts use, and what they install for it."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from commands import one_line
from conftest import PROJECT
from packaging.requirements import Requirement

BASE_PYTHON = Path(sys.base_prefix) / "bin"  # without packages
OWN_PATH = f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"
TOOLS = ("bash", "dirname", "readlink", "grep", "tail", "head", "mkdir", "chmod", "cat", "paste",
         "mktemp", "rm", "sed")

# The packages of Colab's GPU image on 2026-08-19 (Ubuntu 22.04, Python 3.13).
COLAB = {
    "absl-py": "1.4.0", "matplotlib": "3.10.0", "numpy": "2.1.3", "sentencepiece": "0.2.2",
    "tensorboard": "2.20.0", "tensorflow": "2.20.0", "tensorflow-text": "2.20.1"}

needs_a_bare_python = pytest.mark.skipif(
    sys.prefix == sys.base_prefix, reason="needs a Python without the packages")


def dist_info(folder: Path, name: str, version: str):
    """Makes the folder that pip leaves for a package."""
    folder = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def wheel(folder: Path, name: str, version: str, *needs: str):
    """Makes an empty package for pip."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}",
             *(f"Requires-Dist: {requirement}" for requirement in needs)]
    contents = {
        "METADATA": "\n".join(lines) + "\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": ""}
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        for part, content in contents.items():
            file.writestr(f"{name}-{version}.dist-info/{part}", content)


def link_packages(folder: Path, *left_out: str):
    """Makes a folder for PYTHONPATH with the packages of this Python except some."""
    folder.mkdir()
    for path in Path(sys.modules["numpy"].__file__).parent.parent.iterdir():
        if not path.name.startswith(left_out):
            os.symlink(path, folder / path.name)


def link_packaging(folder: Path):
    os.symlink(Path(sys.modules["packaging"].__file__).parent, folder / "packaging")


def versions_in(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("lib/python*/site-packages/*.dist-info")}


def missing(requirements: Path, *options, **environment) -> list[str]:
    """The output of missing_packages.py."""
    look = [sys.executable, *options, PROJECT / "support" / "missing_packages.py", requirements]
    return subprocess.run(look, env=environment, capture_output=True, text=True,
                          check=True).stdout.split()


@pytest.fixture
def project(tmp_path):
    """The scripts in a folder with a space in its name, with one easy requirement."""
    folder = tmp_path / "my project"
    (folder / "support").mkdir(parents=True)
    for name in ("make_data.sh", "support/environment.sh", "support/missing_packages.py"):
        shutil.copy(PROJECT / name, folder / name)
    (folder / "requirements.txt").write_text("absl-py\n")
    (folder / "sibling.py").write_text("import sys; print('ran', *sys.argv[1:])")
    (folder / "data_utils.py").write_text("import sibling")
    return folder


@pytest.fixture
def use_python(project):
    """A function: runs `use_python` for requirements; it prints the Python that it chose."""
    def use_python(*requirements, path=OWN_PATH, **environment):
        (project / "needs.txt").write_text("\n".join(requirements) + "\n")
        choose = "source support/environment.sh; use_python needs.txt; echo \"chose $PYTHON\""
        return subprocess.run(["bash", "-c", choose], cwd=project, env={"PATH": path} | environment,
                              capture_output=True, text=True)

    return use_python


def test_colab_meets_the_requirements():
    for line in (PROJECT / "requirements.txt").read_text().splitlines():
        requirement = Requirement(line)
        assert requirement.specifier.contains(COLAB[requirement.name]), line


def test_unmet_requirements_are_listed(tmp_path):
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# a comment\nnumpy<1\nnothing-such\nabsl-py\n")
    assert missing(requirements) == ["numpy<1", "nothing-such"]
    assert missing(requirements, "-S") == ["numpy<1", "nothing-such", "absl-py"]  # no packaging
    requirements.write_text("numpy>=1\ntensorflow>=2\ntensorflow-text<2\n")  # it fits TensorFlow
    assert missing(requirements) == []


@pytest.mark.parametrize("have, needs", [
    ({"tensorflow-cpu": "2.20.1", "tensorflow-text": "2.19.0"}, {"tensorflow-text==2.20.*"}),
    ({"tensorflow": "2.20.0+nv25.1", "tensorflow-text": "2.20.1"}, set()),
    ({"tensorflow": "2.21.0", "tensorflow-text": "2.21.0"}, {"tensorflow-text!=2.21.0,==2.21.*"}),
    ({"tensorflow": "2.17.0", "tensorflow-text": "2.17.0"},
     {"tensorflow<2.22,>=2.18", "tensorflow-text!=2.21.0,<2.22,>=2.18"})])
def test_tensorflow_text_must_match_tensorflow(have, needs, tmp_path):
    for name, version in have.items():
        dist_info(tmp_path, name, version)
    link_packaging(tmp_path)
    unmet = missing(PROJECT / "requirements.txt", "-S", PYTHONPATH=str(tmp_path))
    assert {line for line in unmet if re.match("tensorflow(-text)?[^a-z-]", line)} == needs


def test_the_scripts_work_through_a_link_from_any_folder(project, use_python, tmp_path):
    (tmp_path / "bin").mkdir()
    os.symlink(project / "make_data.sh", tmp_path / "bin" / "make")
    for name in ("my project", "support"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
    misleading = {"CDPATH": str(tmp_path / "elsewhere"), "PYTHONSAFEPATH": "1"}
    for folder, command in (
            (tmp_path / "elsewhere", tmp_path / "bin" / "make"), (project, "./make_data.sh"),
            (tmp_path, "my project/make_data.sh")):
        done = subprocess.run([command, "--a b"], cwd=folder, env={"PATH": OWN_PATH} | misleading,
                              capture_output=True, text=True)
        assert done.stdout == "ran --a b\n", done.stderr
    sourced = use_python("absl-py", **misleading)  # as the notebook does
    assert sourced.stdout == "chose python3\n" and not (project / ".venv").exists()


@needs_a_bare_python
def test_tensorflow_cpu_is_tensorflow(use_python, tmp_path):
    """The same module under another name for pip."""
    link_packages(tmp_path / "packages", "tensorflow-", "tensorflow_cpu-")
    version = importlib.metadata.version("tensorflow")
    dist_info(tmp_path / "packages", "tensorflow-cpu", version)
    bare = {"path": f"{BASE_PYTHON}:/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "packages")}
    requirements = (PROJECT / "requirements.txt").read_text().splitlines()
    assert use_python(*requirements, **bare).stdout == "chose python3\n"
    program = "import train; print(train.cli.tensorflow_text().__name__)"
    loaded = subprocess.run(
        [BASE_PYTHON / "python3", "-c", program], cwd=PROJECT, capture_output=True, text=True,
        env={"PYTHONPATH": bare["PYTHONPATH"]})
    assert loaded.stdout == "tensorflow_text\n" and loaded.stderr == ""


@needs_a_bare_python
def test_an_existing_tensorflow_is_used(project, use_python, tmp_path):
    """As a module of a cluster, which people cannot install into."""
    link_packages(tmp_path / "packages", "pip", "wheel", "setuptools")
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "lacking", "1.5")
    cluster = {
        "path": f"{BASE_PYTHON}:/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "packages"),
        "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    needs = ["tensorflow>=2", "tensorflow-text>=2", "absl-py"]
    there = use_python(*needs, **cluster)
    assert there.stdout == "chose python3\n" and not (project / ".venv").exists(), there.stderr
    needs.append("lacking>=1")
    message, chosen = use_python(*needs, **cluster).stdout.splitlines()
    assert message == "installing lacking>=1 into .venv, alongside the TensorFlow of python3, once"
    assert chosen == f"chose {project}/.venv/bin/python"
    installed = {path.name for path in (project / ".venv").glob("lib/python*/site-packages/*")}
    assert installed == {"lacking-1.5.dist-info"}
    assert use_python(*needs, **cluster).stdout == f"{chosen}\n"
    shutil.rmtree(project / ".venv")
    dry = use_python(*needs, PIP_DRY_RUN="1", **cluster)
    assert "pip succeeded, but" in one_line(dry) and "still lacks lacking>=1" in dry.stderr


@pytest.fixture
def active(tmp_path):
    """The variables of an active environment with a TensorFlow and an older numpy."""
    venv = tmp_path / "active"
    make = [BASE_PYTHON / "python3", "-m", "venv", "--system-site-packages", "--without-pip", venv]
    subprocess.run(make, check=True)
    packages, = venv.glob("lib/python*/site-packages")
    dist_info(packages, "tensorflow", "2.19.1+nv25.3")
    dist_info(packages, "numpy", "1.26.4")
    link_packaging(packages)
    (tmp_path / "wheels").mkdir()
    for version in ("1.26.4", "2.5.0"):
        wheel(tmp_path / "wheels", "numpy", version)
    wheel(tmp_path / "wheels", "lacking", "2.0", "numpy>=2")
    return {"path": f"{venv / 'bin'}:/usr/bin:/bin", "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(tmp_path / "wheels")}


@needs_a_bare_python
def test_installed_packages_do_not_change(active, use_python, tmp_path):
    before = versions_in(tmp_path / "active")
    for line in ("lacking>=1", "numpy>=2"):
        refusal = one_line(use_python("tensorflow>=2", line, **active))
        assert f"cannot install {line} without changing numpy==1.26.4:" in refusal
        assert versions_in(tmp_path / "active") == before
    wheel(tmp_path / "wheels", "lacking", "1.5", "numpy")  # an older one fits
    done = use_python("tensorflow>=2", "lacking>=1", **active)
    assert done.stdout == (
        "installing lacking>=1 alongside its TensorFlow, once\nchose python3\n"), done.stderr
    assert versions_in(tmp_path / "active") == before | {"lacking-1.5"}


@needs_a_bare_python
def test_only_the_packages_of_the_venv_itself_are_replaced(active, project, use_python, tmp_path):
    packages, = (tmp_path / "active").glob("lib/python*/site-packages")
    active |= {"path": f"{BASE_PYTHON}:/usr/bin:/bin", "PYTHONPATH": str(packages)}
    refusal = one_line(use_python("tensorflow>=2", "lacking>=1", **active))
    assert "cannot install lacking>=1 without changing numpy==1.26.4:" in refusal
    for version in ("1.5", "1.7"):
        wheel(tmp_path / "wheels", "lacking", version, "numpy")
        done = use_python("tensorflow>=2", f"lacking=={version}", **active)
        assert done.stdout.endswith(f"chose {project}/.venv/bin/python\n"), done.stderr
        assert versions_in(project / ".venv") == {f"lacking-{version}"}


@pytest.mark.parametrize("make", [
    lambda venv: (venv / "bin").mkdir(parents=True), lambda venv: os.symlink("/nowhere", venv)])
def test_a_broken_environment_is_reported(make, project, use_python):
    make(project / ".venv")
    assert "does not start: delete this folder" in one_line(use_python("nothing-such"))


def test_a_python_that_does_not_start_is_reported(project, use_python):
    (project / ".venv" / "bin").mkdir(parents=True)  # it is not to blame
    os.symlink(sys.executable, project / ".venv" / "bin" / "python")
    refusal = one_line(use_python("absl-py", PYTHONHOME="/nowhere"))
    assert "python3 reports ModuleNotFoundError: No module named 'encodings'" in refusal


@pytest.mark.parametrize("version, lacks, message", [
    ("3.9.1", "nothing", "Python 3.10 to 3.13 is required, but python3 reports 3.9.1: install"),
    ("3.12", "import venv", "python3 has no venv module: install it"),
    ("3.12", "nothing", "the installation failed (ERROR: no such index). The output of pip is in")])
def test_an_environment_that_cannot_be_made_is_reported(version, lacks, message, project, tmp_path):
    """By a Python of a version that has absl-py and not a module, on a machine with a GPU."""
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        os.symlink(shutil.which(tool), tmp_path / "bin" / tool)
    programs = {"nvidia-smi": "", "python3": f"""
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
"""}
    for name, script in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!{shutil.which('bash')}\n{script}")
        (tmp_path / "bin" / name).chmod(0o755)
    for _ in range(2):  # a second try finds a .venv
        done = subprocess.run(["./make_data.sh"], cwd=project, env={"PATH": str(tmp_path / "bin")},
                              capture_output=True, text=True)
        assert message in one_line(done)
        if log := re.search(r"The output of pip is in (\S+)", done.stderr):
            wanted = Path(log[1]).read_text()
            assert "wanted tensorflow[and-cuda]" in wanted  # for the GPU
            assert "wanted absl-py" in wanted  # the .venv does not see python3's
