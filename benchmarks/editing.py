"""Seconds per edit of every method, and seconds per record to evaluate what it made, as multiples of OnceEdit's.

    python -m benchmarks.editing [--quick] [--methods rome memit onceedit] [--out FILE]
    python -m benchmarks.editing --model llama2-7b --device cuda --dtype bfloat16 --set memit.moments=train_prompts

All methods edit the same facts with the hyper-parameters that a suite would give them. They take turns in one process, in a
random order within each round; before the first, each makes one edit that does not count. What is timed:
    edit      the phase of that name, divided by the number of edits. An edit that is kept as an artifact (OnceEdit's, which
              serves every target model) is made anew in each round and counts in full
    attach    what follows once per target model
    evaluate  all questions under both protocols and for their scope, divided by the number of records
    artifacts what is built before any edit, once (second moments, a hypernetwork, a pair's relative state): listed apart
docs/timing.md says what is in a phase. Ratios are taken within a round. A method that fails is listed with its reason.

Random weights cost per step what trained ones cost, but a method that stops when its loss is low may take another number of
steps on them. `--weights zoo` trains the models first.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.editing_tables import ATTACH, EDIT, EVALUATE, Figures, ratios, remarks, table
from benchmarks.timing import timed
from benchmarks.workbench import MethodBench, Workbench, add_options, chosen, machine
from harness import registry
from harness.errors import UserError
from harness.evaluation.evaluate import evaluate
from harness.evaluation.protocols import OWN
from harness.files import write_json
from harness.run.progress import ProgressBars

QUICK = {"epochs": 2, "steps": 2, "v_steps": 2, "validate_every": 2, "validation": 4}
"""Hyper-parameters of a quick run, of those methods that have them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables, write the figures."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory() as folder, ProgressBars(console) as bars:
        bench = Workbench.of(options, options.edits, Path(folder), bars)
        found = measure(bench, options)
    against = ratios(found)
    origin = machine(options.device)
    title = f"{options.model}, {options.weights} weights, {options.edits} edits of {options.dataset}"
    console.print(f"{origin['device_class']}, torch {torch.__version__}")
    console.print(table(title, found, against))
    for line in remarks(found):
        console.print(line)
    if options.weights == "random":
        console.print(
            "Random weights: a step costs what it costs on trained ones; a method that stops when its loss is low may take "
            "another number of them."
        )
    if options.quick:
        console.print("A quick run with too few steps: these figures measure nothing.")
    if options.out:
        figures = {name: {**vars(of), "ratio": against.get(name, {})} for name, of in found.items()}
        write_json(options.out, {"benchmark": "editing", "options": chosen(options), **origin, "methods": figures})


def measure(bench: Workbench, options: argparse.Namespace) -> dict[str, Figures]:
    """Figures of all methods; a failure stops no other method."""
    found = {name: Figures(registry.find_method(name).spec.title) for name in options.methods}
    unedited = bench.unedited(options.eval_batch)
    methods: dict[str, MethodBench] = {}

    def prepare(name: str) -> None:
        methods[name] = method = MethodBench(bench, name, _overrides(name, options))
        found[name].hparams = method.hparams
        method.build()
        method.warm_up()
        found[name].artifacts_s = method.artifact_seconds()

    def take_turn(name: str) -> None:
        figures, records = found[name], bench.records
        edited, phases = methods[name].edit()
        try:
            seconds, _ = timed(
                lambda: evaluate(edited, records, bench.model.tokenizer, OWN, options.eval_batch, unedited),
                bench.model.device,
            )
            figures.diagnostics = dict(edited.diagnostics())
        finally:
            edited.revert()
        figures.seconds[EDIT].append(phases["edit"] / len(records.edits))
        figures.seconds[ATTACH].append(phases["attach"])
        figures.seconds[EVALUATE].append(seconds / len(records.edits))

    order = random.Random(0)
    with bench.context.progress("editing", len(found) * (options.repeats + 1)) as advance:
        for step in [prepare, *[take_turn] * options.repeats]:
            names = [name for name, figures in found.items() if figures.reason is None]
            for name in order.sample(names, len(names)):
                try:
                    step(name)
                except Exception as error:
                    bench.context.forget_models()
                    is_explained = isinstance(error, UserError)
                    found[name].reason = str(error) if is_explained else f"{type(error).__name__}: {error}"
                advance()
    return found


def _overrides(method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Hyper-parameters that the command line gives a method."""
    known = registry.find_method(method).Hparams.model_fields
    quick = {key: value for key, value in QUICK.items() if options.quick and key in known}
    return {**quick, **options.set.get(method, {})}


def _settings(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`METHOD.KEY=VALUE` of each text; a value that is no JSON is a word.

    Raises:
        UserError: for a text of another form.
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.editing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = parser.add_argument
    say("--methods", nargs="+", metavar="METHOD", help="default: all")
    say("--edits", type=int, default=50, help="facts to edit; default: 50")
    say("--repeats", type=int, default=3, help="rounds; default: 3")
    say(
        "--set",
        nargs="+",
        default=[],
        metavar="METHOD.KEY=VALUE",
        help="hyper-parameters instead of the files', values as JSON",
    )
    add_options(parser)
    say("--quick", action="store_true", help="4 edits in 2 steps: shows that all of it runs, measures nothing")
    options = parser.parse_args(arguments)
    options.methods = [registry.find_method(name).spec.name for name in options.methods or registry.methods.all()]
    options.set = _settings(options.set)
    if options.quick:
        options.edits, options.repeats, options.train, options.unrelated = 4, 1, 20, 4
    return options


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
