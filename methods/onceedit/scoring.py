"""Log-probabilities of given texts under the ensemble.

The ensemble chooses each token as the arg-max of logits over the target model's vocabulary. Their softmax is what a text is
scored by:

* Where the target model's own token is kept (alpha below the gate, its own end of text, `keep_own`), they are its own logits,
  and the log-probability is that of the unedited model, bit for bit.
* Where a token is decoded from anchor space, they are the final logits of the search: DeePEn (arXiv 2404.12715) looks for the
  distribution over the target model's vocabulary whose projection onto the anchors is the fused distribution P.

How much the latter say depends on the search. With DeePEn's soft target and start, they follow P. With OnceEdit's one-hot target
and a start from zero, they only know which anchor is the most probable: in five steps at a rate of .15, two logits move apart by at
most 1.35, so that the distribution is nearly flat. It tells which of several ids comes first; a sum over several ids says how many
they are, and a perplexity how large the vocabulary is.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.api import TokenScore
from harness.tokens import Query
from methods.common.memory import buffer_bytes
from methods.onceedit.forward import logits_at
from methods.onceedit.given_texts import heard

if TYPE_CHECKING:
    from methods.onceedit.ensemble import EnsembleModel

PART_BYTES = 64 * 2**20
"""Memory limit for the positions that are fused together, at one fp64 number per position and token of the target model."""

PART_SHARE = 1 / 128
"""The same as a share of a GPU's memory."""


@torch.no_grad()
def scores(model: "EnsembleModel", queries: Sequence[Query], *, reads_targets: bool) -> list[list[TokenScore]]:
    """Score each target id after the prompt and the ids before it.

    As under teacher forcing, the plug-in reads the text before each id. Where there is none yet, or only a part of a
    character, it has no say. Nothing is counted for the diagnostics.

    Args:
        model: the ensemble, whose decoder ends with logits.
        queries: prompts and targets.
        reads_targets: alpha comes from the whole text instead of the prompt.
    """
    if not queries:
        return []
    rows = [query.prompt_ids + query.target_ids[:-1] for query in queries]
    steps = [(n, j) for n, query in enumerate(queries) for j in range(len(query.target_ids))]
    own_SV = logits_at(model.target.model, rows, [(n, len(queries[n].prompt_ids) + j - 1) for n, j in steps])
    wanted_S = torch.tensor([queries[n].target_ids[j] for n, j in steps], device=own_SV.device)
    found_S3 = _found(own_SV, wanted_S)
    plugin = heard(model, queries, steps, model.gate.alpha, reads_targets=reads_targets)
    together = max(1, buffer_bytes(own_SV.device, PART_BYTES, PART_SHARE) // (8 * own_SV.shape[1]))
    for start in range(0, len(plugin.fused), together):
        part = slice(start, start + together)
        at = plugin.fused[part]
        choice = model.chooser.decide(own_SV[at], plugin.reading[part].probs_BU, plugin.alpha_S[at])
        found_S3[at] = _found(choice.logits(own_SV[at]), wanted_S[at])
    flat = iter([TokenScore(logprob, int(best), leading) for logprob, best, leading in found_S3.tolist()])
    return [[next(flat) for _ in query.target_ids] for query in queries]


def _found(logits_SV: Tensor, wanted_S: Tensor) -> Tensor:
    """The fields of `TokenScore` at each position, S × 3, fp64."""
    logprobs_SV = logits_SV.log_softmax(dim=-1)
    best_S1 = logits_SV.argmax(dim=-1, keepdim=True)
    parts_S1 = (logprobs_SV.gather(1, wanted_S[:, None]), best_S1, logprobs_SV.gather(1, best_S1))
    return torch.cat([part_S1.double() for part_S1 in parts_S1], dim=1)
