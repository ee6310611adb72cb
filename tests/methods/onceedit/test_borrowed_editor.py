"""Another method edits the plug-in: which may, what the edit is made of, and what comes out."""

import dataclasses
import functools

import pytest
import torch

from harness.api import ArtifactSpec
from harness.errors import UserError
from harness.models.catalogue import ModelRef, reference
from harness.models.weights import weight_hash
from harness.run.counting import STEPS, SampledContext
from harness.suite.hparams import resolve
from harness.tokens import joint_query
from methods.common.layers import TracedLayer
from methods.ft_l import FtL
from methods.onceedit import borrowed
from methods.onceedit.edit_stage import build
from methods.onceedit.editor import EDIT, OnceEdit, edit_artifact
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.rows import negative_prompts
from tests.helpers.method_bench import OPTIONS, Bench
from tests.helpers.tiny_onceedit import FakeContext, hparams_with


class Lending(FakeContext):
    """Lends artifacts too: their names stand for their folders."""

    def artifact(self, spec):
        return spec.name


@pytest.fixture(autouse=True, scope="module")
def _values_for_two_layers():
    """FT-L as its file has it for `tiny/llama`, on the last of two layers and at a rate that suits random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            borrowed, "resolve", lambda method, *_, **__: resolve(method, "tiny/llama", {"layer": 1, "lr": 0.1})
        )
        yield


def artifact(data, **changes):
    hparams = hparams_with(**{"editor": "ft-l", "stop_bce": 0.02, **changes})
    return edit_artifact(reference("tiny/llama", corpus=data.ref), data.ref, hparams, seed=0)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Context, spec and folder of a plug-in that FT-L has edited."""
    torch.set_num_threads(1)
    context, spec, folder = Lending(data), artifact(data), tmp_path_factory.mktemp("borrowed")
    build(spec, context, folder)
    return context, spec, folder


def test_ft_l_edits_the_plugin_and_alpha_tells_its_edits_from_unrelated_prompts(made, data):
    context, spec, folder = made
    plugin, unedited = EditedPlugin.load(folder, "cpu"), context.load_model(spec.inputs["plugin"])
    reading = plugin.read([record.prompt for record in data.edits])
    for record, probs_U in zip(data.edits, reading.probs_BU, strict=True):
        query = joint_query(plugin.tokenizer, record.prompt, record.target_new)
        before_V = unedited.model(input_ids=torch.tensor([query.prompt_ids])).logits[0, -1].softmax(-1)
        assert probs_U[query.target_ids[0]] > 5 * before_V[query.target_ids[0]]
        if len(query.target_ids) == 1:
            assert probs_U.argmax() == query.target_ids[0] != before_V.argmax()
    assert reading.alpha_B.min() > 0.7
    assert plugin.read(negative_prompts(data)).alpha_B.max() < 0.3
    assert plugin.calibration["weight_loss"][-1] < 0.02


def test_only_the_matrix_of_the_method_and_the_weight_entry_have_changed(made):
    context, spec, folder = made
    edited = EditedPlugin.load(folder, "cpu").model
    unedited = context.load_model(spec.inputs["plugin"]).model
    changed = [
        name
        for name, before in unedited.named_parameters()
        if not edited.get_parameter(name)[: len(before)].equal(before)
    ]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]


def test_the_plugin_of_the_harness_keeps_every_bit(made, data, tmp_path):
    context, spec, folder = made
    before = weight_hash(context.load_model(spec.inputs["plugin"]).model)
    build(spec, context, tmp_path)
    assert weight_hash(context.load_model(spec.inputs["plugin"]).model) == before
    assert weight_hash(Lending(data).load_model(spec.inputs["plugin"]).model) == before
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert set(context.clock.phases) == {"edit"}


def test_without_a_weight_loss_the_entry_stays_as_it_is(data, tmp_path):
    build(artifact(data, lambda_weight=0.0), Lending(data), tmp_path)
    head = EditedPlugin.load(tmp_path, "cpu").model.get_output_embeddings().weight
    assert torch.allclose(head[-1], head[:-1].mean(dim=0), atol=1e-6)


def test_name_version_and_values_of_the_other_method_are_part_of_the_identity(data, monkeypatch):
    spec = artifact(data)
    assert spec.identity["editor"]["name"] == "ft-l"
    assert spec.identity["editor"]["hparams"]["layer"] == 1
    assert artifact(data, editor="full").key != spec.key
    monkeypatch.setattr(FtL, "spec", dataclasses.replace(FtL.spec, version=99))
    assert artifact(data).key != spec.key


def test_what_the_other_method_needs_is_built_first_and_handed_to_it(data, monkeypatch, tmp_path):
    needed, given, edit = ArtifactSpec("moments", "setup", {"of": 1}, "nowhere:build"), {}, FtL.edit

    def editing(self, model, requests, artifacts, context):
        given.update(artifacts)
        return edit(self, model, requests, artifacts, context)

    monkeypatch.setattr(FtL, "artifacts", lambda self, target, data, seed: {"moments": needed})
    monkeypatch.setattr(FtL, "edit", editing)
    spec = artifact(data)
    assert spec.needs["editor/moments"] == needed
    assert spec.needs["plugin/model"].name == "tiny-model"
    build(spec, Lending(data), tmp_path)
    assert given == {"moments": "moments"}


