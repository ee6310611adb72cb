"""Synthetic data: invented people, companies, films and towns, so that everything runs without a download.

One set of facts, with one true object per subject and relation, is rendered in the upstream formats: ZsRE as in KnowEdit
(questions), CounterFact as in ROME (cloze prompts; half of the paraphrases follow an unrelated sentence), KnowEdit's
WikiData-counterfact, HalluEditBench with its forms of a question, and MQuAKE with chains of two facts, the first of which is
edited. The records go through the same readers as downloaded files. Neighbours and attributes are facts about entities that are
never edited, so that edits, pools and their probes can be kept apart.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from harness.data.lexicon import (
    CAPITALS,
    CITIES,
    DISTRACTORS,
    FAMILIES,
    GENERATION_PROMPTS,
    RELATIONS,
    Relation,
)

SEED = 20250817
RECORDS_PER_RELATION = 64
NEIGHBOURS = 10
_BACKGROUND_PER_OBJECT = 8
_ONSETS = ("b", "br", "d", "dr", "f", "g", "gr", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_CODAS = ("", "", "l", "m", "n", "r", "s", "th")


_ABOUT_OBJECTS = (
    (CITIES, "In which country is {}?"),
    (CAPITALS, "What is the capital of {}?"),
    (FAMILIES, "Which family does the {} belong to?"),
)
"""Second-hop answers, with the question about the object in between."""


def upstream_rows(name: str) -> list[dict[str, Any]]:
    """Generate the records of a dataset of `RENDERED` as upstream dictionaries, identical on every machine."""
    facts = _Facts()
    edited, render = RENDERED[name]
    rows = (render(facts, number, subject, relation) for number, (subject, relation) in enumerate(facts.edited(edited)))
    return [row for row in rows if row is not None]


class _Facts:
    """Names, facts and their two renderings, all drawn from one seeded generator in a fixed order."""

    def __init__(self) -> None:
        self._random = random.Random(SEED)
        self._names = self._fresh_names()
        self._facts: dict[tuple[str, str], str] = {}
        self._background: dict[tuple[str, str], list[str]] = {}
        self._edited: dict[str, list[tuple[str, Relation]]] = {"zsre": [], "counterfact": []}
        for relation in RELATIONS:
            for dataset in self._edited:
                subjects = [self._new_subject(relation.kind) for _ in range(RECORDS_PER_RELATION)]
                self._edited[dataset] += [(subject, relation) for subject in subjects]
        for relation in RELATIONS:
            for obj in relation.objects:
                subjects = [self._new_subject(relation.kind, {relation.id: obj}) for _ in range(_BACKGROUND_PER_OBJECT)]
                self._background[relation.id, obj] = subjects
        for rows in self._edited.values():
            self._random.shuffle(rows)

    def edited(self, dataset: str) -> list[tuple[str, Relation]]:
        """Subject and relation of each record of a dataset."""
        return self._edited[dataset]

    def knowedit(self, subject: str, relation: Relation) -> dict[str, Any]:
        """Render a KnowEdit record; its locality probes vary either the relation or the subject."""
        true, new = self._objects(subject, relation)
        prompt, rephrase = self._random.sample(relation.questions, 2)
        other = self._random.choice([other for other in RELATIONS if other.kind == relation.kind] or [relation])
        neighbour_object = self._random.choice(relation.objects)
        neighbour = self._random.choice(self._background[relation.id, neighbour_object])
        locality = [(self._random.choice(relation.questions).format(neighbour), neighbour_object)]
        if other is not relation:
            statement = self._random.choice(other.statements)
            locality.insert(0, (statement.format(subject), self._facts[subject, other.id]))
        return {
            "subject": subject,
            "target_new": new,
            "prompt": prompt.format(subject),
            "ground_truth": [true],
            "rephrase_prompt": rephrase.format(subject),
            "cond": f"{true} >> {new} || {prompt.format(subject)}",
            "locality": {"Relation_Specificity": [{"prompt": q, "ground_truth": [a]} for q, a in locality]},
            "portability": self._hop(subject, relation, new),
        }

    def counterfact(self, number: int, subject: str, relation: Relation) -> dict[str, Any]:
        """Render a ROME record with ten neighbours that share the true object and ten subjects that have the new one."""
        true, new = self._objects(subject, relation)
        prompt, *paraphrases = self._random.sample(relation.statements, 3)
        return {
            "case_id": number,
            "pararel_idx": number,
            "requested_rewrite": {
                "prompt": prompt,
                "relation_id": relation.id,
                "target_new": {"str": new, "id": f"synthetic:{new}"},
                "target_true": {"str": true, "id": f"synthetic:{true}"},
                "subject": subject,
            },
            "paraphrase_prompts": [self._behind_distractor(text.format(subject)) for text in paraphrases],
            "neighborhood_prompts": self._others(relation, true),
            "attribute_prompts": self._others(relation, new),
            "generation_prompts": [text.format(subject) for text in GENERATION_PROMPTS[relation.kind]],
        }

    def wiki_counterfact(self, subject: str, relation: Relation) -> dict[str, Any]:
        """Render a record of KnowEdit's WikiData-counterfact; the last word of a name of several words is an alias."""
        true, new = self._objects(subject, relation)
        prompt, other = self._random.sample(relation.statements, 2)
        portability = self._hop(subject, relation, new)
        if " " in subject:
            alias = subject.split()[-1]
            portability["Subject_Aliasing"] = [{"prompt": other.format(alias), "ground_truth": new}]
        untouched = [each for each in RELATIONS if each.kind == relation.kind and each is not relation]
        kept = [
            {"prompt": each.statements[0].format(subject), "ground_truth": self._facts[subject, each.id]}
            for each in untouched
        ]
        return {
            "subject": subject,
            "prompt": prompt.format(subject),
            "target_new": new,
            "ground_truth": true,
            "portability": portability,
            "locality": {"Relation_Specificity": kept},
        }

    def halluedit(self, subject: str, relation: Relation) -> dict[str, Any]:
        """Render a HalluEditBench record: four options, questions answered by yes and by no, and the reversed question."""
        true, new = self._objects(subject, relation)
        question, paraphrase = self._random.sample(relation.questions, 2)
        others = [obj for obj in relation.objects if obj not in (true, new)]
        options = [*self._random.sample(others, 2), true, new]
        self._random.shuffle(options)
        statement = self._random.choice(relation.statements)
        about_subject = [each for each in RELATIONS if each.kind == relation.kind and each is not relation]
        neighbour = self._random.choice(self._background[relation.id, self._random.choice(relation.objects)])
        chain = {}
        if relation.hop is not None:
            hop, answers = relation.hop
            chain = {"question_2hop": hop.format(subject), "answer_2hop": answers[new]}
        return {
            "subject": subject,
            "relation": relation.id,
            "object": new,
            "question": question.format(subject),
            "output_tiny": true,
            "paraphrased_question": paraphrase.format(subject),
            "multiple_choice_with_letters": " ".join(
                f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True)
            ),
            "multiple_choice_labels": "ABCD"[options.index(new)],
            "yes_question": f'Is this right: "{statement.format(subject)} {new}"?',
            "no_question": f'Is this right: "{statement.format(subject)} {true}"?',
            "reversed_relation_question": f'Which name is missing here: "{statement.format("…")} {new}"?',
            "locality_question": self._random.choice(about_subject[0].questions).format(subject)
            if about_subject
            else question.format(neighbour),
            **chain,
        }

    def mquake(self, number: int, subject: str, relation: Relation) -> dict[str, Any] | None:
        """Render an MQuAKE record: an edited fact and a fact about its new object; None if nothing is known about objects."""
        true, new = self._objects(subject, relation)
        if relation.hop is None:
            return None
        question, answers = relation.hop
        about = next(text for known, text in _ABOUT_OBJECTS if known is answers)
        asked = self._random.choice(relation.questions).format(subject)
        prompt = self._random.choice(relation.statements)
        return {
            "case_id": number,
            "requested_rewrite": [
                {
                    "prompt": prompt,
                    "relation_id": relation.id,
                    "target_new": {"str": new, "id": f"synthetic:{new}"},
                    "target_true": {"str": true, "id": f"synthetic:{true}"},
                    "subject": subject,
                    "question": asked,
                }
            ],
            "questions": [question.format(subject)],
            "answer": answers[true],
            "answer_alias": [],
            "new_answer": answers[new],
            "new_answer_alias": [],
            "new_single_hops": [
                {"question": asked, "cloze": prompt.format(subject), "answer": new, "answer_alias": []},
                {"question": about.format(new), "cloze": about.format(new), "answer": answers[new], "answer_alias": []},
            ],
        }

    def _objects(self, subject: str, relation: Relation) -> tuple[str, str]:
        true = self._facts[subject, relation.id]
        return true, self._random.choice([obj for obj in relation.objects if obj != true])

    def _others(self, relation: Relation, obj: str) -> list[str]:
        """Cloze prompts about other subjects for which the object is true."""
        subjects = self._background[relation.id, obj]
        pairs = [(subject, statement) for subject in subjects for statement in relation.statements]
        return [statement.format(subject) for subject, statement in self._random.sample(pairs, NEIGHBOURS)]

    def _behind_distractor(self, paraphrase: str) -> str:
        if self._random.random() < 0.5:
            return paraphrase
        return f"{self._random.choice(DISTRACTORS)} {paraphrase}"

    def _hop(self, subject: str, relation: Relation, new: str) -> dict[str, list[dict[str, str]]]:
        if relation.hop is None:
            return {}
        question, answers = relation.hop
        return {"Reasoning": [{"prompt": question.format(subject), "ground_truth": answers[new]}]}

    def _new_subject(self, kind: str, known: dict[str, str] | None = None) -> str:
        """Invent an entity of a type, with one object for each of the type's relations."""
        subject = self._name(kind)
        for relation in RELATIONS:
            if relation.kind == kind:
                self._facts[subject, relation.id] = (known or {}).get(relation.id) or self._random.choice(
                    relation.objects
                )
        return subject

    def _name(self, kind: str) -> str:
        """Invent a name of one to three words, none of which occurs in another name."""
        if kind == "person":
            return " ".join(next(self._names) for _ in range(self._random.choice((2, 2, 3))))
        if kind == "film":
            return " ".join(("The", *(next(self._names) for _ in range(self._random.choice((1, 2))))))
        return " ".join(next(self._names) for _ in range(self._random.choice((1, 1, 2))))

    def _fresh_names(self) -> Iterator[str]:
        used: set[str] = set()
        while True:
            syllables = self._random.choice((2, 2, 3))
            word = "".join(self._random.choice(_ONSETS) + self._random.choice(_VOWELS) for _ in range(syllables))
            word = (word + self._random.choice(_CODAS)).capitalize()
            if word not in used:
                used.add(word)
                yield word


Render = Callable[[_Facts, int, str, Relation], dict[str, Any] | None]

RENDERED: Mapping[str, tuple[str, Render]] = {
    "zsre": ("zsre", lambda facts, number, *fact: facts.knowedit(*fact)),
    "counterfact": ("counterfact", _Facts.counterfact),
    "wiki_counterfact": ("counterfact", lambda facts, number, *fact: facts.wiki_counterfact(*fact)),
    "halluedit": ("zsre", lambda facts, number, *fact: facts.halluedit(*fact)),
    "mquake": ("zsre", _Facts.mquake),
}
"""By dataset, whose subjects it edits, and how."""
