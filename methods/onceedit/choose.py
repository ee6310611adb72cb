"""One decoding step of the pair: from two next-token distributions and alpha to a token of the target model."""

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from methods.onceedit.decoders import Decoder
from methods.onceedit.fusion import mix
from methods.onceedit.relative import RelativeState


@dataclass(eq=False)
class TokenChooser:
    """Fusion, decoding, and the two rules under which the target model's own token is taken instead.

    Attributes:
        llm, plugin: relative states over the same anchors.
        decoder: from anchor space back to a token.
        gate: where alpha is smaller, the model's own greedy token is taken; 0 is off.
        eos_id: where the model's own greedy token is this one, it is taken (DeePEn's rule); None is off.
        tally: how often what happened, over all steps so far: `steps`, `gated`, `ended`, `fused`, `round_trips`.
    """

    llm: RelativeState
    plugin: RelativeState
    decoder: Decoder
    gate: float
    eos_id: int | None
    tally: Counter[str] = field(default_factory=Counter)

    def choose(self, logits_l_BV: Tensor, probs_s_BU: Tensor, alpha_B: Tensor) -> Tensor:
        """Token ids of the target model, batch.

        Args:
            logits_l_BV: the target model's logits, at least fp32.
            probs_s_BU: plug-in probabilities.
            alpha_B: weight of the plug-in.
        """
        own_B = logits_l_BV.argmax(dim=-1)
        is_gated_B = alpha_B.to(own_B.device) < self.gate
        is_fused_B = ~is_gated_B
        if self.eos_id is not None:
            is_fused_B = is_fused_B & (own_B != self.eos_id)
        n_steps, n_gated, n_fused = len(own_B), int(is_gated_B.sum()), int(is_fused_B.sum())
        self.tally.update(steps=n_steps, gated=n_gated, ended=n_steps - n_gated - n_fused, fused=n_fused)
        if not n_fused:
            return own_B
        rows = is_fused_B.nonzero().squeeze(-1)
        logits_l_FV = logits_l_BV[rows]
        rows_s = rows.to(probs_s_BU.device)
        llm_FA = self.llm.project(logits_l_FV.softmax(dim=-1))
        plugin_FA = self.plugin.project(probs_s_BU[rows_s]).to(llm_FA.device)
        fused_FA = mix(llm_FA, plugin_FA, alpha_B[rows_s].to(llm_FA.device))
        self.tally["round_trips"] += int((self.llm.owner_A[llm_FA.argmax(dim=-1)] == own_B[rows]).sum())
        return own_B.index_copy(0, rows, self.decoder.decode(fused_FA, logits_l_FV))
