"""Parts of a model: bit for bit what the whole computes, gradients too, and the whole is left as it was."""

import copy
import dataclasses

import pytest
import torch

from harness.models.batching import left_padded, right_padded
from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.models.random_weights import random_model
from harness.models.submodels import logits_at, part, streams, streams_of
from harness.models.unflattened import unflatten
from harness.models.weights import weight_hash
from tests.helpers.tiny_models import (
    ARCHITECTURES,
    FAMILIES,
    catalogued_families,
    precise,
    rounding,
    tiny_model,
    tiny_spec,
    tiny_tokenizer,
)

LAYERS = 4
ROWS = ([1, 5, 7, 9, 20, 33, 40, 2, 61, 12, 3, 77], [1, 8, 9], [4, 4, 4, 5, 6, 80])
"""Ids of unequal lengths, the longest beyond all windows."""
PLACES = [(0, 8), (0, 3), (1, 2), (2, 5)]


@pytest.fixture(scope="module", autouse=True)
def _families():
    with catalogued_families():
        yield


@pytest.fixture(params=[*ARCHITECTURES, *FAMILIES])
def model(request):
    """Four layers in fp64; in some architectures some layers see a window and others everything."""
    torch.set_num_threads(1)
    entry = dataclasses.replace(tiny_spec(request.param), n_layers=LAYERS)
    dtype = "float32" if precise(request.param) is torch.float32 else "float64"
    made = random_model(entry, dtype, torch.device("cpu"), 0).eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.dim() == 2:
            parameter.mul_(8)
    return LoadedModel(ModelRef(f"tiny/{request.param}", "random", known=entry), made, tiny_tokenizer(request.param))


def whole(model, batch):
    """The model's own forward, with the residual stream in front of each block (and the normed one behind the last)."""
    return model.model.base_model(
        input_ids=batch.ids_BT,
        attention_mask=batch.mask_BT,
        position_ids=batch.positions_BT,
        use_cache=False,
        output_hidden_states=True,
        return_dict=True,
    )


def test_the_architectures_do_what_makes_them_differ(model):
    """Else equality would prove nothing: windows and kinds of layers matter here."""
    config = model.model.config
    full, windowed = "full_attention", "sliding_attention"
    kinds = {
        "qwen2": [full, *[windowed] * 3],
        "qwen3": [full, *[windowed] * 3],
        "gemma2": [windowed, full] * 2,
        "gemma3_text": [windowed, full] * 2,
        "gpt_neo": ["global", "local"] * 2,
    }
    found = getattr(config, "attention_layers", getattr(config, "layer_types", None))
    assert found == kinds.get(config.model_type)
    far, near = ([ids, *ROWS[0][1:]] for ids in (1, 9))
    last = [part(model, 3)(streams(model, [ids], 3).residual_BTD, *ones(ids))[0, -1] for ids in (far, near)]
    assert not torch.equal(*last), "the first id is seen at the last, through the windows of several layers"


def ones(ids):
    batch = right_padded([ids])
    return batch.mask_BT, batch.positions_BT


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_stream_that_enters_a_block_is_that_of_the_whole_model_bit_for_bit(model, layer):
    batch = right_padded(ROWS)
    found = streams(model, ROWS, layer)
    assert torch.equal(found.residual_BTD, whole(model, batch).hidden_states[layer])
    assert not found.residual_BTD.requires_grad
    assert torch.equal(found.mask_BT, batch.mask_BT)
    assert torch.equal(found.positions_BT, batch.positions_BT)


@pytest.mark.parametrize("layer", range(LAYERS + 1))
def test_going_on_from_a_stream_ends_where_the_whole_model_ends_bit_for_bit(model, layer):
    start = streams(model, ROWS, layer)
    end = part(model, layer)(start.residual_BTD, start.mask_BT, start.positions_BT)
    assert torch.equal(end, whole(model, right_padded(ROWS)).last_hidden_state)


def test_parts_one_after_the_other_are_the_whole(model):
    batch = right_padded(ROWS)
    hidden_BTD = model.first_stream(batch.ids_BT, batch.positions_BT)
    for start, stop in ((0, 1), (1, 3), (3, None)):
        hidden_BTD = part(model, start, stop)(hidden_BTD, batch.mask_BT, batch.positions_BT)
    assert torch.equal(hidden_BTD, whole(model, batch).last_hidden_state)


def test_an_early_exit_stops_before_the_final_norm(model):
    batch = right_padded(ROWS)
    seen = []
    hook = model.module(model.layout.final_norm).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    whole(model, batch)
    hook.remove()
    end = part(model, 0, LAYERS)(
        model.first_stream(batch.ids_BT, batch.positions_BT), batch.mask_BT, batch.positions_BT
    )
    assert torch.equal(end, seen[0])


