"""The file of a cell's edited weights."""

import json

import pytest
import torch
from safetensors import safe_open

from harness.models.weights import FILE, KeptWeights, Snapshot
from tests.helpers.tiny_models import tiny_model

NAME = "transformer.h.1.mlp.fc_out.weight"


@pytest.fixture
def model():
    return tiny_model("gptj").model


def test_the_file_has_the_edited_values_of_changed_modules_and_the_norms_of_the_changes(model, tmp_path):
    kept, snapshot = KeptWeights(model), Snapshot(model, [NAME])
    with torch.no_grad():
        model.get_parameter(NAME)[:2, 0] += torch.tensor([3.0, 4.0])
    edited = model.get_parameter(NAME).detach().clone()
    kept.take()
    snapshot.restore()
    kept.write(tmp_path / FILE)
    with safe_open(tmp_path / FILE, "pt") as file:
        assert set(file.keys()) == {NAME, NAME.replace("weight", "bias")}
        assert torch.equal(file.get_tensor(NAME), edited)
        norms = json.loads(file.metadata()["change_norms"])
    assert norms == pytest.approx({NAME: 5.0, NAME.replace("weight", "bias"): 0.0}, rel=1e-5)


def test_values_that_an_edit_keeps_wider_than_the_model_stay_so(model, tmp_path):
    model.to(torch.bfloat16)
    kept, snapshot = KeptWeights(model), Snapshot(model, [NAME])
    owner = model.get_submodule(NAME.removesuffix(".weight"))
    wide = owner.weight.detach().float() + 1e-6
    owner.weight = torch.nn.Parameter(wide, requires_grad=False)
    kept.take()
    snapshot.restore()
    kept.write(tmp_path / FILE)
    with safe_open(tmp_path / FILE, "pt") as file:
        assert torch.equal(file.get_tensor(NAME), wide)
        norm = json.loads(file.metadata()["change_norms"])[NAME]
    assert norm == pytest.approx(float((wide - owner.weight.float()).norm()), rel=1e-4)
    assert norm > 0


def test_an_edit_that_changed_nothing_leaves_an_empty_file(model, tmp_path):
    kept = KeptWeights(model)
    kept.take()
    kept.write(tmp_path / FILE)
    with safe_open(tmp_path / FILE, "pt") as file:
        assert list(file.keys()) == []
