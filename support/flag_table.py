"""Prints docs/flags.md, the flags of every command: python -m support.flag_table > docs/flags.md"""

import importlib

from absl import flags

from support import cli, flag_help

COMMANDS = {  # module -> what the user types
    "data_utils": "./make_data.sh",
    "train": "./train.sh",
    "evaluate": "python evaluate.py",
    "generate": "python generate.py",
    "choose": "python choose.py",
    "plot_search": "python plot_search.py",
    "export": "python export.py",
    "cutoffs": "python cutoffs.py",
    "bench": "python bench.py",
}
BEGIN = """# Flags

Made by `python -m support.flag_table > docs/flags.md`. `--help` lists the flags of a command too.
Write `--epochs=3`, and `--add_eos` for a flag that is false by default.
The last value of a flag counts.
"""
HEAD = "| flag | default | values | |\n|---|---|---|---|"


def main():
    print(BEGIN)
    for module, command in COMMANDS.items():
        print(f"## {command}\n")
        for title, defined in flags_of(module).items():
            if title:
                print(f"### {title}\n")
            print(HEAD, *map(row, defined), sep="\n", end="\n\n")


def flags_of(module: str) -> dict[str, list[flags.Flag]]:
    """The flags that a command defines, by the title of their group."""
    cli.GROUPS.clear()
    command = importlib.import_module(module)
    if hasattr(command, "define_flags"):
        command.define_flags()
    groups = flag_help.flags_of(module)
    for flag in [flag for defined in groups.values() for flag in defined]:
        delattr(flags.FLAGS, flag.name)  # the next command may have one of this name
    return groups


def row(flag: flags.Flag) -> str:
    """A flag as a line of a table."""
    cells = [f"`--{flag.name}`", *flag_help.described(flag)]
    return "| " + " | ".join(map(escaped, cells)) + " |"


def escaped(text: str) -> str:
    """Text as Markdown that shows it in a table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").split())


if __name__ == "__main__":
    main()
