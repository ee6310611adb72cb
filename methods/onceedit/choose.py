"""One decoding step of the ensemble: from two next-token distributions and alpha to a token of the target model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from methods.onceedit.decoders import Decoded, Decoder
from methods.onceedit.fusion import Fused, Projection

HELD_BACK = -1.0
"""Alpha of a step at which the target model's own token is kept, whatever the gate."""


@dataclass(frozen=True, eq=False)
class Choice:
    """Chosen tokens of a batch, and how they were chosen.

    Attributes:
        tokens_B: ids of the target model.
        anchors_B: index of the decoded anchor, or of the entry of a union of vocabularies; -1 where the target model's own
            token was kept.
        is_changed_B: whether each token is another one than the target model's own.
        is_gated_B, is_ended_B: whether it was kept because alpha was below the gate, or because it was the end of text.
        decoded: what was decoded from the fused distribution; None if no row needed it.
    """

    tokens_B: Tensor
    anchors_B: Tensor
    is_changed_B: Tensor
    is_gated_B: Tensor
    is_ended_B: Tensor
    decoded: Decoded | None = None

    def logits(self, logits_l_BV: Tensor) -> Tensor:
        """Logits whose arg-max the tokens are, B × V: the final ones of the search, or the target model's own where it is kept.

        Args:
            logits_l_BV: the target model's logits that the choice was made from.

        Raises:
            ValueError: if a token was decoded without a search.
        """
        is_kept_B1 = self.anchors_B[:, None] < 0
        if self.decoded is None or self.decoded.logits is None:
            if not bool(is_kept_B1.all()):
                raise ValueError("a token that was decoded without a search has no logits")
            return logits_l_BV
        return torch.where(is_kept_B1, logits_l_BV, self.decoded.logits())


@dataclass(eq=False, kw_only=True)
class Chooser(ABC):
    """Applies the rules for keeping the target model's own token to whatever fuses the two distributions.

    Attributes:
        gate: if alpha is smaller, keep the model's own greedy token; 0 turns the gate off.
        eos_id: if the model's own greedy token is this one, keep it (DeePEn's rule); None turns the rule off.
        tally: counts over all steps so far.
    """

    gate: float = 0.0
    eos_id: int | None = None
    tally: "StepTally" = field(default_factory=lambda: StepTally())

    @abstractmethod
    def fuse(self, logits_l_BV: Tensor, probs_s_BU: Tensor, alpha_B: Tensor, is_needed_B: Tensor) -> Decoded:
        """Fuse and decode; arguments as in `decide`, and the rows whose token is needed."""

    @property
    @abstractmethod
    def diagnostics(self) -> Mapping[str, float]:
        """Diagnostics about what the two models share."""

    def choose(self, logits_l_BV: Tensor, probs_s_BU: Tensor, alpha_B: Tensor) -> Choice:
        """Choose the next token of each row and count the steps; arguments as in `decide`."""
        choice = self.decide(logits_l_BV, probs_s_BU, alpha_B)
        self.tally.count(choice)
        return choice

    def decide(self, logits_l_BV: Tensor, probs_s_BU: Tensor, alpha_B: Tensor) -> Choice:
        """Choose the next token of each row without counting the steps.

        Args:
            logits_l_BV: the target model's logits, at least fp32.
            probs_s_BU: plug-in probabilities.
            alpha_B: weight of the plug-in; `HELD_BACK` where it may not be heard, which is below every gate.
        """
        own_B = logits_l_BV.argmax(dim=-1)
        alpha_B = alpha_B.to(own_B.device)
        is_gated_B = alpha_B < self.gate
        alpha_B = alpha_B.clamp_min(0.0)
        is_ended_B = (own_B == (-1 if self.eos_id is None else self.eos_id)) & ~is_gated_B
        is_fused_B = ~(is_gated_B | is_ended_B)
        decoded = self.fuse(logits_l_BV, probs_s_BU, alpha_B, is_fused_B)
        if decoded.certificate_of_llm is not None:
            is_fused_B = is_fused_B & (decoded.anchors_B != decoded.certificate_of_llm.anchors_B)
        tokens_B = torch.where(is_fused_B, decoded.tokens_B, own_B)
        anchors_B = torch.where(is_fused_B, decoded.anchors_B, -1)
        return Choice(tokens_B, anchors_B, tokens_B != own_B, is_gated_B, is_ended_B, decoded)

    @staticmethod
    def gated(logits_l_BV: Tensor) -> Choice:
        """The target model's own token of rows whose alpha is known to be below the gate."""
        own_B = logits_l_BV.argmax(dim=-1)
        is_gated_B = torch.ones_like(own_B, dtype=torch.bool)
        return Choice(own_B, torch.full_like(own_B, -1), ~is_gated_B, is_gated_B, ~is_gated_B)


