"""Time per token of OnceEdit's speculative decoding, compared with two forward passes per token and with the target model alone.

    python -m benchmarks.speculative [--quick] [--out FILE]
    python -m benchmarks.speculative --model smollm2-135m --weights pretrained --set onceedit.plugin=smollm2-135m
    python -m benchmarks.speculative --model llama2-7b --dtype float32 --parts passes --blocks 2 6

Each prompt is continued alone (batch 1) by --length tokens:
    target alone   the unedited target model
    two forwards   one pass of both models per token, without fusion: the floor of step-by-step decoding
    exact          the step-by-step decoder
    k = …          speculative decoding with k drafts per block; `adaptive` chooses k by what was accepted
Prompts are edits, rephrases and prompts of unrelated records. All take turns in one process, and all continuations of the
ensemble are compared: if one differs from that of the step-by-step decoder, the benchmark ends with an error.

The cost model says what to expect elsewhere: seconds of a pass over 1 to 9 ids after a text, for both models, and what they
make of a given share of right drafts. Where a model does not fit, `--blocks` times it with two smaller numbers of blocks and
extrapolates to all of them: every block takes the same time, and what is outside of them does not change.
"""

import argparse
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from benchmarks import command
from benchmarks.command import number
from benchmarks.editing import parsed_settings, quick_hparams
from benchmarks.timing import Candidate, taking_turns
from benchmarks.workbench import MethodBench, Workbench, add_options
from harness.models.catalogue import ModelRef
from harness.models.edited import WeightEditedModel
from harness.models.random_weights import random_model
from harness.tokens import Query
from methods.onceedit.answers import Answers
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.hparams import OnceEditHparams
from methods.onceedit.slots import Slots
from methods.onceedit.speculative import Speculation
from methods.onceedit.stepwise import Stepwise
from methods.onceedit.sync import Companion

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALONE, TWO, EXACT, ADAPTIVE = "target alone", "two forwards", "exact", "adaptive"

PASSES = (1, 2, 3, 5, 9)
"""Numbers of ids per pass in the cost model."""

RATES = (0.5, 0.7, 0.8, 0.9, 1.0)
"""Shares of right drafts for which the cost model is evaluated."""


