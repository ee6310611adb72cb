"""Similarity of a text to remembered prompts, in a model's own embedding space: no training and no forward pass.

A text is compared with a prompt by late interaction (ColBERT, Khattab and Zaharia 2020, arXiv 2004.12832), with input
embeddings instead of hidden states: every token of the prompt looks for the most similar token of the text. These cosines are
averaged over the subject's tokens and over the others. So a text about another subject is far away, and what a text says
besides, such as a sentence before the question, does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor
from torch.nn import functional

from harness.models.precision import working_dtype
from harness.records import EditRequest
from harness.subjects import last_mention, token_span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.models.loaded import LoadedModel


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Input embeddings of a model and its tokenizer.

    Attributes:
        tokenizer: of the model.
        rows_VD: the embeddings.
        centre_D: their mean, at least fp32, which is subtracted because embeddings share a direction.
    """

    tokenizer: "PreTrainedTokenizerBase"
    rows_VD: Tensor
    centre_D: Tensor

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", rows_VD: Tensor, known: int | None = None) -> Self:
        """Take the mean of the first `known` embeddings, by default of all."""
        return cls(tokenizer, rows_VD, rows_VD[:known].mean(dim=0, dtype=working_dtype(rows_VD)))

    def centred(self, ids: Sequence[int]) -> Tensor:
        """Centred embeddings of unit length, one row per id, at least fp32."""
        return functional.normalize(self.rows_VD[list(ids)] - self.centre_D, dim=-1)

    def read(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a text without special tokens (unless it has no others), and their places among all of its ids."""
        ids: list[int] = self.tokenizer(_spaced(text))["input_ids"]
        special = set(self.tokenizer.all_special_ids)
        places = [place for place, token in enumerate(ids) if token not in special] or list(range(len(ids)))
        return [ids[place] for place in places], places

    def subject_places(self, request: EditRequest) -> range:
        """Places of the tokens of the subject's last mention; none if the prompt does not mention it."""
        text = _spaced(request.prompt)
        try:
            first, last = token_span(self.tokenizer, text, last_mention(text, request.subject))
        except ValueError:
            return range(0)
        return range(first, last + 1)


def embeddings_of(model: "LoadedModel") -> Embeddings:
    """The embeddings of a model, which has no entries of ours."""
    return Embeddings.of(model.tokenizer, cast(Tensor, model.embeddings.weight).detach())


@dataclass(frozen=True, eq=False)
class PromptMemory:
    """The remembered prompts of E edits with K tokens in all, U of them distinct.

    Attributes:
        embeddings: what tokens are compared by.
        ids_K: the prompts' tokens, prompt after prompt.
        shares_K: weight of each token in the similarity to its prompt; those of a prompt sum to 1.
        lengths_E: number of tokens of each prompt.
    """

    embeddings: Embeddings
    ids_K: Tensor
    shares_K: Tensor
    lengths_E: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, embeddings: Embeddings, requests: Sequence[EditRequest], subject_share: float) -> Self:
        """Remember the prompts of edits.

        Args:
            embeddings: of the model that compares.
            requests: the edits.
            subject_share: total weight of the subject's tokens. If a prompt does not mention its subject, or consists of
                it, all its tokens have equal weight.
        """
        ids: list[int] = []
        shares: list[float] = []
        lengths = []
        for request in requests:
            ids_T, places = embeddings.read(request.prompt)
            subject = embeddings.subject_places(request)
            n_subject = sum(place in subject for place in places)
            n_others = len(places) - n_subject
            for place in places:
                if not n_subject or not n_others:
                    shares.append(1 / len(places))
                elif place in subject:
                    shares.append(subject_share / n_subject)
                else:
                    shares.append((1 - subject_share) / n_others)
            ids += ids_T
            lengths.append(len(ids_T))
        device = embeddings.rows_VD.device
        shares_K = torch.tensor(shares, dtype=torch.float32, device=device)
        return cls(embeddings, torch.tensor(ids, device=device), shares_K, torch.tensor(lengths, device=device))

    @classmethod
    def joined(cls, parts: Sequence["PromptMemory"]) -> Self:
        """One memory of all prompts of several ones, which have the same embeddings."""
        tensors = ([getattr(part, name) for part in parts] for name in ("ids_K", "shares_K", "lengths_E"))
        return cls(parts[0].embeddings, *(torch.cat(tensor) for tensor in tensors))

    @torch.no_grad()
    def similarities(self, text: str) -> Tensor:
        """Similarity of a text to each prompt, E values in [-1, 1]."""
        ids_T, _ = self.embeddings.read(text)
        keys_UD, which_K = self._distinct
        nearest_K = (keys_UD @ self.embeddings.centred(ids_T).T).amax(dim=-1)[which_K]
        return torch.segment_reduce(nearest_K * self.shares_K, "sum", lengths=self.lengths_E)

    def similarity(self, text: str) -> float:
        """Similarity of a text to the most similar prompt."""
        return float(self.similarities(text).amax())

    @cached_property
    def _distinct(self) -> tuple[Tensor, Tensor]:
        """Centred embeddings of the distinct tokens, U × D, and which of them each token is.

        Thousands of prompts repeat a few thousand tokens, each of which is compared once per text.
        """
        distinct_U, which_K = torch.unique(self.ids_K, return_inverse=True)
        return self.embeddings.centred(distinct_U.tolist()), which_K


def _spaced(text: str) -> str:
    """The text after a space, so that its first word has the same token as in the middle of another text."""
    return f" {text.strip()}"
