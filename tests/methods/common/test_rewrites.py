"""From a request to rows of ids: where the subject ends, what is predicted where, and records that cannot be edited."""

import dataclasses
import re

import pytest

from harness.errors import UserError
from harness.tokens import joint_query
from methods.common.rewrites import rewrite
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model
from tests.helpers.tiny_rome import PREFIXES, countable, requests


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


def changed(**fields):
    return dataclasses.replace(requests()[0], **fields)


def test_a_row_is_prompt_and_target_and_its_last_places_predict_the_target(model):
    for request in requests():
        made = rewrite(model, request, PREFIXES, "joint")
        assert len(made.contexts) == 1 + len(PREFIXES)
        for prefix, row in zip(("", *PREFIXES), made.contexts, strict=True):
            query = joint_query(model.tokenizer, prefix + request.prompt, request.target_new)
            assert row.ids == query.prompt_ids + query.target_ids[:-1]
            assert row.labels == query.target_ids
            first = len(row.ids) - len(row.labels)
            assert first == len(query.prompt_ids) - 1
            assert row.ids[first + 1 :] == row.labels[:-1]


def test_the_pivot_is_the_last_token_of_the_subject(model):
    for request in requests():
        for row in rewrite(model, request, PREFIXES, "joint").contexts:
            until = model.tokenizer.decode(row.ids[: row.pivot + 1], skip_special_tokens=True)
            before = model.tokenizer.decode(row.ids[: row.pivot], skip_special_tokens=True)
            assert request.subject in until
            assert request.subject not in before


def test_the_essence_ends_with_the_subject(model):
    for request in requests():
        essence = rewrite(model, request, (), "joint").essence
        assert model.tokenizer.decode(essence.ids, skip_special_tokens=True).strip() == request.subject
        assert essence.pivot == len(essence.ids) - 1
        assert not essence.labels


def test_a_target_alone_is_expected_in_the_last_places_of_its_own_text(model):
    """What EasyEdit does: the target's ids without the prompt, its text less the last id behind the prompt."""
    for request in countable(model):
        (row,) = rewrite(model, request, (), "alone").contexts
        ids = model.tokenizer(f" {request.target_new}")["input_ids"]
        ids = ids[1:] if ids[0] == model.tokenizer.bos_token_id and model.spec.adds_bos else ids
        assert row.labels == tuple(ids)
        text = request.prompt + model.tokenizer.decode(ids[:-1])
        assert row.ids == tuple(model.tokenizer(text)["input_ids"])


def test_beside_a_target_alone_the_end_of_the_subject_is_counted_in_the_text_up_to_it(model):
    """What EasyEdit does, also where the subject's last letters share a token with what follows."""
    request = requests()[1]
    request = dataclasses.replace(request, prompt=f"{request.prompt} Where is it?")
    until = request.prompt[: request.prompt.index(request.subject)] + request.subject
    (alone,), (joint,) = (rewrite(model, request, (), kind).contexts for kind in ("alone", "joint"))
    assert alone.pivot == len(model.tokenizer(until)["input_ids"]) - 1
    assert (alone.pivot != joint.pivot) == (model.spec.architecture != "gptj")


def test_a_subject_whose_end_is_counted_behind_its_prompt_is_one_line_that_names_the_record():
    with pytest.raises(UserError, match=r"^record r1: the end of the subject .* would be after the end of"):
        rewrite(tiny_model("llama"), requests()[1], (), "alone")


@pytest.mark.parametrize("target_tokens", ["joint", "alone"])
def test_a_subject_is_never_found_inside_another_word(model, target_tokens):
    """The row of a prompt in which the subject's letters occur later, inside a word, has its pivot where one without has."""
    plain, glued = (changed(prompt=f"The tongue of Paris, {other}, is", subject="Paris") for other in ("my", "Parisla"))
    found = [rewrite(model, request, PREFIXES, target_tokens) for request in (plain, glued)]
    assert [row.pivot for row in found[0].contexts] == [row.pivot for row in found[1].contexts]


def test_the_essence_of_a_subject_that_its_own_words_contain_ends_at_its_start(model):
    """`a is a`: the first a."""
    essence = rewrite(model, changed(prompt="The letter a is", subject="a"), (), "joint").essence
    assert essence.pivot == len(model.tokenizer("a")["input_ids"]) - 1


@pytest.mark.parametrize("subject", ["Marie Curie", ""])
def test_a_subject_that_is_not_in_its_prompt_is_one_line_that_names_the_record(model, subject):
    with pytest.raises(UserError, match=r"^record r0: .*subject.* → "):
        rewrite(model, changed(subject=subject), PREFIXES, "joint")


def test_an_empty_target_is_one_line_that_names_the_record(model):
    with pytest.raises(UserError, match=r"^record r0: nothing to score.* → fix the record"):
        rewrite(model, changed(target_new=" "), PREFIXES, "joint")


@pytest.mark.parametrize("words", ["target_new", "prompt"])
def test_more_tokens_than_the_model_reads_are_one_line_that_names_the_record(model, words):
    request = requests()[0]
    long = changed(**{words: f"{getattr(request, words)} " + "Paris " * 300})
    with pytest.raises(UserError, match=r"^record r0: \d+ tokens .* reads at most 256 → leave it out"):
        rewrite(model, long, PREFIXES, "joint")


class Joining:
    """Letters as tokens, except that an `e` before a word that begins with `l` shares a token with it."""

    bos_token_id = None

    def __call__(self, text, return_offsets_mapping=False):
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        spans = [span for letter in re.finditer("e l|.", text) for span in [letter.span()]]
        return {"input_ids": [sum(map(ord, text[a:b])) for a, b in spans], "offset_mapping": spans}


def test_a_subject_that_runs_into_the_target_is_one_line_that_names_the_record():
    model = dataclasses.replace(tiny_model("llama"), tokenizer=Joining())
    request = changed(prompt="The tongue of Danielle", subject="Danielle", target_new="Iceland")
    assert rewrite(model, request, (), "joint").contexts[0].pivot == len(request.prompt) - 1
    with pytest.raises(UserError, match=r"^record r0: the subject 'Danielle' shares a token with the target 'land'"):
        rewrite(model, dataclasses.replace(request, target_new="land"), (), "joint")
