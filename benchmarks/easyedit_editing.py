"""Seconds of editing by our implementations next to EasyEdit's, method by method, on the same model and machine.

    python -m benchmarks.easyedit_editing [--quick] [--methods grace wise] [--models tiny/llama …] [--data FOLDER] [--out FILE]

Needs a checkout of EasyEdit (EASYEDIT_HOME, or `harness easyedit fetch`). Three sides take turns, in a random order within each
round: EasyEdit in its worker, our variant that computes the same (`faithful-easyedit`), and our default (`corrected`).
All edit the same facts from the same weights with the same prefixes, the first two also with the same covariance and
hypernetwork (docs/parity.md says what `corrected` has instead). Before the first round each makes one edit that does not count.

What is timed is the phase `edit`, all facts at once. For EasyEdit, that is its `apply_…_to_model` and what follows from the
workarounds in docs/parity.md; loading the model, reading statistics and handing over weights are left out. Ratios are taken
within a round.
"""

import argparse
import random
import statistics
from collections.abc import Mapping, Sequence

from rich.table import Table

from benchmarks import command
from benchmarks.command import number
from benchmarks.editing import quick_hparams
from benchmarks.workbench import MethodBench, Workbench, add_options
from harness import registry
from methods.easyedit import checkout

Seconds = dict[str, list[float]]
"""Of each round, by side."""

THEIRS, FAITHFUL, CORRECTED = "EasyEdit", "ours, faithful", "ours, corrected"
OURS = {FAITHFUL: "faithful-easyedit", CORRECTED: "corrected"}
SHARED = {"mend": {"archive": "native"}}
"""Options of the adapter that make it use the artifacts of our implementations instead of building its own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the results."""
    options = _options(arguments)
    found_at = checkout.find()
    console = command.start(options)
    found: dict[tuple[str, str], Seconds] = {}
    for model in options.models:
        options.model = model
        with (
            Workbench.opened(options, options.edits, console) as bench,
            bench.context.progress(model, len(options.methods)) as advance,
        ):
            for method in options.methods:
                found[method, model] = measure(bench, method, options.repeats, options.quick)
                advance()
    title = f"EasyEdit {found_at.commit[:12]}, {options.edits} edits of {options.dataset}, {options.weights} weights"
    console.print(table(title, found))
    results = [{"method": name, "model": model, "seconds": of} for (name, model), of in sorted(found.items())]
    command.write_results(options, {"easyedit": found_at.identity, "editing": results})


def measure(bench: Workbench, method: str, rounds: int, is_quick: bool = False) -> Seconds:
    """Let the three sides edit in turns.

    Raises:
        UserError: if EasyEdit lacks something that the method needs, or an option.
    """
    options = quick_hparams(method, is_quick)
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


def speed_ups(seconds: Seconds, name: str) -> list[float]:
    """How many times as fast as EasyEdit a side was, in each round."""
    return command.ratios(seconds[THEIRS], seconds[name])


def table(title: str, found: Mapping[tuple[str, str], Seconds]) -> Table:
    """One row per method and model: medians over the rounds, and their range."""
    made = command.new_table(title, ["method", "model"], [f"{THEIRS}, s", f"{FAITHFUL}, s", "times as fast",
        f"{CORRECTED}, s", "times as fast"])  # fmt: skip
    for (method, model), seconds in sorted(found.items()):
        cells = [number(statistics.median(seconds[THEIRS]))]
        for name in OURS:
            times = speed_ups(seconds, name)
            cells.append(number(statistics.median(seconds[name])))
            cells.append(f"{number(statistics.median(times))} ({command.spread(times, number)})")
        made.add_row(registry.find_method(method).spec.title, model, *cells)
    return made


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("easyedit_editing", __doc__, "4 edits, one round")
    add = parser.add_argument
    add("--methods", nargs="+", metavar="METHOD", help="default: all that EasyEdit has too")
    add("--models", nargs="+", default=["tiny/llama", "tiny/mistral", "tiny/gptj"], help="default: three tiny models")
    add("--edits", type=int, default=50, help="facts to edit at once; default: 50")
    add("--repeats", type=int, default=3, help="rounds; default: 3")
    add_options(parser)
    parser.set_defaults(weights="trained")  # where a method stops depends on them
    options = parser.parse_args(arguments)
    options.methods = [
        registry.find_method(name, "easyedit").spec.name
        for name in options.methods or registry.implementations("easyedit").all()
    ]
    if options.quick:
        options.edits, options.repeats, options.train, options.unrelated = 4, 1, 20, 4
    return options


if __name__ == "__main__":
    command.run(main)
