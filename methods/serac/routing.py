"""A model whose prompts in the scope of an edit are answered by the counterfactual model, with any target tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from harness.api import EditedModel, Ends, State
from harness.models.edited import WeightEditedModel
from harness.tokens import Query, token_ids
from methods.serac.memory import EditMemory
from methods.serac.networks import Networks, spelled

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

Row = TypeVar("Row")

_FURTHER = 4
"""Ids of the counterfactual model beyond those of the target's tokenizer that are asked for."""

_MOST = 4
"""It is asked for at most so many ids per id of the target's tokenizer; what they do not fill counts as end of text."""


@dataclass(frozen=True, slots=True)
class Question:
    """A text that the counterfactual model continues.

    Attributes:
        edit: the edit in whose scope it is, as `memory.stated` writes it.
        ids: ids of the target's tokenizer so far.
        text: the same as text.
        wanted: how many further ids of that tokenizer.
    """

    edit: str
    ids: tuple[int, ...]
    text: str
    wanted: int


class ScopedModel(EditedModel):
    """The unedited model, and the counterfactual model for prompts in the scope of an edit.

    Args:
        model: the target model, which stays unedited.
        networks: the scope classifier and the counterfactual model.
        memory: the edits.
        threshold: least probability of a prompt in scope.
    """

    def __init__(self, model: "LoadedModel", networks: Networks, memory: EditMemory, threshold: float) -> None:
        self._plain, self._small = WeightEditedModel(model), WeightEditedModel(networks.counterfactual)
        self._tokenizer = model.tokenizer
        self._networks, self._memory, self._threshold = networks, memory, threshold
        end = model.tokenizer.eos_token_id
        self._end = 0 if end is None else int(end)

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """In scope, the counterfactual model's answer; where the given ids deviate from it, its continuation of them."""
        answers = self._plain.teacher_forced(queries)
        edits = self._edits(queries)
        free = self._answered({row: self._question(queries[row], edit, 0) for row, edit in edits.items()})
        places = {
            (row, step): self._question(queries[row], edits[row], step)
            for row, said in free.items()
            for step in range(len(said))
            if tuple(said[:step]) != queries[row].target_ids[:step]
        }
        again = self._answered({place: _short(question) for place, question in places.items()})
        for row, said in free.items():
            answers[row] = [again.get((row, step), [id_])[0] for step, id_ in enumerate(said)]
        return answers

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """In scope, the counterfactual model's answer in the target's ids."""
        return self._with_answers(self._plain.generate(queries), queries)

    def generate_until(self, queries: Sequence[Query], ends: Ends) -> list[list[int]]:
        """Generate as above until each row ends."""
        edits = self._edits(queries)

        def ends_here(row: int, id_: int) -> bool:
            return row in edits or ends(row, id_)

        made = self._plain.generate_until(queries, ends_here)
        answers = self._answered({row: self._question(queries[row], edit, 0) for row, edit in edits.items()})
        for row, said in answers.items():
            made[row] = said[: next((place for place, id_ in enumerate(said, 1) if ends(row, id_)), len(said))]
        return made

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """Probability of the scope classifier for the nearest edit."""
        return self._nearest(queries)[0] if queries else []

    def diagnostics(self) -> Mapping[str, float]:
        """Number of stored edits."""
        return {"stored_edits": float(len(self._memory.statements))}

    def state(self) -> State:
        """The edits and their keys."""
        return self._memory.state()

    def _nearest(self, queries: Sequence[Query]) -> tuple[list[float], list[int]]:
        return self._memory.nearest(self._networks.keys([query.prompt for query in queries]))

    def _edits(self, queries: Sequence[Query]) -> dict[int, str]:
        """The edit of each row that is in the scope of one."""
        if not queries:
            return {}
        probabilities, places = self._nearest(queries)
        found = enumerate(zip(probabilities, places, strict=True))
        return {row: self._memory.statements[place] for row, (value, place) in found if value >= self._threshold}

    def _with_answers(self, made: list[list[int]], queries: Sequence[Query]) -> list[list[int]]:
        questions = {row: self._question(queries[row], edit, 0) for row, edit in self._edits(queries).items()}
        for row, said in self._answered(questions).items():
            made[row] = said
        return made

    def _question(self, query: Query, edit: str, given: int) -> Question:
        """What follows a prompt and the first ids of its target."""
        ids = (*query.prompt_ids, *query.target_ids[:given])
        prompt_text, text = spelled(self._tokenizer, [query.prompt_ids, ids])
        (alone,) = token_ids(self._tokenizer, [query.prompt])
        is_whole = tuple(alone) == query.prompt_ids  # if not, the first ids of the target begin inside the prompt
        if given == 0 or (is_whole and text.startswith(prompt_text)):
            # the tokenizer may not give back the prompt as it was, but what follows it
            text = query.prompt + text[len(prompt_text) :]
        return Question(edit, ids, text, len(query.target_ids) - given)

    def _answered(self, questions: Mapping[Row, Question]) -> dict[Row, list[int]]:
        """Ids of the target's tokenizer that spell what the counterfactual model says, as many as wanted.

        It is asked for more until they are enough; what is then missing is the end of the text.
        """
        made: dict[Row, list[int]] = {}
        for times in range(1, _MOST + 1):
            left = {row: question for row, question in questions.items() if row not in made}
            for row, ids in self._said(left, times).items():
                wanted = questions[row].wanted
                if len(ids) >= wanted or times == _MOST:
                    made[row] = [*ids, *[self._end] * wanted][:wanted]
        return made

    def _said(self, questions: Mapping[Row, Question], times: int) -> dict[Row, list[int]]:
        """The same, of a number of ids of the counterfactual model."""
        tokenizer = self._networks.counterfactual.tokenizer
        read = token_ids(tokenizer, [question.edit + question.text for question in questions.values()])
        asked = [
            Query("", "", tuple(ids), (0,) * (times * question.wanted + _FURTHER))
            for ids, question in zip(read, questions.values(), strict=True)
        ]
        said = self._small.generate(asked)
        before = spelled(tokenizer, read)
        after = spelled(tokenizer, [[*ids, *more] for ids, more in zip(read, said, strict=True)])
        texts = [text[len(start) :] for start, text in zip(before, after, strict=True)]
        joint = token_ids(
            self._tokenizer, [question.text + text for question, text in zip(questions.values(), texts, strict=True)]
        )
        alone = token_ids(self._tokenizer, texts, add_special_tokens=False)
        return {
            row: whole[len(question.ids) :] if tuple(whole[: len(question.ids)]) == question.ids else part
            for (row, question), whole, part in zip(questions.items(), joint, alone, strict=True)
        }


def _short(question: Question) -> Question:
    """The same, of which one further id is wanted."""
    return Question(question.edit, question.ids, question.text, 1)
