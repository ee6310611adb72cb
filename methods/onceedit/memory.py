"""Alpha from similarity: a memory of the edited prompts in the plug-in's own embedding space.

`[WEIGHT]` is learned from the edited prompts and unrelated ones alone, so it is often small on another wording of an edit
although the plug-in would answer it correctly, and large on other prompts about the same relation. Similarity
(`methods.common.similarity`) needs neither training nor a forward pass; its threshold is given, or chosen on train records.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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

    def alpha(self, prompts: Sequence[str], learned_N: Tensor) -> Tensor:
        """Alpha of each prompt; `learned_N` are those of `[WEIGHT]`."""
        if self._memory is None or self.threshold is None:
            return learned_N
        similarity = {prompt: self._memory.similarity(prompt) for prompt in dict.fromkeys(prompts)}
        similarity_N = learned_N.new_tensor([similarity[prompt] for prompt in prompts])
        alpha_N = (self._hparams.similarity_slope * (similarity_N - self.threshold)).sigmoid()
        return alpha_N if self._hparams.alpha == "similarity" else torch.maximum(alpha_N, learned_N)
