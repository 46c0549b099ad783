"""Training settings. Every setting is a flag of train.py."""

import dataclasses
import math
import numbers
from typing import Any, Sequence

from absl import flags

from support import cli
from support.errors import InputError

flags.disclaim_key_flags()  # they belong to the command that calls `define_settings`

SEARCH = "search"  # as in layers, which imports TensorFlow


def setting(group: str, default: Any, help: str, **bounds) -> Any:
    """A field of `Settings`: its group in --help, default, help text and bounds."""
    metadata = {"group": group, "help": help, "bounds": bounds}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to train and how; by default, the default experiment.

    Raises:
      InputError: a setting is out of range, or two settings contradict each other.
    """

    architecture: Sequence[str] = (SEARCH,) * 6  # the layer type of each block

    kinds: Sequence[str] = setting(
        "Network", ("attention", "dense", "identity"), "the layer types of a search or a random "
        "network")
    d_model: int = setting("Network", 128, "D, model width", lower_bound=1)
    num_heads: int = setting("Network", 4, "attention heads", lower_bound=1)
    d_ffn: int = setting("Network", 1024, "inner width of the dense layer", lower_bound=1)
    mem_len: int = setting("Network", 16, "M, memory length in tokens", lower_bound=0)
    cutoffs: Sequence[int] = setting(
        "Network", (250, 2500), "the first id of each tail of the adaptive softmax, not including "
        "the vocabulary size; empty for a plain softmax")
    proj_factor: int = setting("Network", 4, "tail i is D / proj_factor^i wide", lower_bound=1)
    tie_embeddings: bool = setting(
        "Network", False, "share the rows of the embedding between input and output")
    dropout_rate: float = setting(
        "Network", 0.1, "dropout of each layer's output, before its residual", lower_bound=0,
        upper_bound=0.99)
    embedding_dropout: float = setting(
        "Network", 0.0, "dropout of the embedded tokens, as in Transformer-XL", lower_bound=0,
        upper_bound=0.99)

    search: str = setting(
        "Search", "joint", "train weights and architecture in every step (joint) or in turn, after "
        "a warm-up of the weights alone (alternating); or train the weights alone, on layers drawn "
        "uniformly (uniform), for choose.py", enum_values=["joint", "alternating", "uniform"])
    arch_share: float = setting(
        "Search", 0.2, "share of the steps after the warm-up of an alternating search that train "
        "the architecture, between 0 and 1")
    arch_lr_factor: float = setting(
        "Search", 1.0, "learning rate of the architecture relative to that of the weights",
        lower_bound=0)
    tau_start: float = setting(
        "Search", 1.0, "temperature of the Gumbel-Softmax at the first step", lower_bound=1e-3)
    tau_end: float = setting(
        "Search", 0.1, "temperature of the Gumbel-Softmax at the last step", lower_bound=1e-3)
    tau_is_trainable: bool = setting(
        "Search", False, "learn the temperature, starting from tau_start")
    straight_through: bool = setting(
        "Search", False, "sample one layer type per block; use the gradient of the mixture")
    gumbel_per_row: bool = setting(
        "Search", False, "sample an architecture for each row of a batch instead of one for all")
    latency_weight: float = setting(
        "Search", 0.0, "nats added to the loss per millisecond that the sampled layers take for a "
        "window", lower_bound=0)

    epochs: float = setting(
        "Schedule", 20, "passes over the training split, such as 3 or 0.5", lower_bound=1e-3,
        upper_bound=1_000_000)
    max_steps: int | None = setting(
        "Schedule", None, "stop after this many steps; schedules stay unchanged", lower_bound=1)
    max_lr: float = setting("Schedule", 1e-4, "learning rate after the warm-up", lower_bound=0)
    warmup_steps: int = setting(
        "Schedule", 4000, "steps of linear warm-up, before the cosine decay to 0", lower_bound=0)

    opt_name: str = setting("Optimizer", "adam", "name of a Keras optimizer")
    weight_decay: float = setting(
        "Optimizer", 0.0, "decoupled weight decay of the matrices (AdamW with adam)",
        lower_bound=0)
    clipnorm: float | None = setting(
        "Optimizer", None, "bound on the norm of each variable's gradient", lower_bound=1e-6)

    seed: int = setting(
        "Run", 0, "seed of initial weights, dropout and Gumbel noise", lower_bound=0)
    accumulate: int = setting(
        "Devices", 1, "parts of a batch that a device computes one after another, to save memory",
        lower_bound=1)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.metadata and (needed := _unmet(field, getattr(self, field.name))):
                raise InputError(f"--{field.name} must be {needed}")
        if not self.architecture:
            raise InputError("architecture must name a layer type for each block")
        default = Settings
        if not 0 < self.arch_share < 1:
            raise InputError("--arch_share must be between 0 and 1")
        if self.search != "alternating" and self.arch_share != default.arch_share:
            raise InputError("--arch_share needs --search=alternating")
        if self.search == "uniform":
            for name in ("arch_lr_factor", "tau_start", "tau_end", "tau_is_trainable",
                         "straight_through", "latency_weight"):
                if getattr(self, name) != getattr(default, name):
                    raise InputError(f"--{name} has no effect with --search={self.search}")
        if self.tau_is_trainable and self.tau_end != default.tau_end:
            raise InputError("--tau_end has no effect with --tau_is_trainable")
        for field in dataclasses.fields(self):
            if (field.metadata.get("group") == "Search" and SEARCH not in self.architecture
                    and getattr(self, field.name) != field.default):
                raise InputError(f"--{field.name} has no effect: the architecture is fixed")

    def network_arguments(self, vocab_size: int) -> dict:
        """The arguments of `PARTransformerXL`."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
               if field.metadata.get("group") == "Network"}
        return own | {
            "vocab_size": vocab_size, "architecture": list(self.architecture),
            "cutoffs": list(self.cutoffs), "kinds": list(self.kinds),
            "straight_through": self.straight_through, "gumbel_per_row": self.gumbel_per_row,
            "uniform": self.search == "uniform",
            "trainable_tau": self.tau_start if self.tau_is_trainable else None,
            "name": "par_transformer_xl"}


