"""README and docs: short, linked, with flags that exist and examples that run."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from commands import flags_of
from conftest import PROJECT, VOCAB_SIZE

import bench
import choose
import cutoffs
import data_utils
import evaluate
import export
import generate
import plot_search
import train

README = PROJECT / "README.md"
PAGES = [README, PROJECT / "CONTRIBUTING.md", PROJECT / "data" / "README.md",
         *sorted((PROJECT / "docs").glob("*.md"))]
PROGRAMS = (bench, choose, cutoffs, data_utils, evaluate, export, generate, plot_search, train)
SCRIPTS = {"make_data.sh": data_utils, "train.sh": train} | {
    f"recipes/{path.name}": train for path in (PROJECT / "recipes").glob("*.sh")}
OTHERS = {  # the flags of other programs, as far as the pages name them
    "tensorboard": {"logdir"},
    "sbatch": {"nodes", "gres", "signal", "requeue"},
    "srun": {"ntasks-per-node"},
    "tests/chaos.py": {"kills"},
    "tests/run.sh": {"durations"},
    "saved_model_cli": {"dir", "all"},
}


@pytest.fixture(scope="module")
def known_flags() -> dict[str, set[str]]:
    """{program or script: its flags}."""
    by_module = {}
    for program in PROGRAMS:
        with flags_of(program):
            own = flags.FLAGS.get_key_flags_for_module(program)
            by_module[program] = {"help", *(flag.name for flag in own)}
    programs = {f"{program.__name__}.py": program for program in PROGRAMS}
    known = {name: by_module[program] for name, program in (programs | SCRIPTS).items()}
    return OTHERS | known | {"recipes/find.sh": by_module[train] | by_module[choose]}


def unknown_flags(text: str, known_flags: dict[str, set[str]]) -> list[str]:
    """Each --flag in a text that the program before it lacks; without one, that all lack."""
    anywhere, unknown = set().union(*known_flags.values()), []
    for code in re.split(r"[`\n]", text):
        known = anywhere
        for word in re.split(r"[\s\"';(|]+", code):
            known = known_flags.get(word.removeprefix("./"), known)
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


def example(page: str, heading: str) -> str:
    """The Python of a section of a page."""
    text = (PROJECT / page).read_text()
    return examples(text.partition(f"## {heading}\n")[2].partition("\n## ")[0])


def examples(text: str) -> str:
    """The Python of a page."""
    return "".join(re.findall(r"```python\n(.*?)```", text, re.S))


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 110


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_flags_links_and_modules_of_a_page_exist(page, known_flags):
    text = page.read_text()
    assert not unknown_flags(text, known_flags) and not broken_links(page)
    for module in re.findall(r"python -m ((?:recipes|support|training)\.\w+)", text):
        assert (PROJECT / f"{module.replace('.', '/')}.py").is_file(), module


def test_readme_links_every_page():
    linked = re.findall(r"\]\(([^)\s]+\.md)\)", README.read_text())
    pages = {str(page.relative_to(PROJECT)) for page in PAGES}
    assert pages - {"README.md", *linked} <= {"CONTRIBUTING.md"}


def test_a_wrong_flag_is_seen(known_flags):
    right = "`--save_every`, `./train.sh --epochs=3`, `srun ./train.sh --seed=1`"
    assert not unknown_flags(right, known_flags)
    wrong = "`--save_evry`, `./train.sh --split=test`, `python bench.py --epochs`"
    assert unknown_flags(wrong, known_flags) == ["--save_evry", "--split=test", "--epochs"]


def test_a_broken_link_is_seen(tmp_path):
    (tmp_path / "other.md").write_text("# Some times\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#some-times) [c](#here) [d](https://x.org/)\n"
        "[e](missing.md) [f](other.md#no-times) ![g](missing.png) [h](#there)"
    )
    assert broken_links(page) == ["missing.md", "other.md#no-times", "missing.png", "#there"]


def test_the_page_about_python_runs(begun, saved_model):
    """In one Python, as a reader would. The SavedModel is that of export.py."""
    page, away = (PROJECT / "docs" / "python.md").read_text().split("## SavedModel")
    names = {}
    exec(examples(page), names)
    assert names["weights"].shape[:2] == (2, 2) and len(names["tokens"]) == names["queries"]
    assert names["log_prob"].shape == (len(names["ids"]), VOCAB_SIZE)
    shutil.copytree(saved_model, "logs/supernet/saved_model")
    exec(examples(away), names)
    assert np.all(names["bits_per_byte"] > 0) and len(names["texts"]) == 2


def test_the_library_example_runs(data_dir, search_run, tmp_path):
    for link, target in [("data/tfrecords", data_dir), ("logs/quick", search_run)]:
        (tmp_path / link).parent.mkdir()
        (tmp_path / link).symlink_to(target)
    names = {}
    exec(example("README.md", "As a library"), names)
    assert len(names["log_prob"]) == len(names["tokens"]) and max(names["log_prob"][1:]) < 0
    trainer = names["trainer"]
    assert trainer.step == 100 and trainer.evaluate("valid")["perplexity"] < VOCAB_SIZE
    again = names["language_model"].log_prob("The king was dead.")[1]  # not changed by the trainer
    assert np.array_equal(again, names["log_prob"], equal_nan=True)
