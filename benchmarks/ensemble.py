"""Cost of OnceEdit's decoding step, compared with keeping both matrices R in memory and with the models' own forward passes.

    python -m benchmarks.ensemble [--quick] [--out FILE]
    python -m benchmarks.ensemble --pair llama2-7b+tinyllama-1.1b --dtype bfloat16 --device cuda [--compile default]

Part `fusion` needs no model. Embeddings and next-token distributions are random (benchmarks/ensemble_data.py), decoded by
    owner, column  OnceEdit's decoders, with the certified arg-max
    R, owner       both relative transfer matrices in memory in fp32: two products, arg-max, its owner
    R, search      the same, then DeePEn's 5-step search on a one-hot target: the reference for all speed-ups
Part `step` runs both models of a pair, with random weights, in the middle of a text, then fuses and decodes. Random weights
give nearly flat logits, so random distributions are fused there too. All candidates take turns in one process.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from rich.console import Console

from benchmarks import command, ensemble_fusion, ensemble_step
from benchmarks import ensemble_tables as tables
from benchmarks.command import size
from benchmarks.ensemble_data import LIKE, PairShape, Statistics
from benchmarks.ensemble_fusion import InMemory
from benchmarks.ensemble_pairs import BuiltPair, ModelPair, built, plain_shape
from benchmarks.timing import free_bytes
from harness.models.architecture import DTYPE_BYTES
from methods.onceedit.bounds import from_lists
from methods.onceedit.relative import Rule

PARTS = ("fusion", "step")
VOCABULARIES, WIDTHS = (8000, 32000), (512, 256)

ROOM = 1.25
"""Free memory that the reference needs, as a multiple of the size of its two matrices."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the results."""
    options = _options(arguments)
    run = Run(options, torch.device(options.device), command.start(options))
    with torch.no_grad():
        if "fusion" in options.parts:
            for shape in _shapes(options):
                run.fusion(shape)
                command.write_results(options, run.found)
        if "step" in options.parts:
            run.step(ModelPair.named(options.pair))
            command.write_results(options, run.found)


@dataclass(frozen=True)
class Run:
    """One run of the benchmark.

    Attributes:
        found: all results, in the form in which they are written.
    """

    options: argparse.Namespace
    device: torch.device
    console: Console
    found: dict[str, list[Any]] = field(default_factory=lambda: {"pairs": [], "fusion": [], "step": [], "left_out": []})

    def fusion(self, shape: PairShape) -> None:
        """Run part `fusion` for one shape."""
        options, pair = self.options, self._pair(shape)
        whole = self._in_memory(pair)
        compiled = _compiled(options.compile) if options.compile else None
        records = []
        for batch in options.batch:
            with self.console.status(f"fusion, V {shape.tokens_llm}, batch {batch}"):
                draws = ensemble_fusion.draws_of(pair, batch, options.repeats, options.seed)
                measured = ensemble_fusion.measure(pair, whole, draws, options.reference_repeats, compiled)
            records.append({"pair": dataclasses.asdict(shape), "batch": batch, **measured})
        self.found["fusion"] += records
        self.console.print(tables.fusion_table(dataclasses.asdict(shape), records))
        for record in records:
            self.console.print(tables.fusion_line(record))

    def step(self, named: ModelPair) -> None:
        """Run part `step` for a pair of models."""
        options, pair = self.options, self._pair(named.shape(_statistics(self.options)))
        models = ensemble_step.random_models(named, pair, options.dtype, self.device, options.seed)
        records = []
        for batch in options.batch:
            with self.console.status(f"steps of {options.pair}, batch {batch}"):
                measured = ensemble_step.measure(pair, models, batch, options.context, options.repeats, options.seed)
            records.append({"pair": options.pair, "batch": batch, **measured})
        self.found["step"] += records
        self.console.print()
        self.console.print(
            tables.step_table(f"{options.pair}, random weights, {options.dtype}, {options.context} ids read", records)
        )
        for record in records:
            self.console.print(tables.step_line(record))

    def _pair(self, shape: PairShape) -> BuiltPair:
        """Embeddings and relative states of a shape; prints its build cost the first time."""
        options = self.options
        with self.console.status(f"relative states, V {shape.tokens_llm}"):
            pair = built(
                shape, (options.rule, options.temperature), getattr(torch, options.dtype), self.device, options.seed
            )
        if pair.results() not in self.found["pairs"]:
            self.found["pairs"].append(pair.results())
            self.console.print(tables.pair_line(pair.results()))
        return pair

    def _in_memory(self, pair: BuiltPair) -> tuple[InMemory, InMemory] | None:
        """Both R in memory; None, after printing the reason, if there is not enough memory."""
        need, free = ROOM * pair.shape.matrix_bytes, free_bytes(self.device)
        if free < need:
            reason = f"R in memory is skipped: it needs {size(need)}, but only {size(free)} are free"
            self.found["left_out"].append({"pair": dataclasses.asdict(pair.shape), "reason": reason})
            self.console.print(reason)
            return None
        with self.console.status("both R"):
            return InMemory.of(pair.llm.state), InMemory.of(pair.plugin.state)