SIZES = ("kinds", "d_model", "num_heads", "d_ffn", "mem_len", "cutoffs", "proj_factor",
         "tie_embeddings")


def _unmet(field: dataclasses.Field, value: Any) -> str | None:
    """The requirement that `value` does not meet, in a few words; None if it is allowed."""
    kind, bounds = field.type, field.metadata["bounds"]
    if value is None and kind in (int | None, float | None):
        return None
    if kind == Sequence[str]:
        return None if value and not isinstance(value, str) else "one layer type or more"
    if kind == Sequence[int]:
        is_list = isinstance(value, Sequence) and all(map(_is_integer, value))
        return None if is_list else "integers"
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if kind is str:
        names = bounds.get("enum_values", [value])
        return None if value in names else f"one of {', '.join(names)}"
    is_number = _is_integer(value) if kind in (int, int | None) else isinstance(value, numbers.Real)
    least, most = bounds.get("lower_bound", -math.inf), bounds.get("upper_bound", math.inf)
    if is_number and least <= value <= most and abs(value) < math.inf:
        return None
    noun = "an integer" if kind in (int, int | None) else "a number"
    return f"{noun} from {least} to {most}" if most < math.inf else f"{noun}, at least {least}"


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def define_settings(*groups: str):
    """Defines a flag for each setting, or for those of some groups."""
    for field in dataclasses.fields(Settings):
        group = field.metadata.get("group")
        if group and (not groups or group in groups):
            with cli.group(group):
                _define_flag(field)


def _define_flag(field: dataclasses.Field):
    name, default, help = field.name, field.default, field.metadata["help"]
    if field.type == Sequence[int]:
        cli.define_integers(name, default, help)
        return
    if field.type == Sequence[str]:
        flags.DEFINE_list(name, list(default), help)
        return
    define = {int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_boolean,
              str: flags.DEFINE_enum if field.metadata["bounds"] else flags.DEFINE_string}
    kind = next(kind for kind in define if field.type in (kind, kind | None))
    define[kind](name, default, help=help, **field.metadata["bounds"])


def settings_of(values: dict, architecture: Sequence[str]) -> Settings:
    """The settings given by the values of flags, and the layer type of each block.

    Flags missing from `values` get their defaults: older versions did not have them.
    """
    names = [field.name for field in dataclasses.fields(Settings) if field.metadata]
    own = {name: values[name] for name in names if name in values}
    return Settings(architecture=architecture, **own)
