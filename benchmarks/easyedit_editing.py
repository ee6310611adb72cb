"""Seconds of editing by our implementations beside EasyEdit's, method by method, on the same model and machine.

    python -m benchmarks.easyedit_editing [--quick] [--methods grace wise] [--models tiny/llama …] [--data FOLDER] [--out FILE]

Needs a checkout of EasyEdit (EASYEDIT_HOME, or `harness easyedit fetch`). Three take turns, in a random order within each
round: EasyEdit in its worker, ours made to compute the same (variant `faithful-easyedit`), and ours as it should be (`corrected`).
All edit the same facts from the same weights with the same prefixes, the first two also with the same statistics and hypernetwork
(docs/parity.md says what `corrected` has instead). Before the first round each makes one edit that does not count.

What is timed is the phase `edit`, all facts at once. Of EasyEdit's, that is its `apply_…_to_model` and what follows from the
workarounds of docs/parity.md; loading the model, reading statistics and handing weights over are left out. Ratios
are taken within a round, so that other work on the machine falls on both.
"""

import argparse
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.editing import QUICK
from benchmarks.numbers import number
from benchmarks.workbench import MethodBench, Workbench, add_options, chosen, machine
from harness import registry
from harness.errors import UserError
from harness.files import write_json
from harness.run.progress import ProgressBars
from methods.easyedit import checkout

Seconds = dict[str, list[float]]
"""Of each round, by side."""

THEIRS, FAITHFUL, CORRECTED = "EasyEdit", "ours, faithful", "ours, corrected"
OURS = {FAITHFUL: "faithful-easyedit", CORRECTED: "corrected"}
SHARED = {"mend": {"archive": "native"}}
"""Options of the adapter without which it would build what the others have from us."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the figures."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    found_at = checkout.find()
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    found: dict[tuple[str, str], Seconds] = {}
    for model in options.models:
        options.model = model
        with tempfile.TemporaryDirectory() as folder, ProgressBars(console) as bars:
            bench = Workbench.of(options, options.edits, Path(folder), bars)
            with bars.bar(model, len(options.methods)) as advance:
                for method in options.methods:
                    found[method, model] = measure(bench, method, options.repeats, options.quick)
                    advance()
    origin = machine(options.device)
    console.print(f"{origin['device_class']}, torch {torch.__version__}, EasyEdit {found_at.commit[:12]}")
    console.print(table(f"{options.edits} edits of {options.dataset}, {options.weights} weights", found))
    if options.out:
        figures = [{"method": name, "model": model, "seconds": of} for (name, model), of in sorted(found.items())]
        content = {"easyedit": found_at.identity, "options": chosen(options), **origin, "editing": figures}
        write_json(options.out, {"benchmark": "easyedit_editing", **content})


def measure(bench: Workbench, method: str, rounds: int, is_quick: bool = False) -> Seconds:
    """Let the three sides edit in turns.

    Raises:
        UserError: for what EasyEdit needs and has not, or for options that it lacks.
    """
    known = registry.find_method(method).Hparams.model_fields
    options = {key: value for key, value in QUICK.items() if is_quick and key in known}
    theirs = MethodBench(bench, method, options | SHARED.get(method, {}), OURS[FAITHFUL], "easyedit")
    sides = {THEIRS: theirs} | {name: MethodBench(bench, method, options, variant) for name, variant in OURS.items()}
    seconds: Seconds = {name: [] for name in sides}
    order = random.Random(0)
    for side in sides.values():
        side.build()
        side.warm_up()
    for _ in range(rounds):
        for name in order.sample(list(sides), len(sides)):
            edited, phases = sides[name].edit()
            edited.revert()
            seconds[name].append(phases["edit"])
    return seconds


def ratios(seconds: Seconds, name: str) -> list[float]:
    """How many times as fast as EasyEdit, in each round."""
    return [slow / fast for slow, fast in zip(seconds[THEIRS], seconds[name], strict=True)]


def table(title: str, found: Mapping[tuple[str, str], Seconds]) -> Table:
    """One row per method and model: medians over the rounds, and their range."""
    made = Table(title=title, title_justify="left")
    for column in ("method", "model"):
        made.add_column(column)
    for column in (f"{THEIRS}, s", f"{FAITHFUL}, s", "times as fast", f"{CORRECTED}, s", "times as fast"):
        made.add_column(column, justify="right")
    for (method, model), seconds in sorted(found.items()):
        cells = [number(statistics.median(seconds[THEIRS]))]
        for name in OURS:
            ratio = ratios(seconds, name)
            cells.append(number(statistics.median(seconds[name])))
            cells.append(f"{number(statistics.median(ratio))} ({number(min(ratio))} to {number(max(ratio))})")
        made.add_row(registry.find_method(method).spec.title, model, *cells)
    return made


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.easyedit_editing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = parser.add_argument
    say("--methods", nargs="+", metavar="METHOD", help="default: all that EasyEdit has too")
    say(
        "--models", nargs="+", default=["tiny/llama", "tiny/mistral", "tiny/gptj"], help="default: the three of the zoo"
    )
    say("--edits", type=int, default=50, help="facts to edit at once; default: 50")
    say("--repeats", type=int, default=3, help="rounds; default: 3")
    add_options(parser)
    parser.set_defaults(weights="trained")  # where a method stops depends on them
    say("--quick", action="store_true", help="4 edits, one round: shows that all of it runs, measures nothing")
    options = parser.parse_args(arguments)
    options.methods = [
        registry.find_method(name, "easyedit").spec.name
        for name in options.methods or registry.implementations("easyedit").all()
    ]
    if options.quick:
        options.edits, options.repeats, options.train, options.unrelated = 4, 1, 20, 4
    return options


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
