"""What the plug-in says along texts that are given, under teacher forcing and where texts are scored."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from harness.tokens import Query
from methods.onceedit.choose import HELD_BACK
from methods.onceedit.plugin import Reading
from methods.onceedit.sync import Written

if TYPE_CHECKING:
    from methods.onceedit.ensemble import EnsembleModel

AlphaOf = Callable[[Sequence[str], Tensor | None], Tensor]
"""Alpha of each of some texts; from the learned ones, if the gate needs them."""


class Heard(NamedTuple):
    """What the plug-in says at S steps.

    Attributes:
        alpha_S: its weight at each step; `HELD_BACK` where it has no say.
        fused: the F steps at which it is heard, those whose alpha reaches the gate.
        reading: its outputs at these.
        written: the text before each step.
        n_fed: number of ids fed to the plug-in.
        n_alone: number of ids if each distinct text of each query were fed on its own.
    """

    alpha_S: Tensor
    fused: list[int]
    reading: Reading
    written: list[Written]
    n_fed: int
    n_alone: int


def heard(
    model: "EnsembleModel",
    queries: Sequence[Query],
    steps: Sequence[tuple[int, int]],
    alpha_of: AlphaOf,
    *,
    reads_targets: bool = False,
) -> Heard:
    """Let the plug-in read the text before each step, all texts of a query in one pass that shares their common prefixes.

    Where alpha is known without reading, it reads only what it is heard about. Where there is no text yet, or only a part of
    a character, it has no say.

    Args:
        model: the ensemble.
        queries: prompts and targets.
        steps: query and number of target ids before each step.
        alpha_of: alpha of the texts that are not empty.
        reads_targets: alpha comes from the whole text of each query instead of its prompt.
    """
    transcripts = model.transcripts(queries)
    written = [transcripts[n].after(queries[n].target_ids[:j]) for n, j in steps]
    written = [Written(text, is_inside_character or not text) for text, is_inside_character in written]
    row_S = [n for n, _ in steps]
    routed = [query.prompt for query in queries]
    if reads_targets:
        routed = [
            transcript.after(query.target_ids).text for transcript, query in zip(transcripts, queries, strict=True)
        ]
    named = [n for n, text in enumerate(routed) if text]
    whole = [s for s, (_, is_held_back) in enumerate(written) if not is_held_back]
    packed, learned, along = None, None, None
    if model.gate.reads:
        texts = [*(routed[n] for n in named), *(written[s].text for s in whole)]
        packed = model.plugin.read_together(texts, [*named, *(row_S[s] for s in whole)])
        learned, along = packed.reading.alpha_B[: len(named)], packed.reading[len(named) :]
    of_named = alpha_of([routed[n] for n in named], learned)
    alpha_N = of_named.new_zeros(len(routed))  # an empty text is about no edit
    alpha_N[named] = of_named
    alpha_S = of_named.new_full((len(steps),), HELD_BACK)
    alpha_S[whole] = model.alpha(along, alpha_N[[row_S[s] for s in whole]], [written[s] for s in whole])
    fused = (alpha_S >= model.chooser.gate).nonzero().squeeze(-1).tolist()
    if packed is None or along is None:
        packed = model.plugin.read_together([written[s].text for s in fused], [row_S[s] for s in fused])
        reading = packed.reading
    else:
        place = {s: n for n, s in enumerate(whole)}
        reading = along[[place[s] for s in fused]]
    return Heard(alpha_S, fused, reading, written, packed.n_fed, packed.n_alone)
