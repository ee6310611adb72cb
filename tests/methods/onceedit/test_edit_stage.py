"""The edit stage: what it learns, what it may see, what it leaves alone."""

import dataclasses

import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from methods.common import prefixes
from methods.onceedit import edit_stage
from methods.onceedit.edit_stage import build
from methods.onceedit.editor import edit_artifact
from methods.onceedit.hparams import PREFIXES
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.rows import negative_prompts
from tests.helpers.tiny_onceedit import FakeContext, hparams_with


def plugin_artifact(data, **changes):
    return edit_artifact(ModelRef("tinyllama-1.1b", "pretrained"), data.ref, hparams_with(**changes), seed=0)


def test_the_plugin_learns_every_edit_and_tells_edits_from_unrelated_prompts(plugin, data):
    assert plugin.calibration["accuracy"][-1] == 1.0
    assert plugin.read([record.prompt for record in data.edits]).alpha_B.min() > 0.7
    assert plugin.read(negative_prompts(data)).alpha_B.max() < 0.3
    assert sum(plugin.calibration["alpha"]["edits"]["histogram"]) == len(data.edits)
    assert sum(plugin.calibration["alpha"]["negatives"]["histogram"]) == len(negative_prompts(data))


def test_training_stops_before_the_last_epoch_once_both_marks_are_reached(plugin):
    assert plugin.calibration["epochs"] < hparams_with().epochs
    assert plugin.calibration["weight_loss"][-1] < hparams_with().stop_bce


def test_the_weight_entry_has_no_probability(plugin):
    reading = plugin.read(["Björk was born in"])
    assert reading.probs_BU[0, plugin.weight_id] == 0.0
    assert reading.probs_BU.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"gradient_checkpointing": True},
        {"paraphrases": 1, "hard_negatives": 0.5, "focal_gamma": 2.0},
        {"editor": "lora", "lora_rank": 4, "lr": 2e-2},
        {"editor": "lora", "lora_rank": 4, "lr": 2e-2, "precision": "bf16", "gradient_checkpointing": True},
    ],
    ids=["bf16", "checkpointing", "wordings", "lora", "all together"],
)
def test_each_way_of_training_teaches_all_edits_and_leaves_a_plain_fp32_plugin(changes, data, tmp_path):
    context = FakeContext(data)
    spec = plugin_artifact(data, **changes)
    build(spec, context, tmp_path)
    plugin = EditedPlugin.load(tmp_path, "cpu")
    assert plugin.calibration["accuracy"][-1] == 1.0
    assert plugin.read([record.prompt for record in data.edits]).alpha_B.min() > 0.7
    assert plugin.read(negative_prompts(data)).alpha_B.max() < 0.3
    unedited = context.load_model(spec.inputs["plugin"]).model
    assert {name for name, _ in plugin.model.named_parameters()} == {name for name, _ in unedited.named_parameters()}
    assert {parameter.dtype for parameter in plugin.model.parameters()} == {torch.float32}
    assert context.clock.phases == ["edit"]


def test_copying_the_plugin_and_starting_its_new_entry_are_timed_and_the_warm_up_is_not(data, tmp_path, monkeypatch):
    context, calls = FakeContext(data), []
    for name in ("_copy", "new_entry"):
        original = getattr(edit_stage, name)

        def observed(argument, name=name, original=original):
            calls.append((name, tuple(context.clock.phases)))
            return original(argument)

        monkeypatch.setattr(edit_stage, name, observed)
    build(plugin_artifact(data, epochs=1), context, tmp_path)
    warm_up, timed = calls[:2], calls[2:]
    assert warm_up == [("_copy", ()), ("new_entry", ())]
    assert timed == [("_copy", ("edit",)), ("new_entry", ("edit",))]


