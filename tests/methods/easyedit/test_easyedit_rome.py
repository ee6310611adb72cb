"""ROME through EasyEdit: the same weights as our faithful variant, every request applied, nothing left from other acts."""

import dataclasses

import pytest

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from methods.easyedit.closed_form import as_template
from methods.easyedit.rome import EasyEditRome, EasyEditRomeHparams
from methods.rome import Rome, RomeHparams
from tests.helpers.tiny_models import ARCHITECTURES
from tests.helpers.tiny_rome import MOMENTS, VALUE, write_prefixes
from tests.methods.easyedit.parity import GROUPS, TEXTS, apart, artifacts_of, changes, difference, facts, three_layers

LAYERS = [0, 1]
VALUES = {
    **VALUE,
    **MOMENTS,
    "layers": LAYERS,
    "prefixes": [[5, 1], [10, 1]],
    "target_tokens": "alone",
    "key_mode": "rome",
}
TARGET, DATA = ModelRef("tiny/llama", "pretrained", source="nowhere"), DataRef("tiny", "synthetic", 4, train=8)


def adapter(**changes):
    return EasyEditRome(EasyEditRomeHparams(**VALUES | changes))


def native(**changes):
    return Rome(RomeHparams(**VALUES | changes))


@pytest.mark.easyedit
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_moves_the_weights_as_our_faithful_variant_does_act_after_act(tmp_path, architecture):
    model, editor, worker = three_layers(tmp_path, architecture), adapter(), None
    first, second, third = facts(3)
    twice = dataclasses.replace(second, prompt=f"{second.subject} is known. {second.prompt}")
    for seed, requests in enumerate([[first, twice, third], [third]]):
        given = artifacts_of(model, tmp_path / str(seed), LAYERS, seed)
        assert difference(editor, native(), model, requests, given) < 1e-4
        assert worker in (None, editor._worker)
        worker = editor._worker


@pytest.mark.easyedit
def test_without_workarounds_the_first_request_is_applied_alone_and_one_subject_read_once(tmp_path):
    model = three_layers(tmp_path, "gptj")
    given = {"prefixes": write_prefixes(tmp_path, TEXTS, GROUPS)}
    editor = adapter(moments="identity", without=["one-by-one", "last-mention"])
    first = changes(native(moments="identity"), model, facts(1), given)
    assert apart(first, changes(editor, model, facts(3), given)) < 1e-4
    fact = facts(1)[0]
    twice = dataclasses.replace(fact, prompt=f"{fact.subject} is known. {fact.prompt}")
    with pytest.raises(UserError, match="can fill in a subject only once") as caught:
        editor.edit(model, [twice], given, None)
    assert fact.record_id in str(caught.value)


@pytest.mark.easyedit
def test_it_samples_prefixes_of_its_own_if_none_are_given(tmp_path):
    model = three_layers(tmp_path, "llama")
    editor = adapter(moments="identity", prefixes=[[5, 1]], without=["given-prefixes"])
    assert editor.artifacts(TARGET, DATA, 0) == {}
    own = changes(editor, model, facts(1), {})
    given = {"prefixes": write_prefixes(tmp_path, TEXTS[:5], [[5, 1]])}
    assert apart(own, changes(native(moments="identity", prefixes=[[5, 1]]), model, facts(1), given)) > 1e-3


@pytest.mark.easyedit
@pytest.mark.parametrize(
    ("option", "value", "fix"),
    [
        ("target_tokens", "joint", 'target_tokens: "alone"'),
        ("v_loss_stop", 0.1, "v_loss_stop: 0.05"),
        ("key_mode", "prefix_mean", 'key_mode: "rome"'),
        ("without", ["given-statistics"], "moments: published"),
        ("without", ["given-prefix"], "did you mean 'given-prefixes'"),
    ],
)
def test_what_it_has_no_word_for_is_refused_when_a_run_is_planned(option, value, fix):
    with pytest.raises(UserError) as caught:
        adapter(**{option: value}).artifacts(TARGET, DATA, 0)
    assert fix in str(caught.value)


@pytest.mark.easyedit
def test_it_needs_the_artifacts_of_our_own():
    needed = adapter().artifacts(TARGET, DATA, 3)
    assert {role: spec.key for role, spec in needed.items()} == {
        role: spec.key for role, spec in native().artifacts(TARGET, DATA, 3).items()
    }


@pytest.mark.parametrize(
    ("prompt", "subject", "target", "complaint"),
    [
        ("The capital of Peru is", "Chile", "Lima", "is not in its prompt"),
        ("The capital of Peru is", "", "Lima", "no subject is given"),
        ("The capital of Peruvia is", "Peru", "Lima", "occurs only inside another word"),
        ("The {capital} of Peru is", "Peru", "Lima", "cannot handle braces"),
        ("The capital of Peru is", "Peru", "{Lima}", "cannot handle braces"),
    ],
)
def test_a_request_that_it_cannot_read_is_named(prompt, subject, target, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        as_template(EditRequest("number 7", prompt, subject, target, ""))
    assert "record number 7" in str(caught.value)


def test_a_template_has_its_place_at_the_last_mention():
    request = EditRequest("1", "Peru, oh Peru, has a capital called ", " Peru ", " Lima", "")
    assert as_template(request)["prompt"] == "Peru, oh {}, has a capital called"
    assert as_template(request)["target_new"] == "Lima"


def test_letters_inside_another_word_keep_their_place_and_cannot_be_filled_in_as_well():
    request = EditRequest("1", "The capital of Peru in Peruvia is", "Peru", "Lima", "")
    assert as_template(request)["prompt"] == "The capital of {} in Peruvia is"
    with pytest.raises(UserError, match="can fill in a subject only once"):
        as_template(request, is_last=False)


def test_a_subject_that_shares_a_token_with_what_follows_is_refused_before_a_worker_starts(small_model, tmp_path):
    model = small_model("llama")
    piece = max((piece for piece in model.tokenizer.get_vocab() if piece[:-1].isdigit() and piece[-1] == "."), key=len)
    text, number = f"It ended in {piece}", piece[:-1]
    assert len(model.tokenizer(text)["input_ids"]) < len(model.tokenizer(text[:-1])["input_ids"])
    fact = EditRequest("glued", text, number, "Paris", "")
    editor = adapter(moments="identity")
    with pytest.raises(UserError, match="past the end of"):
        editor.edit(model, [fact], {"prefixes": write_prefixes(tmp_path, TEXTS, GROUPS)}, None)
    assert editor._worker is None
