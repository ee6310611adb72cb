"""Whether OnceEdit's certified tokens are those of whole distributions in fp64, on continuations of real text.

    python -m benchmarks.exact_tokens [--quick] [--out FILE]
    python -m benchmarks.exact_tokens --model smollm2-135m --weights pretrained --data DIR --set onceedit.plugin=smollm2-135m

Decoding never computes the fused distribution over all anchors: it takes the arg-max from bounds, and in large vocabularies from
relative states in fp32 (`methods.onceedit.certify`, `methods.onceedit.single`). Here every step of the same continuations is
decided again from all V x A entries of both transfer matrices in fp64, tile by tile. One different token ends the benchmark with
an error. It also says how many steps each level of the certificate decided, and what both ways take.
"""

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import command
from benchmarks.editing import parsed_settings, quick_hparams
from benchmarks.speculative import continuations
from benchmarks.workbench import MethodBench, Workbench, add_options
from harness.models.precision import at_least_fp32
from harness.records import Dataset
from methods.onceedit.answers import Answers
from methods.onceedit.choose import Choice
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.fusion import Fused
from methods.onceedit.relative import RelativeState
from methods.onceedit.stepwise import Stepwise

TILE_BYTES = 256 * 2**20
"""Size of a tile of R in fp64."""

TOGETHER = 16
"""Prompts per batch."""

KEPT_BYTES = 2 * 2**30
"""Size of the distributions that are kept until they are compared: the rows of R are computed once for all of them."""


@dataclass
class Found:
    """What the steps so far have given.

    Attributes:
        steps: number of steps.
        different: prompts with a token that differs.
        outcomes: steps by what decided them.
        seconds: of deciding, certified and from whole distributions.
    """

    steps: int = 0
    different: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: {"certified": 0.0, "whole": 0.0})