@dataclass(frozen=True)
class Kind:
    """Measurements on one kind of prompts.

    Attributes:
        alpha: mean alpha of the prompts.
        seconds: per token, by candidate.
        counts: by number of drafts: blocks, tokens drafted, accepted and settled.
        tokens: number of tokens of each candidate.
    """

    alpha: float
    seconds: dict[str, float]
    counts: dict[str, dict[str, int]]
    tokens: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the results."""
    options = _options(arguments)
    console = command.start(options)
    kinds: dict[str, Kind] = {}
    with Workbench.opened(options, options.edits, console) as bench:
        # a plug-in that drafts is in fp32 on every device; step by step it is then measured in fp32 too
        hparams = quick_hparams("onceedit", options.quick) | options.set | {"decode": "speculative"}
        method = MethodBench(bench, "onceedit", hparams)
        plugin = OnceEditHparams(**method.hparams).plugin_entry.reference(bench.target.corpus or bench.data)
        plugin = replace(plugin, dtype="float32")
        bench.build(plugin.artifacts().values())
        both = {"target": bench.target, "plug-in": plugin}
        if options.blocks:
            passes = {name: extrapolated(ref, options) for name, ref in both.items()}
        else:
            loaded = {name: bench.context.load_model(ref).model for name, ref in both.items()}
            passes = {name: pass_seconds(model, options.length) for name, model in loaded.items()}
        ratios = expected(passes)
        results = {"pass_seconds": passes, "expected": ratios}
        command.write_results(options, {"kinds": kinds, **results})
        if "decode" in options.parts:
            method.build()
            pair, _ = method.edit()
            if not isinstance(pair, EnsembleModel):
                raise TypeError(f"onceedit gave a {type(pair).__name__}")
            for name, prompts in prompts_of(bench, options.prompts).items():
                kinds[name] = measure(pair, prompts, options)
                found = {done: vars(kind) for done, kind in kinds.items()}
                command.write_results(options, {"kinds": found, **results})
            console.print(table(f"{options.model}, batch 1, {options.length} tokens per prompt", kinds))
    for name, seconds in passes.items():
        each = ", ".join(f"{n} ids {number(1e3 * value)} ms" for n, value in seconds.items())
        console.print(f"{name}, one pass: {each}")
    console.print("× two forwards by these passes, if fusion were free: " + ", ".join(
        f"{ratio:.2f} where {rate} of the drafts are right" for rate, ratio in ratios.items()))  # fmt: skip


def prompts_of(bench: Workbench, at_most: int) -> dict[str, list[str]]:
    """Prompts of each kind."""
    records = bench.records
    rephrases = [record.rephrases[0] for record in records.edits if record.rephrases]
    found = {
        "edits": [record.prompt for record in records.edits],
        "rephrases": rephrases,
        "unrelated": [record.prompt for record in records.unrelated],
    }
    return {name: prompts[:at_most] for name, prompts in found.items() if prompts}


def measure(pair: EnsembleModel, prompts: Sequence[str], options: argparse.Namespace) -> Kind:
    """Continue each prompt in every way.

    Raises:
        SystemExit: if a continuation differs from that of the step-by-step decoder.
    """
    queries = continuations(pair, prompts, options.length)
    made: dict[str, dict[int, list[int]]] = {}
    counts: dict[str, dict[int, Counter[str]]] = {}

    def speculate(name: str, drafts: int | None, turn: int) -> None:
        answers = Answers([queries[turn]])
        speculation = Speculation(pair, [queries[turn]], answers, drafts)
        speculation.run()
        made.setdefault(name, {})[turn] = answers.made[0]
        counts.setdefault(name, {})[turn] = speculation.counts

    def exact(turn: int) -> None:
        made.setdefault(EXACT, {})[turn] = step_by_step(pair, queries[turn])

    def of_round(run: Callable[[int], None]) -> Callable[[int], None]:
        return lambda turn: run(turn % len(queries))  # there may be more warm-up rounds than prompts

    ways: dict[str, Callable[[int], None]] = {
        ALONE: lambda turn: _discard(WeightEditedModel(pair.target).generate([queries[turn]])),
        EXACT: exact,
        TWO: lambda turn: two_forwards(pair, queries[turn], made[EXACT][turn]),
        **{f"k = {k}": partial(speculate, f"k = {k}", k) for k in options.drafts},
        ADAPTIVE: partial(speculate, ADAPTIVE, None),
    }
    for turn in range(len(queries)):
        exact(turn)
    candidates = [Candidate(name, of_round(run)) for name, run in ways.items()]
    found = taking_turns(candidates, len(queries), pair.target.device, tracks_memory=False)
    for name, of in made.items():
        if wrong := [turn for turn, ids in of.items() if ids != made[EXACT][turn]]:
            raise SystemExit(f"{name}: another continuation of {prompts[wrong[0]]!r} than step by step")
    per_token = {name: of.mean / options.length for name, of in found.items()}
    totals = {name: dict(sum(of.values(), Counter())) for name, of in counts.items()}
    return Kind(statistics.fmean(pair.scope(queries)), per_token, totals, len(queries) * options.length)


def continuations(pair: EnsembleModel, prompts: Sequence[str], length: int) -> list[Query]:
    """Questions that are answered by continuing prompts by `length` tokens."""
    tokenizer = pair.target.tokenizer
    return [Query(text, "", tuple(tokenizer(text)["input_ids"]), (0,) * length) for text in prompts]


@torch.no_grad()
def step_by_step(pair: EnsembleModel, query: Query) -> list[int]:
    """The tokens of the step-by-step decoder."""
    answers = Answers([query])
    Stepwise(pair, [query], answers).run()
    return answers.made[0]


@torch.no_grad()
def two_forwards(pair: EnsembleModel, query: Query, made: Sequence[int]) -> None:
    """Run both models step by step over known tokens, without choosing any."""
    answers = Answers([query])
    for token in made:
        answers.add(0, token, is_changed=False)
    stepwise, companion = Stepwise(pair, [query], answers), Companion(pair.plugin, 1)
    for _ in query.target_ids:
        _, hidden_BD, reading, (written,) = stepwise.read()
        if reading is None:  # alpha is below the gate, and the step-by-step decoder leaves the plug-in out
            reading = companion.read({0: written})
        _discard((pair.target.logits(hidden_BD), reading.logits_BU))


@torch.no_grad()
def pass_seconds(model: "PreTrainedModel", context: int) -> dict[int, float]:
    """Seconds of a pass over each number of ids in `PASSES`, after `context` ids."""
    slots, base = Slots(model, 1, crops=True), [3 + n % 7 for n in range(context)]

    def run(ids: int, turn: int) -> None:
        slots.hold([[*base, *(20 + turn % 2 for _ in range(ids))]], again=[ids])

    slots.hold([base])
    candidates = [Candidate(str(ids), partial(run, ids)) for ids in PASSES]
    found = taking_turns(candidates, 9, model.device, tracks_memory=False)
    return {ids: found[str(ids)].median for ids in PASSES}


def extrapolated(ref: ModelRef, options: argparse.Namespace) -> dict[int, float]:
    """`pass_seconds` of a model of which only some blocks fit, with random weights, from two numbers of blocks."""
    device, found = torch.device(options.device), []
    for blocks in options.blocks:
        model = random_model(replace(ref.spec, n_layers=blocks), ref.dtype, device).eval().requires_grad_(False)
        found.append(pass_seconds(model, options.length))
        del model
    few, many = options.blocks
    per_block = {ids: (found[1][ids] - found[0][ids]) / (many - few) for ids in PASSES}
    return {ids: found[0][ids] + (ref.spec.n_layers - few) * per_block[ids] for ids in PASSES}


def expected(passes: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Time per token with the best number of drafts relative to two forward passes, by the share of right drafts.

    A block with k drafts takes a pass of the target model over k + 1 ids and k + 1 passes of the plug-in over one.
    """
    target, plugin = passes["target"], passes["plug-in"]
    ratios = {}
    for rate in RATES:
        per_token = [(target[width] + width * plugin[1]) / sum(rate**n for n in range(width)) for width in PASSES]
        ratios[str(rate)] = min(per_token) / (target[1] + plugin[1])
    return ratios


