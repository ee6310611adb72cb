"""The method as the harness sees it."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from tiny_models import tiny_model
from tiny_onceedit import hparams_with

from harness.hparams import resolve
from harness.models.catalogue import reference
from harness.tokens import joint_query
from methods import registry
from methods.onceedit.editor import ROLE, OnceEdit


def test_the_registry_knows_it_without_importing_torch():
    code = "import sys; from methods import registry; registry.get('onceedit'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(registry.__file__).parents[1]).returncode == 0


@pytest.mark.parametrize("model", ["llama2-7b", "zoo/llama"])
@pytest.mark.parametrize("variant", [None, "deepen", "deepen+dw", "onceedit+gate"])
def test_its_files_name_every_value_and_its_source(model, variant):
    resolved = resolve("onceedit", model, {}, variant=variant)
    assert OnceEdit.Hparams(**resolved.values).model_dump() == resolved.values
    assert "default" not in resolved.sources.values()


@pytest.mark.parametrize("changes", [{"target": "soft", "decoder": "column"}, {"init": "llm", "decoder": "owner"}])
def test_decoders_refuse_what_they_cannot_do(changes):
    with pytest.raises(ValidationError, match="decoder"):
        hparams_with(**changes)


def test_one_edit_serves_every_target_model(data):
    editor = OnceEdit(hparams_with(plugin="zoo/tinyllama"))
    specs = [editor.artifacts(reference(name, corpus=data.ref), data.ref, 0) for name in ("zoo/llama", "zoo/gptj")]
    assert specs[0][ROLE].key == specs[1][ROLE].key
    assert specs[0][ROLE].kind == "edit"
    assert specs[0][ROLE].needs["plugin"].inputs["corpus"] == data.ref
    assert editor.artifacts(reference("zoo/llama", corpus=data.ref), data.ref, 1)[ROLE].key != specs[0][ROLE].key


def test_a_published_plugin_needs_no_training_of_its_own(data):
    specs = OnceEdit(hparams_with()).artifacts(reference("zoo/llama", corpus=data.ref), data.ref, 0)
    assert not specs[ROLE].needs


def test_edit_attaches_and_answers(plugin_folder, requests, context):
    target = tiny_model("llama")
    edited = OnceEdit(hparams_with()).edit(target, requests, {ROLE: plugin_folder}, context)
    queries = [joint_query(target.tokenizer, request.prompt, request.target_new) for request in requests]
    assert edited.teacher_forced(queries) == [list(query.target_ids) for query in queries]
    assert context.clock.phases == ["attach"]


def test_edit_refuses_other_requests_than_the_plugin_holds(plugin_folder, requests, context):
    with pytest.raises(ValueError, match="not edited with these"):
        OnceEdit(hparams_with()).edit(tiny_model("llama"), requests[:2], {ROLE: plugin_folder}, context)
