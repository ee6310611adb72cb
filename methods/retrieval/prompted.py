"""The remembered edits, and a model that reads the nearest ones before it answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor

from harness.api import EditedModel, Ends, State, TokenScore
from harness.errors import UserError
from harness.models.edited import WeightEditedModel
from harness.records import EditRequest
from harness.tokens import Framing, Query, token_ids
from methods.common.similarity import Embeddings, PromptMemory
from methods.retrieval.editor import RetrievalHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

FORMS = {"fact": ("{}\n", ""), "new_fact": ("New Fact: {}\n", "Prompt: ")}
"""How an edit is stated, and what is written in front of the prompt."""


@dataclass(frozen=True, eq=False)
class Facts:
    """E edits: their prompts for comparison, and their statements for reading.

    Attributes:
        prompts: the memory of their prompts; None without edits.
        statements: ids of each statement, without special tokens in front.
    """

    prompts: PromptMemory | None
    statements: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: "LoadedModel", state: State, requests: Sequence[EditRequest], hparams: RetrievalHparams) -> Self:
        """The edits of `state` and further ones.

        Raises:
            UserError: if a statement is too long.
        """
        embeddings = embeddings_of(model)
        texts = [f"{request.prompt.strip()} {request.target_new.strip()}" for request in requests]
        form, _ = FORMS[hparams.form]
        rows = token_ids(model.tokenizer, [form.format(text) for text in texts], add_special_tokens=False)
        for request, row in zip(requests, rows, strict=True):
            if len(row) > hparams.fact_tokens:
                raise UserError(
                    f"record {request.record_id}: stated as a fact it has {len(row)} tokens, more than "
                    f"{hparams.fact_tokens}",
                    fix=f"fact_tokens: {len(row)}",
                )
        new = PromptMemory.of(embeddings, requests, hparams.similarity_subject) if requests else None
        parts = [part for part in (_restored(embeddings, state), new) if part is not None]
        lengths = state["statement_lengths"].tolist() if state else []
        known = state["statements"].tolist() if state else []
        earlier = [tuple(known[end - length : end]) for end, length in zip(accumulate(lengths), lengths, strict=True)]
        return cls(PromptMemory.joined(parts) if parts else None, (*earlier, *map(tuple, rows)))

    def state(self) -> dict[str, Tensor]:
        """All ids and weights as tensors, from which `of` goes on."""
        if self.prompts is None:
            return {}
        return {
            "prompts": self.prompts.ids_K,
            "shares": self.prompts.shares_K,
            "prompt_lengths": self.prompts.lengths_E,
            "statements": torch.tensor([token for row in self.statements for token in row]),
            "statement_lengths": torch.tensor([len(row) for row in self.statements]),
        }


class Prompted(EditedModel):
    """A model whose prompts are preceded by the statements of similar edits.

    Args:
        model: unedited; it stays so.
        facts: the edits.
        hparams: how many are read, and when.
        shown: ids that are read before the statements, given the prompt; nothing by default.
    """

    def __init__(
        self,
        model: "LoadedModel",
        facts: Facts,
        hparams: RetrievalHparams,
        shown: Callable[[str], Sequence[int]] = lambda prompt: (),
    ) -> None:
        self._plain, self._facts, self._hparams, self._shown = WeightEditedModel(model), facts, hparams, shown
        self._front = Framing.of(model.tokenizer).prefix
        _, before = FORMS[hparams.form]
        self._before = tuple(model.tokenizer(before, add_special_tokens=False)["input_ids"]) if before else ()

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """As the unedited model after the statements."""
        return self._plain.teacher_forced([self._read(query) for query in queries])

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """As the unedited model after the statements."""
        return self._plain.generate([self._read(query) for query in queries])

    def generate_until(self, queries: Sequence[Query], ends: Ends) -> list[list[int]]:
        """As the unedited model after the statements."""
        return self._plain.generate_until([self._read(query) for query in queries], ends)

    def score(self, queries: Sequence[Query], *, reads_targets: bool = False) -> list[list[TokenScore]]:
        """As the unedited model after the statements."""
        return self._plain.score([self._read(query) for query in queries])

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """Similarity to the nearest edit, 0 if it is negative."""
        found = [self._similarities(query.prompt) for query in queries]
        return [max(0.0, min(1.0, float(similarity_E.max()))) for similarity_E in found]

    def diagnostics(self) -> Mapping[str, float]:
        """Number of edits in the memory."""
        return {"facts": float(len(self._facts.statements))}

    def state(self) -> State:
        """The edits."""
        return self._facts.state()

    def _similarities(self, prompt: str) -> Tensor:
        prompts = self._facts.prompts
        return prompts.similarities(prompt).cpu() if prompts is not None else torch.full((1,), -1.0)

    def _read(self, query: Query) -> Query:
        """The query with the statements of similar edits between the tokenizer's own prefix and the prompt."""
        nearest = self._similarities(query.prompt).topk(min(self._hparams.nearest, len(self._facts.statements)))
        chosen = [
            place
            for value, place in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True)
            if value >= self._hparams.threshold
        ]
        if not chosen:
            return query
        stated = [token for place in reversed(chosen) for token in self._facts.statements[place]]
        read = (*self._shown(query.prompt), *stated, *self._before)
        ids = (*self._front, *read, *query.prompt_ids[len(self._front) :])
        return replace(query, prompt_ids=ids)


def embeddings_of(model: "LoadedModel") -> Embeddings:
    """What prompts are compared by."""
    return Embeddings.of(model.tokenizer, cast(Tensor, model.embeddings.weight).detach())


def _restored(embeddings: Embeddings, state: State) -> PromptMemory | None:
    if not state:
        return None
    return PromptMemory.restored(embeddings, state["prompts"], state["shares"], state["prompt_lengths"])
