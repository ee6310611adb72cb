"""Edit time of our implementations compared with EasyEdit's, method by method, on the same model and machine.

    python -m benchmarks.easyedit_editing [--quick] [--methods grace wise] [--models tiny/llama …] [--data FOLDER] [--out FILE]

Needs a checkout of EasyEdit (EASYEDIT_HOME, or `harness easyedit fetch`). Three sides take turns, in random order within each
round: EasyEdit in its worker, our variant that reproduces it (`faithful-easyedit`), and our default (`corrected`).
All edit the same facts from the same weights with the same prefixes; the first two also use the same covariance statistics and
hypernetwork (docs/parity.md describes what `corrected` uses instead). Each side makes one untimed warm-up edit.

The timed phase is `edit`, with all facts at once. For EasyEdit, this covers its `apply_…_to_model` and the cost of the
workarounds in docs/parity.md, but not loading the model, reading statistics or transferring weights. Ratios are computed
within each round.
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
"""Seconds of each round, by side."""

THEIRS, FAITHFUL, CORRECTED = "EasyEdit", "ours, faithful", "ours, corrected"
OURS = {FAITHFUL: "faithful-easyedit", CORRECTED: "corrected"}
SHARED = {"mend": {"archive": "native"}}
"""Adapter options that make EasyEdit use the artifacts of our implementations instead of building its own."""


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
    """Measure the edit times of the three sides, in turns.

    Raises:
        UserError: if EasyEdit lacks something that the method needs, or does not support an option.
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
    """Speed-up of one side over EasyEdit in each round."""
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
