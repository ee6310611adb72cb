"""Cost of OnceEdit's decoding step, compared with both matrices R in memory and with the models' own steps.

    python -m benchmarks.ensemble [--quick] [--out FILE]
    python -m benchmarks.ensemble --pair llama2-7b+tinyllama-1.1b --dtype bfloat16 --device cuda [--compile default]

Part `fusion` needs no model: embeddings and next-token distributions are drawn (benchmarks/ensemble_data.py) and decoded
    owner, column  with the certified arg-max, as OnceEdit's decoders do
    R, owner       with both relative transfer matrices in fp32 in memory: two products, arg-max, its owner
    R, search      the same, then DeePEn's search of 5 steps on a one-hot target: the reference of all speed-ups
Part `step` runs both models of a pair with random weights in the middle of a text, then fuses and decodes. Logits of
random weights are nearly flat, so the distributions are drawn there too. Everything compared takes turns in one process.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console

from benchmarks import command, ensemble_fusion, ensemble_step
from benchmarks import ensemble_tables as tables
from benchmarks.command import size
from benchmarks.ensemble_data import PairShape
from benchmarks.ensemble_fusion import InMemory
from benchmarks.ensemble_pairs import BuiltPair, ModelPair, built, plain_shape
from benchmarks.timing import free_bytes
from harness.models.architecture import DTYPE_BYTES
from methods.onceedit.bounds import from_lists

PARTS = ("fusion", "step")
VOCABULARIES, WIDTHS = (8000, 32000), (512, 256)

ROOM = 1.25
"""Free memory that the reference needs, as a multiple of its two matrices."""


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
        found: all results, as they are written.
    """

    options: argparse.Namespace
    device: torch.device
    console: Console
    found: dict[str, list[Any]] = field(default_factory=lambda: {"pairs": [], "fusion": [], "step": [], "left_out": []})

    def fusion(self, shape: PairShape) -> None:
        """Part `fusion` at one shape."""
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
        """Part `step` of a pair of models."""
        options, pair = self.options, self._pair(named.shape(self.options.common))
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
        """Embeddings and relative states of a shape; a new one is reported."""
        options = self.options
        with self.console.status(f"relative states, V {shape.tokens_llm}"):
            pair = built(shape, options.rule, getattr(torch, options.dtype), self.device, options.seed)
        if pair.results() not in self.found["pairs"]:
            self.found["pairs"].append(pair.results())
            self.console.print(tables.pair_line(pair.results()))
        return pair

    def _in_memory(self, pair: BuiltPair) -> tuple[InMemory, InMemory] | None:
        """Both R in memory; None, with the reason printed, if there is no room."""
        need, free = ROOM * pair.shape.matrix_bytes, free_bytes(self.device)
        if free < need:
            reason = f"R in memory is left out: it needs {size(need)}, {size(free)} are free"
            self.found["left_out"].append({"pair": dataclasses.asdict(pair.shape), "reason": reason})
            self.console.print(reason)
            return None
        with self.console.status("both R"):
            return InMemory.of(pair.llm.state), InMemory.of(pair.plugin.state)


def _shapes(options: argparse.Namespace) -> list[PairShape]:
    """What part `fusion` measures: the vocabularies of `--vocab`, else those of the pair."""
    if options.vocab:
        return [plain_shape(tokens, options.width, options.common) for tokens in options.vocab]
    return [ModelPair.named(options.pair).shape(options.common)]


def _compiled(mode: str) -> Callable[..., Any]:
    return torch.compile(from_lists, dynamic=False, mode=mode)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("ensemble", __doc__, "the pair `tiny`")
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; default: both")
    add("--pair", default="small", help="small, tiny, or two catalogue names such as llama2-7b+tinyllama-1.1b")
    add("--vocab", nargs="+", type=int, metavar="V", help="vocabularies of part fusion; default: those of the pair, and "
        "8000 32000 for small")  # fmt: skip
    add("--width", nargs=2, type=int, default=WIDTHS, metavar=("D", "D"), help="widths of the target model's and the "
        "plug-in's embeddings, with --vocab; default: 512 256")  # fmt: skip
    add("--common", type=float, default=0.05, metavar="C", help="share of a direction that all embeddings have in common, "
        "0 to .75; the larger, the flatter are the rows of R; default: .05")  # fmt: skip
    add("--rule", default="deepen", choices=["deepen", "plain"], help="of the relative representation; default: deepen")
    add("--batch", nargs="+", type=int, default=[1, 8, 32], metavar="B", help="default: 1 8 32")
    add("--context", type=int, default=64, help="ids in both caches before the first step; default: 64")
    add("--repeats", type=int, default=24, help="rounds, each with distributions of its own; default: 24")
    add("--reference-repeats", type=int, default=3, help="rounds in which R in memory takes part; default: 3")
    add("--dtype", default="float32", choices=list(DTYPE_BYTES), help="of weights and embeddings; default: float32")
    add("--compile", choices=["default", "reduce-overhead", "max-autotune"], help="also time L0 alone, as it is and with "
        "torch.compile(dynamic=False) in this mode")  # fmt: skip
    options = parser.parse_args(arguments)
    if options.quick:
        options.pair, options.vocab, options.batch, options.repeats, options.context = "tiny", None, [1, 4], 4, 8
    elif options.vocab is None and options.pair == "small":
        options.vocab = VOCABULARIES
    return options


if __name__ == "__main__":
    command.run(main)
