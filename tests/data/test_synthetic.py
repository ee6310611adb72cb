from collections import Counter

import pytest

from harness import registry
from harness.data import synthetic
from harness.data.lexicon import RELATIONS
from harness.data.load import files, load, resolve
from harness.data.sources import SYNTHETIC, find_files

DATASETS = [name for name, info in registry.datasets.all().items() if info.synthetic]


def generated(name: str):
    """The synthetic records of a dataset."""
    return find_files(name, SYNTHETIC).edited.records


def parsed(text: str, templates, relations=RELATIONS) -> tuple[str, str] | None:
    """Parse relation and subject from a text; of all matching templates, take the one with the shortest subject."""
    fits = []
    for relation in relations:
        for template in templates(relation):
            before, after = template.split("{}")
            if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
                fits.append((relation.id, text.removeprefix(before).removesuffix(after)))
    return min(fits, key=lambda fit: len(fit[1]), default=None)


def test_every_subject_has_one_true_object_per_relation():
    facts: dict[tuple[str, str], set[str]] = {}
    for row in synthetic.upstream_rows("counterfact"):
        rewrite = row["requested_rewrite"]
        relation = [each for each in RELATIONS if each.id == rewrite["relation_id"]]
        true, new = rewrite["target_true"]["str"], rewrite["target_new"]["str"]
        facts.setdefault((relation[0].id, rewrite["subject"]), set()).add(true)
        for axis, obj in (("neighborhood_prompts", true), ("attribute_prompts", new)):
            for prompt in row[axis]:
                facts.setdefault(parsed(prompt, lambda each: each.statements, relation), set()).add(obj)
    for row in synthetic.upstream_rows("zsre"):
        for probe in (row, *row["locality"]["Relation_Specificity"]):
            fact = parsed(probe["prompt"], lambda each: (*each.questions, *each.statements))
            facts.setdefault(fact, set()).update(probe["ground_truth"])

    assert None not in facts
    assert len(facts) > 2000
    assert {key: objects for key, objects in facts.items() if len(objects) > 1} == {}


def test_every_target_is_a_false_object_of_the_same_relation():
    for row in synthetic.upstream_rows("counterfact"):
        rewrite = row["requested_rewrite"]
        (objects,) = [relation.objects for relation in RELATIONS if relation.id == rewrite["relation_id"]]
        assert {rewrite["target_true"]["str"], rewrite["target_new"]["str"]} < set(objects)


@pytest.mark.parametrize("name", DATASETS)
def test_every_record_has_its_own_subject(name):
    records = generated(name)

    assert len({record.subject for record in records}) == len(records) >= 380


def test_the_two_datasets_edit_different_subjects():
    zsre, counterfact = ({record.subject for record in generated(name)} for name in ("zsre", "counterfact"))

    assert not zsre & counterfact


def test_counterfact_has_ten_neighbours_ten_attributes_and_two_rephrases():
    for record in generated("counterfact"):
        assert len({probe.prompt for probe in record.locality}) == len({probe.prompt for probe in record.attributes})
        assert (len(record.locality), len(record.rephrases)) == (10, 2)
        assert record.prompt not in record.rephrases


def test_about_half_of_the_paraphrases_have_a_distractor_and_lose_it_when_stripped():
    stripped = load(resolve("counterfact", "synthetic", 100, strip_distractor=True))
    plain = load(resolve("counterfact", "synthetic", 100))

    changed = Counter(
        before != after
        for one, other in zip(plain.edits, stripped.edits, strict=True)
        for before, after in zip(one.rephrases, other.rephrases, strict=True)
    )

    assert changed[True] == pytest.approx(changed[False], rel=0.3)
    for record in stripped.edits:
        for text in record.rephrases:
            assert parsed(text, lambda each: each.statements)[1] == record.subject


def test_zsre_prompts_are_questions_and_locality_covers_the_subject_and_others():
    forms = Counter()
    for record in generated("zsre"):
        assert record.prompt.endswith("?")
        assert record.rephrases[0].endswith("?")
        assert record.rephrases[0] != record.prompt
        forms.update(record.subject in probe.prompt for probe in record.locality)

    assert min(forms[True], forms[False]) > 500


def test_portability_follows_from_the_new_object():
    answers = {relation.hop[0]: relation.hop[1] for relation in RELATIONS if relation.hop}
    hops = [
        (record, probe) for name in ("zsre", "mquake") for record in generated(name) for probe in record.portability
    ]

    assert len(hops) > 300
    for record, probe in hops:
        (mapping,) = [
            mapping for question, mapping in answers.items() if question.format(record.subject) == probe.prompt
        ]
        assert probe.answer == mapping[record.target_new]


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("split", ["test", "dev"])
def test_there_are_enough_records_for_a_hundred_edits_and_their_pools(name, split):
    edits = 100 if split == "test" else 50
    data = load(
        resolve(name, "synthetic", edits, split=split, **({"train": 400, "unrelated": 50} if split == "test" else {}))
    )

    groups = [{record.subject for record in group} for group in (data.edits, data.train, data.unrelated)]
    assert sum(map(len, groups)) == len(set().union(*groups))


def test_pool_records_keep_most_of_their_neighbours():
    """Edits share a small set of neighbours, and only scored prompts are removed from a pool record."""
    data = load(resolve("counterfact", "synthetic", 100, train=400, unrelated=50))
    scored = {probe.prompt for record in data.edits for probe in record.locality}

    kept = [probe.prompt for record in data.train for probe in record.locality]

    assert len(kept) > 0.6 * 10 * len(data.train)
    assert not scored & set(kept)


HASHES = {
    "zsre": "08986d0bb0f2a3df5c58a032cb7cbbd6085539ba2c4826e39a941ce3ba42d631",
    "counterfact": "4f5acfcfd87f5c485fd6de342ff6b7cb8126d1e815e8b8eb91ae2a439761acb4",
    "wiki_counterfact": "7031d0fef63bed6046c9740c0634e5688c3b06b2d342327572d32bb35f624c32",
    "halluedit": "97645e048c3c938e8dd3e26122646c9b8e9506e0743b4082817105e60350744b",
    "mquake": "8bcea2272687106a0488ee6ee5e619c5174b8326abf9395457e1e320de756fdc",
}


@pytest.mark.parametrize("name", DATASETS)
def test_the_synthetic_records_are_the_same_everywhere(name):
    """Changed records change every cell's identity, so change these hashes only deliberately."""
    assert files(resolve(name, "synthetic", 1)) == {f"synthetic:{name}": HASHES[name]}


def test_every_form_of_a_hallueditbench_question_has_its_answer():
    for record in generated("halluedit"):
        choice, yes, no, reverse = record.forms
        assert f"{choice.answer}. {record.target_new}" in choice.prompt
        assert (yes.answer, record.target_new in yes.prompt) == ("Yes", True)
        assert (no.answer, record.ground_truth in no.prompt, record.target_new in no.prompt) == ("No", True, False)
        assert (reverse.answer, record.subject in reverse.prompt) == (record.subject, False)
