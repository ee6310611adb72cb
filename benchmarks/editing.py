"""Time per edit of every method, and time per record to evaluate its edits, relative to OnceEdit.

    python -m benchmarks.editing [--quick] [--methods rome memit onceedit] [--out FILE]
    python -m benchmarks.editing --model llama2-7b --device cuda --dtype bfloat16 --set memit.moments=train_prompts

All methods edit the same facts with the hyper-parameters that they would have in a suite. They take turns in one process, in
random order within each round, after one untimed warm-up edit each. What is timed:
    edit      the phase `edit`, divided by the number of edits. An edit that is an artifact (OnceEdit's, which serves every
              target model) is repeated in each round and counts in full
    attach    the phase `attach`, once per target model
    evaluate  all questions under both protocols plus their routing scores, divided by the number of records
    artifacts one-time setup before any edit (covariance statistics, hypernetwork, relative state): listed separately
docs/timing.md describes the phases. Ratios are computed within each round. If a method fails, the reason is listed.

A step costs the same with random weights as with trained ones, but a method that stops when its loss is low may take a
different number of steps. `--weights trained` trains the tiny models first.
"""

import argparse
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from benchmarks import command
from benchmarks.command import number
from benchmarks.timing import timed
from benchmarks.workbench import MethodBench, Workbench, add_options
from harness import registry
from harness.errors import UserError
from harness.evaluation.evaluate import evaluate
from harness.evaluation.protocols import OWN

QUICK = {"epochs": 2, "steps": 2, "v_steps": 2, "validate_every": 2, "validation": 4}
"""Hyper-parameter overrides of a quick run, applied to the methods that have them."""

REFERENCE = "onceedit"
"""The method that all others are compared with."""

EDIT, ATTACH, EVALUATE = "edit_s", "attach_s", "evaluate_s"


@dataclass
class MethodTimes:
    """Measurements of one method.

    Attributes:
        seconds: one value per round: per edit, per target model and per record.
        artifacts_s: seconds by phase of each artifact that is not an edit.
        diagnostics: diagnostics of the last edit.
        reason: why the method failed; None if it did not.
    """

    title: str
    hparams: Mapping[str, Any] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {EDIT: [], ATTACH: [], EVALUATE: []})
    artifacts_s: dict[str, dict[str, float]] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the results."""
    options = _options(arguments)
    console = command.start(options)
    with Workbench.opened(options, options.edits, console) as bench:
        found = measure(bench, options)
    against = relative(found)
    title = f"{options.model}, {options.weights} weights, {options.edits} edits of {options.dataset}"
    console.print(table(title, found, against))
    for line in remarks(found):
        console.print(line)
    if options.weights == "random":
        console.print("Random weights: a method that stops when its loss is low may take a different number of steps.")


def measure(bench: Workbench, options: argparse.Namespace) -> dict[str, MethodTimes]:
    """Measure all methods, writing the results after each round; a failing method does not stop the others."""
    found = {name: MethodTimes(registry.find_method(name).spec.title) for name in options.methods}
    unedited = bench.unedited(options.eval_batch)
    methods: dict[str, MethodBench] = {}

    def prepare(name: str) -> None:
        overrides = quick_hparams(name, options.quick) | options.set.get(name, {})
        methods[name] = method = MethodBench(bench, name, overrides)
        found[name].hparams = method.hparams
        method.build()
        method.warm_up()
        found[name].artifacts_s = method.artifact_seconds()

    def take_turn(name: str) -> None:
        times, records = found[name], bench.records
        edited, phases = methods[name].edit()
        try:
            seconds, _ = timed(
                lambda: evaluate(edited, records, bench.model.tokenizer, OWN, options.eval_batch, unedited),
                bench.model.device,
            )
            times.diagnostics = dict(edited.diagnostics())
        finally:
            edited.revert()
        times.seconds[EDIT].append(phases["edit"] / len(records.edits))
        times.seconds[ATTACH].append(phases["attach"])
        times.seconds[EVALUATE].append(seconds / len(records.edits))

    order = random.Random(0)
    with bench.context.progress("editing", len(found) * (options.repeats + 1)) as advance:
        for step in [prepare, *[take_turn] * options.repeats]:
            names = [name for name, times in found.items() if times.reason is None]
            for name in order.sample(names, len(names)):
                try:
                    step(name)
                except Exception as error:
                    bench.context.forget_models()
                    is_explained = isinstance(error, UserError)
                    found[name].reason = str(error) if is_explained else f"{type(error).__name__}: {error}"
                advance()
            against = relative(found)
            methods_found = {name: {**vars(of), "ratio": against.get(name, {})} for name, of in found.items()}
            command.write_results(options, {"methods": methods_found})
    return found


def relative(found: Mapping[str, MethodTimes]) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds per edit and per record relative to the reference in the same round."""
    if REFERENCE not in found or found[REFERENCE].reason is not None:
        return {}
    base = found[REFERENCE].seconds
    return {
        name: {
            key: command.summary(command.ratios(of.seconds[key], base[key]))
            for key in (EDIT, EVALUATE)
            if any(of.seconds[key])
        }
        for name, of in found.items()
        if of.reason is None
    }


