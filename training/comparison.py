"""Networks side by side: what evaluate.py wrote of their runs, and the means of those alike."""

from pathlib import Path

import numpy as np

from layers import without_identity
from support import files
from support.cli import InputError

MEASURED_ON = ("text", "device", "batch_size", "seq_len", "mem_len")
EVALUATION = ("run", "step", "architecture", "within_search", "bits_per_byte", "word_perplexity",
              "ms_per_window", "flops_per_token", "parameters", *MEASURED_ON)


def read_evaluations(folders: list[Path]) -> list[dict]:
    """What evaluate.py wrote of the validation split for some runs; of several steps the last.

    Each says besides whether the run is `random` by its name.

    Raises:
      InputError: there is none of a run, or one without bits per byte.
    """
    reports = []
    for folder in folders:
        last = {}
        for path in folder.glob("evaluation_valid_*.json"):
            report = files.read_json(path, EVALUATION)
            if report["bits_per_byte"] is None:
                raise InputError(f"{path} has no bits per byte: characters are unknown to its "
                                 "tokenizer")
            report["random"] = "random" in folder.name
            key = report["architecture"], *(report[name] for name in MEASURED_ON)
            if key not in last or report["step"] > last[key]["step"]:
                last[key] = report
        if not last:
            raise InputError(f"{folder} has no evaluation of the validation split: "
                             f"python evaluate.py --run={folder}")
        reports += [last[key] for key in sorted(last)]
    return reports


def means(reports: list[dict]) -> list[dict]:
    """The mean of the evaluations of each network; the best in bits per byte first.

    A network is what was trained alone, with any seeds and identities anywhere, or an architecture
    with the weights of a search. On another text or device, or with another window or memory, it is
    another. The spread is the largest difference of bits per byte between two evaluations.
    """
    alike = {}
    for report in reports:
        sizes = report["parameters"], *(report[name] for name in MEASURED_ON)
        name, search = report["architecture"], report["run"]
        if not report["within_search"]:
            name, search = without_identity(name), None
        alike.setdefault((name, search, *sizes), []).append(report)
    networks = []
    for (name, *_), own in alike.items():
        bits = [report["bits_per_byte"] for report in own]
        words = [report["word_perplexity"] or np.inf for report in own]
        milliseconds = [report["ms_per_window"]["p50"] for report in own]
        shared = {key: own[0][key] for key in (
            "within_search", "parameters", "flops_per_token", *MEASURED_ON)}
        networks.append(shared | {
            "architecture": name, "bits_per_byte": np.mean(bits), "spread": np.ptp(bits),
            "evaluations": len(own), "word_perplexity": np.mean(words),
            "ms": np.mean(milliseconds),
            "random": all(report["random"] for report in own)})
    return sorted(networks, key=lambda network: network["bits_per_byte"])


def table(networks: list[dict]) -> str:
    """A line for each of the networks that `means` gives."""
    lines = ["bits per byte  spread  scores  word perplexity  parameters  MFLOPs per token  "
             "ms per window  B x T + M      architecture"]
    for each in networks:
        lines.append(
            f"{each['bits_per_byte']:13.4f}  {each['spread']:6.4f}  {each['evaluations']:6}  "
            f"{each['word_perplexity']:15.1f}  {each['parameters']:10,}  "
            f"{each['flops_per_token'] / 1e6:16.3f}  {each['ms']:13.2f}  "
            f"{each['batch_size']:3} x {each['seq_len']} + {each['mem_len']:<5}  "
            f"{each['architecture']}")
    return "\n".join(lines)
