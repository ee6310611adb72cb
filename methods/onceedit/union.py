"""Fusion over the union of two vocabularies, where tokens are matched by their text: reference points for anchor space.

GaC (Yu et al. 2024, arXiv 2406.12585) mixes the probabilities of all tokens; a token that one model lacks has probability 0
there. UniTE (Yao et al. 2025, arXiv 2410.03777) mixes those of each model's most probable tokens, scaled to sum to 1; a token
that one model lacks has the probability of the first of the tokens that spell it there. In both, the most probable entry wins,
and of one that the target model lacks, the first token that spells it is taken. The authors mix with equal weights; here alpha
is the plug-in's weight, as everywhere in OnceEdit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from methods.onceedit.anchors import by_bytes
from methods.onceedit.choose import Chooser
from methods.onceedit.decoders import Decoded
from methods.onceedit.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Tokens:
    """Counterparts of one model's tokens in the other's vocabulary.

    Attributes:
        first_V: the other model's longest token that the token's text begins with; -1 if there is none.
        is_shared_V: whether that token has the same text.
    """

    first_V: Tensor
    is_shared_V: Tensor

    @classmethod
    def of(cls, own: Vocabulary, other: Vocabulary, size: int, device: torch.device) -> Self:
        """Match the tokens of a vocabulary by the bytes that they add to a text.

        Args:
            own: the vocabulary.
            other: that of the other model.
            size: number of logits of the model; those without a token match nothing, nor do special tokens.
            device: of the result.
        """
        ids = by_bytes(other)
        first, is_shared = [-1] * size, [False] * size
        for token, raw in own.text_bytes.items():
            longest = next((end for end in range(len(raw), 0, -1) if raw[:end] in ids), 0)
            if longest:
                first[token], is_shared[token] = ids[raw[:longest]], longest == len(raw)
        return cls(torch.tensor(first, device=device), torch.tensor(is_shared, device=device))


@dataclass(eq=False)
class UnionChooser(Chooser):
    """Fuses over the union of two vocabularies; an entry is the target model's token, or V + the plug-in's.

    Attributes:
        llm, plugin: each model's tokens in the other's vocabulary.
        top: number of each model's most probable tokens that are mixed (UniTE); None for all tokens (GaC).
    """

    llm: Tokens
    plugin: Tokens
    top: int | None = None

    def fuse(self, logits_l_BV: Tensor, probs_s_BU: Tensor, alpha_B: Tensor, is_needed_B: Tensor) -> Decoded:
        """See `Chooser`."""
        probs_l_BV = logits_l_BV.softmax(dim=-1)
        probs_s_BU, alpha_B1 = probs_s_BU.to(probs_l_BV), alpha_B.to(probs_l_BV)[:, None]
        mix = self._mix_all if self.top is None else self._mix_top
        entries_B = mix(probs_l_BV, probs_s_BU, alpha_B1)
        of_plugin_B = entries_B - probs_l_BV.shape[1]
        return Decoded(
            torch.where(of_plugin_B < 0, entries_B, self.plugin.first_V[of_plugin_B.clamp_min(0)]), entries_B
        )

    @property
    def diagnostics(self) -> Mapping[str, float]:
        """`shared_tokens`: tokens of the target model that the plug-in has, too."""
        return {"shared_tokens": float(self.llm.is_shared_V.sum())}

    def _mix_all(self, probs_l_BV: Tensor, probs_s_BU: Tensor, alpha_B1: Tensor) -> Tensor:
        """The most probable entry by GaC."""
        is_shared_U = self.plugin.is_shared_V
        given_BU = alpha_B1 * probs_s_BU
        of_llm_BV = (1 - alpha_B1) * probs_l_BV
        of_llm_BV.index_add_(1, self.plugin.first_V[is_shared_U], given_BU[:, is_shared_U])
        of_plugin_BU = given_BU.masked_fill(is_shared_U | (self.plugin.first_V < 0), 0.0)
        return torch.cat([of_llm_BV, of_plugin_BU], dim=-1).argmax(dim=-1)

    def _mix_top(self, probs_l_BV: Tensor, probs_s_BU: Tensor, alpha_B1: Tensor) -> Tensor:
        """The most probable entry by UniTE."""
        assert self.top is not None
        top_l_BK, top_s_BK = (probs.topk(self.top, dim=-1) for probs in (probs_l_BV, probs_s_BU))
        first_s_BK, is_shared_BK = self.plugin.first_V[top_s_BK.indices], self.plugin.is_shared_V[top_s_BK.indices]
        entries_BC = torch.cat(
            [top_l_BK.indices, torch.where(is_shared_BK, first_s_BK, probs_l_BV.shape[1] + top_s_BK.indices)], dim=-1
        )
        is_twice_BK = (first_s_BK[:, :, None] == top_l_BK.indices[:, None, :]).any(dim=-1) & is_shared_BK
        is_out_BC = torch.cat([torch.zeros_like(is_twice_BK), is_twice_BK | (first_s_BK < 0)], dim=-1)
        of_llm_BC = torch.cat([top_l_BK.values, _gathered(probs_l_BV, first_s_BK)], dim=-1)
        of_plugin_BC = torch.cat([_gathered(probs_s_BU, self.llm.first_V[top_l_BK.indices]), top_s_BK.values], dim=-1)
        of_llm_BC, of_plugin_BC = (_scaled(each.masked_fill(is_out_BC, 0.0)) for each in (of_llm_BC, of_plugin_BC))
        best_B1 = torch.lerp(of_llm_BC, of_plugin_BC, alpha_B1).argmax(dim=-1, keepdim=True)
        return entries_BC.gather(1, best_B1)[:, 0]


def _gathered(probs_BV: Tensor, ids_BK: Tensor) -> Tensor:
    """Probabilities of ids; 0 for the id -1."""
    return probs_BV.gather(1, ids_BK.clamp_min(0)).masked_fill(ids_BK < 0, 0.0)


def _scaled(probs_BC: Tensor) -> Tensor:
    """Scaled so that rows sum to 1, unless they are 0."""
    return probs_BC / probs_BC.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(probs_BC.dtype).tiny)
