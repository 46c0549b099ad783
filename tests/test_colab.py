"""The notebook, run with tiny settings from its first cell to its last."""

import os
import re
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
import tiny
import warm
from conftest import PROJECT, write_corpus

DATA_FLAGS = tiny.as_flags(**tiny.DATA)
TRAIN_FLAGS = tiny.as_flags(**tiny.NETWORK | tiny.QUICK, max_lr=1e-2, warmup_steps=20)
ASK_TENSORBOARD = PROJECT / "tests" / "programs" / "ask_tensorboard.py"
NOTEBOOK = nbformat.read(PROJECT / "colab.ipynb", as_version=4)


def with_fields(**values):
    """The notebook with other values in its form fields."""
    notebook = nbformat.from_dict(NOTEBOOK)
    for name, value in values.items():
        field = re.compile(rf"^{name} = .*?(?=  #@param)", re.M)
        cell, = (cell for cell in notebook.cells if field.search(cell.source))
        cell.source = field.sub(lambda _: f"{name} = {value!r}", cell.source)
    return notebook


def execute(notebook, folder: Path):
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()


def output(cell) -> str:
    return "".join(
        part.get("text", "") + part.get("data", {}).get("text/html", "") for part in cell.outputs)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch, offline):
    """An empty folder to work in, with this interpreter as python and python3, without network."""
    (tmp_path / "bin").mkdir()
    path = [warm.link_python(tmp_path / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]]
    monkeypatch.setenv("PATH", ":".join(path))
    for name in ("TMPDIR", "HOME"):  # TensorBoard and Jupyter write there
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "content"
    folder.mkdir()
    return folder


def test_the_notebook_runs_from_top_to_bottom(repository, elsewhere):
    corpus = write_corpus(elsewhere / "corpus")
    notebook = with_fields(
        repository=str(repository), name="tiny", prompt='The "history" of $HOME', epochs=1,
        data_flags=" ".join([f"--input_dir={corpus}", *DATA_FLAGS]),
        train_flags=" ".join(TRAIN_FLAGS))
    notebook.cells.append(nbformat.v4.new_code_cell(ASK_TENSORBOARD.read_text()))
    execute(notebook, elsewhere)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    machine, _, cloned, data, tensorboard, training, search, evaluation, text, kept, answer = code
    assert output(machine)  # a GPU, or how to choose one
    assert output(cloned) == f"{elsewhere}/par-transformer-xl\npython3\n"
    assert not (elsewhere / "par-transformer-xl" / ".venv").exists()
    for cell, words in [
            (data, ["wrote data/tfrecords"]), (tensorboard, ["iframe"]),
            (answer, ["tiny/train", "tiny/valid"]),
            (training, ["epoch 1 of 1", "results in logs/tiny/results.json"]),
            (evaluation, ["4 x 8 + 6", "4 x 8 + 64"])]:
        assert all(each in output(cell) for each in words), output(cell)
    pictures = {kind for part in search.outputs for kind in part.get("data", {})}
    assert pictures & {"image/gif", "image/png"}
    assert output(text).startswith('The "history" of $HOME')
    assert Path(output(kept).strip()).is_file()
    for cell in code:
        assert "error" not in output(cell).lower(), output(cell)


@pytest.mark.parametrize("address", ["", "/no/such/repository"])
def test_a_clone_that_fails_says_what_to_do(address, elsewhere):
    notebook = with_fields(repository=address)
    notebook.cells = [cell for cell in notebook.cells if "git" in cell.source]
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="enter its address"):
        execute(notebook, elsewhere)


def test_cells_are_explained_have_no_output_and_need_no_executable_script():
    for before, cell in zip(NOTEBOOK.cells, NOTEBOOK.cells[1:]):
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert before.cell_type == "markdown"
            assert "./" not in cell.source  # an upload to Colab or Drive drops the permission
