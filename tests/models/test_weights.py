import pytest
import torch

from harness.models.weights import Snapshot, edited, weight_hash
from tests.helpers.tiny_models import tiny_model

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def model():
    return tiny_model("llama").model


def _flip(tensor, place, bit):
    words = tensor.view(-1).view(torch.uint8)
    words[place] ^= 1 << bit


@pytest.mark.parametrize("place", [0, 5, -1])
@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_flipped_bit_changes_the_hash(model, place, bit, dtype):
    model.to(dtype)
    before = weight_hash(model)
    assert weight_hash(model) == before
    for parameter in model.parameters():
        _flip(parameter.data, place, bit)
        assert weight_hash(model) != before
        _flip(parameter.data, place, bit)
    assert weight_hash(model) == before


def test_changes_that_cancel_in_a_sum_change_the_hash(model):
    weight = model.get_parameter(NAME)
    before = weight_hash(model)
    with edited(model, [NAME]):
        weight.neg_()
        assert weight_hash(model) != before
    with edited(model, [NAME]):
        weight[[0, 1]] = weight[[1, 0]]
        assert weight_hash(model) != before
    assert weight_hash(model) == before


def test_a_buffer_is_part_of_the_hash(model):
    before = weight_hash(model)
    next(model.buffers()).mul_(2)
    assert weight_hash(model) != before


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


def test_adding_and_subtracting_does_not_restore_bits_but_a_snapshot_does(model):
    """Why a snapshot is kept at all."""
    before, weight = weight_hash(model), model.get_parameter(NAME)
    snapshot = Snapshot(model, [NAME])
    weight.add_(0.1).sub_(0.1)
    assert weight_hash(model) != before
    snapshot.restore()
    assert weight_hash(model) == before


def test_weights_come_back_after_an_exception(model):
    before = weight_hash(model)

    def spoil():
        with edited(model, [NAME]):
            model.get_parameter(NAME).zero_()
            raise KeyError

    with pytest.raises(KeyError):
        spoil()
    assert weight_hash(model) == before


def test_restored_on_error_keeps_a_change_that_succeeded(model):
    before = weight_hash(model)
    snapshot = Snapshot(model, [NAME])
    with snapshot.restored_on_error():
        model.get_parameter(NAME).zero_()
    assert weight_hash(model) != before
    with pytest.raises(KeyError), snapshot.restored_on_error():
        raise KeyError
    assert weight_hash(model) == before


def test_a_parameter_that_was_replaced_comes_back_as_the_same_object(model):
    original = model.get_parameter(NAME)
    storage = original.data_ptr()
    with edited(model, [NAME]):
        model.model.layers[1].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(2, 2))
        original.data = original.data.double()
        original.requires_grad_(True)
    assert model.get_parameter(NAME) is original
    assert original.data_ptr() == storage
    assert original.dtype == torch.float32
    assert not original.requires_grad


def test_a_name_that_is_no_parameter_is_refused(model):
    with pytest.raises(AttributeError):
        Snapshot(model, ["model.layers.9.mlp.down_proj.weight"])
