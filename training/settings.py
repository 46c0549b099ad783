"""The settings of a training: what is trained, and how."""

import dataclasses
import math
import numbers
from typing import Any, Sequence

from absl import flags

from support import cli
from support.cli import InputError

flags.disclaim_key_flags()  # they are those of the command that calls `define_settings`

SEARCH = "search"  # as in layers, which loads TensorFlow
OF_A_SEARCH = ("search", "arch_lr_factor", "gumbel_per_row", "latency_weight", "straight_through",
               "tau_start", "tau_end", "tau_is_trainable")


def setting(default: Any, help: str, **bounds) -> Any:
    """A field of `Settings`, and what there is to say of its flag."""
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The default experiment, where nothing else is said. A field is a flag of the same name.

    Raises:
      InputError: a setting is out of its range, or settings do not suit each other.
    """

    architecture: Sequence[str] = (SEARCH,) * 6  # the kind of each block

    # Network
    d_model: int = setting(128, "D, model width", lower_bound=1)
    num_heads: int = setting(4, "attention heads", lower_bound=1)
    d_ffn: int = setting(1024, "inner width of the dense layer", lower_bound=1)
    mem_len: int = setting(16, "M, positions of memory", lower_bound=0)
    dropout_rate: float = setting(
        0.1, "of each branch, before its residual", lower_bound=0, upper_bound=0.99)
    embedding_dropout: float = setting(
        0.0, "of the numbers of the embedded tokens, as in Transformer-XL", lower_bound=0,
        upper_bound=0.99)
    cutoffs: Sequence[int] = setting(
        (250, 2500), "the first id of each tail of the adaptive softmax, the vocabulary size left "
        "out; none: a plain softmax")
    proj_factor: int = setting(4, "tail i is D / proj_factor^i wide", lower_bound=1)
    proj_dims: Sequence[int] = setting((), "the tails' widths themselves")
    tie_embeddings: bool = setting(
        False, "input and output share the rows of the ids; tails narrower than D are projected "
        "on both sides")

    # Search
    search: str = setting(
        "joint", "weights and architecture learn in every step; or in turn, weights alone during "
        "--warmup_steps", enum_values=["joint", "alternating"])
    arch_share: float = setting(
        0.2, "share of the steps of an alternating search that train the architecture, between "
        "0 and 1")
    arch_lr_factor: float = setting(
        1.0, "the architecture's learning rate, relative to that of the weights", lower_bound=0)
    tau_start: float = setting(
        1.0, "temperature of the Gumbel-Softmax at the first step", lower_bound=1e-3)
    tau_end: float = setting(
        0.1, "temperature of the Gumbel-Softmax at the last step", lower_bound=1e-3)
    tau_is_trainable: bool = setting(False, "learn the temperature from tau_start instead")
    straight_through: bool = setting(
        False, "sample one kind per block, with the gradient of the mixture")
    gumbel_per_row: bool = setting(
        False, "sample the architecture for each row of a batch, not once for all")
    latency_weight: float = setting(
        0.0, "nats of loss per millisecond that the layers of the sampled network take for a "
        "window", lower_bound=0)

    # Schedule
    epochs: float = setting(
        20, "passes over the training split; 0.5 is half of one", lower_bound=1e-3,
        upper_bound=1_000_000)
    max_steps: int | None = setting(
        None, "stop after so many steps; changes no schedule", lower_bound=1)
    max_lr: float = setting(1e-4, "learning rate after the warm-up", lower_bound=0)
    warmup_steps: int = setting(
        4000, "the learning rate rises from 0 so long, then falls to 0 as a cosine", lower_bound=0)

    # Optimizer
    opt_name: str = setting(
        "adam", "the Keras optimizer", enum_values=["adam", "rmsprop", "sgd"])
    weight_decay: float = setting(
        0.0, "every step takes this share, times the learning rate, off each matrix of weights; "
        "with adam it is AdamW", lower_bound=0)
    clipvalue: float | None = setting(None, "bound each element of a gradient", lower_bound=1e-6)
    clipnorm: float | None = setting(
        None, "bound the norm of each variable's gradient", lower_bound=1e-6)

    # Run
    seed: int = setting(0, "of initial weights, dropout and Gumbel noise", lower_bound=0)
    accumulate: int = setting(
        1, "parts of a batch that a device computes one after another, for less memory",
        lower_bound=1)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.metadata and (needed := _unmet(field, getattr(self, field.name))):
                raise InputError(f"--{field.name} must be {needed}")
        if not self.architecture:
            raise InputError("architecture must name a layer type for each block")
        default, searches = Settings, SEARCH in self.architecture
        if not 0 < self.arch_share < 1:
            raise InputError("--arch_share must lie between 0 and 1")
        if self.search == "joint" and self.arch_share != default.arch_share:
            raise InputError("--arch_share is about --search=alternating")
        if self.tau_is_trainable and self.tau_end != default.tau_end:
            raise InputError(
                "--tau_is_trainable learns the temperature: --tau_end would have no effect")
        if self.proj_dims and self.proj_factor != default.proj_factor:
            raise InputError("--proj_dims says the widths: --proj_factor would have no effect")
        if self.clipvalue is not None and self.clipnorm is not None:
            raise InputError("--clipvalue and --clipnorm exclude each other")
        for name in OF_A_SEARCH:
            if not searches and getattr(self, name) != getattr(default, name):
                raise InputError(f"--{name} is about a search, and the architecture is fixed")

    def network_arguments(self, vocab_size: int) -> dict:
        """What `PARTransformerXL` is built from."""
        return {
            "vocab_size": vocab_size, "architecture": list(self.architecture),
            "d_model": self.d_model, "num_heads": self.num_heads, "d_ffn": self.d_ffn,
            "mem_len": self.mem_len, "dropout_rate": self.dropout_rate,
            "embedding_dropout": self.embedding_dropout,
            "cutoffs": list(self.cutoffs), "proj_factor": self.proj_factor,
            "proj_dims": list(self.proj_dims), "tie_embeddings": self.tie_embeddings,
            "straight_through": self.straight_through,
            "gumbel_per_row": self.gumbel_per_row,
            "trainable_tau": self.tau_start if self.tau_is_trainable else None,
            "name": "par_transformer_xl"}


def _unmet(field: dataclasses.Field, value: Any) -> str | None:
    """What a setting must be, in a few words, if this value is not that."""
    kind, bounds = field.type, field.metadata["bounds"]
    if value is None and kind in (int | None, float | None):
        return None
    if kind == Sequence[int]:
        return None if value is not None and all(map(_is_integer, value)) else "integers"
    if kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if kind is str:
        names = bounds["enum_values"]
        return None if value in names else f"one of {', '.join(names)}"
    is_number = _is_integer(value) if kind in (int, int | None) else isinstance(value, numbers.Real)
    least, most = bounds.get("lower_bound", -math.inf), bounds.get("upper_bound", math.inf)
    if is_number and least <= value <= most and abs(value) < math.inf:
        return None
    noun = "an integer" if kind in (int, int | None) else "a number"
    return f"{noun} from {least} to {most}" if most < math.inf else f"{noun}, at least {least}"


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def define_settings(first: str, last: str | None = None):
    """Defines the flags of the settings from one to another, in the order that they have above."""
    fields = [field for field in dataclasses.fields(Settings) if field.metadata]
    names = [field.name for field in fields]
    for field in fields[names.index(first):names.index(last or first) + 1]:
        _define_flag(field)


def _define_flag(field: dataclasses.Field):
    name, default, help = field.name, field.default, field.metadata["help"]
    if field.type == Sequence[int]:
        cli.define_integers(name, default, help)
    else:
        define = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_enum,
                  bool: flags.DEFINE_boolean}
        kind = next(kind for kind in define if field.type in (kind, kind | None))
        define[kind](name, default, help=help, **field.metadata["bounds"])


def settings_of_flags(architecture: Sequence[str]) -> Settings:
    """The settings that the flags of a command say, for a kind of each block."""
    values = {"architecture": architecture}
    for field in dataclasses.fields(Settings):
        if field.name in flags.FLAGS and field.metadata:
            values[field.name] = flags.FLAGS[field.name].value
    return Settings(**values)
