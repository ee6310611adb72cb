"""docs/python.ipynb runs from top to bottom, on a small checkpoint in place of its model."""

import json

import matplotlib as mpl
import pytest

from harness.live import editing
from tests.docs.pages import DOCS
from tests.helpers.small_suites import write_checkpoint

MODEL = 'MODEL = "smollm2-135m"'
SMALL = {
    "ft-l": {"layer": 1, "steps": 2},
    "rome": {"layers": [1], "v_steps": 2, "moments": "identity"},
    "grace": {"layer": 1, "steps": 2},
}
"""For a model of two layers; the files are those of four."""


def code_cells():
    book = json.loads((DOCS / "python.ipynb").read_text())
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The names after all cells, and the folder in which they ran."""
    mpl.use("Agg")
    folder, edit = tmp_path_factory.mktemp("notebook"), editing.edit
    checkpoint = write_checkpoint(folder / "model", "llama")
    source = "\n".join(code_cells())
    assert MODEL in source
    stand_in = f"MODEL = {{'name': 'tiny/llama', 'weights': 'pretrained', 'path': {str(checkpoint)!r}}}"
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(editing, "edit", lambda model, facts, method: edit(model, facts, method, **SMALL[method]))
        exec(compile(source.replace(MODEL, stand_in), "python.ipynb", "exec"), names)
    return names, folder


def test_the_notebook_compares_three_methods_and_saves_a_model(ran):
    names, folder = ran
    assert list(names["table"].index) == ["FT-L", "ROME", "GRACE"]
    assert list(names["table"].columns) == ["reliability", "generality", "locality"]
    assert len(names["axes"].patches) == 9, "a bar for every score"
    assert (folder / "eiffel-tower-in-rome" / "model.safetensors").is_file()


def test_the_code_of_the_notebook_fits_a_screen():
    assert max(len(line) for source in code_cells() for line in source.splitlines()) <= 120
