"""UltraEdit and MALMEN through EasyEdit: the same weights as our own, with statistics that go on from call to call."""

import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from methods.common import transforms
from methods.common.aggregation.as_easyedit import even_size
from methods.common.aggregation.editor import ROLE
from methods.common.aggregation.network import ShiftNetwork, save
from methods.common.transforms import EditedMatrix
from methods.easyedit.aggregated import (
    EasyEditMalmen,
    EasyEditMalmenHparams,
    EasyEditUltraEdit,
    EasyEditUltraEditHparams,
)
from methods.malmen import Malmen, MalmenHparams
from methods.ultraedit import UltraEdit, UltraEditHparams
from tests.helpers.tiny_aggregation import MATRICES, edit_options, learned
from tests.helpers.tiny_mend import REF
from tests.helpers.tiny_models import ARCHITECTURES
from tests.methods.easyedit.parity import apart, changes, difference, facts, three_layers

TARGET = ModelRef("tiny/llama", "pretrained", source="nowhere")
FAITHFUL = {"rounds": 1, "batch": 3, "micro_batch": 2, "implementation": "faithful-easyedit"}


def ultraedit(architecture="llama", **changes):
    return edit_options(architecture, **FAITHFUL) | {"edit_lr": 1e-3, "ridge": 1.0} | changes


def malmen(architecture="llama", **changes):
    return learned(architecture).model_dump(mode="json") | FAITHFUL | changes


def trained(model, hparams, folder):
    """A hypernetwork that has seen gradients of some size and changes them, with a scale and a shift per matrix."""
    modules = hparams.modules(model)
    matrices = tuple(EditedMatrix(name, *reversed(made.weight.shape)) for name, made in modules.items())
    network = ShiftNetwork(matrices, hparams.rank, hparams.blocks_of_network, 0.02, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator) * (parameter.dim() > 1))
        network.log_ridge_M.add_(torch.linspace(-1, 1, len(matrices)))
    for transform in network.transforms.values():
        size = len(transform.mean_S) - transform.inputs
        inputs, gradients = (torch.randn(50, width, generator=generator) for width in (transform.inputs, size))
        transform.observe(inputs, 1e-2 * gradients)
    folder.mkdir()
    save([network], {"losses": [0.0], "edit_lr": [network.edit_lr_M.tolist()]}, folder)
    return {ROLE: folder}


@pytest.mark.easyedit
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ultraedit_moves_the_weights_as_our_own_does_with_a_rest_in_the_last_call(tmp_path, architecture):
    model, requests, values = three_layers(tmp_path, architecture), facts(8), ultraedit(architecture)
    theirs, ours = EasyEditUltraEdit(EasyEditUltraEditHparams(**values)), UltraEdit(UltraEditHparams(**values))
    assert difference(theirs, ours, model, requests, {}) < 1e-4
    forgetful = EasyEditUltraEdit(EasyEditUltraEditHparams(**values, without=["life-long-statistics"]))
    forgetful._worker, forgetful._loaded = theirs._worker, theirs._loaded
    moved = changes(ours, model, requests, {})
    assert apart(changes(forgetful, model, requests, {}), moved) > 0.1
    corrected = UltraEdit(UltraEditHparams(**values | {"implementation": "corrected"}))
    assert apart(changes(corrected, model, requests, {}), moved) > 0.1


@pytest.mark.easyedit
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_malmen_moves_the_weights_as_our_own_does_with_the_same_hypernetwork(tmp_path, architecture):
    model, values = three_layers(tmp_path, architecture), malmen(architecture)
    theirs, ours = EasyEditMalmen(EasyEditMalmenHparams(**values)), Malmen(MalmenHparams(**values))
    given = trained(model, ours.hparams, tmp_path / "network")
    assert difference(theirs, ours, model, facts(8), given) < 1e-4


def test_micro_batches_divide_a_batch_without_a_rest():
    assert [even_size(rows, 4) for rows in (1, 3, 4, 7, 10, 12)] == [1, 3, 4, 1, 2, 4]


def test_variances_add_up_as_in_easyedit():
    """Its own update, written out with its names (malmen/nets.py:17)."""
    torch.manual_seed(0)
    made = transforms.GradientTransform(3, 2, []).double()
    made.implementation = "faithful-easyedit"
    n, mean, var = 0, torch.zeros(5), torch.zeros(5)
    for size in (4, 2, 7):
        x = torch.randn(size, 5).double()
        made.observe(x[:, :3], x[:, 3:])
        delta = x.mean(0) - mean
        mean = mean + size * delta / (n + size)
        var = var + size * x.var(0) + n * size * delta.pow(2) / (n + size)
        n += size
    torch.testing.assert_close(made.squares_S, var)
    expected = (x - mean) / ((var / (n - 1)).sqrt() + torch.finfo(torch.float32).eps)
    torch.testing.assert_close(torch.cat(made(x[:, :3], x[:, 3:], 0), -1), expected)


@pytest.mark.easyedit
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"implementation": "corrected"}, "does not support implementation"),
        ({"rounds": 2}, "does not support rounds: 2"),
        ({"ridge": 2.0}, "does not support ridge: 2.0"),
    ],
)
def test_what_easyedit_does_not_have_is_refused_when_a_run_is_planned(changed, said):
    with pytest.raises(UserError, match=said):
        EasyEditUltraEdit(EasyEditUltraEditHparams(**ultraedit(**changed))).artifacts(TARGET, REF, 0)


@pytest.mark.easyedit
def test_a_model_that_easyedit_does_not_know_by_name_is_refused_and_malmen_shares_our_hypernetwork():
    other = ModelRef("smollm2-135m", "pretrained", source="nowhere")
    with pytest.raises(UserError, match=r"would train .*smollm2 one position too late"):
        EasyEditUltraEdit(EasyEditUltraEditHparams(**ultraedit())).check(other)
    values = malmen(matrices=MATRICES["llama"])
    ours = Malmen(MalmenHparams(**values)).artifacts(TARGET, REF, 0)[ROLE].key
    assert EasyEditMalmen(EasyEditMalmenHparams(**values)).artifacts(TARGET, REF, 0)[ROLE].key == ours
    assert not EasyEditMalmen.edits_in_sequence()
