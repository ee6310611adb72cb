"""AlphaEdit through EasyEdit: the same weights as our own, batch by batch, from our prefixes and null spaces."""

import dataclasses

import pytest

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.records import DataRef
from methods.alphaedit import AlphaEdit, AlphaEditHparams
from methods.alphaedit.null_space import NullSpace
from methods.easyedit.alphaedit import EasyEditAlphaEdit, EasyEditAlphaEditHparams
from tests.helpers.tiny_models import ARCHITECTURES
from tests.helpers.tiny_rome import MOMENTS, VALUE, read_moment
from tests.methods.easyedit.parity import GROUPS, apart, artifacts_of, changes, difference, facts, three_layers

LAYERS = [0, 1]
VALUES = {
    **VALUE,
    **MOMENTS,
    "layers": LAYERS,
    "prefixes": GROUPS,
    "target_tokens": "alone",
    "null_threshold": 1.0,
    "norm_weight": 0.1,
    "batch": 2,
    "micro_batch": 3,
}
TARGET, DATA = ModelRef("tiny/llama", "pretrained", source="nowhere"), DataRef("tiny", "synthetic", 4, train=8)


def adapter(**changes):
    return EasyEditAlphaEdit(EasyEditAlphaEditHparams(**VALUES | changes))


def given_to(model, folder, seed):
    """Prefixes, and null spaces of about half of the directions."""
    artifacts = artifacts_of(model, folder, LAYERS, seed)
    spaces = folder / "spaces"
    spaces.mkdir()
    for layer in LAYERS:
        space = NullSpace.of(read_moment(artifacts["moments"], layer), VALUES["null_threshold"])
        assert 0 < space.rank < model.value_matrix(layer)[1].shape[1]
        space.save(spaces, layer)
    return {"prefixes": artifacts["prefixes"], "null-space": spaces}


@pytest.mark.easyedit
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_moves_the_weights_as_our_own_does_and_protects_earlier_calls_but_not_earlier_runs(tmp_path, architecture):
    model, editor = three_layers(tmp_path, architecture), adapter()
    for seed, requests in enumerate([facts(3), facts(4)[2:]]):
        given = given_to(model, tmp_path / str(seed), seed)
        assert difference(editor, AlphaEdit(AlphaEditHparams(**VALUES)), model, requests, given) < 1e-4


@pytest.mark.easyedit
def test_other_mentions_of_a_subject_stay_as_they_are(tmp_path):
    """Also inside another word; EasyEdit would replace each of them by {} and fail in the middle of the edit."""
    model = three_layers(tmp_path, "llama")
    twice = [
        dataclasses.replace(fact, prompt=f"{fact.subject}, of {fact.subject}ia. {fact.prompt}") for fact in facts(2)
    ]
    given = given_to(model, tmp_path / "given", 0)
    ours = AlphaEdit(AlphaEditHparams(**VALUES))
    assert difference(adapter(), ours, model, twice, given) < 1e-4
    assert apart(changes(ours, model, facts(2), given), changes(ours, model, twice, given)) > 0.1


@pytest.mark.easyedit
def test_it_needs_the_artifacts_of_our_own_and_refuses_what_easyedit_does_not_have():
    ours = AlphaEdit(AlphaEditHparams(**VALUES)).artifacts(TARGET, DATA, 3)
    assert {role: spec.key for role, spec in adapter().artifacts(TARGET, DATA, 3).items()} == {
        role: spec.key for role, spec in ours.items()
    }
    with pytest.raises(UserError, match="EasyEdit does not support restrain"):
        adapter(restrain=True).artifacts(TARGET, DATA, 3)
    with pytest.raises(UserError, match="would download Wikipedia"):
        adapter(without=["given-null-space"]).artifacts(TARGET, DATA, 3)
    assert not EasyEditAlphaEdit.edits_in_sequence()
