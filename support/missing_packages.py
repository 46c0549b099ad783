"""Prints the requirements that this Python does not meet, one per line: missing_packages.py FILE...

environment.sh runs it with interpreters that may have no packages.
"""

import sys
from importlib.metadata import PackageNotFoundError, version

TENSORFLOWS = ("tensorflow", "tensorflow-cpu")  # two packages of one library


def installed(name: str) -> str | None:
    """The version of a package, or None."""
    for package in TENSORFLOWS if name == "tensorflow" else [name]:
        try:
            return version(package)
        except PackageNotFoundError:
            pass
    return None


def text_requirement(tensorflow_version: str) -> str:
    """The tensorflow-text of TensorFlow's minor version; 2.21.0 is broken: it lacks an ICU symbol.
    """
    major, minor, *_ = tensorflow_version.split(".")
    broken = ",!=2.21.0" if (major, minor) == ("2", "21") else ""
    return f"tensorflow-text=={major}.{minor}.*{broken}"


def missing(lines: list[str]) -> list[str]:
    """The unmet requirements; tensorflow-text must match TensorFlow's minor version."""
    from packaging.requirements import Requirement

    unmet = {}
    for requirement in map(Requirement, lines):
        tensorflow = installed("tensorflow")
        if requirement.name == "tensorflow-text" and tensorflow and "tensorflow" not in unmet:
            requirement = Requirement(text_requirement(tensorflow))
        have = installed(requirement.name)
        if have is None or not requirement.specifier.contains(have, prereleases=True):
            unmet[requirement.name] = str(requirement)
    return list(unmet.values())


if __name__ == "__main__":
    requirements = []
    for path in sys.argv[1:]:
        with open(path) as file:
            lines = [line.strip() for line in file]
        requirements += [line for line in lines if line and not line.startswith("#")]
    try:
        print(*missing(requirements), sep="\n")
    except ImportError:  # no packaging, which TensorFlow requires: nothing is installed
        print(*requirements, sep="\n")
