"""MEND's edit: one combined update per call, whatever the micro-batches, and a model that comes back."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from harness import registry
from harness.errors import UserError
from harness.models.catalogue import ModelRef, reference
from harness.models.weights import weight_hash
from harness.records import DataRef
from harness.suite.hparams import resolve
from methods.common import transforms
from methods.common.paused import edit_queries
from methods.common.prediction import edit_row
from methods.mend import network
from methods.mend.editor import ROLE, Mend
from methods.mend.network import Hypernetwork
from methods.mend.training import build
from methods.mend.update import Updater
from tests.helpers.tiny_mend import MATRICES, REF, REQUESTS, TinyContext, double, hparams_with
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model

TARGET = ModelRef("tinyllama-1.1b", "pretrained")
TARGETS = {"gptj": ModelRef("gpt-j-6b", "pretrained")}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def trained(request, tmp_path_factory):
    """A hypernetwork's folder and the name of its architecture."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("hypernetwork")
    spec = Mend(hparams_with(request.param)).artifacts(TARGETS.get(request.param, TARGET), REF, 0)[ROLE]
    build(spec, TinyContext(tiny_model(request.param)), folder)
    return folder, request.param


def updater_of(trained, **changes):
    """In float64, so that sums in another order differ by nothing that matters."""
    folder, architecture = trained
    model = double(tiny_model(architecture))
    hypernetwork, _ = network.load(folder, model.device)
    updater = Updater(model, hypernetwork.double(), hparams_with(architecture, **changes))
    rows = [edit_row(model, query, "corrected") for query in edit_queries(model, REQUESTS)]
    return updater, rows, model


def assert_equal(first, second):
    assert list(first) == list(second)
    scale = max(value.abs().max().item() for value in second.values())
    assert scale > 0
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-7 * scale


def test_a_call_adds_up_the_updates_that_its_edits_would_have_alone(trained):
    updater, rows, _ = updater_of(trained)
    alone = [updater.update([row]) for row in rows]
    together = updater.update(rows)
    assert_equal(together, {name: sum(update[name] for update in alone) for name in together})


@pytest.mark.parametrize("reduction", ["batch_mean", "sum_of_example_means"])
def test_micro_batches_change_nothing(trained, reduction):
    whole, rows, _ = updater_of(trained, inner_reduction=reduction)
    small, _, _ = updater_of(trained, inner_reduction=reduction, micro_batch=1)
    assert_equal(small.update(rows), whole.update(rows))


def test_the_batch_mean_counts_every_token_of_the_call_alike(trained):
    """Against autograd: the gradient of the mean over all label tokens, before the hypernetwork."""
    updater, rows, model = updater_of(trained, inner_reduction="batch_mean")
    seen = []
    updater._hypernetwork.forward = lambda factors: seen.append(factors) or {}
    updater.update(rows)
    name, module = next(iter(updater._modules.items()))
    module.weight.requires_grad_(True)
    total = torch.zeros(())
    for row in rows:
        log_probs = model.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        total = total - sum(log_probs[place, label] for place, label in zip(row.places, row.labels, strict=True))
    (expected,) = torch.autograd.grad(total / sum(len(row.labels) for row in rows), module.weight)
    found = seen[0][name].gradients_ND.T @ seen[0][name].inputs_NK
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


def test_the_update_is_added_in_one_step_to_these_matrices_alone(trained):
    updater, rows, model = updater_of(trained)
    before = {name: value.clone() for name, value in model.model.named_parameters()}
    update = updater.update(rows)
    updater.apply(rows)
    for name, value in model.model.named_parameters():
        assert torch.equal(value, before[name] + update[name] if name in update else before[name])


def test_a_second_round_is_a_second_edit_with_the_same_batch(trained):
    folder, architecture = trained
    twice, again = tiny_model(architecture), tiny_model(architecture)
    Mend(hparams_with(architecture, batch=9, rounds=2)).edit(twice, REQUESTS, {ROLE: folder}, TinyContext(twice))
    for _ in range(2):
        Mend(hparams_with(architecture, batch=9)).edit(again, REQUESTS, {ROLE: folder}, TinyContext(again))
    assert weight_hash(twice.model) == weight_hash(again.model)
    assert "rounds" not in hparams_with(architecture).identity()


def test_calls_follow_one_another_on_the_edited_weights(trained):
    folder, architecture = trained
    both, one = tiny_model(architecture), tiny_model(architecture)
    Mend(hparams_with(architecture, batch=2)).edit(both, REQUESTS, {ROLE: folder}, TinyContext(both))
    for half in (REQUESTS[:2], REQUESTS[2:]):
        Mend(hparams_with(architecture)).edit(one, half, {ROLE: folder}, TinyContext(one))
    assert weight_hash(both.model) == weight_hash(one.model)
    together = tiny_model(architecture)
    Mend(hparams_with(architecture)).edit(together, REQUESTS, {ROLE: folder}, TinyContext(together))
    assert weight_hash(together.model) != weight_hash(both.model)


