"""What there is to say of a command's flags: for --help, and for docs/flags.md."""

import re
import textwrap
from typing import Iterator

from absl import flags

from support import cli


def help_text(name: str, doc: str) -> str:
    """The answer to --help: what a module's docstring says, and its flags, by group."""
    lines = [doc.strip()]
    for title, defined in flags_of(name).items():
        lines += ["", f"{title or 'Flags'}:"]
        for flag in defined:
            default, values, text = described(flag)
            lines.append(f"  --{flag.name}{default and f'={default}'}{values and f'  ({values})'}")
            lines.append(textwrap.fill(text, 92, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines)


def flags_of(module: str) -> dict[str, list[flags.Flag]]:
    """The flags that a module has defined, by the title of their group; "" where they have none."""
    titles = {name: title for title, names in cli.GROUPS.items() for name in names}
    groups = {}
    for flag in flags.FLAGS.get_flags_for_module(module):
        groups.setdefault(titles.get(flag.name, ""), []).append(flag)
    return groups


def described(flag: flags.Flag) -> tuple[str, str, str]:
    """A flag's default, the values that it may have, and what it does."""
    default = flag.default
    if isinstance(default, bool):
        default = str(default).lower()
    elif isinstance(default, list):
        default = ",".join(map(str, default))
    values = "; ".join(_allowed(flag))
    if "other than None" in values:  # absl's words for a flag that must be given
        default, values = "", "required"
    text = re.sub(r"^<.*?>: ", "", flag.help)  # without what absl adds
    return "" if default is None else str(default), values, text


def _allowed(flag: flags.Flag) -> Iterator[str]:
    """What values a flag may have, by its type and by its validators."""
    parser = flag.parser
    if hasattr(parser, "enum_values"):
        yield ", ".join(parser.enum_values)
    elif getattr(parser, "upper_bound", None) is not None:
        yield f"{parser.lower_bound:,} to {parser.upper_bound:,}"
    elif getattr(parser, "lower_bound", None) is not None:
        yield f"{parser.lower_bound:,} or more"
    elif isinstance(parser, cli.IntegersParser):
        yield parser.syntactic_help
    for check in flag.validators:
        if check.get_flags_names() == [flag.name] and check.message != "Flag validation failed":
            yield check.message
