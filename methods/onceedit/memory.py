"""Alpha from similarity: a memory of the edited prompts in the plug-in's own embedding space.

`[WEIGHT]` is learned from the edited prompts and unrelated ones alone, so it is often small on another wording of an edit
although the plug-in would answer it correctly, and large on other prompts about the same relation. Similarity needs neither
training nor a forward pass, and knows nothing of any record but the edits.

A text is compared with an edited prompt by late interaction (ColBERT, Khattab and Zaharia 2020, arXiv 2004.12832), with
input embeddings instead of hidden states: every token of the edited prompt looks for the most similar token of the text.
These cosines are averaged over the subject's tokens and over the others. So a text about another subject is far away, and
what a text says besides, such as a sentence before the question, does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn import functional

from harness.records import EditRequest
from harness.subjects import last_mention, token_span

if TYPE_CHECKING:
    from methods.onceedit.hparams import OnceEditHparams
    from methods.onceedit.plugin import EditedPlugin


@dataclass(frozen=True, eq=False)
class Memory:
    """The remembered prompts of E edits with K tokens in all.

    Attributes:
        plugin: the plug-in, whose tokens and embeddings are compared.
        centre_D: mean of its embeddings, which is subtracted because embeddings share a direction.
        keys_KD: centred embeddings of the edited prompts' tokens, of unit length, prompt after prompt.
        shares_K: weight of each token in the similarity to its prompt; those of a prompt sum to 1.
        lengths_E: number of tokens of each prompt.
    """

    plugin: "EditedPlugin"
    centre_D: Tensor
    keys_KD: Tensor
    shares_K: Tensor
    lengths_E: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, plugin: "EditedPlugin", requests: Sequence[EditRequest], subject_share: float) -> Self:
        """Remember the prompts of edits.

        Args:
            plugin: the plug-in.
            requests: the edits.
            subject_share: total weight of the subject's tokens. If a prompt does not mention its subject, or consists of
                it, all its tokens have equal weight.
        """
        rows_VD = plugin.model.get_input_embeddings().weight
        centre_D = rows_VD[: plugin.weight_id].mean(dim=0, dtype=torch.float32).to(rows_VD)
        ids: list[int] = []
        shares: list[float] = []
        lengths = []
        for request in requests:
            ids_T, places = _read(plugin, request.prompt)
            subject = _subject_places(plugin, request)
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
        keys_KD = functional.normalize(rows_VD[ids] - centre_D, dim=-1)
        shares_K = torch.tensor(shares, dtype=torch.float32, device=keys_KD.device)
        return cls(plugin, centre_D, keys_KD, shares_K, torch.tensor(lengths, device=keys_KD.device))

    @torch.no_grad()
    def similarity(self, text: str) -> float:
        """Similarity of a text to the most similar edited prompt, in [-1, 1]."""
        ids_T, _ = _read(self.plugin, text)
        tokens_TD = self.plugin.model.get_input_embeddings().weight[ids_T] - self.centre_D
        nearest_K = (self.keys_KD @ functional.normalize(tokens_TD, dim=-1).T).amax(dim=-1)
        return float(torch.segment_reduce(nearest_K * self.shares_K, "sum", lengths=self.lengths_E).amax())


class Gate:
    """Alpha of prompts by the hyper-parameter `alpha`: one value per prompt, the same under every protocol.

    Args:
        hparams: `alpha`, and what the similarity depends on. For `fixed`, alpha is reported as learned.
        plugin: the edited plug-in.
        requests: its edits.
    """

    def __init__(self, hparams: "OnceEditHparams", plugin: "EditedPlugin", requests: Sequence[EditRequest]) -> None:
        self._hparams = hparams
        self._memory = Memory.of(plugin, requests, hparams.similarity_subject) if hparams.remembers else None

    def alpha(self, prompts: Sequence[str], learned_N: Tensor) -> Tensor:
        """Alpha of each prompt; `learned_N` are those of `[WEIGHT]`."""
        if self._memory is None:
            return learned_N
        similarity = {prompt: self._memory.similarity(prompt) for prompt in dict.fromkeys(prompts)}
        similarity_N = learned_N.new_tensor([similarity[prompt] for prompt in prompts])
        alpha_N = (self._hparams.similarity_slope * (similarity_N - self._hparams.similarity_threshold)).sigmoid()
        return alpha_N if self._hparams.alpha == "similarity" else torch.maximum(alpha_N, learned_N)


def _spaced(text: str) -> str:
    """The text after a space, so that its first word has the same token as in the middle of another text."""
    return f" {text.strip()}"


def _read(plugin: "EditedPlugin", text: str) -> tuple[list[int], list[int]]:
    """Ids of a text without special tokens, unless there are no others, and their places among all of its ids."""
    (ids,) = plugin.tokenize([_spaced(text)])
    special = set(plugin.tokenizer.all_special_ids)
    places = [place for place, token in enumerate(ids) if token not in special] or list(range(len(ids)))
    return [ids[place] for place in places], places


def _subject_places(plugin: "EditedPlugin", request: EditRequest) -> range:
    """Places of the tokens of the subject's last mention; none if the prompt does not mention it."""
    text = _spaced(request.prompt)
    try:
        first, last = token_span(plugin.tokenizer, text, last_mention(text, request.subject))
    except ValueError:
        return range(0)
    return range(first, last + 1)
