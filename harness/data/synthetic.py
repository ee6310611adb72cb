"""Synthetic data: invented people, companies, films and towns, so that everything runs without a download.

One set of facts, with one true object per subject and relation, is rendered in the upstream formats: ZsRE as in KnowEdit
(questions) and CounterFact as in ROME (cloze prompts; half of the paraphrases follow an unrelated sentence). The records go
through the same readers as downloaded files. Neighbours and attributes are facts about entities that are never edited, so
that edits, pools and their probes can be kept apart.
"""

import random
from collections.abc import Iterator
from typing import Any

from harness.data.lexicon import DISTRACTORS, GENERATION_PROMPTS, RELATIONS, Relation

SEED = 20250817
RECORDS_PER_RELATION = 64
NEIGHBOURS = 10
_BACKGROUND_PER_OBJECT = 8
_ONSETS = ("b", "br", "d", "dr", "f", "g", "gr", "k", "kl", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")
_CODAS = ("", "", "l", "m", "n", "r", "s", "th")


def upstream_rows(name: str) -> list[dict[str, Any]]:
    """Generate the records of `zsre` or `counterfact` as upstream dictionaries, identical on every machine."""
    facts = _Facts()
    if name == "zsre":
        return [facts.knowedit(subject, relation) for subject, relation in facts.edited("zsre")]
    return [
        facts.counterfact(number, subject, relation)
        for number, (subject, relation) in enumerate(facts.edited("counterfact"))
    ]


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
        """Render a KnowEdit record; locality probes another relation of the subject, and the same relation of another."""
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
