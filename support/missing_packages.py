"""Prints the requirements that this Python does not meet, a line each: missing_packages.py FILE...

environment.sh runs it with Pythons that may have no package at all.
"""

import sys
from importlib.metadata import PackageNotFoundError, version

TENSORFLOWS = ("tensorflow", "tensorflow-cpu")  # two packages of one library


def installed(name: str) -> str | None:
    """The version of a package."""
    for package in TENSORFLOWS if name == "tensorflow" else [name]:
        try:
            return version(package)
        except PackageNotFoundError:
            pass
    return None


def text_requirement(tensorflow_version: str) -> str:
    """The tensorflow-text that loads with a TensorFlow: of its minor version, and not a broken one.

    2.21.0 lacks a symbol of ICU.
    """
    major, minor, *_ = tensorflow_version.split(".")
    broken = ",!=2.21.0" if (major, minor) == ("2", "21") else ""
    return f"tensorflow-text=={major}.{minor}.*{broken}"


def missing(lines: list[str]) -> list[str]:
    """The requirements that are not met; tensorflow-text must fit TensorFlow's minor version."""
    from packaging.requirements import Requirement

    found = {}
    for requirement in map(Requirement, lines):
        tensorflow = installed("tensorflow")
        if requirement.name == "tensorflow-text" and tensorflow and "tensorflow" not in found:
            requirement = Requirement(text_requirement(tensorflow))
        have = installed(requirement.name)
        if have is None or not requirement.specifier.contains(have, prereleases=True):
            found[requirement.name] = str(requirement)
    return list(found.values())


if __name__ == "__main__":
    requirements = []
    for path in sys.argv[1:]:
        with open(path) as file:
            lines = [line.strip() for line in file]
        requirements += [line for line in lines if line and not line.startswith("#")]
    try:
        print(*missing(requirements), sep="\n")
    except ImportError:  # TensorFlow needs packaging: it is not here either
        print(*requirements, sep="\n")
