"""What the command lines of all benchmarks share: options, the console, number formats, and the JSON file of the results."""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from harness.errors import UserError
from harness.files import write_json
from harness.run.cost import device_class
from harness.store import provenance


def new_parser(benchmark: str, doc: str | None, quick: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has.

    Args:
        benchmark: name of its module.
        doc: the module's docstring, printed by `--help`.
        quick: what `--quick` reduces.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{benchmark}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(benchmark=benchmark)
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N; default: cpu")
    add("--threads", type=int, help="CPU threads of torch; default: torch's own choice, 1 with --quick")
    add("--seed", type=int, default=0, help="of everything that is random; default: 0")
    add("--quick", action="store_true", help=f"{quick}: shows in seconds that everything runs, measures nothing")
    add("--out", type=Path, metavar="FILE", help="write all results, the options and the machine as JSON")
    return parser


def start(options: argparse.Namespace) -> Console:
    """Apply the options about the machine, print what it is, and return the console for the results.

    Raises:
        UserError: for a device that torch does not see.
    """
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{options.device}': torch sees no GPU here", fix="--device cpu")
    if threads := options.threads or (1 if options.quick else None):
        torch.set_num_threads(threads)
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    console.print(f"{device_class(options.device)}, torch {torch.__version__}")
    if options.quick:
        console.print("A quick run: it shows that everything runs, and its times mean nothing.")
    return console


def write_results(options: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Write the results to the file of `--out`, if it was given, with the options and the machine."""
    if options.out:
        chosen = {key: value for key, value in vars(options).items() if key not in ("benchmark", "out")}
        chosen = {key: str(value) if isinstance(value, Path) else value for key, value in chosen.items()}
        origin = {"device_class": device_class(options.device), "environment": provenance.environment()}
        write_json(options.out, {"benchmark": options.benchmark, "options": chosen, **origin, **results})


def run(main: Callable[[], None]) -> None:
    """Call a benchmark's `main`; a `UserError` is one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


def new_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """A table of which the first columns are text and the others are numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and range of one value per round."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """How many times as long the first took, in each round: other work on the machine slows down both sides of a round."""
    return [ours / theirs for ours, theirs in zip(slow, fast, strict=True)]


def spread(values: Sequence[float], digits: Callable[[float], str]) -> str:
    """`low to high`."""
    return f"{digits(min(values))} to {digits(max(values))}"


def number(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def size(n_bytes: float) -> str:
    """Bytes in the largest unit that leaves a digit before the point."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{number(n_bytes)} {unit}"
        n_bytes /= 1000
    return f"{number(n_bytes)} GB"
