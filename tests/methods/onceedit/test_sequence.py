"""OnceEdit in sequence: training goes on from the plug-in of the block before, and replays some of its edits."""

import copy
from dataclasses import replace

import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.records import FirstEdits
from methods.onceedit.edit_stage import build
from methods.onceedit.editor import OnceEdit, edit_artifact
from methods.onceedit.hparams import EARLIER
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.weight_entry import append_entry, new_entry, take_entry
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import FakeContext, hparams_with

TARGET = ModelRef("llama2-7b", "pretrained")
PLUGIN = ModelRef("tinyllama-1.1b", "pretrained", dtype="bfloat16")
"""Answers in half precision, as the paper's plug-in does; it is trained in fp32 all the same."""


@pytest.fixture(scope="module")
def blocks(data, tmp_path_factory):
    """The plug-ins after two edits and after all four, made one from the other."""
    context, made = FakeContext(data), []
    for so_far in (2, 4):
        ref = FirstEdits.of(data.ref, so_far) if so_far < 4 else data.ref
        earlier = made[-1][0] if made else None
        spec = edit_artifact(PLUGIN, ref, hparams_with(), 0, earlier)
        folder = tmp_path_factory.mktemp(f"block{so_far}")
        steps = context.steps
        build(spec, context, folder)
        context.folders[spec.key] = folder
        made.append((spec, folder, context.steps - steps))
    return made


def test_each_block_has_the_edits_of_all_before_it_and_answers_them(blocks, data):
    requests = tuple(record.request() for record in data.edits)
    for so_far, (_, folder, _) in zip((2, 4), blocks, strict=True):
        plugin = EditedPlugin.load(folder, "cpu")
        assert plugin.requests == requests[:so_far]
        assert plugin.calibration["accuracy"][-1] == 1.0
        assert plugin.read([request.prompt for request in requests[:so_far]]).alpha_B.min() > 0.7


def test_training_goes_on_from_the_weights_of_the_block_before(blocks, data, tmp_path):
    """With a learning rate of nothing, the second block leaves what the first has left."""
    context = FakeContext(data)
    first, folder, _ = blocks[0]
    context.folders[first.key] = folder
    still = hparams_with(lr=1e-30, weight_decay=0.0, epochs=1)
    build(edit_artifact(PLUGIN, data.ref, still, 0, first), context, tmp_path)
    before, after = (EditedPlugin.load(each, "cpu", "float32").model.state_dict() for each in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize(("replay", "steps"), [(0.0, 1), (0.5, 2), (9.0, 2)])
def test_an_epoch_has_so_many_earlier_edits_or_all(replay, steps, blocks, data, tmp_path):
    """Two edits and their four unrelated prompts fill a batch of six; an earlier edit brings two more prompts with it."""
    context = FakeContext(data)
    first, folder, _ = blocks[0]
    context.folders[first.key] = folder
    hparams = hparams_with(replay=replay, epochs=1, batch=6)
    build(edit_artifact(PLUGIN, data.ref, hparams, 0, first), context, tmp_path)
    assert context.steps == steps


def test_the_weight_entry_comes_off_as_it_was_put_on(plugin):
    model = copy.deepcopy(plugin.model)
    tables = {name: value.clone() for name, value in model.state_dict().items()}
    entry = take_entry(model, plugin.weight_id)
    assert model.get_input_embeddings().weight.shape[0] == plugin.weight_id
    assert entry.weight.shape == new_entry(model).weight.shape
    assert append_entry(model, entry) == plugin.weight_id
    head = model.get_output_embeddings().weight
    assert head.equal(plugin.model.get_output_embeddings().weight)
    assert all(model.state_dict()[name].equal(value) for name, value in tables.items() if "embed" not in name)


def test_a_sequence_is_a_chain_of_edits_that_share_what_no_edit_changes(data):
    ref = replace(data.ref, edits=30)
    method = OnceEdit(hparams_with(plugin_embeddings="frozen"))
    needed = method.artifacts_in_sequence(TARGET, ref, 0, [10, 20, 30])
    assert list(needed) == ["relative_state", "plugin_state", "plugin_edit/10", "plugin_edit/20", "plugin_edit/30"]
    assert needed["plugin_edit/30"].needs[EARLIER] == needed["plugin_edit/20"]
    assert needed["plugin_edit/20"].needs[EARLIER] == needed["plugin_edit/10"]
    trained = OnceEdit(hparams_with()).artifacts_in_sequence(TARGET, ref, 0, [10, 20, 30])
    assert {"plugin_state/10", "plugin_state/20", "plugin_state/30"} < set(trained)


def test_replay_changes_what_depends_on_it_and_nothing_else(data):
    ref = replace(data.ref, edits=20)
    one, two = (OnceEdit(hparams_with(replay=replay)) for replay in (1.0, 2.0))
    assert one.hparams.identity() == two.hparams.identity()
    assert one.artifacts(TARGET, ref, 0)["plugin_edit"].key == two.artifacts(TARGET, ref, 0)["plugin_edit"].key
    chains = [method.artifacts_in_sequence(TARGET, ref, 0, [10, 20]) for method in (one, two)]
    assert chains[0]["plugin_edit/10"].key == chains[1]["plugin_edit/10"].key
    assert chains[0]["plugin_edit/20"].key != chains[1]["plugin_edit/20"].key


def test_a_method_as_editor_is_refused_in_sequence(data):
    with pytest.raises(UserError, match="cannot go on from its edits in sequence") as caught:
        OnceEdit(hparams_with(editor="rome")).artifacts_in_sequence(TARGET, data.ref, 0, [2, 4])
    assert "editor: full or lora" in str(caught.value)


def test_an_extended_model_has_the_plugin_of_all_its_edits(blocks, data):
    """Extending, and restoring by an extension without requests, as after an interruption."""
    method = OnceEdit(hparams_with(decoder="gac"))
    folders = {f"plugin_edit/{so_far}": folder for so_far, (_, folder, _) in zip((2, 4), blocks, strict=True)}
    requests, target, context = [record.request() for record in data.edits], tiny_model("llama"), FakeContext(data)
    first = method.edit(target, requests[:2], folders, context)
    second = method.extend(target, first.state(), requests[2:], folders, context)
    again = method.extend(target, second.state(), (), folders, context)
    assert int(first.state()["edits"]) == 2
    for model in (second, again):
        assert model.plugin.requests == tuple(requests)
        assert model.state()["edits"].equal(torch.tensor(4))
    with pytest.raises(ValueError, match="not edited with these 4 requests"):
        method.extend(target, first.state(), requests[:2], folders, context)