def table(title: str, found: Mapping[str, MethodTimes], against: Mapping[str, Any]) -> Table:
    """One row per method."""
    made = command.new_table(title, ["method"], ["ms per edit", "range", "edits per s", "× OnceEdit", "attach s",
        "artifacts s", "scoring, ms", "range", "× OnceEdit"])  # fmt: skip
    for name, of in found.items():
        if of.reason is not None:
            made.add_row(of.title, "failed, see below")
            continue
        cells = []
        for key in (EDIT, EVALUATE):
            if not any(of.seconds[key]):
                cells.append(["–"] * 3)
                continue
            values = [1e3 * value for value in of.seconds[key]]
            multiple = f"{against[name][key]['median']:.2f}" if against else "–"
            cells.append([number(statistics.median(values)), command.spread(values, number), multiple])
        cells[0].insert(2, per_second(of.seconds[EDIT]))
        built = sum(sum(phases.values()) for phases in of.artifacts_s.values())
        attach = statistics.median(of.seconds[ATTACH])
        made.add_row(of.title, *cells[0], *(number(value) if value else "–" for value in (attach, built)), *cells[1])
    return made


def per_second(seconds: Sequence[float]) -> str:
    """Edits per second, from the median of the seconds per edit of each round."""
    return number(1 / statistics.median(seconds)) if any(seconds) else "–"


def remarks(found: Mapping[str, MethodTimes]) -> list[str]:
    """Lines to print below the table: failures, and the build times of artifacts."""
    lines = [f"{of.title}: {of.reason}" for of in found.values() if of.reason is not None]
    artifacts = {name: phases for of in found.values() for name, phases in of.artifacts_s.items()}
    for name, phases in artifacts.items():
        users = ", ".join(of.title for of in found.values() if name in of.artifacts_s)
        seconds = ", ".join(f"{phase} {number(value)} s" for phase, value in phases.items())
        lines.append(f"artifact {name.split()[0]} of {users}: {seconds}")
    return lines


def quick_hparams(method: str, is_quick: bool) -> dict[str, Any]:
    """Overrides that limit a method to a few steps in a quick run; empty otherwise."""
    known = registry.find_method(method).Hparams.model_fields
    return {key: value for key, value in QUICK.items() if is_quick and key in known}


def parsed_settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse `METHOD.KEY=VALUE` settings; a value that is not JSON is taken as a string.

    Raises:
        UserError: if a setting has a different form.
    """
    settings: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        method, dot, key = name.partition(".")
        if not (equals and dot and key):
            raise UserError(f"--set {text}: not METHOD.KEY=VALUE", fix="--set memit.moments=train_prompts")
        settings.setdefault(registry.find_method(method).spec.name, {})[key] = _value(value)
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("editing", __doc__, "4 edits in 2 steps")
    add = parser.add_argument
    add("--methods", nargs="+", metavar="METHOD", help="default: all")
    add("--edits", type=int, default=50, help="facts to edit; default: 50")
    add("--repeats", type=int, default=3, help="rounds; default: 3")
    add("--set", nargs="+", default=[], metavar="METHOD.KEY=VALUE", help="override hyper-parameters of the files; "
        "values are JSON")  # fmt: skip
    add_options(parser)
    options = parser.parse_args(arguments)
    measured = [name for name, method in registry.methods.all().items() if method.spec.edits or name == "none"]
    options.methods = [registry.find_method(name).spec.name for name in options.methods or measured]
    options.set = parsed_settings(options.set)
    if options.quick:
        options.edits, options.repeats, options.train, options.unrelated = 4, 1, 20, 4
    return options


if __name__ == "__main__":
    command.run(main)
