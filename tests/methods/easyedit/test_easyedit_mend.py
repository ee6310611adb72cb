"""MEND through EasyEdit: our archive and its own in either implementation, and its trainer on our records."""

from dataclasses import replace

import pytest
import torch

from harness.api import Method
from harness.data.load import load, resolve
from harness.errors import UserError
from harness.models.catalogue import ModelRef
from methods.common import transforms
from methods.common.factors import edited_modules
from methods.common.transforms import EditedMatrix
from methods.easyedit.mend import EasyEditMend, EasyEditMendHparams
from methods.easyedit.mend_archive import from_state, state_of
from methods.easyedit.mend_options import training_options
from methods.easyedit.mend_training import build
from methods.mend import network
from methods.mend.editor import ROLE, Mend
from methods.mend.network import Hypernetwork
from tests.helpers.tiny_mend import MATRICES, REF, hparams_with
from tests.helpers.tiny_models import ARCHITECTURES
from tests.helpers.tiny_rome import TinyContext
from tests.methods.easyedit.parity import apart, changes, difference, facts, three_layers

FAITHFUL = {"implementation": "faithful-easyedit", "inner_reduction": "batch_mean", "batch": 3}
TARGET = ModelRef("tiny/llama", "pretrained", source="nowhere")


def adapter(architecture="llama", **changes) -> Method:
    values = hparams_with(architecture, **FAITHFUL).model_dump(mode="json")
    return EasyEditMend(EasyEditMendHparams(**values | changes))


def some_hypernetwork(model, seed):
    """One that has seen gradients of some size and changes them."""
    modules = edited_modules(model, (0, 1), MATRICES[model.spec.architecture])
    matrices = tuple(EditedMatrix(name, made.in_features, made.out_features) for name, made in modules.items())
    hypernetwork = Hypernetwork(matrices, rank=4, edit_lr=-0.05, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hypernetwork.transforms.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    for transform in hypernetwork.transforms.values():
        size = len(transform.mean_S) - transform.inputs
        inputs, gradients = (torch.randn(50, width, generator=generator) for width in (transform.inputs, size))
        transform.observe(inputs, 1e-3 * gradients)
    return hypernetwork.requires_grad_(False)


def kept(hypernetwork, folder):
    folder.mkdir()
    transforms.save(hypernetwork, {"best_step": 1, "held_out": 0.0}, folder)
    return {ROLE: folder}


def test_a_state_of_easyedit_says_the_same_under_other_names(small_model):
    made = some_hypernetwork(small_model("llama"), seed=1)
    again = from_state(state_of(made, config=None), made.matrices, made.rank)
    for (name, value), (other, back) in zip(made.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        torch.testing.assert_close(back, value, rtol=1e-6, atol=1e-9)


@pytest.mark.easyedit
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_archive_gives_the_same_weights_in_batches_of_unequal_length(tmp_path, architecture):
    model, editor = three_layers(tmp_path, architecture), adapter(architecture, archive="native")
    for seed, requests in enumerate([facts(5), facts(3)[1:]]):
        given = kept(some_hypernetwork(model, seed), tmp_path / str(seed))
        assert difference(editor, Mend(hparams_with(architecture, **FAITHFUL)), model, requests, given) < 1e-4


@pytest.mark.easyedit
def test_without_a_fresh_executor_the_first_archive_is_used_for_ever(tmp_path):
    model, editor = three_layers(tmp_path, "gptj"), adapter("gptj", archive="native", without=["fresh-executor"])
    first, second = (kept(some_hypernetwork(model, seed), tmp_path / str(seed)) for seed in (0, 1))
    moved = changes(editor, model, facts(2), first)
    assert apart(changes(editor, model, facts(2), second), moved) == 0


@pytest.mark.easyedit
def test_its_own_trainer_learns_from_our_records_what_both_can_read(tmp_path):
    data = load(resolve("counterfact", "synthetic", 8, train=24))
    model = three_layers(tmp_path, "llama")
    context = TinyContext(model, data)
    editor = adapter(rank=8, steps=12, validate_every=6, validation=3, train_batch=2, lr=1e-3, c_edit=1.0)
    spec = editor.artifacts(model.ref, data.ref, 0)[ROLE]
    assert (spec.name, spec.kind) == ("easyedit-mend-archive", "setup")
    folder = tmp_path / "archive"
    folder.mkdir()
    build(spec, context, folder)
    hypernetwork, report = network.load(folder, model.device)
    assert report["best_step"] == 12
    assert report["records"] == 24
    assert all(transform.count > 24 for transform in hypernetwork.transforms.values())
    assert any(layer.u_SR.any() for transform in hypernetwork.transforms.values() for layer in transform.layers)
    assert context.phases == ["setup"]
    assert difference(editor, Mend(hparams_with(**FAITHFUL)), model, facts(3), {ROLE: folder}) < 1e-4


@pytest.mark.easyedit
def test_its_own_trainer_never_reads_an_answer_that_the_dataset_does_not_give(tmp_path):
    data = load(resolve("counterfact", "synthetic", 8, train=6))
    train = tuple(
        replace(record, locality=tuple(replace(probe, has_answer=False) for probe in record.locality))
        for record in data.train
    )
    model = three_layers(tmp_path, "llama")
    spec = adapter(rank=8, validation=3).artifacts(model.ref, data.ref, 0)[ROLE]
    with pytest.raises(UserError, match="with an answered locality probe, but only 0 of 6 have one"):
        build(spec, TinyContext(model, replace(data, train=train)), tmp_path)


@pytest.mark.easyedit
def test_our_archive_is_the_artifact_of_our_own_and_its_own_another():
    ours = Mend(hparams_with(**FAITHFUL)).artifacts(TARGET, REF, 0)[ROLE].key
    assert adapter(archive="native").artifacts(TARGET, REF, 0)[ROLE].key == ours
    own = adapter().artifacts(TARGET, REF, 0)[ROLE].key
    unspaced = adapter(without=["leading-space"]).artifacts(TARGET, REF, 0)[ROLE].key
    assert len({ours, own, unspaced, adapter().artifacts(TARGET, REF, 1)[ROLE].key}) == 4
    assert adapter(batch=7, without=["fresh-executor"]).artifacts(TARGET, REF, 0)[ROLE].key == own


@pytest.mark.parametrize(("architecture", "tokenizer"), [("gptj", "GPT2Tokenizer"), ("llama", "AutoTokenizer")])
def test_targets_have_their_space_in_the_training_on_gptj(small_model, architecture, tokenizer):
    model = small_model(architecture)
    options = training_options(hparams_with(architecture), True, model)
    assert options["tokenizer_class"] == tokenizer
    assert training_options(hparams_with(architecture), False, model)["tokenizer_class"] == "AutoTokenizer"


@pytest.mark.easyedit
@pytest.mark.parametrize(
    ("changed", "fix"),
    [
        ({"implementation": "corrected"}, 'implementation: "faithful-easyedit"'),
        ({"inner_reduction": "sum_of_example_means"}, 'inner_reduction: "batch_mean"'),
        ({"rank": 5000}, "rank: 512"),
    ],
)
def test_what_it_has_no_word_for_is_refused_when_a_run_is_planned(changed, fix):
    with pytest.raises(UserError) as caught:
        adapter(**changed).artifacts(TARGET, REF, 0)
    assert fix in str(caught.value)


@pytest.mark.easyedit
def test_edits_one_by_one_are_the_same_under_either_reduction():
    assert adapter(inner_reduction="sum_of_example_means", batch=1).artifacts(TARGET, REF, 0)
