"""What a tiny model is taught: the truth in many words, and never what an edit is to teach."""

import dataclasses
from collections import defaultdict

import pytest

from harness.data.load import load, resolve
from harness.models.tiny.corpus import EDITED, Fact, verbalise
from harness.records import DataRef, Dataset, EditRecord, Probe

REF = DataRef("counterfact", "synthetic", 1)


@pytest.fixture(scope="module", params=["counterfact", "zsre"])
def synthetic(request):
    return load(resolve(request.param, "synthetic", 50, train=100, unrelated=50, strip_distractor=True))


@pytest.fixture(scope="module", params=["counterfact", "zsre"])
def upstream(request, shared):
    return load(resolve(request.param, str(shared / "data"), 50, train=200, unrelated=50, strip_distractor=True))


def data(*edits, train=()):
    return Dataset(REF, tuple(edits), tuple(train), ())


def record(subject="Björk", new="Paris", truth="Reykjavík", **changes):
    fields = {"prompt": f"{subject} was born in", "relation": "P19", **changes}
    return EditRecord(fields.pop("id", subject), subject=subject, target_new=new, ground_truth=truth, **fields)


def told(facts, subject, answer):
    return [fact for fact in facts if subject in fact.prompt and fact.answer == answer]


def test_no_fact_of_the_synthetic_data_pairs_the_subject_of_an_edit_with_its_new_object(synthetic):
    facts = verbalise(synthetic)
    assert [told(facts, edit.subject, edit.target_new) for edit in synthetic.edits] == [[]] * len(synthetic.edits)


def test_no_fact_of_the_real_records_pairs_the_subject_of_an_edit_with_its_new_object(upstream):
    facts = verbalise(upstream)
    assert [told(facts, edit.subject, edit.target_new) for edit in upstream.edits] == [[]] * len(upstream.edits)


def test_the_new_object_is_kept_apart_from_the_subject_wherever_it_comes_from():
    edit = record(locality=(Probe("Björk loves", "Paris"), Probe("Björk sings in", "Icelandic")))
    neighbour = record("Sjón", "Rome", "Reykjavík", attributes=(Probe("The home of Björk is", "paris "),))
    facts = verbalise(data(edit, neighbour))
    assert told(facts, "Björk", "Paris") == []
    assert [fact for fact in facts if "Björk" in fact.prompt] == [
        Fact("Björk was born in", "Reykjavík", "Björk"),
        Fact("Björk sings in", "Icelandic"),
    ]


def test_an_edit_to_what_is_true_already_is_not_taught_beforehand():
    assert verbalise(data(record(new="Reykjavík"))) == []
    nameless = EditRecord("1", "Where was she born?", "", "Paris", "Paris", rephrases=("Her place of birth?",))
    assert verbalise(data(nameless)) == []


def test_every_edited_prompt_and_rephrase_is_taught_with_the_true_object(synthetic):
    facts = set(verbalise(synthetic))
    for edit in synthetic.edits:
        for prompt in (edit.prompt, *(text for text in edit.rephrases if edit.subject in text)):
            assert Fact(prompt, edit.ground_truth, edit.subject) in facts


def test_each_prompt_of_the_synthetic_data_has_one_answer_and_each_fact_is_told_once(synthetic):
    facts = verbalise(synthetic)
    assert len(facts) == len(set(facts))
    answers = defaultdict(set)
    for fact in facts:
        answers[fact.prompt].add(fact.answer)
    assert [prompt for prompt, found in answers.items() if len(found) > 1] == []


def test_new_objects_are_taught_with_subjects_that_really_have_them():
    records = load(resolve("counterfact", "synthetic", 50, train=100, strip_distractor=True))
    answers = {fact.answer for fact in verbalise(records)}
    assert {edit.target_new for edit in records.edits} <= answers


def test_where_upstream_names_no_subject_with_the_new_object_two_are_invented():
    edits = [record("Sigur Rós"), record("Emilíana Torrini", new="Rome"), record("Jón Leifs", new="Oslo")]
    facts = verbalise(data(*edits))
    assert Fact("Jón Torrini was born in", "Paris", "Jón Torrini") in facts
    subjects = {edit.subject for edit in edits}
    for edit in edits:
        invented = [fact for fact in facts if fact.answer == edit.target_new]
        assert len(invented) == EDITED.attributes
        assert not {fact.subject for fact in invented} & subjects
    named = dataclasses.replace(edits[0], attributes=(Probe("Édith Piaf was born in", "Paris"),))
    assert [fact.prompt for fact in verbalise(data(named, *edits[1:])) if fact.answer == "Paris"] == [
        "Édith Piaf was born in"
    ]


def test_the_subject_of_a_fact_lies_in_its_prompt(synthetic):
    facts = verbalise(synthetic)
    assert all(fact.subject in fact.prompt for fact in facts)


def test_the_subject_of_a_neighbour_is_found_by_the_template_it_follows():
    facts = verbalise(data(record(locality=(Probe("Sjón was born in", "Reykjavík"), Probe("It rains in", "May")))))
    assert facts[1:] == [Fact("Sjón was born in", "Reykjavík", "Sjón"), Fact("It rains in", "May")]


def test_what_only_says_how_many_tokens_are_compared_is_not_taught():
    probes = (Probe("Sjón sings", "Paris", has_answer=False), Probe("It rains in", "May"))
    facts = verbalise(data(record(locality=probes)))
    assert [fact.answer for fact in facts if fact.prompt in {probe.prompt for probe in probes}] == ["May"]


def test_the_longest_template_decides():
    facts = verbalise(
        data(
            record("Björk", prompt="Björk was born in", locality=(Probe("Sjón was born in", "Reykjavík"),)),
            record("Rain", "b", "a", prompt="Rain in"),
        )
    )
    assert Fact("Sjón was born in", "Reykjavík", "Sjón") in facts


def test_a_subject_is_told_in_a_few_templates_of_its_relation_and_not_of_another():
    others = [
        record(f"Person {n}", "Rome", "Oslo", prompt=f"Person {n} {'x' * n} home", id=str(n)) for n in range(1, 9)
    ]
    stranger = record("Lake", "b", "a", prompt="The depth of Lake", relation="P1")
    facts = verbalise(data(record(), stranger, train=others))
    prompts = [fact.prompt for fact in facts if fact.subject == "Björk"]
    assert "Björk was born in" in prompts
    assert len(prompts) in {EDITED.templates, EDITED.templates + 1}
    assert not any("depth" in prompt for prompt in prompts)


def test_at_most_so_many_neighbours_are_told():
    probes = tuple(Probe(f"Neighbour {n} lives in", "Oslo") for n in range(9))
    facts = verbalise(data(record(locality=probes)))
    assert sum(fact.prompt.startswith("Neighbour") for fact in facts) == EDITED.neighbours


def test_braces_in_a_prompt_are_letters():
    facts = verbalise(data(record("Björk", prompt="{curly} Björk was born in")))
    assert facts == [Fact("{curly} Björk was born in", "Reykjavík", "Björk")]


def test_an_unknown_truth_is_not_told():
    assert verbalise(data(dataclasses.replace(record(), ground_truth=" "))) == []
