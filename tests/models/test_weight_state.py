"""Changed weights are found, kept and put back, in the model's precision and in a wider one."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.models.weights import InstalledWeights, changed, fingerprint, weight_hash
from harness.tokens import joint_query
from methods.common.matrices import ValueMatrices
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request):
    return request.param


@pytest.fixture(params=ARCHITECTURES)
def model(request, dtype):
    torch.set_num_threads(1)
    made = tiny_model(request.param)
    made.model.to(dtype)
    return made


def edit(model, layers):
    """As a closed-form method does: in half precision the matrices become float32, with casts around them."""
    matrices = ValueMatrices(model, layers)
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        weight_VK = model.value_matrix(layer)[1]
        matrices.add(layer, torch.randn(weight_VK.T.shape, generator=generator) / 1000)
    return matrices


def logits(model):
    query = joint_query(model.tokenizer, "The capital of France is", "Paris")
    with torch.no_grad():
        return model.model(torch.tensor([query.prompt_ids])).logits


def test_only_the_modules_that_changed_are_found(model):
    before = fingerprint(model.model)
    assert changed(model.model, before) == {}
    matrices = edit(model, [1])
    path = model.path(model.layout.value_matrix, 1)
    owner = model.model.get_submodule(path)
    found = changed(model.model, before)
    assert found.keys() == {f"{path}.{leaf}" for leaf, _ in owner.named_parameters()}
    assert torch.equal(found[f"{path}.weight"], owner.weight)
    matrices.restore()
    assert changed(model.model, before) == {}


def test_one_bit_is_a_change(model):
    before = fingerprint(model.model)
    parameter = next(model.model.parameters())
    parameter.data.view(-1).view(torch.uint8)[0] ^= 1
    assert len(changed(model.model, before)) >= 1


def test_weights_from_a_file_make_the_same_model_and_go_without_a_trace(model, tmp_path):
    before, parameters = fingerprint(model.model), list(model.model.parameters())
    unedited, unedited_hash = logits(model), weight_hash(model.model)
    matrices = edit(model, [0, 1])
    edited, edited_hash = logits(model), weight_hash(model.model)
    assert not torch.equal(edited, unedited)
    save_file({name: value.clone() for name, value in changed(model.model, before).items()}, tmp_path / "weights")
    matrices.restore()

    installed = InstalledWeights(model.model, load_file(tmp_path / "weights"))
    assert weight_hash(model.model) == edited_hash
    assert torch.equal(logits(model), edited)
    installed.restore()
    assert weight_hash(model.model) == unedited_hash
    assert torch.equal(logits(model), unedited)
    assert [id(parameter) for parameter in model.model.parameters()] == [id(parameter) for parameter in parameters]
    installed.restore()
    assert weight_hash(model.model) == unedited_hash


def test_an_edit_on_installed_weights_is_an_edit_on_edited_ones(model):
    before = fingerprint(model.model)
    first = edit(model, [0, 1])
    kept = {name: value.clone() for name, value in changed(model.model, before).items()}
    edit(model, [0, 1])
    wanted, wanted_hash = logits(model), weight_hash(model.model)
    first.restore()

    untouched = {name: value.clone() for name, value in kept.items()}
    installed = InstalledWeights(model.model, kept)
    second = edit(model, [0, 1])
    assert weight_hash(model.model) == wanted_hash
    assert torch.equal(logits(model), wanted)
    assert all(torch.equal(kept[name], value) for name, value in untouched.items()), "what was kept is not edited"
    second.restore()
    installed.restore()
    assert fingerprint(model.model) == before


def test_weights_of_another_shape_are_refused_and_leave_the_model_as_it_was(model):
    before = fingerprint(model.model)
    matrices = edit(model, [0, 1])
    kept = {name: value.clone() for name, value in changed(model.model, before).items()}
    matrices.restore()
    name = model.value_matrix(1)[0]
    for wrong in (kept[name].T, kept[name][:1]):
        with pytest.raises(ValueError, match="shapes"):
            InstalledWeights(model.model, kept | {name: wrong})
        assert fingerprint(model.model) == before


def test_a_module_that_an_edit_added_is_not_passed_over(model):
    before = fingerprint(model.model)
    model.block(0).adapter = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="adapter"):
        changed(model.model, before)
