"""Flags of paths and of integers, and groups of flags."""

import contextlib
import os
import re
from typing import Iterator, Sequence

from absl import flags

flags.disclaim_key_flags()  # flags defined below belong to the calling module

GROUPS: dict[str, list[str]] = {}  # {title of a group: names of its flags}


@contextlib.contextmanager
def group(title: str) -> Iterator[None]:
    """Groups the flags that the block defines under a title."""
    before = set(flags.FLAGS)
    yield
    GROUPS.setdefault(title, []).extend(name for name in flags.FLAGS if name not in before)


def define_path(name: str, default: str | None, help: str, **settings):
    """Defines a flag that is a path."""
    return flags.DEFINE(PathParser(), name, default, help, **settings)


def define_paths(name: str, default: list[str] | None, help: str, **settings):
    """Defines a flag that is a comma-separated list of paths."""
    return flags.DEFINE(PathsParser(), name, default, help, **settings)


def define_integers(name: str, default: Sequence[int], help: str):
    """Defines a flag that is a comma-separated list of integers, maybe empty."""
    return flags.DEFINE(IntegersParser(), name, list(default), help,
                        serializer=flags.CsvListSerializer(","))


class PathParser(flags.ArgumentParser):
    """Parses a local path. It expands ~, which no shell expands after --name=."""

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError("is empty")
        if re.match(r"[A-Za-z][\w+.-]*:/", argument):
            raise ValueError("is not a local path: mount or copy it first")
        return os.path.expanduser(argument)


class PathsParser(flags.ListParser):
    """Parses comma-separated local paths."""

    def parse(self, argument) -> list[str]:
        return [PathParser().parse(path) for path in super().parse(argument) or [""]]


class IntegersParser(flags.ListParser):
    """Parses comma-separated integers."""

    def parse(self, argument) -> list[int]:
        if not isinstance(argument, str):
            return list(argument)
        try:
            return [int(text) for text in argument.split(",") if text.strip()]
        except ValueError:
            raise ValueError("must be integers, comma-separated") from None
