"""The remembered edits, and a model that reads the nearest ones before it answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from harness.api import EditedModel, Ends, State, TokenScore
from harness.errors import UserError
from harness.models.edited import WeightEditedModel
from harness.records import EditRequest
from harness.tokens import Framing, Query, token_ids
from methods.common.similarity import Embeddings, PromptMemory, embeddings_of
from methods.retrieval.editor import RetrievalHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

FORMS = {"fact": ("{}\n", ""), "new_fact": ("New Fact: {}\n", "Prompt: ")}
"""How an edit is stated, and what is written in front of the prompt."""


@dataclass(frozen=True, eq=False)
class Facts:
    """E edits: their prompts for comparison, and their statements for reading.

    A further block of edits is appended without reading the earlier ones, so its time does not depend on their number.

    Attributes:
        prompts: the memory of their prompts; None without edits.
        ids_K: ids of all statements, concatenated, without special tokens before them; on the CPU.
        lengths_E: number of ids of each statement.
    """

    prompts: PromptMemory | None
    ids_K: Tensor
    lengths_E: Tensor

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
        ids_K = torch.tensor([token for row in rows for token in row], dtype=torch.long)
        lengths_E = torch.tensor([len(row) for row in rows], dtype=torch.long)
        if state:
            ids_K = torch.cat([state["statements"].cpu(), ids_K])
            lengths_E = torch.cat([state["statement_lengths"].cpu(), lengths_E])
        return cls(PromptMemory.joined(parts) if parts else None, ids_K, lengths_E)

    def __len__(self) -> int:
        return len(self.lengths_E)

    def statement(self, place: int) -> list[int]:
        """Ids of the statement of an edit."""
        end = int(self._ends_E[place])
        ids: list[int] = self.ids_K[end - int(self.lengths_E[place]) : end].tolist()
        return ids

    def state(self) -> dict[str, Tensor]:
        """All ids and weights as tensors, from which `of` continues."""
        if self.prompts is None:
            return {}
        return {
            "prompts": self.prompts.ids_K,
            "shares": self.prompts.shares_K,
            "prompt_lengths": self.prompts.lengths_E,
            "statements": self.ids_K,
            "statement_lengths": self.lengths_E,
        }

    @cached_property
    def _ends_E(self) -> Tensor:
        return self.lengths_E.cumsum(0)


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
        self._threshold = float(hparams.threshold)
        self._found: dict[str, list[tuple[float, int]]] = {}
        self._front = Framing.of(model.tokenizer).prefix
        self._tokenizer, (_, self._before) = model.tokenizer, FORMS[hparams.form]

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
        found = [self._nearest(query.prompt) for query in queries]
        return [max(0.0, min(1.0, nearest[0][0])) if nearest else 0.0 for nearest in found]

    def diagnostics(self) -> Mapping[str, float]:
        """Number of edits in the memory, and the least similarity that counts."""
        return {"facts": float(len(self._facts)), "threshold": self._threshold}

    def state(self) -> State:
        """The edits."""
        return self._facts.state()

    def _nearest(self, prompt: str) -> list[tuple[float, int]]:
        """Similarity and place of the edits that are most similar to a prompt, best first; kept, as all protocols ask for it."""
        prompts = self._facts.prompts
        if prompts is None:
            return []
        if prompt not in self._found:
            best = prompts.similarities(prompt).cpu().topk(min(self._hparams.nearest, len(self._facts)))
            self._found[prompt] = list(zip(best.values.tolist(), best.indices.tolist(), strict=True))
        return self._found[prompt]

    def _read(self, query: Query) -> Query:
        """The query with the statements of similar edits between the tokenizer's own prefix and the prompt."""
        chosen = [place for value, place in self._nearest(query.prompt) if value >= self._threshold]
        return self._preceded(query, chosen) if chosen else query

    def _preceded(self, query: Query, chosen: Sequence[int]) -> Query:
        """The query with the statements of these edits, the most similar one first."""
        stated = [token for place in reversed(chosen) for token in self._facts.statement(place)]
        ids = (*self._front, *self._shown(query.prompt), *stated, *self._asked(query))
        return replace(query, prompt_ids=ids)

    def _asked(self, query: Query) -> Sequence[int]:
        """The prompt with what is written before it, as one text unless the target's first id begins in the prompt."""
        own = list(query.prompt_ids[len(self._front) :])
        texts = [query.prompt, self._before + query.prompt, self._before]
        alone, together, before = token_ids(self._tokenizer, texts, add_special_tokens=False)
        return together if own == alone else [*before, *own]


def _restored(embeddings: Embeddings, state: State) -> PromptMemory | None:
    if not state:
        return None
    return PromptMemory(embeddings, state["prompts"], state["shares"], state["prompt_lengths"])
