"""Weights that change and come back bit for bit, are found, kept and installed, in the model's precision and in a wider one."""

import json
from contextlib import contextmanager

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness.models.weights import (
    FILE,
    InstalledWeights,
    KeptWeights,
    Snapshot,
    _checksum,
    changed,
    fingerprint,
    hash_and_fingerprint,
    weight_hash,
)
from harness.tokens import joint_query
from methods.common.closed_form import ValueMatrices
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model

NAME = "model.layers.1.mlp.down_proj.weight"
GPTJ_NAME = "transformer.h.1.mlp.fc_out.weight"


@pytest.fixture
def llama():
    return tiny_model("llama").model


@pytest.fixture
def gptj():
    return tiny_model("gptj").model


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request):
    return request.param


@pytest.fixture(params=ARCHITECTURES)
def model(request, dtype):
    torch.set_num_threads(1)
    made = tiny_model(request.param)
    made.model.to(dtype)
    return made


@contextmanager
def restored(model, names):
    """The named parameters may be changed inside the body; they come back when it ends."""
    snapshot = Snapshot(model, names)
    try:
        yield
    finally:
        snapshot.restore()


def _flip(tensor, place, bit):
    words = tensor.view(-1).view(torch.uint8)
    words[place] ^= 1 << bit


@pytest.mark.parametrize("place", [0, 5, -1])
@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_flipped_bit_changes_the_hash(llama, place, bit, dtype):
    llama.to(dtype)
    before = weight_hash(llama)
    assert weight_hash(llama) == before
    for parameter in llama.parameters():
        _flip(parameter.data, place, bit)
        assert weight_hash(llama) != before
        _flip(parameter.data, place, bit)
    assert weight_hash(llama) == before


def test_changes_that_cancel_in_a_sum_change_the_hash(llama):
    weight = llama.get_parameter(NAME)
    before = weight_hash(llama)
    with restored(llama, [NAME]):
        weight.neg_()
        assert weight_hash(llama) != before
    with restored(llama, [NAME]):
        weight[[0, 1]] = weight[[1, 0]]
        assert weight_hash(llama) != before
    assert weight_hash(llama) == before


def test_a_buffer_is_part_of_the_hash(llama):
    before = weight_hash(llama)
    next(llama.buffers()).mul_(2)
    assert weight_hash(llama) != before


def test_the_hash_of_a_tensor_of_odd_length_and_of_many_chunks_sees_its_last_byte(monkeypatch):
    monkeypatch.setattr("harness.models.weights.CHUNK_WORDS", 4)
    module = torch.nn.Module()
    module.register_buffer("odd", torch.arange(101, dtype=torch.uint8))
    before = weight_hash(module)
    module.odd[-1] ^= 1
    assert weight_hash(module) != before
    module.odd[-1] ^= 1
    monkeypatch.setattr("harness.models.weights.CHUNK_WORDS", 1 << 20)
    assert weight_hash(module) == before


def test_adding_and_subtracting_does_not_restore_bits_but_a_snapshot_does(llama):
    """Why a snapshot is kept at all."""
    before, weight = weight_hash(llama), llama.get_parameter(NAME)
    snapshot = Snapshot(llama, [NAME])
    weight.add_(0.1).sub_(0.1)
    assert weight_hash(llama) != before
    snapshot.restore()
    assert weight_hash(llama) == before


def test_weights_come_back_after_an_exception(llama):
    before = weight_hash(llama)

    def spoil():
        with Snapshot(llama, [NAME]).restored_on_error():
            llama.get_parameter(NAME).zero_()
            raise KeyError

    with pytest.raises(KeyError):
        spoil()
    assert weight_hash(llama) == before


def test_restored_on_error_keeps_a_change_that_succeeded(llama):
    before = weight_hash(llama)
    snapshot = Snapshot(llama, [NAME])
    with snapshot.restored_on_error():
        llama.get_parameter(NAME).zero_()
    assert weight_hash(llama) != before
    with pytest.raises(KeyError), snapshot.restored_on_error():
        raise KeyError
    assert weight_hash(llama) == before


def test_a_parameter_that_was_replaced_comes_back_as_the_same_object(llama):
    original = llama.get_parameter(NAME)
    storage = original.data_ptr()
    with restored(llama, [NAME]):
        llama.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(2, 2))
        original.data = original.data.double()
        original.requires_grad_(True)
    assert llama.get_parameter(NAME) is original
    assert original.data_ptr() == storage
    assert original.dtype == torch.float32
    assert not original.requires_grad


def test_a_name_that_is_no_parameter_is_refused(llama):
    with pytest.raises(AttributeError):
        Snapshot(llama, ["model.layers.9.mlp.down_proj.weight"])


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


def test_one_pass_over_the_weights_gives_the_hash_of_all_and_of_each_module(model, monkeypatch):
    read = []
    monkeypatch.setattr(
        "harness.models.weights._checksum", lambda tensor: (read.append(tensor.data_ptr()), _checksum(tensor))[1]
    )
    whole, modules = hash_and_fingerprint(model.model)
    assert len(read) == len(set(read)) == len([*model.model.parameters(), *model.model.buffers()])
    assert whole == weight_hash(model.model)
    assert modules == {path: weight_hash(model.model.get_submodule(path)) for path in modules}


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


def test_the_file_has_the_edited_values_of_changed_modules_and_the_norms_of_the_changes(gptj, tmp_path):
    kept, snapshot = KeptWeights(gptj), Snapshot(gptj, [GPTJ_NAME])
    with torch.no_grad():
        gptj.get_parameter(GPTJ_NAME)[:2, 0] += torch.tensor([3.0, 4.0])
    assert snapshot.change_norm() == pytest.approx(5.0, rel=1e-5)
    edited = gptj.get_parameter(GPTJ_NAME).detach().clone()
    kept.take()
    snapshot.restore()
    kept.write(tmp_path / FILE)
    with safe_open(tmp_path / FILE, "pt") as file:
        assert set(file.keys()) == {GPTJ_NAME, GPTJ_NAME.replace("weight", "bias")}
        assert torch.equal(file.get_tensor(GPTJ_NAME), edited)
        norms = json.loads(file.metadata()["change_norms"])
    assert norms == pytest.approx({GPTJ_NAME: 5.0, GPTJ_NAME.replace("weight", "bias"): 0.0}, rel=1e-5)


def test_values_that_an_edit_keeps_wider_than_the_model_stay_so(gptj, tmp_path):
    gptj.to(torch.bfloat16)
    kept, snapshot = KeptWeights(gptj), Snapshot(gptj, [GPTJ_NAME])
    owner = gptj.get_submodule(GPTJ_NAME.removesuffix(".weight"))
    wide = owner.weight.detach().float() + 1e-6
    owner.weight = torch.nn.Parameter(wide, requires_grad=False)
    kept.take()
    seen = snapshot.change_norm()
    snapshot.restore()
    kept.write(tmp_path / FILE)
    with safe_open(tmp_path / FILE, "pt") as file:
        assert torch.equal(file.get_tensor(GPTJ_NAME), wide)
        norm = json.loads(file.metadata()["change_norms"])[GPTJ_NAME]
    assert norm == pytest.approx(float((wide - owner.weight.float()).norm()), rel=1e-4)
    assert seen == pytest.approx(norm, rel=1e-4)
    assert norm > 0


def test_an_edit_that_changed_nothing_leaves_an_empty_file(gptj, tmp_path):
    kept = KeptWeights(gptj)
    kept.take()
    kept.write(tmp_path / FILE)
    with safe_open(tmp_path / FILE, "pt") as file:
        assert list(file.keys()) == []
