"""README and docs: short, linked, about flags that exist, with examples that run."""

import functools
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import warm
from conftest import PROJECT, VOCAB_SIZE

README = PROJECT / "README.md"
PAGES = [README, PROJECT / "data" / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
RECIPES = [f"recipes/{path.name}" for path in (PROJECT / "recipes").glob("*.sh")]
HANDS_ON = dict.fromkeys(["train.sh", *RECIPES], "train.py") | {"make_data.sh": "data_utils.py"}
COMMANDS = [f"{name}.py" for name in (
    "data_utils", "train", "evaluate", "generate", "choose", "plot_search", "export", "cutoffs",
    "bench")]
NOT_OURS = {  # flags of other programs, if the pages name them
    "tensorboard": {"logdir"},
    "sbatch": {"nodes", "gres", "signal", "requeue"},
    "srun": {"ntasks-per-node"},
    "tests/chaos.py": {"kills"},
    "saved_model_cli": {"dir", "all"},
}


@functools.cache
def flags_by_program() -> dict[str, set[str]]:
    """The flags of each program; of our commands, those listed by --help."""
    by_program = dict(NOT_OURS)
    for command in COMMANDS:
        helped = subprocess.run([*warm.PYTHON, PROJECT / command, "--help"], capture_output=True,
                                text=True, check=True)
        by_program[command] = {"help", *re.findall(r"^  --(\w+)", helped.stdout, re.M)}
    return by_program


def unknown_flags(text: str) -> list[str]:
    """Each --flag in a text that the program before it lacks; without one, that all lack."""
    by_program = flags_by_program()
    anywhere = set().union(*by_program.values())
    unknown = []
    for code in re.split(r"[`\n]", text):
        known = anywhere
        for word in re.split(r"[\s\"';(|]+", code):
            program = word.removeprefix("./")
            program = HANDS_ON.get(program, program)
            if program in by_program:
                known = by_program[program]
            flag = re.match(r"--([a-z][\w-]*)", word)
            if flag and flag[1] not in known:
                unknown.append(word)
    return unknown


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of it."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or heading and heading not in headings(target):
            broken.append(link)
    return broken


def headings(page: Path) -> list[str]:
    """The headings of a page as GitHub writes them in a link."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]


def example(heading: str) -> str:
    """The Python of a section of README."""
    section = README.read_text().partition(f"## {heading}\n")[2]
    return re.search(r"```python\n(.*?)```", section, re.S)[1]


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_flags_and_links_of_a_page_exist(page):
    assert not unknown_flags(page.read_text())
    assert not broken_links(page)


def test_readme_links_every_page():
    linked = re.findall(r"\]\(([^)\s]+\.md)\)", README.read_text())
    assert {str(page.relative_to(PROJECT)) for page in PAGES} == {"README.md", *linked}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_modules_that_a_page_runs_exist(page):
    for module in re.findall(r"python -m ((?:recipes|support|training)\.\w+)", page.read_text()):
        assert (PROJECT / f"{module.replace('.', '/')}.py").is_file(), module


def test_a_wrong_flag_is_seen():
    assert not unknown_flags("`--save_every`, `./train.sh --epochs=3`, `srun ./train.sh --seed=1`")
    wrong = "`--save_evry`, `./train.sh --split=test`, `python bench.py --epochs`"
    assert unknown_flags(wrong) == ["--save_evry", "--split=test", "--epochs"]


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "other.md").write_text("# Some times\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#some-times) [c](#here) [d](https://x.org/)\n"
        "[e](missing.md) [f](other.md#no-times) ![g](missing.png) [h](#there)"
    )
    assert broken_links(page) == ["missing.md", "other.md#no-times", "missing.png", "#there"]


def test_the_page_about_python_runs(begun, saved_model, tmp_path, monkeypatch, capsys):
    """In one Python, as a reader would go through it; what export.py has written is there."""
    monkeypatch.chdir(tmp_path)
    before, away = (PROJECT / "docs" / "python.md").read_text().split("## SavedModel")
    names = {}
    exec("".join(re.findall(r"```python\n(.*?)```", before, re.S)), names)
    assert names["weights"].shape[:2] == (2, 2) and len(names["tokens"]) == names["queries"]
    assert names["log_prob"].shape == (len(names["ids"]), VOCAB_SIZE)
    shutil.copytree(saved_model, "logs/supernet/saved_model")
    exec(re.search(r"```python\n(.*?)```", away, re.S)[1], names)
    assert np.all(names["bits_per_byte"] > 0) and len(names["texts"]) == 2


def test_the_library_example_runs(data_dir, search_run, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "data" / "tfrecords").symlink_to(data_dir)
    (tmp_path / "logs" / "quick").symlink_to(search_run)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example("As a library"), names)
    assert len(names["log_prob"]) == len(names["tokens"]) and max(names["log_prob"][1:]) < 0
    trainer = names["trainer"]
    assert trainer.step == 100 and trainer.evaluate("valid")["perplexity"] < VOCAB_SIZE
    again = names["run"].log_prob("The king was dead.")[1]  # the trainer took nothing from the run
    assert np.array_equal(again, names["log_prob"], equal_nan=True)
