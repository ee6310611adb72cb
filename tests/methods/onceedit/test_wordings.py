"""Other wordings of an edit from train records, and the negatives that resemble the edits."""

import dataclasses

import torch

from harness.records import EditRecord
from methods.common.similarity import PromptMemory, embeddings_of
from methods.onceedit.edit_stage import _lessons
from methods.onceedit.rows import negative_prompts
from methods.onceedit.wordings import POOL, hard_pool, reworded
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import hparams_with


def record(prompt, subject, rephrases=(), relation=""):
    return EditRecord(f"{subject} {relation}", prompt, subject, "Oslo", "", tuple(rephrases), relation=relation)


EDIT = record("Björk was born in", "Björk", ["Where was Björk born?"], "P19")
TRAIN = (
    record("Ibsen was born in", "Ibsen", ["Ibsen comes from", "Of Ibsen and others. Ibsen is a native of"], "P19"),
    record("Grieg was born in", "Grieg", ["Grieg comes from", "This one has no subject"], "P19"),
    record("Grieg speaks", "Grieg", ["The language of Grieg is"], "P1412"),
)


def drawn(edits, train, number, seed=0):
    return reworded(edits, train, number, torch.Generator().manual_seed(seed))


def test_a_wording_is_a_rephrase_of_the_same_relation_with_the_edits_subject():
    (wordings,) = drawn([EDIT], TRAIN, 5)
    assert wordings[0] == EDIT.request()
    assert {request.prompt for request in wordings[1:]} == {
        "Björk comes from",
        "Of Ibsen and others. Björk is a native of",
    }
    assert {request.target_new for request in wordings} == {"Oslo"}


def test_without_relation_ids_records_match_if_their_prompts_differ_only_in_the_subject():
    edit, *train = (dataclasses.replace(each, relation="") for each in (EDIT, *TRAIN))
    (wordings,) = drawn([edit], train, 5)
    assert len(wordings) == 3
    (alone,) = drawn([dataclasses.replace(edit, prompt="The birthplace of Björk is")], train, 5)
    assert len(alone) == 1


def test_no_rephrase_of_an_edited_record_is_used():
    texts = {request.prompt for seed in range(5) for request in drawn([EDIT], TRAIN, 1, seed)[0]}
    assert texts.isdisjoint(EDIT.rephrases)
    assert all(len(drawn([EDIT], TRAIN, number)[0]) == 1 + min(number, 2) for number in range(4))


def test_an_edit_without_a_subject_has_only_its_own_wording():
    for nameless in (dataclasses.replace(EDIT, subject=""), dataclasses.replace(EDIT, subject="", relation="")):
        assert drawn([nameless], TRAIN, 5) == [[nameless.request()]]


def test_half_of_a_pool_are_the_prompts_most_similar_to_the_edits(data):
    prompts = negative_prompts(data)
    memory = PromptMemory.of(embeddings_of(tiny_model("llama")), [each.request() for each in data.edits], 0.5)
    pool = hard_pool(prompts, memory, 0.5, 2, torch.Generator().manual_seed(0))
    assert len(set(pool)) == 2 * POOL
    nearest = sorted(prompts, key=memory.similarity, reverse=True)[:POOL]
    assert set(nearest) <= set(pool)
    assert set(hard_pool(prompts, memory, 0.5, 10**6, torch.Generator())) == set(prompts)


def test_with_wordings_rephrases_of_train_records_are_negatives_too(data):
    data = dataclasses.replace(data, edits=(EDIT,), train=TRAIN)
    hparams = hparams_with(paraphrases=2).model_dump()
    wordings, unrelated = _lessons(tiny_model("llama"), data, hparams, seed=0)
    rephrases = {text for each in TRAIN for text in each.rephrases}
    assert rephrases <= set(unrelated)
    assert rephrases.isdisjoint(negative_prompts(data))
    assert [len(of_edit) for of_edit in wordings] == [3]
