"""The shell scripts, run as a user runs them, without network."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tiny
import warm
from absl import flags
from absl.testing import flagsaver
from commands import flags_of, one_line, run_command
from conftest import OFFLINE, copy_project, make_data, write_corpus

import data_utils
import evaluate
import plot_search
import train
from support import pydocs
from training import costs
from training.settings import settings_of
from training.trainer import build_network

OF_THE_TOKENIZER = ("tokenizer.model", "tokenizer.vocab", "unigram_counts.txt")
TINY = tiny.as_flags(**tiny.DATA)
TINY_NET = tiny.as_flags(**tiny.NETWORK)
COMPARE = ("env", "-u", "HOME", "SEEDS=4", "PICKS=ia d", "PRICES=", "sh", "recipes/compare.sh")


@pytest.fixture
def project(tmp_path):
    """A copy of the project."""
    return copy_project(tmp_path / "project", "tests")


def run(project, *command, path=None, cold=False):
    """Runs a command in the project.

    Args:
      project: the folder.
      command: program and arguments.
      path: PATH; by default it starts with this Python as python3.
      cold: start Python as for a user, not as a warm process.
    """
    if not path:
        python = project.parent / "bin"
        if not python.exists():
            python.mkdir()
            warm.link_python(python)
        path = f"{os.path.dirname(sys.executable) if cold else python}:/usr/bin:/bin"
    (project.parent / "tmp").mkdir(exist_ok=True)
    environment = {"PATH": path, "HOME": str(project.parent), "LANG": "C.UTF-8",
                   "TMPDIR": str(project.parent / "tmp")} | OFFLINE
    environment |= {name: value for name, value in os.environ.items() if name == "WARM_SERVER"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def tree(folder) -> dict:
    """{file: time of its last change} in a folder."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}


def test_from_text_to_results_and_nothing_else_is_written(project, tmp_path):
    write_corpus(project / "Ba$$in {红楼梦}")
    before = tree(tmp_path)
    given = ["--input_dir=Ba$$in {红楼梦}", *TINY]
    made = run(project, "./make_data.sh", *given, cold=True)
    assert made.returncode == 0 and made.stderr == "", made.stderr
    names = {path.name for path in (project / "data" / "tfrecords").iterdir()}
    assert names == {"train", "valid", "test", "metadata.json", *OF_THE_TOKENIZER}
    found = run(project, "python3", "cutoffs.py", "--clusters=3", "--d_model=8")
    assert found.stdout.startswith("--cutoffs=")
    trained = run(project, "./train.sh", *TINY_NET, "--max_steps=30")
    assert trained.returncode == 0 and trained.stderr == "", trained.stderr
    results = json.loads((project / "logs" / "supernet" / "results.json").read_text())
    assert results["flags"]["max_lr"] == 1e-4  # train.sh's own
    assert results["flags"]["d_model"] == 8  # and given flags win
    assert results["flags"]["cutoffs"] == [20, 60]
    assert not (project / ".venv").exists()  # this interpreter has the packages
    for command in (["evaluate.py"], ["generate.py", "--num_tokens=3"], ["plot_search.py"]):
        done = run(project, "python3", *command, "--run=logs/supernet")
        assert done.returncode == 0, done.stderr
    after = tree(tmp_path)
    made = [str(path.relative_to(tmp_path)) for path in after.keys() - before.keys()]
    folders = ("project/data/tfrecords/", "project/logs/supernet/", "bin/",  # by `run`
               ".keras/", ".cache/matplotlib/")  # by the libraries, in the home folder
    assert [path for path in made if not path.startswith(folders)] == []
    assert {path: after.get(path) for path in before} == before


RECORD = """#!/usr/bin/env bash
if [[ ${{1-}} == *.py && $1 != *missing_packages.py ]]; then
  printf '%s\\0' "$@" >>{record}
  echo >>{record}
  letters=ai # found by a search
  loss=$(wc -l <{record}) # the first training is the best
  for flag in "$@"; do
    case $flag in
      --model_name=*) run=logs/${{flag#*=}} ;;
      --run=*) run=${{flag#*=}} ;;
      --architecture=*) letters=${{flag#*=}} ;;
    esac
  done
  case $1 in
    *train.py)
      mkdir -p "$run"
      printf '{{\n  "architecture": "%s",\n  "valid": {{"loss": %s}}\n}}\n' "$letters" "$loss" \\
        >"$run/results.json"
      ;;
    *choose.py)
      echo '{{"shortlist": ["da", "dd", "di", "ai", "ad", "aa"]}}' >"$run/choices_step9.json"
      ;;
  esac
else
  exec {python} "$@"
fi
"""


