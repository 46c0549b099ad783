"""The shell scripts, run as a user runs them, without network."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import PROJECT, write_corpus
from test_flags import flags_of

import data_utils
import train

OFFLINE = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
TINY = "--vocab_size=340 --batch_size=4 --seq_len=8".split()
TINY_NET = "--num_layers=2 --d_model=8 --num_heads=2 --d_ffn=16 --mem_len=6 --cutoffs=20,60".split()


@pytest.fixture
def project(tmp_path):
    """A copy of the project without what was made in it."""
    return Path(shutil.copytree(PROJECT, tmp_path / "project", ignore=shutil.ignore_patterns(".git", ".venv", "data", "logs", "tests", "__pycache__")))


def run(project, *command, path=None):
    """Runs a command in the project; `path` is where programs are found, first of all this interpreter as python3."""
    here = os.path.dirname(sys.executable)
    environment = {"PATH": path or f"{here}:/usr/bin:/bin", "HOME": str(project.parent), "LANG": "C.UTF-8"} | OFFLINE
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def one_line(done):
    """The single line on standard error of a command that failed."""
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_from_text_to_results(project):
    write_corpus(project / "Ba$$in {红楼梦}")
    made = run(project, "./make_data.sh", "--input_dir=Ba$$in {红楼梦}", *TINY, "--shards=3")
    assert made.returncode == 0 and made.stderr == "", made.stderr
    assert {path.name for path in (project / "data" / "tfrecords").iterdir()} == {
        "train", "valid", "test", "tokenizer.model", "tokenizer.vocab", "unigram_counts.txt", "metadata.json"}
    found = run(project, "python3", "cutoffs.py", "--clusters=3", "--d_model=8")
    assert found.stdout.startswith("--cutoffs=")
    trained = run(project, "./train.sh", *TINY_NET, "--max_steps=30", "--cutoffs=10")
    assert "must rise" in one_line(trained)  # a repeated flag adds cutoffs
    trained = run(project, "./train.sh", *TINY_NET, "--max_steps=30")
    assert trained.returncode == 0 and trained.stderr == "", trained.stderr
    assert json.loads((project / "logs" / "supernet" / "results.json").read_text())["flags"]["max_lr"] == 1e-4  # train.sh's own
    assert not (project / ".venv").exists()  # this interpreter has the packages


def test_the_found_network_is_compared_with_others(project):
    write_corpus(project / "mine")
    assert run(project, "./make_data.sh", "--input_dir=mine", *TINY).returncode == 0
    compared = run(project, "recipes/compare.sh", *TINY_NET, "--max_steps=4")
    assert compared.returncode == 0, compared.stderr
    table = {line[:25].strip(): line[26:].split() for line in compared.stdout.splitlines()[-14:]}
    assert table["run"] == [f"compare_{name}" for name in ("found", "quick", "attention", "interleaved", "random")]
    found, quick = (json.loads((project / "logs" / f"compare_{name}" / "results.json").read_text())["architecture"] for name in ("search", "quick_search"))
    assert table["architecture"][:4] == [found, quick, "aaaaaa", "adadad"] and len(set(table["parameters"])) > 2


def test_documentation_is_the_corpus_where_there_is_no_network(project):
    made = run(project, "./make_data.sh")
    assert made.returncode == 0, made.stderr
    assert "NOT WikiText-2" in made.stderr
    metadata = json.loads((project / "data" / "tfrecords" / "metadata.json").read_text())
    assert metadata["corpus"] == "pydocs" and metadata["splits"]["train"]["bytes"] > 5_000_000


def test_the_scripts_work_from_another_folder(project, tmp_path):
    write_corpus(tmp_path / "elsewhere" / "mine")
    made = run(tmp_path / "elsewhere", project / "make_data.sh", "--input_dir=mine", *TINY)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "elsewhere" / "data" / "tfrecords" / "metadata.json").exists()


def test_mistakes_end_in_one_line(project):
    (project / "empty.txt").write_text("")
    (project / "file").write_text("")
    (project / "latin.txt").write_bytes(b"one\ncaf\xe9\n" * 99)
    (project / "short.txt").write_text("abcd abcd " * 20)
    write_corpus(project / "mine")
    for given, message in [
        (["--input_text=missing.txt"], "missing.txt is missing"),
        (["--input_text=empty.txt"], "empty.txt is empty"),
        (["--input_dir=mine", "--input_text=empty.txt"], "exclude each other"),
        (["--input_dir=mine", *TINY, "--output_dir=file/data"], "file"),
        (["--input_dir=mine", "--sp_model_prefix=x", "--vocab_size=9"], "leave --vocab_size out"),
        (["--input_text=latin.txt"], "latin.txt is not UTF-8: line 2"),
        (["--input_text=short.txt", "--vocab_size=266"], "train part of short.txt is too short"),
        (["--corpus=wikitext-2"], "cannot download wikitext-2"),
        (["--batch_size=0"], "batch_size"),
        (["--input_text=empty.txt", "--valid_fraction=0.6", "--test_fraction=0.6"], "fraction"),
    ]:
        assert message in one_line(run(project, "./make_data.sh", *given))
    assert "run ./make_data.sh first" in one_line(run(project, "./train.sh"))


def fake_python(folder: Path, version: str, lacks: str) -> str:
    """A PATH whose only python3 has the given version, no packages, and no module named in `lacks`."""
    folder.mkdir()
    for tool in ("bash", "dirname", "grep", "tail", "cat", "mkdir", "touch", "chmod"):
        os.symlink(shutil.which(tool), folder / tool)
    script = folder / "python3"
    script.write_text(f"""#!{shutil.which("bash")}