@dataclass
class Kept:
    """Steps that are not compared yet.

    Attributes:
        steps: of each, the target model's logits, the plug-in's probabilities, alpha and the tokens, for a batch of prompts.
        prompts: the prompt of each token.
    """

    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Their size."""
        return sum(part.nbytes for step in self.steps for part in step)


def main(arguments: Sequence[str] | None = None) -> None:
    """Decode, compare, print the counts and write the results.

    Raises:
        SystemExit: if a token differs.
    """
    options = _options(arguments)
    console = command.start(options)
    with Workbench.opened(options, options.edits, console) as bench:
        method = MethodBench(bench, "onceedit", quick_hparams("onceedit", options.quick) | options.set)
        method.build()
        pair, _ = method.edit()
        if not isinstance(pair, EnsembleModel) or pair.gate.threshold is not None or pair.chooser.gate:
            raise TypeError(
                "onceedit with a learned or fixed alpha and without a gate is needed, so that every step is fused"
            )
        found, prompts, kept = Found(), prompts_of(bench.records), Kept()
        for start in range(0, len(prompts), TOGETHER):
            decode(pair, prompts[start : start + TOGETHER], options.length, kept, found)
            is_enough = found.steps + len(kept.prompts) >= options.tokens
            if is_enough or kept.bytes >= KEPT_BYTES or start + TOGETHER >= len(prompts):
                compare(pair, kept, found)
                kept = Kept()
                console.print(f"{found.steps:,} tokens, {len(found.different)} different")
                command.write_results(options, vars(found))
            if is_enough:
                break
        error = max(side.state.error for side in (pair.anchored.llm, pair.anchored.plugin))
    console.print(
        table(f"{options.model}, relative: {method.hparams['relative']}, error of the states {error:.1e}", found)
    )
    if found.different:
        raise SystemExit(f"another token than in fp64 after {found.different[0]!r}")


def prompts_of(records: Dataset) -> list[str]:
    """One prompt of each kind in turn: edits, rephrases, locality questions and prompts of unrelated records."""
    kinds = [
        [record.prompt for record in records.edits],
        [prompt for record in records.edits for prompt in record.rephrases[:1]],
        [probe.prompt for record in records.edits for probe in record.locality[:1]],
        [record.prompt for record in records.unrelated],
    ]
    longest = max(map(len, kinds))
    return list(dict.fromkeys(kind[n] for n in range(longest) for kind in kinds if n < len(kind)))


@torch.no_grad()
def decode(pair: EnsembleModel, prompts: Sequence[str], length: int, kept: Kept, found: Found) -> None:
    """Continue prompts by `length` tokens, and keep what each token was chosen from."""
    queries = continuations(pair, prompts, length)
    answers = Answers(queries)
    stepwise = Stepwise(pair, queries, answers)
    for _ in range(length):
        rows, hidden_ND, reading, written = stepwise.read()
        if reading is None:
            raise ValueError("the plug-in is not heard although there is no gate")
        logits_BV = at_least_fp32(pair.target.logits(hidden_ND)[rows])
        alpha_B = pair.alpha(reading, stepwise.alpha_N[rows], written)
        started = time.perf_counter()
        choice = pair.chooser.decide(logits_BV, reading.probs_BU, alpha_B)
        found.seconds["certified"] += time.perf_counter() - started
        found.outcomes += outcomes(choice)
        for row, token in zip(rows, choice.tokens_B.tolist(), strict=True):
            answers.add(row, token, is_changed=False)
        kept.steps.append((logits_BV, reading.probs_BU, alpha_B, choice.tokens_B))
        kept.prompts += [prompts[row] for row in rows]


@torch.no_grad()
def compare(pair: EnsembleModel, kept: Kept, found: Found) -> None:
    """Choose the tokens again from whole distributions."""
    *inputs, tokens_S = (torch.cat(parts) for parts in zip(*kept.steps, strict=True))
    started = time.perf_counter()
    is_wrong_S = tokens_S != slow_tokens(pair, *inputs)
    found.seconds["whole"] += time.perf_counter() - started
    found.steps += len(is_wrong_S)
    found.different += [kept.prompts[place] for place in is_wrong_S.nonzero().flatten().tolist()]


def outcomes(choice: Choice) -> Counter[str]:
    """Number of steps that each level of the certificate decided, and of those at which the own token was kept."""
    if choice.decoded is None or choice.decoded.certificate is None:
        raise ValueError("the decoder certifies nothing")
    levels = zip((choice.anchors_B >= 0).tolist(), choice.decoded.certificate.level_B.tolist(), strict=True)
    return Counter(f"L{level}" if is_fused else "own end of text" for is_fused, level in levels)


def slow_tokens(pair: EnsembleModel, logits_SV: Tensor, probs_SU: Tensor, alpha_S: Tensor) -> Tensor:
    """The token of each step from all entries of both transfer matrices in fp64."""
    anchored = pair.anchored
    llm = anchored.llm.state
    fused = Fused(anchored.llm, anchored.plugin, logits_SV.softmax(dim=-1), probs_SU, alpha_S.clamp_min(0.0))
    fused_SA = logits_SV.new_zeros(len(logits_SV), llm.n_anchors, dtype=torch.float64)
    log_z_V = logits_SV.new_empty(llm.n_tokens, dtype=torch.float64)
    for side in fused.sides():
        for ids in tiles(side.state):
            x_TA = side.state.exponents(ids, slice(None))
            if side.state is llm:
                log_z_V[ids] = x_TA.logsumexp(dim=-1)
            fused_SA.addmm_(side.weights_BV[:, ids], x_TA.softmax(dim=-1))
    anchors_C, place_S = torch.unique(fused_SA.argmax(dim=-1), return_inverse=True)
    own_S = logits_SV.argmax(dim=-1)
    is_own_S = (own_S == (-1 if anchored.eos_id is None else anchored.eos_id)) | (alpha_S < anchored.gate)
    return torch.where(is_own_S, own_S, owners(llm, log_z_V, anchors_C)[place_S])


def owners(state: RelativeState, log_z_V: Tensor, anchors_C: Tensor) -> Tensor:
    """The token with the largest entry in each column of R, of equal ones the anchor's own token.

    A search for a one-hot target that starts from zero logits ends with this token: a larger entry has a larger gradient in
    every step.
    """
    columns_CV = (state.exponents(slice(None), anchors_C) - log_z_V[:, None]).T
    own_C = state.anchor_ids_A[anchors_C]
    best_C, token_C = columns_CV.max(dim=1)
    return torch.where(columns_CV.gather(1, own_C[:, None])[:, 0] == best_C, own_C, token_C)


def tiles(state: RelativeState) -> list[slice]:
    """Slices of tokens whose rows of R fill a tile."""
    rows = max(1, TILE_BYTES // (8 * state.n_anchors))
    return [slice(start, start + rows) for start in range(0, state.n_tokens, rows)]


def table(title: str, found: Found) -> Table:
    """Counts and times in one row."""
    levels = ["L0", "L1", "L2", "own end of text"]
    made = command.new_table(
        title, ["tokens"], ["different", *levels, "certified, ms per token", "whole, ms per token"]
    )
    shares = [f"{found.outcomes[level] / found.steps:.1%}" for level in levels]
    times = [f"{1e3 * found.seconds[way] / found.steps:.2f}" for way in ("certified", "whole")]
    made.add_row(f"{found.steps:,}", str(len(found.different)), *shares, *times)
    return made


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("exact_tokens", __doc__, "4 edits in 2 steps, 8 prompts of 4 tokens")
    add = parser.add_argument
    add("--edits", type=int, default=30, help="facts to edit; default: 30")
    add("--tokens", type=int, default=2000, help="tokens to compare, at least; default: 2000")
    add("--length", type=int, default=32, help="tokens per prompt; default: 32")
    add("--set", nargs="+", default=[], metavar="onceedit.KEY=VALUE", help="override hyper-parameters of the files")
    add_options(parser)
    options = parser.parse_args(arguments)
    options.set = parsed_settings(options.set).get("onceedit", {})
    if options.quick:
        options.edits, options.tokens, options.length = 4, 32, 4
        options.train, options.unrelated = 20, 4
    return options


if __name__ == "__main__":
    command.run(main)
