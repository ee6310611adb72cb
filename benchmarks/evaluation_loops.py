"""Both protocols in their simplest form: one question at a time, no cache, and the head at every position.

This is how evaluation is often implemented. The answers equal those of the batched evaluation up to rounding.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from harness.models.loaded import LoadedModel
from harness.models.precision import at_least_fp32
from harness.tokens import Query
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.sync import Transcript, Written
from methods.onceedit.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Loop(Protocol):
    """Answers single questions."""

    def teacher_forced(self, query: Query) -> list[int]:
        """The arg-max prediction for each target id."""
        ...

    def generate(self, query: Query) -> list[int]:
        """Greedily generate as many ids as the target has."""
        ...


class PlainLoop:
    """A model on its own."""

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    def teacher_forced(self, query: Query) -> list[int]:
        """One forward pass over prompt and target."""
        logits_TV = all_logits(self._model.model, query.prompt_ids + query.target_ids)
        first = len(query.prompt_ids) - 1
        return [int(logits_TV[first + step].argmax()) for step in range(len(query.target_ids))]

    def generate(self, query: Query) -> list[int]:
        """One forward pass over the whole sequence for each new id."""
        ids = list(query.prompt_ids)
        for _ in query.target_ids:
            ids.append(int(all_logits(self._model.model, ids)[-1].argmax()))
        return ids[len(query.prompt_ids) :]


class PairLoop:
    """A target model with OnceEdit's plug-in and the method's defaults: retokenised text, one learned alpha per prompt.

    The plug-in reads the whole text again at every step. The pair's own chooser fuses the two distributions of a single row;
    `benchmarks.ensemble` measures that part.
    """

    def __init__(self, pair: EnsembleModel) -> None:
        self._pair = pair
        self._vocabulary = Vocabulary.of(pair.target.tokenizer)

    def teacher_forced(self, query: Query) -> list[int]:
        """One forward pass of the target model over prompt and target, and one of the plug-in for each target id."""
        logits_TV = all_logits(self._pair.target.model, query.prompt_ids + query.target_ids)
        logits_SV = logits_TV[len(query.prompt_ids) - 1 : -1]
        transcript, alpha = self._begin(query)
        return [
            self._token(transcript.after(query.target_ids[:step]), alpha, logits_V)
            for step, logits_V in enumerate(logits_SV)
        ]

    def generate(self, query: Query) -> list[int]:
        """One forward pass of each model over the whole sequence for each new id."""
        transcript, alpha = self._begin(query)
        made: list[int] = []
        for _ in query.target_ids:
            logits_V = all_logits(self._pair.target.model, [*query.prompt_ids, *made])[-1]
            made.append(self._token(transcript.after(made), alpha, logits_V))
        return made

    def _begin(self, query: Query) -> tuple[Transcript, Tensor]:
        """The transcript of a question and the alpha of its prompt."""
        starts_at_prompt = tuple(self._pair.target.tokenizer(query.prompt)["input_ids"]) == query.prompt_ids
        alpha = self._plugin_logits(query.prompt)[self._pair.plugin.weight_id].sigmoid()
        return Transcript(self._vocabulary, query, starts_at_prompt), alpha

    @torch.no_grad()
    def _token(self, written: Written, alpha: Tensor, logits_V: Tensor) -> int:
        """The next id after a text, given the target model's logits there."""
        logits_U = self._plugin_logits(written.text)
        logits_U[self._pair.plugin.weight_id] = -torch.inf
        alpha_1 = torch.zeros_like(alpha)[None] if written.is_inside_character else alpha[None]
        probs_1U = logits_U.softmax(dim=-1)[None]
        return int(self._pair.chooser.choose(at_least_fp32(logits_V)[None], probs_1U, alpha_1).tokens_B)

    def _plugin_logits(self, text: str) -> Tensor:
        """The plug-in's logits after a text."""
        plugin = self._pair.plugin
        return at_least_fp32(all_logits(plugin.model, plugin.tokenizer(text)["input_ids"])[-1])


@torch.no_grad()
def all_logits(model: "PreTrainedModel", ids: Sequence[int]) -> Tensor:
    """Logits after each id, T × V."""
    logits_TV: Tensor = model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0]
    return logits_TV
