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
from methods.onceedit.plugin import EditedPlugin, Reading
from methods.onceedit.sync import Written

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
    alpha_S, reading = _read(model, queries, steps, reads_targets=reads_targets)
    fused_F = (alpha_S >= model.chooser.gate).nonzero().squeeze(-1)
    together = max(1, buffer_bytes(own_SV.device, PART_BYTES, PART_SHARE) // (8 * own_SV.shape[1]))
    for part in torch.split(fused_F, together) if len(fused_F) else ():
        at = part.to(own_SV.device)
        choice = model.chooser.decide(own_SV[at], reading[part.tolist()].probs_BU, alpha_S[part])
        found_S3[at] = _found(choice.logits(own_SV[at]), wanted_S[at])
    flat = iter([TokenScore(logprob, int(best), leading) for logprob, best, leading in found_S3.tolist()])
    return [[next(flat) for _ in query.target_ids] for query in queries]


def _found(logits_SV: Tensor, wanted_S: Tensor) -> Tensor:
    """The fields of `TokenScore` at each position, S × 3, fp64."""
    logprobs_SV = logits_SV.log_softmax(dim=-1)
    best_S1 = logits_SV.argmax(dim=-1, keepdim=True)
    parts_S1 = (logprobs_SV.gather(1, wanted_S[:, None]), best_S1, logprobs_SV.gather(1, best_S1))
    return torch.cat([part_S1.double() for part_S1 in parts_S1], dim=1)


def _read(
    model: "EnsembleModel", queries: Sequence[Query], steps: Sequence[tuple[int, int]], *, reads_targets: bool
) -> tuple[Tensor, Reading]:
    """Alpha at each step, and the plug-in's outputs there as far as they are needed."""
    transcripts = model.transcripts(queries)
    written = [transcripts[n].after(queries[n].target_ids[:j]) for n, j in steps]
    written = [Written(text, is_inside_character or not text) for text, is_inside_character in written]
    routed = [
        transcripts[n].after(query.target_ids).text if reads_targets else query.prompt
        for n, query in enumerate(queries)
    ]
    row_S = [n for n, _ in steps]
    texts = [None if is_silent else text for text, is_silent in written]
    if model.hparams.alpha == "similarity":  # needs no reading: the plug-in reads what is fused and nothing else
        unread_N = torch.zeros(len(routed), dtype=torch.promote_types(model.plugin.model.dtype, torch.float32))
        alpha_S = model.alpha(None, _alpha(model, routed, unread_N)[row_S], written)
        is_needed = ((alpha_S >= model.chooser.gate) & (alpha_S > 0)).tolist()
        needed = [text if yes else None for text, yes in zip(texts, is_needed, strict=True)]
        return alpha_S, _reading(model.plugin, needed, row_S)
    both = _reading(model.plugin, [*(text or None for text in routed), *texts], [*range(len(routed)), *row_S])
    alpha_N = _alpha(model, routed, both[: len(routed)].alpha_B)
    reading = both[len(routed) :]
    return model.alpha(reading, alpha_N[row_S], written), reading


def _alpha(model: "EnsembleModel", texts: Sequence[str], learned_N: Tensor) -> Tensor:
    """Alpha of each text; 0 of an empty one, which is about no edit."""
    there = [n for n, text in enumerate(texts) if text]
    alpha_N = torch.zeros_like(learned_N)
    if there:
        alpha_N[there] = model.gate.alpha([texts[n] for n in there], learned_N[there])
    return alpha_N


def _reading(plugin: EditedPlugin, texts: Sequence[str | None], rows: Sequence[int]) -> Reading:
    """The plug-in's outputs after each text, those of a row in one pass; after None, nothing is read and all is zero."""
    there = [place for place, text in enumerate(texts) if text is not None]
    model = plugin.model
    width = model.get_output_embeddings().weight.shape[1]
    hidden_SD = torch.zeros(len(texts), width, dtype=model.dtype, device=model.device)
    if there:
        packed = plugin.read_together([texts[place] or "" for place in there], [rows[place] for place in there])
        hidden_SD[there] = packed.reading.hidden_BD
    return Reading(plugin, hidden_SD)
