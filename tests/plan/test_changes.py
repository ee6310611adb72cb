"""Code or files that have changed since a run: other cells, and a sentence that says why."""

import dataclasses
import json
import sys

import pytest

from harness import registry
from harness.code import source_hash
from harness.plan.plan import Plan
from harness.store.store import Store
from harness.suite import load_suite
from tests.helpers.small_suites import copy_home, write_suite

METHOD = """
from harness.api import Method
from harness.registry import register


@register("last-layer", title="Last layer", family="weights", version=1)
class LastLayer(Method):
    def edit(self, model, requests, artifacts, context):
        {body}
"""


@pytest.fixture
def planned(home, tmp_path, monkeypatch):
    """Plan a suite as a fresh process would, with a method of a plug-in."""
    folder = copy_home(home, tmp_path)
    plugin = folder / "my_last_layer.py"

    def made(body="return model", **changes):
        plugin.write_text(METHOD.format(body=body))
        _forget()
        monkeypatch.setenv(registry.PLUGINS, str(plugin))
        registry.load_plugins()
        models = [{"name": "tiny/llama", "weights": "pretrained", "path": str(folder / "llama")}]
        content = {"models": models, "methods": ["none", "last-layer"], **changes}
        return Plan(load_suite(write_suite(folder / "suite.yaml", **content)), Store(folder / "store"))

    yield made
    _forget()


def _forget():
    registry.methods.discard("last-layer")
    registry._import_plugin.cache_clear()
    sys.modules.pop("my_last_layer", None)
    source_hash.cache_clear()


def _finish(plan):
    for cell in plan.runnable:
        with plan.store.cell(cell.folder).writing() as folder:
            (folder / "cell.json").write_text(json.dumps(cell.description()))


def _ids(plan):
    return {cell.label: cell.cell_id for cell in plan.runnable}


def test_a_method_from_outside_with_other_code_has_new_cells_and_the_plan_says_why(planned):
    before = planned()
    _finish(before)
    assert planned().todo() == planned().notes() == []
    after = planned(body="return model  # a bug that was put in while developing")
    assert [cell.label for cell in after.todo()] == ["last-layer"]
    assert after.notes() == ["1 cell is new: the code of 'last-layer' has changed"]


def test_a_tokenizer_with_other_settings_makes_new_cells_and_unedited_answers(planned, tmp_path):
    before = planned()
    _finish(before)
    file = tmp_path / "llama" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "add_prefix_space": False}))
    after = planned()
    assert not _ids(before).items() & _ids(after).items()
    assert after.notes() == ["2 cells are new: the files of tiny/llama have changed"]
    answers = [plan.runnable[0].unedited_outputs(8).key for plan in (before, after)]
    assert answers[0] != answers[1]


def test_a_suite_that_asks_for_something_else_says_nothing_of_changes(planned):
    _finish(planned())
    assert planned(eval_batch=3).notes() == planned(seeds=[1]).notes() == []


def test_damaged_results_are_no_reason(planned):
    before = planned()
    _finish(before)
    for cell in before.runnable:
        (before.store.cell(cell.folder).path / "cell.json").write_text("{")
    assert planned(body="return None").notes() == []


def test_a_method_from_outside_changes_with_the_version_of_what_it_is_derived_from(planned, monkeypatch):
    planned()
    parent = registry.find_method("ft-l")
    child = type("Child", (parent,), {"__module__": "my_last_layer"})
    codes = [registry.code_of(object.__new__(child))]
    monkeypatch.setattr(parent, "spec", dataclasses.replace(parent.spec, version=99))
    codes.append(registry.code_of(object.__new__(child)))
    assert [code["derived_from"]["ft-l"] for code in codes][1] == 99
    assert codes[0] != codes[1]
    assert registry.code_of(object.__new__(parent)) == {}