case "$*" in
  --version) echo Python {version} ;;
  *version_info*) [[ {version} == 3.12 ]] ;;
  *"{lacks}"*) exit 1 ;;
  *"-m venv"*) mkdir -p "$3/bin"; cat "$0" > "$3/bin/python"; chmod +x "$3/bin/python" ;;
  *"-m pip"*) echo "ERROR: no such index"; exit 1 ;;
  "- "*) exit 1 ;;
esac
""")
    script.chmod(0o755)
    return str(folder)


@pytest.mark.parametrize("version, lacks, message", [
    ("3.9", "nothing", "Python 3.10 to 3.13 is needed, and python3 is Python 3.9"),
    ("3.12", "import venv", "python3 has no venv module: install it"),
    ("3.12", "nothing", "the installation failed (ERROR: no such index)")])
def test_an_environment_that_cannot_be_made_says_what_to_do(version, lacks, message, project, tmp_path):
    done = run(project, "./make_data.sh", path=fake_python(tmp_path / "bin", version, lacks))
    assert message in one_line(done)


def recipe(name):
    """The flags of make_data.sh and of train.py in a recipe."""
    script = (PROJECT / "recipes" / f"{name}.sh").read_text().replace("\\\n", "")
    data, training = script.split('make_data.sh"')[1].splitlines()[0], script.split('train.py"')[1]
    return shlex.split(data)[:-1], shlex.split(training)[:-1]  # without --output_dir="$data" and "$@"


@pytest.mark.parametrize("name, vocab_size, head, tails, D, F, L, T, M, data", [
    ("wt103_base", 16_000, 2000, [(4000, 128), (10_000, 32)], 512, 2048, 32, 192, 192, dict(corpus="wikitext-103", vocab_size=16_000, batch_size=256)),
    ("wt2_words", 33_537, 2000, [(8000, 32), (23_537, 8)], 128, 1024, 6, 32, 16,
     dict(corpus="wikitext-2", model_type="word", normalization_rule_name="identity", add_eos=True)),
    ("enwik8", 512, 512, [], 512, 2048, 24, 512, 512,
     dict(corpus="enwik8", model_type="char", normalization_rule_name="identity", vocab_size=512, add_eos=True, batch_size=22)),
    ("text8", 287, 287, [], 512, 2048, 24, 512, 512, dict(corpus="text8", model_type="char", normalization_rule_name="identity", add_eos=False, batch_size=22))])
def test_a_recipe_describes_the_network_that_it_promises(name, vocab_size, head, tails, D, F, L, T, M, data):
    of_the_data, of_the_training = recipe(name)
    with flags_of(data_utils):
        flags.FLAGS(["data_utils.py", *of_the_data])
        assert {flag: flags.FLAGS[flag].value for flag in [*data, "seq_len"]} == data | {"seq_len": T}
    with flagsaver.flagsaver():
        flags.FLAGS(["train.py", *[flag for flag in of_the_training if not flag.startswith("--data_dir")]])
        model = train.build_model(vocab_size, static_shapes=False)
    block = 5 * D * D + 2 * D + 2 * D * F + F + D + 4 * D
    softmax = (D + 1) * (head + len(tails)) + sum(D * width + (width + 1) * size for size, width in tails)
    assert model.architecture == ["search"] * L and model.count_params() == vocab_size * D + L * (block + 3) + softmax
    probability = np.full(vocab_size, 1 / vocab_size)
    C = M + T
    forward = 2 * (L * (T * (4 * D * D + 3 * C * D + 2 * D * F) + 2 * M * D * D + C * D * D)
                   + T * (D * (head + len(tails)) + sum(size / vocab_size * (D * width + width * size) for size, width in tails)))
    assert model.flops(1, T, probability) == pytest.approx(forward)
