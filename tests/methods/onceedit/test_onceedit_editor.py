"""The method as the harness sees it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from harness import registry
from harness.models.catalogue import ModelRef, reference
from harness.suite.hparams import resolve
from harness.tokens import joint_query
from methods.onceedit.editor import EDIT, PLUGIN_STATE, STATE, OnceEdit, state_artifact
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.pair import PairState, build
from methods.onceedit.plugin import CALIBRATION, EditedPlugin
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import hparams_with


def test_the_registry_knows_it_without_importing_torch():
    code = (
        "import sys; from harness import registry; registry.find_method('onceedit'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(registry.__file__).parents[1]).returncode == 0


@pytest.mark.parametrize("model", ["llama2-7b", "tiny/llama"])
@pytest.mark.parametrize(
    "variant", [None, "deepen", "deepen+dw", "dw+zero-init", "dw+one-hot", "onceedit+gate", "onceedit+keep", "plus"]
)
def test_its_files_name_every_value_and_its_source(model, variant):
    resolved = resolve("onceedit", model, {}, variant=variant)
    assert OnceEdit.Hparams(**resolved.values).model_dump() == resolved.values
    assert "default" not in resolved.sources.values()


@pytest.mark.parametrize("changes", [{"target": "soft", "decoder": "column"}, {"init": "llm", "decoder": "owner"}])
def test_decoders_refuse_what_they_cannot_do(changes):
    with pytest.raises(ValidationError, match="decoder"):
        hparams_with(**changes)


def test_one_edit_serves_every_target_model(data):
    editor = OnceEdit(hparams_with(plugin="tiny/tinyllama"))
    specs = [editor.artifacts(reference(name, corpus=data.ref), data.ref, 0) for name in ("tiny/llama", "tiny/gptj")]
    assert specs[0][EDIT].key == specs[1][EDIT].key
    assert specs[0][EDIT].kind == "edit"
    assert specs[0][EDIT].needs["plugin/model"].inputs["corpus"] == data.ref
    assert editor.artifacts(reference("tiny/llama", corpus=data.ref), data.ref, 1)[EDIT].key != specs[0][EDIT].key


def test_all_edits_of_a_pair_share_its_state(data):
    editor = OnceEdit(hparams_with(plugin="tiny/tinyllama"))
    llama, gptj = (reference(name, corpus=data.ref) for name in ("tiny/llama", "tiny/gptj"))
    state = editor.artifacts(llama, data.ref, 0)[STATE]
    assert state.key == editor.artifacts(llama, data.ref, 1)[STATE].key
    assert state.key != editor.artifacts(gptj, data.ref, 0)[STATE].key
    plain = OnceEdit(hparams_with(plugin="tiny/tinyllama", relative="plain"))
    assert state.key != plain.artifacts(llama, data.ref, 0)[STATE].key


def test_a_published_plugin_needs_no_training_of_its_own(data):
    specs = OnceEdit(hparams_with()).artifacts(reference("tiny/llama", corpus=data.ref), data.ref, 0)
    assert not specs[EDIT].needs


def test_the_plugin_may_be_written_like_an_entry_of_models(data):
    plain = OnceEdit(hparams_with(plugin="tinyllama-1.1b"))
    other = OnceEdit(hparams_with(plugin={"name": "tinyllama-1.1b", "revision": "v2", "dtype": "float32"}))
    made = [method.artifacts(reference("tiny/llama", corpus=data.ref), data.ref, 0) for method in (plain, other)]
    assert (made[1][EDIT].inputs["plugin"].revision, made[1][EDIT].inputs["plugin"].dtype) == ("v2", "float32")
    assert all(made[0][role].key != made[1][role].key for role in (EDIT, STATE))
    assert plain.hparams.identity() == other.hparams.identity(), "its files are in the keys of the artifacts"


@pytest.fixture
def target():
    return tiny_model("llama")


@pytest.fixture
def folders(plugin_folder, plugin_spec, target, context, tmp_path):
    """All artifacts of a pair, the states built as the harness builds them."""
    llm, plugin = ModelRef("llama2-7b", "pretrained"), ModelRef("tinyllama-1.1b", "pretrained")
    context.models = {llm: target}
    context.folders = {plugin_spec.key: plugin_folder}
    of_edit = {PLUGIN_STATE: state_artifact(plugin, llm, hparams_with(), plugin_spec)}
    folders = {EDIT: plugin_folder}
    for role, spec in {STATE: state_artifact(llm, plugin, hparams_with()), **of_edit}.items():
        folders[role] = tmp_path / role
        folders[role].mkdir()
        build(spec, context, folders[role])
    assert context.clock.phases == ["attach", "attach"]
    context.clock.phases.clear()
    return folders


def test_edit_attaches_and_answers(folders, target, requests, context):
    edited = OnceEdit(hparams_with()).edit(target, requests, folders, context)
    queries = [joint_query(target.tokenizer, request.prompt, request.target_new) for request in requests]
    assert edited.teacher_forced(queries) == [list(query.target_ids) for query in queries]
    assert context.clock.phases == ["attach"]


def test_a_state_that_serves_both_roles_is_read_for_each_of_the_two_models(
    folders, target, requests, context, monkeypatch
):
    """With frozen embeddings, a model that is its own plug-in has one artifact for both sides."""
    read = []
    monkeypatch.setattr(PairState, "require", lambda folder, model: None)
    monkeypatch.setattr(PairState, "load", lambda folder, model: read.append((folder, model)) or len(read))
    monkeypatch.setattr(EnsembleModel, "attach", lambda target, plugin, hparams, *sides: (plugin.model, sides))
    both = {**folders, PLUGIN_STATE: folders[STATE]}
    edited_plugin, sides = OnceEdit(hparams_with()).edit(target, requests, both, context)
    assert sides == (1, 2)
    assert read == [(folders[STATE], target.model), (folders[STATE], edited_plugin)]


def test_the_state_that_is_read_is_the_one_that_was_built(folders, target, plugin):
    read = PairState.load(folders[STATE], target.model)
    built = PairState.of(target.model, (target.tokenizer, plugin.tokenizer), "deepen", "deepen", pair_special=False)
    assert read.anchors == built.anchors
    assert all(tensor.equal(built.state.tensors()[name]) for name, tensor in read.state.tensors().items())
    assert read.state.embeddings_VD.data_ptr() == target.model.get_input_embeddings().weight.data_ptr()
    assert 0 <= read.round_trip <= 1


def test_a_whitened_state_is_read_with_its_geometry(target, tmp_path):
    tokenizers = (target.tokenizer, target.tokenizer)
    built = PairState.of(target.model, tokenizers, "deepen", "whitened", 20.0, pair_special=False)
    built.save(tmp_path)
    read = PairState.load(tmp_path, target.model).state
    assert (read.rule, read.temperature) == ("whitened", 20.0)
    some = slice(0, 9)
    assert read.exponents(some, some).equal(built.state.exponents(some, some))


def test_a_state_of_other_embeddings_is_refused(target, tmp_path):
    """A plug-in in bf16 has other embeddings than the fp32 model that its state was computed from."""
    tokenizers = (target.tokenizer, target.tokenizer)
    PairState.of(target.model, tokenizers, "deepen", "plain", pair_special=False).save(tmp_path)
    PairState.require(tmp_path, target.model)
    with pytest.raises(ValueError, match="other embeddings"):
        PairState.require(tmp_path, target.model.bfloat16())


@pytest.mark.parametrize(("decode", "precision"), [("exact", torch.bfloat16), ("speculative", torch.float32)])
def test_a_bf16_plugin_answers_with_the_embeddings_of_its_state(
    decode, precision, plugin_folder, plugin_spec, target, context, tmp_path
):
    """Its state is computed once, in the precision in which it answers, and not again by every cell."""
    folder, state = tmp_path / "edit", tmp_path / "state"
    shutil.copytree(plugin_folder, folder)
    calibration = json.loads((folder / CALIBRATION).read_text())
    (folder / CALIBRATION).write_text(json.dumps(calibration | {"dtype": "bfloat16"}))
    state.mkdir()
    llm, plugin = ModelRef("llama2-7b", "pretrained"), ModelRef("tinyllama-1.1b", "pretrained", dtype="bfloat16")
    context.models, context.folders = {llm: target}, {plugin_spec.key: folder}
    hparams = hparams_with(decode=decode)
    spec = state_artifact(plugin, llm, hparams, plugin_spec)
    build(spec, context, state)
    answering = EditedPlugin.load(folder, "cpu", hparams.plugin_dtype).model
    assert answering.dtype == precision
    PairState.require(state, answering)
    exact = state_artifact(plugin, llm, hparams_with(), plugin_spec)
    assert (spec.key == exact.key) == (decode == "exact")


def test_both_sides_of_a_pair_count_the_same_anchors_in_the_same_order(folders, target, plugin):
    sides = PairState.load(folders[STATE], target.model), PairState.load(folders[PLUGIN_STATE], plugin.model)
    assert sides[0].anchors.llm_ids == sides[1].anchors.plugin_ids
    assert sides[0].anchors.plugin_ids == sides[1].anchors.llm_ids


def test_all_edits_share_the_state_of_a_plugin_with_frozen_embeddings(data):
    llama = reference("tiny/llama", corpus=data.ref)

    def keys(seed, **changes):
        editor = OnceEdit(hparams_with(plugin="tiny/tinyllama", **changes))
        return {role: spec.key for role, spec in editor.artifacts(llama, data.ref, seed).items()}

    first, second = keys(0, plugin_embeddings="frozen"), keys(1, plugin_embeddings="frozen")
    assert first[EDIT] != second[EDIT]
    assert first[PLUGIN_STATE] == second[PLUGIN_STATE]
    assert keys(0)[PLUGIN_STATE] != keys(1)[PLUGIN_STATE]


def test_a_model_that_is_its_own_plugin_has_one_state(data):
    editor = OnceEdit(hparams_with(plugin="tiny/tinyllama", plugin_embeddings="frozen"))
    specs = editor.artifacts(reference("tiny/tinyllama", corpus=data.ref), data.ref, 0)
    assert specs[STATE].key == specs[PLUGIN_STATE].key


def test_a_lossy_round_trip_is_remarked(folders, target, requests, context):
    edited = OnceEdit(hparams_with()).edit(target, requests, folders, context)
    edited.round_trip = 0.8
    assert edited.remarks() == ("anchor space (relative: deepen) gives back 80% of the model's own tokens",)
    assert edited.diagnostics()["round_trip"] == 0.8
    edited.round_trip = 0.99
    assert edited.remarks() == ()


def test_edit_refuses_other_requests_than_the_plugin_holds(folders, target, requests, context):
    with pytest.raises(ValueError, match="not edited with these"):
        OnceEdit(hparams_with()).edit(target, requests[:2], folders, context)