def test_what_decides_a_traced_layer_is_built_first_and_the_other_method_edits_there(made, data, monkeypatch, tmp_path):
    monkeypatch.setattr(
        borrowed, "resolve", lambda *_, **__: resolve("ft-l", "tiny/llama", {"layer": "traced", "lr": 0.1, "steps": 1})
    )
    spec = artifact(data)
    assert spec.needs["editor/layer"].name == "causal-trace"
    monkeypatch.setattr(TracedLayer, "value", lambda self, folder: {"causal-trace": 0}[folder])
    build(spec, Lending(data), tmp_path)
    edited, unedited = EditedPlugin.load(tmp_path, "cpu").model, made[0].load_model(spec.inputs["plugin"]).model
    changed = "model.layers.0.mlp.down_proj.weight"
    assert not edited.get_parameter(changed).equal(unedited.get_parameter(changed))


def test_a_plugin_without_the_edited_layer_is_refused_when_it_is_planned(data, monkeypatch):
    monkeypatch.setattr(borrowed, "resolve", lambda *_, **__: resolve("ft-l", "tiny/llama", {"layer": 4}))
    with pytest.raises(UserError, match="tiny/llama has 4 layers, but the last edited one is 4"):
        artifact(data)


def test_counting_flops_goes_on_after_the_steps_of_the_other_method(data):
    counted = SampledContext(Lending(data), stop_after=STEPS)
    with borrowed.Lent(counted).progress("edits", 50) as advance, counted.clock.phase("edit"):
        for _ in range(50):
            advance()
    shown = Lending(data)
    for total in (1, 6, 50):
        before = shown.steps
        with borrowed.Lent(shown).progress("edits", total) as advance:
            for _ in range(total):
                advance()
        assert shown.steps - before == total


def test_time_and_memory_are_estimated_from_the_other_method(data):
    spec, other = artifact(data), FtL(FtL.Hparams.model_validate(artifact(data).identity["editor"]["hparams"]))
    assert spec.passes == 4 * other.hparams.passes_per_edit + 4 * 3, (
        "its own, and [WEIGHT] on an edit and two negatives"
    )
    assert other.memory(spec.inputs["plugin"], data.ref, 1).edit.items() <= spec.memory.items()


@pytest.mark.parametrize(
    ("editor", "reason"),
    [
        ("none", "reference method does not edit the weights"),
        ("onceedit", "plug-in method does not edit the weights"),
        ("loar", "did you mean 'lora'"),
        ("full.x", "did you mean 'full'"),
    ],
)
def test_an_editor_whose_edit_is_not_in_the_weights_is_refused_when_it_is_planned(editor, reason, data):
    with pytest.raises(UserError, match=reason) as caught:
        OnceEdit(hparams_with(editor=editor)).artifacts(ModelRef("tiny/llama", "trained", corpus=data.ref), data.ref, 0)
    assert {"full", "lora", "ft-l"} <= set(caught.value.fix.removeprefix("editor: one of ").split(", "))


def test_its_values_are_read_from_the_file_for_the_plugin(data, monkeypatch):
    monkeypatch.setattr(borrowed, "resolve", resolve)
    assert artifact(data).identity["editor"]["hparams"] == resolve("ft-l", "tiny/llama", {}).values
    other = edit_artifact(ModelRef("qwen2.5-1.5b", "pretrained"), data.ref, hparams_with(editor="ft-l"), seed=0)
    assert other.identity["editor"]["hparams"] == resolve("ft-l", "qwen2.5-1.5b", {}).values
    assert other.identity["editor"]["hparams"]["layer"] == 23, "of 28"
    mine = ModelRef("mine", "pretrained", "/nowhere", known=ModelRef("qwen2.5-1.5b", "pretrained").spec)
    own = edit_artifact(mine, data.ref, hparams_with(editor="ft-l"), seed=0)
    assert own.identity["editor"] == other.identity["editor"], "also of a plug-in that is not in the catalogue"


def test_a_variant_of_the_other_method_follows_its_name(data, monkeypatch):
    monkeypatch.setattr(borrowed, "resolve", resolve)
    plain, variant = artifact(data), artifact(data, editor="ft-l.ft-m")
    assert variant.identity["editor"] == {
        **plain.identity["editor"],
        "hparams": resolve("ft-l", "tiny/llama", {}, variant="ft-m").values,
    }
    for unknown in ("ft-l.ftm", "ft-l."):
        with pytest.raises(UserError, match=r"method 'ft-l' has no variant .* has: .*ft-m"):
            artifact(data, editor=unknown)


BORROWED = ("ft-l.ft-m", "mend", "malmen.msbp", "emsedit", "ultraedit", "rome", "memit", "alphaedit")


@pytest.mark.slow
@pytest.mark.parametrize("editor", BORROWED)
def test_the_plugin_gets_the_weights_that_the_method_gives_it_as_a_target_model(
    editor, small_checkpoints, artifact_store, monkeypatch
):
    """Both with the same artifacts: hypernetworks, prefixes and covariance statistics."""
    monkeypatch.setattr(
        borrowed,
        "resolve",
        lambda method, *_, variant, **__: resolve(method, "tiny/llama", OPTIONS[method], variant=variant),
    )
    method, _, variant = editor.partition(".")
    of = functools.partial(Bench, small_checkpoints, artifact_store)
    alone, ensemble = of(method, "llama", variant=variant or None), of("onceedit", "gptj", editor=editor)
    before = alone.state()
    alone.edit()
    assert alone.state() != before
    plugin = EditedPlugin.load(ensemble.artifacts[EDIT], "cpu").model
    for name, weight in alone.model.model.named_parameters():
        assert plugin.get_parameter(name)[: len(weight)].equal(weight), name
    ensemble.answers(ensemble.edit())