def test_rows_padded_on_the_left_go_through_as_they_are(model):
    batch = left_padded(ROWS)
    start = streams_of(model, batch, 2)
    end = part(model, 2)(start.residual_BTD, start.mask_BT, start.positions_BT)
    assert torch.equal(end, whole(model, batch).last_hidden_state)


def test_a_row_alone_is_what_it_is_in_a_batch(model):
    together = streams(model, ROWS, 3)
    tolerance = rounding(model.model.config.model_type, fp64=1e-14, fp32=1e-5)
    for index, row in enumerate(ROWS):
        alone = streams(model, [row], 3)
        difference = together.residual_BTD[index, : len(row)] - alone.residual_BTD[0]
        assert difference.abs().max() < tolerance * alone.residual_BTD.abs().max()


@pytest.mark.parametrize("layer", [0, 2, LAYERS])
def test_logits_at_places_are_those_of_the_whole_model(model, layer):
    logits_BTV = model.model(**padded(ROWS)).logits
    expected = torch.stack([logits_BTV[row, column] for row, column in PLACES])
    found = logits_at(model, streams(model, ROWS, layer), layer, PLACES)
    tolerance = 32 * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def test_gradients_behind_a_stream_are_those_of_the_whole_model(model):
    """Of the matrix of the block that the stream enters, and of one further up."""
    weights = [model.model.get_parameter(model.value_matrix(layer)[0]).requires_grad_(True) for layer in (1, 3)]
    logits_BTV = model.model(**padded(ROWS)).logits
    expected = torch.autograd.grad(sum(logits_BTV[row, column].logsumexp(-1) for row, column in PLACES), weights)
    start = streams(model, ROWS, 1)
    found = torch.autograd.grad(logits_at(model, start, 1, PLACES).logsumexp(-1).sum(), weights)
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-3
        tolerance = 1e3 * torch.finfo(other.dtype).eps
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


def padded(rows):
    batch = right_padded(rows)
    return {
        "input_ids": batch.ids_BT,
        "attention_mask": batch.mask_BT,
        "position_ids": batch.positions_BT,
        "use_cache": False,
    }


def test_a_part_sees_new_weights_hooks_and_replaced_parameters(model):
    """It shares modules: what an editor does to a block between two calls shows in the second."""
    start = streams(model, ROWS, 1)
    behind = part(model, 1)
    name = model.value_matrix(2)[0]
    weight = model.model.get_parameter(name)
    plain = behind(start.residual_BTD, start.mask_BT, start.positions_BT)

    def as_whole():
        found = behind(start.residual_BTD, start.mask_BT, start.positions_BT)
        assert torch.equal(found, whole(model, right_padded(ROWS)).last_hidden_state)
        assert not torch.equal(found, plain), "the change must show at all"

    with torch.no_grad():
        weight.mul_(1.5)
    as_whole()
    owner = model.model.get_submodule(name.rpartition(".")[0])
    owner.weight = torch.nn.Parameter(torch.randn_like(weight), requires_grad=False)
    as_whole()
    owner.weight = weight
    with torch.no_grad():
        weight.div_(1.5)
    owner.register_forward_hook(lambda module, inputs, output: output * 2)
    as_whole()


def test_the_model_is_left_as_it_was(model):
    before = weight_hash(model.model)
    modules = [(name, id(module)) for name, module in model.model.named_modules()]
    config = copy.deepcopy(model.model.config.to_dict())
    start = streams(model, ROWS, 2)
    logits_at(model, start, 2, PLACES)
    part(model, 1, 2)
    assert weight_hash(model.model) == before
    assert [(name, id(module)) for name, module in model.model.named_modules()] == modules
    assert model.model.config.to_dict() == config
    assert model.model.base_model.config is model.model.config


def test_half_precision_gives_logits_in_fp32(model):
    model.model.bfloat16()
    found = logits_at(model, streams(model, ROWS, 1), 1, PLACES)
    assert found.dtype == torch.float32
    logits_BTV = model.model(**padded(ROWS)).logits
    expected = torch.stack([logits_BTV[row, column] for row, column in PLACES]).float()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, LAYERS + 1), (LAYERS + 1, None)])
def test_blocks_that_do_not_exist_are_refused(model, start, stop):
    with pytest.raises(ValueError, match="has 4 blocks"):
        part(model, start, stop)


@pytest.mark.parametrize("architecture", ["opt", "opt-projected"])
def test_opt_whose_matrices_see_rows_says_the_same_bit_for_bit(architecture):
    made = tiny_model(architecture).model
    batch = padded(ROWS)
    expected_BTV = made(**batch).logits
    unflatten(made)
    seen = []
    made.model.decoder.layers[1].fc2.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:2]))
    assert torch.equal(made(**batch).logits, expected_BTV)
    assert seen == [batch["input_ids"].shape]