def table(title: str, kinds: Mapping[str, Kind]) -> Table:
    """One row per kind of prompts and way of decoding."""
    made = command.new_table(title, ["prompts", "decoding"], ["alpha", "ms per token", "× two forwards",
        "× target alone", "accepted", "tokens per pass", "settled"])  # fmt: skip
    for kind, of in kinds.items():
        for name, seconds in of.seconds.items():
            times = [f"{1e3 * seconds:.2f}", *(f"{seconds / of.seconds[base]:.2f}" for base in (TWO, ALONE))]
            made.add_row(kind, name, f"{of.alpha:.2f}", *times, *_shares(of.counts.get(name)))
    return made


def _shares(counts: Mapping[str, int] | None) -> list[str]:
    if not counts:
        return ["–"] * 3
    blocks, drafted, accepted, settled = (counts.get(name, 0) for name in ("blocks", "drafted", "accepted", "settled"))
    made = accepted + blocks
    return [
        f"{accepted / drafted:.0%}" if drafted else "–",
        f"{made / blocks:.2f}",
        f"{settled / (made + settled):.1%}",
    ]


def _discard(_: Any) -> None:
    return None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("speculative", __doc__, "4 edits in 2 steps, 6 tokens per prompt")
    add = parser.add_argument
    add("--parts", nargs="+", choices=["decode", "passes"], default=["decode", "passes"], help="passes: only the cost model, "
        "for random weights, whose continuations mean nothing; default: both")  # fmt: skip
    add(
        "--blocks",
        nargs=2,
        type=int,
        metavar=("FEW", "MANY"),
        help="with --parts passes: blocks to time, for models that do not fit",
    )
    add("--edits", type=int, default=50, help="facts to edit; default: 50")
    add("--prompts", type=int, default=10, help="prompts of each kind; default: 10")
    add("--length", type=int, default=32, help="tokens per prompt; default: 32")
    add("--drafts", nargs="+", type=int, default=[1, 2, 4, 8], metavar="K", help="default: 1 2 4 8")
    add("--set", nargs="+", default=[], metavar="onceedit.KEY=VALUE", help="override hyper-parameters of the files")
    add_options(parser)
    options = parser.parse_args(arguments)
    options.set = parsed_settings(options.set).get("onceedit", {})
    if options.blocks and options.parts != ["passes"]:
        parser.error("--blocks needs --parts passes: a model without some of its blocks decodes nothing")
    if options.quick:
        options.edits, options.prompts, options.length, options.drafts = 4, 2, 6, [2]
        options.train, options.unrelated = 20, 4
    return options


if __name__ == "__main__":
    command.run(main)