def commands_of(project, *script) -> list[list[str]]:
    """The programs that a script would run, with their arguments, if each succeeded.

    A training leaves only the architecture and a loss in its results, choose.py only a shortlist.
    """
    folder, record = project / "recording", project / "record"
    folder.mkdir(exist_ok=True)
    record.write_text("")
    (folder / "python3").write_text(RECORD.format(record=record, python=sys.executable))
    (folder / "python3").chmod(0o755)
    done = run(project, *script, path=f"{folder}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    return [line.rstrip("\0").split("\0") for line in record.read_text().splitlines()]


def value_of(command: list[str], name: str) -> str:
    """The value of a flag: its last one counts."""
    return next(flag.split("=")[1] for flag in reversed(command) if flag.startswith(f"--{name}="))


def test_a_comparison_trains_each_network_once_and_resumes(project):
    several = ("env", "SEEDS=4 1", "PICKS=da d iai", "PRICES=0.006", "recipes/compare.sh")
    commands = commands_of(project, *several, *TINY_NET)
    searches, alone = commands[:2], commands[2:-2]
    for price, command in zip(("0", "0.006"), searches):
        assert {"--seed=4", "--epochs=1", f"--latency_weight={price}"} <= set(command)
    letters = ("aa", "ad", "dd", "ai", "da", "ia")  # both searches found ai; d is dd
    assert [(value_of(command, "seed"), value_of(command, "architecture")) for command in alone] \
        == [(seed, each) for seed in "41" for each in letters]
    assert all({"--epochs=2", "--max_lr=2e-3"} <= set(command) for command in alone)
    (project / "logs" / "compare_dd_1" / "results.json").unlink()  # it was killed
    assert commands_of(project, *several, *TINY_NET) == [alone[-4], *commands[-2:]]
    for variables, flag, message in [
            ([], "--d_model=9", "logs holds a comparison with other flags (--num_layers=2 "),
            (["PICKS=3"], "--d_model=8", "PICKS takes letters"),
            (["SEEDS="], "--d_model=8", "SEEDS is empty"),
            ([], "--seed=3", "--seed=3: this script sets --seed itself"),
            ([], "--init_from=a", "--init_from=a: this script sets --init_from itself"),
            ([], "--search=uniform", "--search=uniform: such a search chooses no network"),
            ([], "--logs_dir=~nosuchuser/logs", "~nosuchuser/logs: write the path without ~")]:
        assert message in one_line(run(project, *several[:-1], *variables, several[-1], flag))


def test_a_network_is_found_by_search_shortlist_and_successive_halving(project):
    given = ["recipes/find.sh", "--model_name=my", "--budget_ms=3", "--kinds=dense,local",
             "--search=joint", "--search_max_lr=1e-3", "--epochs=4", "--d_model=8",
             "--data_dir=my data"]
    search, choice, *alone, last = commands = commands_of(project, *given)
    assert {"--model_name=my_search", "--epochs=1", "--search=joint", "--kinds=dense,local",
            "--max_lr=1e-3", "--d_model=8", "--data_dir=my data"} <= set(search)
    assert "--epochs=4" not in search
    assert choice[1:] == ["--run=logs/my_search", "--budget_ms=3"]
    assert [(value_of(each, "architecture"), value_of(each, "epochs")) for each in alone] == [
        *((letters, "1") for letters in ("da", "dd", "di", "ai", "ad", "aa")),
        *((letters, "2") for letters in ("da", "dd", "di", "ai")), ("da", "4")]
    assert all({"--d_model=8", "--max_lr=2e-3"} <= set(each) for each in alone)
    assert not any({"--kinds=dense,local", "--max_lr=1e-3"} & set(each) for each in alone)
    assert last[1:] == ["--run=logs/my_da_1"]
    (project / "logs" / "my_da_1" / "results.json").unlink()  # it was killed
    assert commands_of(project, *given) == [commands[-2], last]
    done = run(project, "env", f"PATH={project / 'recording'}:/usr/bin:/bin", *given)
    assert re.fullmatch(
        r"found da: validation loss \d+\.0000; to evaluate it again: "
        r"python evaluate.py --run=logs/my_da_1", done.stdout.splitlines()[-1])
    uniform, *_ = commands_of(project, given[0], "--model_name=plain", "--budget_ms=3")
    assert {"--search=uniform", "--gumbel_per_row", "--max_lr=2e-3"} <= set(uniform)
    assert not any(flag.startswith("--tau_start") for flag in uniform)
    other = run(project, *given[:2], "--budget_ms=4")
    assert "my was begun with other flags (--model_name=my --budget_ms=3 " in one_line(other)
    shutil.rmtree(project / "logs" / "my_search")  # as if a mistyped flag had stopped the search
    search, *_ = commands_of(project, *given[:2], "--budget_ms=4")
    assert "--model_name=my_search" in search
    for flag, message in [("--budget=3", "set --budget_ms or --budget_mflops"),
                          ("--init_from=a", "this script sets --init_from itself"),
                          ("--epochs", "write --name=value here"),
                          ("--epochs=two", "--epochs=two: give a number")]:
        assert message in one_line(run(project, *given[:2], flag))


@pytest.mark.filterwarnings("ignore:Even though.*run_functions_eagerly")
def test_the_found_network_is_compared_with_others(project, monkeypatch):
    corpus = write_corpus(project / "mine", lines=(150, 4, 4))
    make_data(corpus, project / "data" / "tfrecords")
    monkeypatch.chdir(project)
    commands = commands_of(project, *COMPARE, *tiny.as_flags(**tiny.NETWORK, max_steps=1))
    shutil.rmtree(project / "logs")
    tf.config.run_functions_eagerly(True)  # faster for a single step
    try:
        for path, *arguments in commands:
            program = {"train.py": train, "evaluate.py": evaluate, "plot_search.py": plot_search}
            done = run_command(program[Path(path).name], *arguments)
            assert done.returncode == 0, done.stderr
    finally:
        tf.config.run_functions_eagerly(False)
    scores = {line.split()[-1]: int(line.split()[2]) for line in done.stdout.splitlines()[1:-1]}
    assert scores == {"aa": 1, "ad": 1, "dd": 1, "a": 2}  # ai and ia are one network
    assert (project / "logs" / "compare_aa_4" / "comparison.png").is_file()


def test_documentation_is_the_corpus_where_there_is_no_network(offline, tmp_path, monkeypatch):
    every = 1 if "COLD" in os.environ else 40  # all of it takes a minute
    some = list(pydocs._source_files())[::every]
    monkeypatch.setattr(pydocs, "_source_files", lambda: some)
    monkeypatch.chdir(tmp_path)
    made = run_command(data_utils, *(["--vocab_size=2000"] if every > 1 else []))
    assert made.returncode == 0 and "NOT WikiText-2" in made.stderr, made.stderr
    metadata = json.loads((tmp_path / "data" / "tfrecords" / "metadata.json").read_text())
    assert metadata["corpus"] == "pydocs"
    assert every * metadata["splits"]["train"]["bytes"] > 5_000_000


RECIPES = {  # and the programs that each of them runs
    "compare.sh": ["train.py", "evaluate.py", "plot_search.py"],
    "fast.sh": ["train.py"],
    "find.sh --budget_ms=3": ["train.py", "choose.py", "evaluate.py"],
    **dict.fromkeys(["characters.sh enwik8", "wt103_base.sh", "wt2_words.sh"],
                    ["data_utils.py", "train.py"])}


def test_scripts_need_no_permission_to_be_run_and_no_bash_in_front(project):
    """As after an upload or a zip file; sh is not bash everywhere."""
    scripts = list(project.rglob("*.sh"))
    for path in scripts:
        path.chmod(0o644)
    recipes = {path.name for path in scripts if path.parent.name == "recipes"}
    assert {recipe.split()[0] for recipe in RECIPES} == recipes
    short = ("env", "SEEDS=4", "PICKS=da", "PRICES=0.006")
    for name, programs in RECIPES.items():
        commands = commands_of(project, *short, "sh", *f"recipes/{name}".split())
        assert list(dict.fromkeys(Path(command[0]).name for command in commands)) == programs, name
    for name, program in (("make_data", "data_utils"), ("train", "train")):
        command, = commands_of(project, "sh", f"{name}.sh", "a b")
        assert Path(command[0]).name == f"{program}.py" and command[-1] == "a b"


def test_the_fast_recipe_searches_unless_an_architecture_is_given(project):
    joint, uniform = {"--gumbel_per_row", "--tau_start=3"}, {"--gumbel_per_row"}
    for given, search in (((), joint), (("--architecture=search",), joint),
                          (("--init_from=a", "--architecture=search"), joint),
                          (("--architecture=search", "--init_from=a"), joint),
                          (("--search=uniform",), uniform), (("--architecture=adadad",), set()),
                          (("--init_from=a",), set())):
        command, = commands_of(project, "recipes/fast.sh", "--epochs=2", *given)
        assert joint & set(command) == search
        assert value_of(command, "epochs") == "2" and "--tie_embeddings" in command
    done = run(project, "recipes/fast.sh", "--architecture", "adadad")
    assert "--architecture: write --architecture=value here" in one_line(done)


@pytest.mark.parametrize("name", [recipe.split()[0] for recipe in RECIPES])
def test_recipes_explain_themselves_and_do_nothing_else(name, project):
    done = run(project, "sh", f"recipes/{name}", "--epochs=2", "--help")
    _, *comment = (project / "recipes" / name).read_text().split("\n[")[0].splitlines()
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == [line.removeprefix("# ") for line in comment]
    assert not (project / "logs").exists() and not (project / "data").exists()


def test_a_removed_folder_is_named_as_the_reason(project, tmp_path):
    (tmp_path / "gone").mkdir()
    remove = 'cd "$1"; rmdir "$1"; exec bash "$2"'
    done = run(project, "bash", "-c", remove, "", tmp_path / "gone", project / "make_data.sh")
    *bash, line = done.stderr.splitlines()
    assert line == "error: the current folder has been removed: change to one that exists"
    assert all(line.startswith("shell-init: ") for line in bash), bash  # before the script starts


def test_a_clone_on_windows_has_the_line_ends_of_bash(repository, tmp_path):
    clone = ["git", "clone", "-q", "-c", "core.autocrlf=true", repository, tmp_path / "clone"]
    subprocess.run(clone, check=True)
    texts = [path for path in (tmp_path / "clone").rglob("*") if path.suffix in (".sh", ".py")]
    assert texts and not [path for path in texts if b"\r" in path.read_bytes()]


def test_mistakes_end_in_one_line(offline, tmp_path):
    write_corpus(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    for given, message in [
        (["--input_dir=mine", "--input_text=file"], "use --input_text or --input_dir, not both"),
        (["--input_dir=mine", *TINY, "--output_dir=file/data"], "file"),
        (["--input_dir=mine", "--sp_model_prefix=x", "--vocab_size=900"], "omit --vocab_size"),
        (["--corpus=wikitext-2"], "cannot download wikitext-2"),
    ]:
        assert message in one_line(run_command(data_utils, *given))


def block_size(D, F):
    """Parameters of a block with attention and dense."""
    return 5 * D * D + 2 * D + 2 * D * F + F + D + 4 * D


@pytest.mark.parametrize("script, V, head, tails, D, F, L, T, data", [
    ("wt103_base.sh", 16_000, 2000, [4000, 10_000], 512, 2048, 32, 192,
     {"corpus": "wikitext-103", "vocab_size": 16_000, "batch_size": 256}),
    ("wt2_words.sh", 33_537, 2000, [8000, 23_537], 160, 1024, 6, 64,
     {"corpus": "wikitext-2", "model_type": "word", "add_eos": True, "batch_size": 16}),
    ("characters.sh enwik8", 512, 512, [], 512, 2048, 24, 512,
     {"corpus": "enwik8", "model_type": "char", "vocab_size": 512, "add_eos": True}),
    ("characters.sh text8", 287, 287, [], 512, 2048, 24, 512,
     {"corpus": "text8", "model_type": "char", "vocab_size": None, "add_eos": False})])
def test_a_recipe_describes_the_network_that_it_promises(
        script, V, head, tails, D, F, L, T, data, project):
    of_the_data, of_the_training = commands_of(project, "bash", *f"recipes/{script}".split())
    folder, = [flag for flag in of_the_training if flag.startswith("--data_dir=")]
    assert folder.removeprefix("--data_dir=") == of_the_data[-1].removeprefix("--output_dir=")
    data = data | {"seq_len": T, "sp_model_prefix": None}
    data["normalization_rule_name"] = "nfkc_cf" if "wt103" in script else "identity"
    with flags_of(data_utils):
        flags.FLAGS(of_the_data)
        assert {flag: flags.FLAGS[flag].value for flag in data} == data
    with flagsaver.flagsaver():
        flags.FLAGS(of_the_training)
        settings = settings_of(flags.FLAGS.flag_values_dict(), train.architecture(None))
        model = build_network(settings, V, static_shapes=False)
    # Every row is D wide: no tail has a projection, and a tied table is the embedding.
    ids_and_entries = V + len(tails)
    softmax = ids_and_entries + D * (len(tails) if model.tie_embeddings else ids_and_entries)
    assert model.architecture == ["search"] * L
    assert model.count_params() == V * D + L * (block_size(D, F) + 3) + softmax
    C = 2 * T  # memory is as long as a window
    logits = head + len(tails) + sum(size**2 / V for size in tails)
    forward = 2 * (
        L * (T * (4 * D * D + 3 * C * D + 2 * D * F) + 2 * T * D * D + C * D * D) + T * D * logits)
    assert costs.flops(model, 1, T, np.full(V, 1 / V)) == pytest.approx(forward)
