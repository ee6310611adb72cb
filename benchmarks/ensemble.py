"""Cost of OnceEdit's decoding step: fusion and decoding beside both matrices in memory, and beside the models' own steps.

    python -m benchmarks.ensemble [--quick] [--out FILE]
    python -m benchmarks.ensemble --pair llama2-7b+tinyllama-1.1b --dtype bfloat16 --device cuda [--compile default]

Part `fusion` needs no model: embeddings and next-token distributions are drawn (benchmarks/synthetic.py says how) and decoded
    owner, column  with the certified arg-max, as OnceEdit's decoders do
    R, owner       with both relative transfer matrices in fp32 in memory: two products, arg-max, its owner
    R, search      the same, then DeePEn's search of 5 steps on a one-hot target: the reference of all speed-ups
Part `step` runs both models of a pair with random weights in the middle of a text, then fuses and decodes. Logits of
random weights are nearly flat, so what is fused is drawn there too. All that is compared takes turns in one process.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import ensemble_tables as tables
from benchmarks import fusion_part, step_part
from benchmarks.fusion_part import InMemory
from benchmarks.numbers import size
from benchmarks.pair_shapes import BuiltPair, ModelPair, built, plain_shape
from benchmarks.synthetic import PairShape
from benchmarks.timing import free_bytes
from harness.errors import UserError
from harness.files import write_json
from harness.models.architecture import DTYPE_BYTES
from harness.run.cost import device_class
from harness.store import provenance
from methods.onceedit.bounds import from_lists

PARTS = ("fusion", "step")
VOCABULARIES, WIDTHS = (8000, 32000), (512, 256)

ROOM = 1.25
"""Free memory that the reference asks for, as a multiple of its two matrices."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables, write the figures."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{options.device}': torch sees no GPU here", fix="--device cpu")
    run = Run(options, device, Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120))
    machine = {"device_class": device_class(options.device), "environment": provenance.environment()}
    run.console.print(f"{machine['device_class']}, torch {torch.__version__}")
    with torch.no_grad():
        if "fusion" in options.parts:
            for shape in _shapes(options):
                run.fusion(shape)
        if "step" in options.parts:
            run.step(ModelPair.named(options.pair))
    if options.out:
        chosen = {key: value for key, value in vars(options).items() if key != "out"}
        write_json(options.out, {"benchmark": "ensemble", "options": chosen, **machine, **run.found})


@dataclass(frozen=True)
class Run:
    """One run of the benchmark.

    Attributes:
        found: all figures, as they are written.
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
                draws = fusion_part.draws_of(pair, batch, options.repeats, options.seed)
                measured = fusion_part.measure(pair, whole, draws, options.reference_repeats, compiled)
            records.append({"pair": dataclasses.asdict(shape), "batch": batch, **measured})
        self.found["fusion"] += records
        self.console.print(tables.fusion_table(dataclasses.asdict(shape), records))
        for record in records:
            self.console.print(tables.fusion_line(record))

    def step(self, named: ModelPair) -> None:
        """Part `step` of a pair of models."""
        options, pair = self.options, self._pair(named.shape(self.options.common))
        models = step_part.random_models(named, pair, options.dtype, self.device, options.seed)
        records = []
        for batch in options.batch:
            with self.console.status(f"steps of {options.pair}, batch {batch}"):
                measured = step_part.measure(pair, models, batch, options.context, options.repeats, options.seed)
            records.append({"pair": options.pair, "batch": batch, **measured})
        self.found["step"] += records
        self.console.print()
        self.console.print(
            tables.step_table(f"{options.pair}, random weights, {options.dtype}, {options.context} ids read", records)
        )
        for record in records:
            self.console.print(tables.step_line(record))

    def _pair(self, shape: PairShape) -> BuiltPair:
        """Tables and states of a shape, reported when they are new."""
        options = self.options
        with self.console.status(f"relative states, V {shape.tokens_llm}"):
            pair = built(shape, options.rule, getattr(torch, options.dtype), self.device, options.seed)
        if pair.figures() not in self.found["pairs"]:
            self.found["pairs"].append(pair.figures())
            self.console.print(tables.pair_line(pair.figures()))
        return pair

    def _in_memory(self, pair: BuiltPair) -> tuple[InMemory, InMemory] | None:
        """Both R in memory, or None with the reason said."""
        need, free = ROOM * pair.shape.matrix_bytes, free_bytes(self.device)
        if free < need:
            reason = f"R in memory is left out: it needs {size(need)}, {size(free)} are free"
            self.found["left_out"].append({"pair": dataclasses.asdict(pair.shape), "reason": reason})
            self.console.print(reason)
            return None
        with self.console.status("both R"):
            return InMemory.of(pair.llm.state), InMemory.of(pair.plugin.state)


def _shapes(options: argparse.Namespace) -> list[PairShape]:
    """What part `fusion` measures: the vocabularies asked for, else the tables of the pair itself."""
    if options.vocab:
        return [plain_shape(tokens, options.width, options.common) for tokens in options.vocab]
    return [ModelPair.named(options.pair).shape(options.common)]


def _compiled(mode: str) -> Callable[..., Any]:
    return torch.compile(from_lists, dynamic=False, mode=mode)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ensemble",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = parser.add_argument
    say("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; default: both")
    say("--pair", default="small", help="small, tiny, or two catalogue names such as llama2-7b+tinyllama-1.1b")
    say("--vocab", nargs="+", type=int, metavar="V", help="vocabularies of part fusion; default: those of the pair, and "
        "8000 32000 for small")  # fmt: skip
    say("--width", nargs=2, type=int, default=WIDTHS, metavar=("D", "D"), help="widths of the target model's and the "
        "plug-in's embeddings, with --vocab; default: 512 256")  # fmt: skip
    say("--common", type=float, default=0.05, metavar="C", help="share of a direction that all embeddings have in common, "
        "0 to .75; the larger, the flatter are the rows of R; default: .05")  # fmt: skip
    say("--rule", default="deepen", choices=["deepen", "plain"], help="of the relative representation; default: deepen")
    say("--batch", nargs="+", type=int, default=[1, 8, 32], metavar="B", help="default: 1 8 32")
    say("--context", type=int, default=64, help="ids in both caches before the first step; default: 64")
    say("--repeats", type=int, default=24, help="rounds, each with distributions of its own; default: 24")
    say("--reference-repeats", type=int, default=3, help="rounds in which R in memory takes part; default: 3")
    say("--dtype", default="float32", choices=list(DTYPE_BYTES), help="of weights and embeddings; default: float32")
    say("--device", default="cpu", help="cpu, cuda or cuda:N; default: cpu")
    say("--compile", choices=["default", "reduce-overhead", "max-autotune"], help="also time L0 alone, as it is and by "
        "torch.compile(dynamic=False) in this mode")  # fmt: skip
    say("--threads", type=int, help="of torch on the CPU; default: torch's own choice")
    say("--seed", type=int, default=0, help="of all that is drawn; default: 0")
    say("--quick", action="store_true", help="the pair `tiny`, in seconds: shows that all of it runs, measures nothing")
    say("--out", type=Path, help="write all figures, options and the machine as JSON")
    options = parser.parse_args(arguments)
    if options.quick:
        options.pair, options.vocab, options.batch, options.repeats, options.context = "tiny", None, [1, 4], 4, 8
    elif options.vocab is None and options.pair == "small":
        options.vocab = VOCABULARIES
    return options


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
