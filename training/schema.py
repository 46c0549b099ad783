"""What a run's config.json may say: whoever loads a run has it from a stranger.

Sizes are held against the weights afterwards (trained_run.py), and those that no weight shows have
a limit here.
"""

import math
import re
from typing import Any, Callable

Check = Callable[[Any], bool]

MOST_BLOCKS = 1000
MOST_POSITIONS = 100_000  # of memory, and of a window
MOST_MEMORIES, MOST_SCORES = 1 << 21, 3 << 28  # B (M + T), and H B T (M + T) of attention


def whole(least: int, most: int) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def number(least: float, most: float) -> Check:
    return lambda value: type(value) in (int, float) and least <= value <= most


def text(pattern: str) -> Check:
    return lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value, re.DOTALL))


def each(check: Check, least: int = 0, most: int = MOST_BLOCKS) -> Check:
    """A list of so many values, each of which the check lets pass."""
    return lambda values: (
        isinstance(values, list) and least <= len(values) <= most and all(map(check, values)))


def boolean(value: Any) -> bool:
    return isinstance(value, bool)


SIZE = whole(1, 10**9)
SHA256 = text("[0-9a-f]{64}")
RUN_ID = text("[0-9a-f]{32}")  # what the parts of a run have in common
KINDS = each(text(r"\w{1,64}"), least=1)

FLAGS = {  # those that are read; others may be there
    "data_dir": text(".{1,10000}"),
    "architecture": text(rf"\w{{1,{MOST_BLOCKS}}}"),
    "mem_len": whole(0, MOST_POSITIONS),
    "mixed_precision": boolean,
}
DATA = {
    "corpus": text(".{1,1000}"),
    "batch_size": whole(1, MOST_POSITIONS),
    "seq_len": whole(1, MOST_POSITIONS),
    "vocab_size": SIZE,
    "add_eos": boolean,
    "tokenizer_sha256": SHA256,
    "files_sha256": SHA256,
}
LAYERS = {"kinds": KINDS}
MODEL = {  # all of them, and no other
    "vocab_size": SIZE,
    "architecture": KINDS,
    "d_model": SIZE,
    "num_heads": SIZE,
    "d_ffn": SIZE,
    "mem_len": whole(0, MOST_POSITIONS),
    "dropout_rate": number(0, 0.99),
    "embedding_dropout": number(0, 0.99),
    "cutoffs": each(SIZE),
    "proj_factor": whole(1, 2**31),
    "proj_dims": each(SIZE),
    "tie_embeddings": boolean,
    "straight_through": boolean,
    "gumbel_per_row": boolean,
    "trainable_tau": lambda value: value is None or number(1e-3, math.inf)(value),
    "name": text(r"\w{1,64}"),
}


def fault(config: dict) -> str | None:
    """What is wrong with a configuration, in a few words; None if nothing is."""
    for part, checks in (("flags", FLAGS), ("data", DATA), ("layers", LAYERS), ("model", MODEL)):
        values = config.get(part)
        if not isinstance(values, dict):
            return f"it lacks {part}"
        for name, check in checks.items():
            if name not in values:
                return f"it lacks {part}.{name}"
            if not check(values[name]):
                return f"{part}.{name} cannot be {shown(values[name])}"
    if more := config["model"].keys() - MODEL.keys():
        return f"model.{shown(min(more))} is unknown"
    for name, part in (("vocab_size", "data"), ("mem_len", "flags")):
        if config["model"][name] != config[part][name]:
            return f"model.{name} and {part}.{name} differ"
    if not RUN_ID(config.get("run_id")):
        return "it lacks run_id"
    B, T, M = config["data"]["batch_size"], config["data"]["seq_len"], config["flags"]["mem_len"]
    H = config["model"]["num_heads"]
    if B * (M + T) > MOST_MEMORIES or H * B * T * (M + T) > MOST_SCORES:
        return "its batch, window, memory and heads are too large together"
    return None


def shown(value: Any, most: int = 40) -> str:
    """A value as text, cut where it is long."""
    return repr(value)[:most]
