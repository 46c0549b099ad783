"""Flags of the commands that use a run. They are read before TensorFlow is loaded."""

from absl import flags

from support import cli

flags.disclaim_key_flags()  # each flag belongs to the command that defines it


def define_run(help: str = "the folder of a run"):
    cli.define_path("run", None, help, required=True)


def define_checkpoint():
    flags.DEFINE_string("checkpoint", "best", "best (lowest validation loss), latest, or the step "
                        "of a kept checkpoint")


def define_subnetwork():
    flags.DEFINE_string(
        "architecture", None, "use one layer per block of a search, with its weights from the "
        "search: a letter for each block, or found for the most likely layers at this checkpoint "
        "(default: the mixture)")


def define_data_dir():
    cli.define_path("data_dir", None, "the folder of the data (default: as in training)")