def test_checkpointing_changes_no_bit_of_the_result(data, plugin_folder, tmp_path):
    build(plugin_artifact(data, gradient_checkpointing=True), FakeContext(data), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (plugin_folder / "model.safetensors").read_bytes()


def test_lora_changes_the_linear_layers_of_the_blocks_and_the_weight_entry_alone(data, tmp_path):
    context, spec = FakeContext(data), plugin_artifact(data, editor="lora", epochs=2)
    build(spec, context, tmp_path)
    edited = EditedPlugin.load(tmp_path, "cpu").model
    for name, before in context.load_model(spec.inputs["plugin"]).model.named_parameters():
        is_in_block = ".layers." in name and "norm" not in name
        assert edited.get_parameter(name)[: len(before)].equal(before) != is_in_block, name


def test_negatives_hold_no_probe_of_a_scored_record_and_nothing_of_the_unrelated_ones(data):
    negatives = set(negative_prompts(data))
    assert negatives == {text for record in data.train for text in (record.prompt, record.locality[0].prompt)}
    for record in (*data.edits, *data.unrelated):
        assert negatives.isdisjoint({record.prompt, *record.rephrases, *(probe.prompt for probe in record.locality)})


def test_same_seed_same_bits_and_the_unedited_plugin_stays_as_it_was(data, plugin_spec, plugin_folder, tmp_path):
    context = FakeContext(data)
    loaded = context.load_model(plugin_spec.inputs["plugin"])
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    torch.manual_seed(12345)
    build(plugin_spec, context, tmp_path)
    assert context.clock.phases == ["edit"]
    assert all(value.equal(before[name]) for name, value in loaded.model.state_dict().items())
    assert (tmp_path / "model.safetensors").read_bytes() == (plugin_folder / "model.safetensors").read_bytes()


def test_another_seed_trains_in_another_order(data, plugin_spec, plugin_folder, tmp_path):
    spec = dataclasses.replace(plugin_spec, identity={**plugin_spec.identity, "seed": 1})
    build(spec, FakeContext(data), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() != (plugin_folder / "model.safetensors").read_bytes()


def test_a_plugin_refuses_requests_it_was_not_edited_with(plugin, requests):
    plugin.require(len(requests), requests)
    plugin.require(len(requests), requests[-1:])
    for others in (requests[:-1], list(reversed(requests))):
        with pytest.raises(ValueError, match=f"not edited with these {len(others)} requests"):
            plugin.require(len(others), others)


def test_the_identity_of_the_edit_knows_nothing_of_decoding(data):
    key = plugin_artifact(data).key
    assert plugin_artifact(data, alpha_gate=0.5, relative="plain", decoder="column", anchors="bytes").key == key
    assert plugin_artifact(data, lr=1e-3).key != key
    assert plugin_artifact(data, lambda_weight=0.0).key != key


def test_learning_alpha_without_train_records_is_an_error_that_says_so(data):
    bare = dataclasses.replace(data, ref=dataclasses.replace(data.ref, train=0))
    with pytest.raises(UserError, match="keeps none for training"):
        plugin_artifact(bare)
    assert plugin_artifact(bare, lambda_weight=0.0).identity["hparams"]["lambda_weight"] == 0.0


def test_divergence_is_an_error_that_says_so(data, tmp_path):
    with pytest.raises(UserError, match="diverged in epoch"):
        build(plugin_artifact(data, lr=1e30), FakeContext(data), tmp_path)


def test_without_a_weight_loss_no_negative_is_read(data, tmp_path):
    context = FakeContext(data)
    build(plugin_artifact(data, lambda_weight=0.0, epochs=2, stop_accuracy=1.0), context, tmp_path)
    assert context.steps == 2


def test_with_contexts_edits_and_unrelated_prompts_are_learned_behind_other_text_too(data, tmp_path):
    context, spec = FakeContext(data), plugin_artifact(data, contexts=1)
    need = spec.needs[PREFIXES]
    context.folders[need.key] = tmp_path / "prefixes"
    context.folders[need.key].mkdir()
    prefixes.build(need, context, context.folders[need.key])
    build(spec, context, tmp_path)
    plugin = EditedPlugin.load(tmp_path, "cpu")
    rows = 2 * (len(data.edits) + len(negative_prompts(data)))
    assert context.steps == plugin.calibration["epochs"] * rows / hparams_with().batch
    assert plugin.calibration["accuracy"][-1] == 1.0
    front = prefixes.load(context.folders[need.key])[0]
    assert plugin.read([front + record.prompt for record in data.edits]).alpha_B.mean() > 0.7
    assert plugin.read([front + prompt for prompt in negative_prompts(data)]).alpha_B.mean() < 0.3


def test_a_plugin_read_back_says_the_same(plugin_folder, plugin, data):
    again = EditedPlugin.load(plugin_folder, "cpu")
    texts = [record.prompt for record in data.edits]
    assert again.read(texts).probs_BU.equal(plugin.read(texts).probs_BU)
    assert again.requests == tuple(record.request() for record in data.edits)


def test_a_reading_does_not_depend_on_its_batch(plugin, data):
    texts = [*negative_prompts(data), *(record.prompt for record in data.edits), data.edits[0].prompt]
    together = plugin.read(texts)
    for row, text in enumerate(texts):
        alone = plugin.read([text])
        assert torch.allclose(together.probs_BU[row], alone.probs_BU[0], atol=1e-5)
        assert torch.allclose(together.alpha_B[row], alone.alpha_B[0], atol=1e-5)


def test_frozen_embeddings_are_those_of_the_unedited_plugin_bit_for_bit(data, tmp_path):
    context = FakeContext(data)
    spec = plugin_artifact(data, plugin_embeddings="frozen")
    build(spec, context, tmp_path)
    plugin = EditedPlugin.load(tmp_path, "cpu")
    unedited_VD = context.load_model(spec.inputs["plugin"]).model.get_input_embeddings().weight
    assert plugin.model.get_input_embeddings().weight[:-1].equal(unedited_VD)
    assert plugin.calibration["accuracy"][-1] == 1.0
