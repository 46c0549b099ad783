"""The notebook, run with tiny settings from its first cell to its last, by one who has no more."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
import tiny
import warm
from conftest import PROJECT, copy_project, write_corpus

DATA_FLAGS = tiny.as_flags(**tiny.DATA)
TRAIN_FLAGS = tiny.as_flags(**tiny.NETWORK, max_lr=1e-2, warmup_steps=20)
ASK_TENSORBOARD = PROJECT / "tests" / "programs" / "ask_tensorboard.py"
NOTEBOOK = nbformat.read(PROJECT / "colab.ipynb", as_version=4)


def with_fields(**values):
    """The notebook with other values in its form fields."""
    notebook = nbformat.from_dict(NOTEBOOK)
    for name, value in values.items():
        cells = [
            cell for cell in notebook.cells if re.search(rf"^{name} = .*#@param", cell.source, re.M)
        ]
        assert len(cells) == 1, name
        cells[0].source = re.sub(
            rf"^{name} = .*?  #@param",
            lambda _: f"{name} = {value!r}  #@param",
            cells[0].source,
            flags=re.M,
        )
    return notebook


def output(cell) -> str:
    return "".join(
        part.get("text", "") + part.get("data", {}).get("text/html", "") for part in cell.outputs
    )


@pytest.fixture
def repository(tmp_path) -> Path:
    """What a user would clone."""
    copy = copy_project(tmp_path / "origin")
    git = ["git", "-C", copy, "-c", "user.name=test", "-c", "user.email=test"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    return copy


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in, with this interpreter as python and python3, without network."""
    (tmp_path / "bin").mkdir()
    found = [
        warm.link_python(tmp_path / "bin"),
        str(Path(sys.executable).parent),
        os.environ["PATH"],
    ]
    monkeypatch.setenv("PATH", ":".join(found))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in (
        "TMPDIR",
        "HOME",
    ):  # where TensorBoard notes which servers run, and Jupyter what it likes
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


def test_the_notebook_runs_from_top_to_bottom(repository, elsewhere):
    corpus = write_corpus(elsewhere / "corpus")
    notebook = with_fields(
        repository=str(repository),
        name="tiny",
        prompt='The "history" of $HOME',
        data_flags=" ".join([f"--input_dir={corpus}", *DATA_FLAGS]),
        epochs=1,
        train_flags=" ".join(TRAIN_FLAGS),
    )
    notebook.cells.append(nbformat.v4.new_code_cell(ASK_TENSORBOARD.read_text()))
    nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(elsewhere)}}
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    machine, _, cloned, data, tensorboard, training, search, evaluation, text, kept, answer = code
    assert output(machine)  # a GPU, or how to choose one
    assert output(cloned) == f"{elsewhere}/par-transformer-xl\npython3\n"
    assert not (elsewhere / "par-transformer-xl" / ".venv").exists()
    assert "wrote data/tfrecords" in output(data)
    assert (
        "iframe" in output(tensorboard)
        and "tiny/train" in output(answer)
        and "tiny/valid" in output(answer)
    )
    assert "epoch 1 of 1" in output(training) and "results in logs/tiny/results.json" in output(
        training
    )
    assert any(
        "image/gif" in part.get("data", {}) or "image/png" in part.get("data", {})
        for part in search.outputs
    )
    assert "4 x 8 + 6" in output(evaluation) and "4 x 8 + 64" in output(evaluation)
    assert output(text).startswith('The "history" of $HOME')
    assert Path(output(kept).strip()).is_file()
    for cell in code:
        assert "error" not in output(cell).lower(), output(cell)


@pytest.mark.parametrize("address", ["", "/no/such/repository"])
def test_a_clone_that_fails_says_what_to_do(address, elsewhere):
    notebook = with_fields(repository=address)
    notebook.cells = [cell for cell in notebook.cells if "git" in cell.source]
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="write its address"):
        resources = {"metadata": {"path": str(elsewhere)}}
        nbclient.NotebookClient(notebook, resources=resources).execute()


def test_no_cell_needs_the_permission_to_run_a_script():
    """Which an upload to Colab or Drive drops."""
    assert not [cell.source for cell in NOTEBOOK.cells if "./" in cell.source]


def test_outputs_are_not_committed_and_every_cell_is_explained():
    for before, cell in zip(NOTEBOOK.cells, NOTEBOOK.cells[1:]):
        if cell.cell_type == "code":
            assert (
                cell.outputs == []
                and cell.execution_count is None
                and before.cell_type == "markdown"
            )
