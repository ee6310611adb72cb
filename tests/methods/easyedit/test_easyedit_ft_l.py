"""FT-L by EasyEdit's own code, beside ours."""

import copy
import os

import pytest
import torch

from harness import registry
from harness.models.loaded import LoadedModel
from harness.models.weights import weight_hash
from tests.helpers.tiny_edits import FACTS, Context, queries_of, requests_of
from tests.helpers.tiny_models import ARCHITECTURES
from tests.methods.easyedit.parity import apart, reported

pytestmark = pytest.mark.easyedit

AS_IT_IS = ("right-padding", "unscored-padding")
VALUES = {
    "layer": 1,
    "lr": 0.01,
    "steps": 5,
    "batch": 1,
    "micro_batch": 50,
    "norm_constraint": None,
    "objective": "prompt_last",
    "weight_decay": 0.0,
    "loss_stop": 1e-2,
    "implementation": "faithful-easyedit",
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, small_model):
    return small_model(request.param)


@pytest.fixture(scope="module")
def worker():
    """One for each model; starting one takes seconds."""
    return {}


@pytest.fixture
def theirs(worker, model):
    def edited(requests, **changes):
        editor = adapter(**changes)
        editor._worker, editor._loaded = worker.get(model.ref.name, (None, None))
        result = editor.edit(model, requests, {}, Context())
        worker[model.ref.name] = (editor._worker, editor._loaded)
        return result

    return edited


def adapter(**changes):
    cls = registry.find_method("ft-l", "easyedit")
    return cls(cls.Hparams(**VALUES | changes))


def test_a_half_precision_model_is_edited_as_its_float32_copy_is(small_model):
    """Also with a name for its precision, EasyEdit trains in float32: steps that bfloat16 would round away are kept."""
    half, edited = small_model("llama", "bfloat16"), []
    for model in (half, LoadedModel(half.ref, copy.deepcopy(half.model).float(), half.tokenizer)):
        editor = adapter(lr=1e-5)
        editor.edit(model, requests_of(FACTS[:2]), {}, Context())
        edited.append(model.value_matrix(1)[1])
        editor.stop()
    assert torch.equal(*edited)


def ours(model, requests, **changes):
    cls = registry.find_method("ft-l")
    return cls(cls.Hparams(**VALUES | changes)).edit(model, requests, {}, Context())


def changes_of(model, edit):
    """What an edit adds to each parameter, and what the model says then; it is reverted."""
    before = {name: parameter.detach().clone() for name, parameter in model.model.named_parameters()}
    edited = edit()
    added = {name: parameter.detach() - before[name] for name, parameter in model.model.named_parameters()}
    answers = edited.teacher_forced(queries_of(model, FACTS))
    edited.revert()
    return {name: change for name, change in added.items() if change.any()}, answers


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({}, ()),
        ({"norm_constraint": 5e-3}, ()),
        ({"batch": 6}, AS_IT_IS),
        ({"batch": 4, "norm_constraint": 0.02, "weight_decay": 0.01}, AS_IT_IS),
    ],
    ids=["one by one", "bounded", "all at once", "in two calls"],
)
def test_the_change_of_weights_is_that_of_our_faithful_variant(model, theirs, changes, without):
    requests = requests_of(FACTS)
    mine, my_answers = changes_of(model, lambda: ours(model, requests, **changes))
    other, other_answers = changes_of(model, lambda: theirs(requests, **changes, without=without))
    assert mine.keys() == other.keys()
    reported("FT-L", model, apart(mine, other))
    for name, change in other.items():
        assert float((mine[name] - change).norm() / change.norm()) < 1e-5
    assert my_answers == other_answers


def test_workarounds_make_a_batch_say_what_its_requests_say_alone(model, theirs):
    """The first step of a batch is the mean of its requests' own: with equal gradients Adam's first step has one size."""
    requests, one_step = requests_of(FACTS[:2]), {"steps": 1, "lr": 1e-3, "batch": 2}
    gradients = []
    for part in (requests[:1], requests[1:]):
        gradients.append(gradient(model, part))
    mean = {name: (gradients[0][name] + gradients[1][name]).sign() for name in gradients[0]}
    agreement = {}
    for without in ((), AS_IT_IS):
        added, _ = changes_of(model, lambda without=without: theirs(requests, **one_step, without=without))
        agreement[without] = {
            name: float((added[name].sign() == -mean[name]).float().mean()) for name in mean if name in added
        }
    assert all(share > 0.999 for share in agreement[()].values())
    assert any(share < 0.9 for share in agreement[AS_IT_IS].values())


def gradient(model, requests):
    """Of the mean log-probability of a request's target ids behind its prompt, as EasyEdit tokenises them; autograd's."""
    names = [n for n, _ in model.model.named_parameters() if n.startswith(model.path(model.layout.value_matrix, 1))]
    parameters = [model.model.get_parameter(name).requires_grad_(True) for name in names]
    request = requests[0]
    prompt = torch.tensor([model.tokenizer(request.prompt)["input_ids"]])
    target = model.tokenizer(f" {request.target_new}")["input_ids"]
    scored = [token for token in target if token != model.tokenizer.unk_token_id]
    log_probs = model.model(prompt).logits[0, -1].log_softmax(-1)
    found = torch.autograd.grad(-log_probs[scored].mean(), parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return dict(zip(names, found, strict=True))


def test_every_request_is_applied_and_revert_is_bit_exact(model, theirs):
    before = weight_hash(model.model)
    requests = requests_of(FACTS)
    ends = []
    for count in range(1, 4):
        edited = theirs(requests[:count])
        ends.append(weight_hash(model.model))
        edited.revert()
        assert weight_hash(model.model) == before
    assert len({before, *ends}) == 4


def test_an_edit_changes_what_the_model_says(model, theirs):
    from harness.models.edited import WeightEditedModel

    queries = queries_of(model, FACTS[:1])
    unedited = WeightEditedModel(model).teacher_forced(queries)
    edited = theirs(requests_of(FACTS[:1]), lr=0.05, steps=25)
    assert edited.teacher_forced(queries) != unedited
    edited.revert()
    assert WeightEditedModel(model).teacher_forced(queries) == unedited


def test_the_environment_of_this_process_stays(model, theirs):
    before = dict(os.environ)
    theirs(requests_of(FACTS[:1])).revert()
    assert dict(os.environ) == before
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ
