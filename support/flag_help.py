"""Describes the flags of a command."""

import re
import textwrap
from typing import Iterator

from absl import flags

from support import flag_types


def help_text(name: str, doc: str) -> str:
    """The answer to --help: a module's docstring, and its flags by group."""
    lines = [doc.strip()]
    for title, defined in flags_of(name).items():
        lines += ["", f"{title or 'Flags'}:"]
        for flag in defined:
            default, values, text = described(flag)
            lines.append(f"  --{flag.name}{default and f'={default}'}{values and f'  ({values})'}")
            lines.append(textwrap.fill(text, 92, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines)


def flags_of(module: str) -> dict[str, list[flags.Flag]]:
    """{title of a group: its flags} of a module; the title "" holds flags without a group."""
    titles = {name: title for title, names in flag_types.GROUPS.items() for name in names}
    groups = {}
    for flag in flags.FLAGS.get_flags_for_module(module):
        groups.setdefault(titles.get(flag.name, ""), []).append(flag)
    return groups


def described(flag: flags.Flag) -> tuple[str, str, str]:
    """A flag's default, its allowed values, and its help."""
    default = flag.default
    if isinstance(default, bool):
        default = str(default).lower()
    elif isinstance(default, list):
        default = ",".join(map(str, default))
    values = "; ".join(_allowed(flag))
    if "other than None" in values:  # absl's words for a required flag
        default, values = "", "required"
    text = re.sub(r"^<.*?>: ", "", flag.help)  # absl adds the type of some flags
    return "" if default is None else str(default), values, text


def _allowed(flag: flags.Flag) -> Iterator[str]:
    """The allowed values of a flag, from its type and its validators."""
    parser = flag.parser
    if hasattr(parser, "enum_values"):
        yield ", ".join(parser.enum_values)
    elif getattr(parser, "upper_bound", None) is not None:
        yield f"{parser.lower_bound:,} to {parser.upper_bound:,}"
    elif getattr(parser, "lower_bound", None) is not None:
        yield f"{parser.lower_bound:,} or more"
    elif isinstance(parser, flag_types.IntegersParser):
        yield "integers, comma-separated"
    for check in flag.validators:
        if check.get_flags_names() == [flag.name] and check.message != "Flag validation failed":
            yield check.message