@dataclass(eq=False)
class AnchorChooser(Chooser):
    """Fuses in anchor space, as OnceEdit does.

    Attributes:
        llm, plugin: projections onto the same anchors.
        decoder: maps from anchor space back to a token.
        keep_own: keep the model's own token if fusion does not change the most probable anchor. Not every token survives
            the round trip through anchor space, so it is made only where it changes the result.
    """

    llm: Projection
    plugin: Projection
    decoder: Decoder
    keep_own: bool = False

    def fuse(self, logits_l_BV: Tensor, probs_s_BU: Tensor, alpha_B: Tensor, is_needed_B: Tensor) -> Decoded:
        """See `Chooser`."""
        fused = Fused(self.llm, self.plugin, logits_l_BV.softmax(dim=-1), probs_s_BU, alpha_B, is_needed_B)
        decoded = self.decoder.decode(fused, logits_l_BV)
        return replace(decoded, certificate_of_llm=fused.certificate_of_llm) if self.keep_own else decoded

    @property
    def diagnostics(self) -> Mapping[str, float]:
        """`anchors`: their number."""
        return {"anchors": float(self.llm.state.n_anchors)}


class StepTally:
    """Counts over all decoding steps, kept on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._least_margin: Tensor | None = None

    def count(self, choice: Choice, is_counted_B: Tensor | None = None) -> None:
        """Add the steps of a batch, or some of them."""
        everything_B = torch.ones_like(choice.is_gated_B) if is_counted_B is None else is_counted_B
        is_fused_B = (choice.anchors_B >= 0) & everything_B
        self._add("steps", everything_B)
        self._add("gated", choice.is_gated_B & everything_B)
        self._add("ended", choice.is_ended_B & everything_B)
        self._add("fused", is_fused_B)
        certificate = choice.decoded.certificate if choice.decoded else None
        if certificate is None:
            return
        self._add("certified", is_fused_B)
        for level in (0, 1, 2):
            self._add(f"l{level}", is_fused_B & (certificate.level_B == level))
        self._add("survivors", certificate.survivors_B * (is_fused_B & (certificate.level_B == 2)))
        self._add("margin", certificate.margin_B * is_fused_B)
        least = torch.where(is_fused_B, certificate.margin_B, 1.0).amin()
        self._least_margin = least if self._least_margin is None else torch.minimum(self._least_margin, least)

    @property
    def steps(self) -> int:
        """Number of steps so far."""
        return int(self._sums["steps"]) if "steps" in self._sums else 0

    def diagnostics(self) -> Mapping[str, float]:
        """Shares of the step outcomes and, for certified steps, levels, margins and the number of survivors at L2.

        `fused_share`: the token was decoded from anchor space. `gated_share`, `ended_share`: the model's own token was
        kept because alpha was below the gate, or because it was the end of text. `margin_mean`, `margin_least`: lower
        bound on the relative lead of the winner.
        """
        sums = {name: float(total) for name, total in self._sums.items()}
        if not self.steps:
            return {}
        diagnostics = {f"{name}_share": sums[name] / sums["steps"] for name in ("gated", "ended", "fused")}
        if sums.get("certified") and self._least_margin is not None:
            diagnostics |= {f"certified_l{level}_share": sums[f"l{level}"] / sums["certified"] for level in (0, 1, 2)}
            diagnostics["margin_mean"] = sums["margin"] / sums["certified"]
            diagnostics["margin_least"] = float(self._least_margin)
            if sums["l2"]:
                diagnostics["survivors_mean"] = sums["survivors"] / sums["l2"]
        return diagnostics

    def _add(self, name: str, values_B: Tensor) -> None:
        total = values_B.sum(dtype=torch.float64)
        self._sums[name] = self._sums[name] + total if name in self._sums else total