def test_in_half_precision_the_edited_matrices_are_fp32(trained):
    """Most entries of an update are smaller than the spacing of bf16 numbers."""
    folder, architecture = trained
    model = tiny_model(architecture)
    model.model.to(torch.bfloat16)
    before, start = weight_hash(model.model), {name: value.float() for name, value in model.model.named_parameters()}
    hparams = hparams_with(architecture, batch=2, rounds=2)
    edited = Mend(hparams).edit(model, REQUESTS, {ROLE: folder}, TinyContext(model))
    changes = [value - start[name] for name, value in model.model.named_parameters() if value.dtype == torch.float32]
    assert torch.stack([change.norm() for change in changes]).norm().item() == pytest.approx(
        edited.diagnostics()["change_norm"], rel=1e-4
    )
    assert weight_hash(model.model) != before
    edited.revert()
    assert weight_hash(model.model) == before


def test_a_failure_between_two_calls_gives_the_model_back(trained):
    folder, architecture = trained
    model = tiny_model(architecture)
    before, context = weight_hash(model.model), TinyContext(model)

    class StoppedError(Exception):
        pass

    def stop(steps):
        assert weight_hash(model.model) != before
        raise StoppedError

    class Bar:
        def __enter__(self):
            return stop

        def __exit__(self, *_):
            return None

    context.progress = lambda description, total: Bar()
    with pytest.raises(StoppedError):
        Mend(hparams_with(architecture, batch=2)).edit(model, REQUESTS, {ROLE: folder}, context)
    assert weight_hash(model.model) == before


def test_an_update_that_is_no_number_is_refused_and_the_model_comes_back(trained, tmp_path):
    folder, architecture = trained
    model = tiny_model(architecture)
    hypernetwork, report = network.load(folder, model.device)
    hypernetwork.edit_lr_M[-1] = float("inf")
    transforms.save(hypernetwork, {key: report[key] for key in ("best_step", "held_out")}, tmp_path)
    before = weight_hash(model.model)
    with pytest.raises(UserError, match="is not a number"):
        Mend(hparams_with(architecture)).edit(model, REQUESTS, {ROLE: tmp_path}, TinyContext(model))
    assert weight_hash(model.model) == before


def test_a_hypernetwork_for_other_matrices_is_a_bug():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="trained for other matrices"):
        Updater(model, Hypernetwork((), 2, 0.1, 0), hparams_with())


def test_only_what_training_reads_decides_the_artifact():
    def key(seed=0, ref=REF, target=TARGET, **changes):
        return Mend(hparams_with(**changes)).artifacts(target, ref, seed)[ROLE].key

    assert key(batch=1, micro_batch=2, inner_reduction="batch_mean") == key()
    others = [
        key(seed=1),
        key(rank=5),
        key(implementation="faithful-easyedit"),
        key(ref=DataRef("tiny", "synthetic", 4, train=4, sha256="1")),
        key(target=reference("tiny/llama", corpus=REF)),
    ]
    assert len({key(), *others}) == 6


def test_a_tiny_model_is_trained_first_and_no_train_records_are_refused():
    editor = Mend(hparams_with())
    spec = editor.artifacts(reference("tiny/llama", corpus=REF), REF, 0)[ROLE]
    assert (spec.kind, spec.needs["model"].name) == ("setup", "tiny-model")
    with pytest.raises(UserError, match="keeps none for training"):
        editor.artifacts(TARGET, DataRef("tiny", "synthetic", 4), 0)


@pytest.mark.parametrize(
    "model", ["llama2-7b", "mistral-7b-v0.1", "gpt-j-6b", "tiny/llama", "tiny/mistral", "tiny/gptj"]
)
@pytest.mark.parametrize("variant", [None, "corrected", "batch-mean", "faithful-easyedit"])
def test_its_files_name_every_value_and_its_source(model, variant):
    resolved = resolve("mend", model, {}, variant=variant)
    assert "default" not in resolved.sources.values()
    architecture = reference(model, corpus=REF if model.startswith("tiny/") else None).name
    has_gate = not architecture.endswith(("gptj", "gpt-j-6b"))
    assert ("gate_proj" in resolved.values["matrices"]) <= has_gate
    assert set(resolved.values["matrices"]) <= set(MATRICES["llama" if has_gate else "gptj"])


def test_a_training_that_is_never_looked_at_is_refused():
    with pytest.raises(ValidationError, match="nothing would be kept"):
        hparams_with(steps=3, validate_every=4)


def test_the_registry_knows_it_without_importing_torch():
    code = "import sys; from harness import registry; registry.find_method('mend'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(registry.__file__).parents[1]).returncode == 0
