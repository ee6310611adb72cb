"""The edit stage: what it learns, what it may see, what it leaves alone."""

import dataclasses
import json

import pytest
import torch
from tiny_models import tiny_model
from tiny_onceedit import FakeContext, hparams_with

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from methods.onceedit.edit_stage import Row, _batches, _edit_rows, build, losses, negative_prompts
from methods.onceedit.editor import edit_artifact
from methods.onceedit.plugin import CALIBRATION, EditedPlugin, add_weight_entry, edits_digest


def tied(model):
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


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
    plugin.require(list(reversed(requests)))
    with pytest.raises(ValueError, match="not edited with these 3 requests"):
        plugin.require(requests[:-1])


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


def test_the_batch_loss_is_the_sum_of_both_losses_over_the_right_positions():
    loaded = tiny_model("llama", seed=3)
    weight_id = add_weight_entry(loaded.model)
    rows = [
        Row((1, 40, 41, 42, 43), 3, 2, True),
        Row((1, 50, 51), None, 2, False),
        Row((1, 60, 61, 62, 63, 64), None, 5, False),
    ]
    loss, _ = losses(loaded.model, weight_id, rows, lambda_weight=0.8, negative_weight=0.25)
    generation, weight, total = 0.0, 0.0, 0.0
    for row in rows:
        logits = loaded.model(input_ids=torch.tensor([row.ids])).logits[0]
        for at in range(3, 5) if row.is_edit else ():
            generation -= logits[at - 1].log_softmax(-1)[row.ids[at]] / 2
        alpha, share = logits[row.weight_at, weight_id].sigmoid(), 1.0 if row.is_edit else 0.25
        weight -= share * (alpha if row.is_edit else 1 - alpha).log()
        total += share
    assert loss.item() == pytest.approx((generation + 0.8 * weight / total).item(), rel=1e-5)


def test_a_batch_of_negatives_alone_has_no_generation_loss():
    loaded = tiny_model("llama", seed=3)
    weight_id = add_weight_entry(loaded.model)
    _, figures = losses(loaded.model, weight_id, [Row((1, 50, 51), None, 2, False)], 1.0, 1.0)
    assert figures[:3].tolist() == [0.0, 0.0, 0.0]
    assert figures[3] > 0


@pytest.mark.parametrize(("ratio", "batch", "edits_per_batch"), [(1, 8, {4}), (4, 5, {1}), (20, 7, {0, 1})])
def test_an_epoch_spreads_the_edits_evenly_and_reads_each_once(ratio, batch, edits_per_batch):
    edits = [[Row((n,), None, 0, True)] for n in range(8)]
    negatives = [Row((100 + n,), None, 0, False) for n in range(300)]
    made = list(_batches(edits, negatives, 8 * ratio, batch, torch.Generator().manual_seed(0)))
    rows = [row for rows in made for row in rows]
    assert sorted(row.ids[0] for row in rows if row.is_edit) == list(range(8))
    assert len({row.ids for row in rows}) == 8 * (1 + ratio)
    assert {sum(row.is_edit for row in rows) for rows in made[:-1]} == edits_per_batch


@pytest.mark.parametrize("architecture", ["llama", "gptj", "tied"])
def test_the_weight_entry_starts_as_the_mean_of_all_entries(architecture):
    model = tied(tiny_model("llama").model) if architecture == "tied" else tiny_model(architecture).model
    old = model.get_input_embeddings().weight.clone()
    weight_id = add_weight_entry(model)
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert weight_id == len(old)
    assert inputs.weight[:-1].equal(old)
    assert torch.allclose(inputs.weight[weight_id], old.mean(dim=0))
    assert torch.allclose(head.weight[weight_id], head.weight[:-1].mean(dim=0), atol=1e-6)
    assert (head.weight.data_ptr() == inputs.weight.data_ptr()) == (architecture == "tied")
    if architecture == "gptj":
        assert head.bias.shape[0] == weight_id + 1
        assert torch.allclose(head.bias[weight_id], head.bias[:-1].mean())


def test_a_prompt_that_joint_tokenisation_cuts_gets_a_row_of_its_own(requests):
    tokenizer = tiny_model("llama").tokenizer
    whole = _edit_rows(tokenizer, requests[0])
    assert [row.weight_at is not None for row in whole] == [True]
    cut = _edit_rows(tokenizer, dataclasses.replace(requests[0], prompt=requests[0].prompt + " "))
    assert [(row.label_from is not None, row.weight_at is not None) for row in cut] == [(True, False), (False, True)]
    assert cut[1].ids == tuple(tokenizer(requests[0].prompt + " ")["input_ids"])


def test_a_plugin_read_back_says_the_same(plugin_folder, plugin, data):
    again = EditedPlugin.load(plugin_folder, "cpu")
    texts = [record.prompt for record in data.edits]
    assert again.read(texts).probs_BU.equal(plugin.read(texts).probs_BU)
    assert json.loads((plugin_folder / CALIBRATION).read_text())["edits"] == edits_digest(
        [record.request() for record in data.edits]
    )


def test_a_reading_does_not_depend_on_its_batch(plugin, data):
    texts = [*negative_prompts(data), *(record.prompt for record in data.edits), data.edits[0].prompt]
    together = plugin.read(texts)
    for row, text in enumerate(texts):
        alone = plugin.read([text])
        assert torch.allclose(together.probs_BU[row], alone.probs_BU[0], atol=1e-5)
        assert torch.allclose(together.alpha_B[row], alone.alpha_B[0], atol=1e-5)
