"""MEMIT through EasyEdit: the same weights as our faithful variant, batch by batch, from our prefixes and statistics."""

import pytest

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.records import DataRef
from methods.easyedit.memit import EasyEditMemit, EasyEditMemitHparams
from methods.memit import Memit, MemitHparams
from tests.helpers.tiny_models import ARCHITECTURES
from tests.helpers.tiny_rome import MOMENTS, VALUE
from tests.methods.easyedit.parity import GROUPS, artifacts_of, difference, facts, three_layers

LAYERS = [0, 1]
VALUES = {
    **VALUE,
    **MOMENTS,
    "layers": LAYERS,
    "prefixes": GROUPS,
    "target_tokens": "alone",
    "moment_weight": 10.0,
    "batch": 2,
    "micro_batch": 3,
}
TARGET, DATA = ModelRef("tiny/llama", "pretrained", source="nowhere"), DataRef("tiny", "synthetic", 4, train=8)


def adapter(**changes):
    return EasyEditMemit(EasyEditMemitHparams(**VALUES | changes))


@pytest.mark.easyedit
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_moves_the_weights_as_our_faithful_variant_does_act_after_act(tmp_path, architecture):
    model, editor, worker = three_layers(tmp_path, architecture), adapter(), None
    for seed, requests in enumerate([facts(3), facts(4)[2:]]):
        given = artifacts_of(model, tmp_path / str(seed), LAYERS, seed)
        assert difference(editor, Memit(MemitHparams(**VALUES)), model, requests, given) < 1e-4
        assert worker in (None, editor._worker)
        worker = editor._worker


@pytest.mark.easyedit
def test_it_needs_the_artifacts_of_our_own_and_samples_no_prefixes_but_its_own_kind():
    ours = Memit(MemitHparams(**VALUES)).artifacts(TARGET, DATA, 3)
    assert {role: spec.key for role, spec in adapter().artifacts(TARGET, DATA, 3).items()} == {
        role: spec.key for role, spec in ours.items()
    }
    with pytest.raises(UserError) as caught:
        adapter(without=["given-prefixes"]).artifacts(TARGET, DATA, 3)
    assert "prefixes: [[10, 1]]" in str(caught.value)
    assert set(adapter(without=["given-prefixes"], prefixes=[[10, 1]]).artifacts(TARGET, DATA, 3)) == {"moments"}