def _shapes(options: argparse.Namespace) -> list[PairShape]:
    """Shapes that part `fusion` measures: the vocabularies of `--vocab`, else those of the pair."""
    if options.vocab:
        return [plain_shape(tokens, options.width, _statistics(options)) for tokens in options.vocab]
    return [ModelPair.named(options.pair).shape(_statistics(options))]


def _statistics(options: argparse.Namespace) -> Statistics:
    return LIKE[options.like] if options.like else Statistics(common=options.common)


def _compiled(mode: str) -> Callable[..., Any]:
    return torch.compile(from_lists, dynamic=False, mode=mode)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("ensemble", __doc__, "the pair `tiny`")
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; default: both")
    add("--pair", default="small", help="small, tiny, or two catalogue names such as llama2-7b+tinyllama-1.1b")
    add("--vocab", nargs="+", type=int, metavar="V", help="vocabulary sizes for part fusion; default: those of the pair, and "
        "8000 32000 for small")  # fmt: skip
    add("--width", nargs=2, type=int, default=WIDTHS, metavar=("D", "D"), help="embedding widths of the target model and the "
        "plug-in, with --vocab; default: 512 256")  # fmt: skip
    add("--common", type=float, default=0.05, metavar="C", help="share of a direction common to all embeddings, "
        "0 to .75; a larger share makes the rows of R flatter; default: .05")  # fmt: skip
    add(
        "--like",
        choices=list(LIKE),
        help="draw embeddings with the statistics of a pretrained model's; replaces --common",
    )
    add("--rule", default="deepen", choices=get_args(Rule), help="relative representation; default: deepen")
    add(
        "--temperature", type=float, default=40.0, help="of the rules centred and whitened; default: 40, as in OnceEdit"
    )
    add("--batch", nargs="+", type=int, default=[1, 8, 32], metavar="B", help="default: 1 8 32")
    add("--context", type=int, default=64, help="ids in both caches before the first step; default: 64")
    add("--repeats", type=int, default=24, help="rounds, each with new distributions; default: 24")
    add("--reference-repeats", type=int, default=3, help="rounds in which R in memory takes part; default: 3")
    add("--dtype", default="float32", choices=list(DTYPE_BYTES), help="weights and embeddings; default: float32")
    add("--compile", choices=["default", "reduce-overhead", "max-autotune"], help="also time L0 alone, with and without "
        "torch.compile(dynamic=False) in this mode")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.quick:
        options.pair, options.vocab, options.batch, options.repeats, options.context = "tiny", None, [1, 4], 4, 8
    elif options.vocab is None and options.pair == "small":
        options.vocab = VOCABULARIES
    return options


if __name__ == "__main__":
    command.run(main)
