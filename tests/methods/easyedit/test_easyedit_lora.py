"""LoRA through EasyEdit: the same weights as our own, which trains one update in all calls."""

import pytest

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.models.weights import weight_hash
from methods.easyedit.lora import EasyEditLora, EasyEditLoraHparams
from methods.lora import Lora, LoraHparams
from tests.helpers.tiny_mend import REF
from tests.helpers.tiny_models import ARCHITECTURES
from tests.methods.easyedit.parity import apart, changes, difference, facts, three_layers

pytestmark = pytest.mark.easyedit

VALUES = {"rank": 4, "lr": 5e-3, "weight_decay": 0.0, "steps": 6, "batch": 3, "micro_batch": 2, "loss_stop": 0.0}
FAITHFUL = VALUES | {"implementation": "faithful-easyedit"}
TARGET = ModelRef("tiny/llama", "pretrained", source="nowhere")


def adapter(**changes):
    return EasyEditLora(EasyEditLoraHparams(**FAITHFUL | changes))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_moves_the_weights_as_our_own_does_run_after_run(tmp_path, architecture):
    pytest.importorskip("peft")
    model, editor = three_layers(tmp_path, architecture), adapter()
    bits = weight_hash(model.model)
    for requests in (facts(5), facts(4)[2:]):
        assert difference(editor, Lora(LoraHparams(**FAITHFUL)), model, requests, {}) < 1e-3
    assert weight_hash(model.model) == bits
    corrected = changes(Lora(LoraHparams(**VALUES)), model, facts(5), {})
    assert apart(corrected, changes(Lora(LoraHparams(**FAITHFUL)), model, facts(5), {})) > 0.1


@pytest.mark.parametrize(
    ("changed", "fix"),
    [
        ({"implementation": "corrected"}, 'implementation: "faithful-easyedit"'),
        ({"loss_stop": 0.1}, "loss_stop: 0.0"),
        ({"weight_decay": 0.1}, "weight_decay: 0.0"),
    ],
)
def test_what_it_does_not_have_is_refused_when_a_run_is_planned(changed, fix):
    with pytest.raises(UserError) as caught:
        adapter(**changed).check(TARGET)
    assert fix in str(caught.value)


def test_it_says_what_is_not_installed(monkeypatch):
    monkeypatch.setattr("methods.easyedit.checkout.find_spec", lambda name: None)
    with pytest.raises(UserError, match="EasyEdit needs peft here"):
        adapter().artifacts(TARGET, REF, 0)
