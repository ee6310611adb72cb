"""Alpha from similarity: a memory of the edited prompts in the plug-in's own embedding space.

`[WEIGHT]` is learned from the edited prompts and unrelated ones alone, so it is often small on another wording of an edit
although the plug-in would answer it correctly, and large on other prompts about the same relation. Similarity
(`methods.common.similarity`) needs neither training nor a forward pass; its threshold is given, or chosen on train records.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.models.precision import working_dtype
from methods.common.similarity import Embeddings, PromptMemory

if TYPE_CHECKING:
    from methods.onceedit.hparams import OnceEditHparams
    from methods.onceedit.plugin import EditedPlugin


def remember(plugin: "EditedPlugin", subject_share: float) -> PromptMemory:
    """A memory of the edited prompts in the plug-in's embeddings; `[WEIGHT]` does not count for their mean."""
    rows_VD = plugin.model.get_input_embeddings().weight.detach()
    return PromptMemory.of(Embeddings.of(plugin.tokenizer, rows_VD, plugin.weight_id), plugin.requests, subject_share)


class Gate:
    """Alpha of prompts by the hyper-parameter `alpha`: one value per prompt, the same under every protocol.

    Args:
        hparams: `alpha`, and what the similarity depends on. For `fixed`, alpha is reported as learned.
        plugin: the edited plug-in.
    """

    def __init__(self, hparams: "OnceEditHparams", plugin: "EditedPlugin") -> None:
        self._hparams = hparams
        self.threshold = float(hparams.similarity_threshold) if hparams.remembers else None
        self._memory = remember(plugin, hparams.similarity_subject) if hparams.remembers else None
        weights_VD = plugin.model.get_input_embeddings().weight
        self._like = weights_VD.new_empty(0, dtype=working_dtype(weights_VD))

    @property
    def reads(self) -> bool:
        """Whether the plug-in has to read a prompt before its alpha is known."""
        return self._hparams.alpha != "similarity"

    def alpha(self, prompts: Sequence[str], learned_N: Tensor | None = None) -> Tensor:
        """Alpha of each prompt, at least fp32; `learned_N` are those of `[WEIGHT]`, needed if the gate `reads`."""
        if self._memory is None or self.threshold is None:
            return _given(learned_N)
        similarity = {prompt: self._memory.similarity(prompt) for prompt in dict.fromkeys(prompts)}
        similarity_N = self._like.new_tensor([similarity[prompt] for prompt in prompts])
        alpha_N = (self._hparams.similarity_slope * (similarity_N - self.threshold)).sigmoid()
        return torch.maximum(alpha_N, _given(learned_N)) if self.reads else alpha_N


def _given(learned_N: Tensor | None) -> Tensor:
    if learned_N is None:
        raise ValueError("alpha of [WEIGHT] is needed, which the plug-in has to read")
    return learned_N
