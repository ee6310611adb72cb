"""Shared command-line code of the benchmarks: options, console, number formats, and the JSON file with the results."""

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
from harness.run.jobs import prepare_torch
from harness.store import provenance


def new_parser(benchmark: str, doc: str | None, quick: str) -> argparse.ArgumentParser:
    """Create a parser with the options common to all benchmarks.

    Args:
        benchmark: name of the benchmark's module.
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
    """Apply the device options, print the machine's description, and return the console for the results.

    Raises:
        UserError: if torch does not see the device.
    """
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{options.device}': torch sees no GPU here", fix="--device cpu")
    prepare_torch(
        options.threads or (1 if options.quick else None)
    )  # as in a run: the same kernels, deterministic ones
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    console.print(f"{device_class(options.device)}, torch {torch.__version__}")
    if options.quick:
        console.print("A quick run: it shows that everything runs, and its times mean nothing.")
    return console


def write_results(options: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Write the results, with the options and the machine, to the `--out` file if one was given."""
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
    """Create a table with left-aligned text columns followed by right-aligned number columns."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and range over the rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    """Slow time divided by fast time in each round; paired, because other load on the machine affects both sides of a round."""
    return [ours / theirs for ours, theirs in zip(slow, fast, strict=True)]


def spread(values: Sequence[float], digits: Callable[[float], str]) -> str:
    """Format the range of values as `low to high`."""
    return f"{digits(min(values))} to {digits(max(values))}"


def number(value: float) -> str:
    """Format with three significant digits, or as an integer from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def size(n_bytes: float) -> str:
    """Format a number of bytes in B, kB, MB or GB."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{number(n_bytes)} {unit}"
        n_bytes /= 1000
    return f"{number(n_bytes)} GB"
