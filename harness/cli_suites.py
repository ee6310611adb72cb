"""Commands that plan and run suites, and follow their cells: run, plan, status, retry, cancel, tune and logs."""

import contextlib
import dataclasses
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import cli_results, registry
from harness.cli_shared import (
    CellArgument,
    DetachOption,
    NoReportOption,
    PluginOption,
    StoreOption,
    StrictOption,
    SuiteOptions,
    Watching,
    each_suite,
    new_console,
    positive_float,
    positive_int,
    with_options,
)
from harness.errors import UserError
from harness.plain_text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from harness.api import Launcher
    from harness.plan.plan import Plan
    from harness.suite import Suite

app = typer.Typer()


@app.command()
@with_options(SuiteOptions)
def run(
    options: SuiteOptions,
    *,
    force: Annotated[bool, typer.Option("--force", help="Run finished cells again.")] = False,
    strict: StrictOption = False,
    no_report: NoReportOption = False,
    detach: DetachOption = False,
) -> int:
    """Run the unfinished cells of a suite, then write its tables and MLflow runs."""
    return _run(options, no_report, is_strict=strict, force=force, detach=detach)


@app.command("plan")
@with_options(SuiteOptions)
def plan_(
    options: SuiteOptions,
    *,
    detect: Annotated[
        float | None,
        typer.Option(
            parser=positive_float,
            metavar="D",
            help="Also say how many edits are needed to show a difference of D in Avg.",
        ),
    ] = None,
) -> int:
    """Show the cells and artifacts of a suite, and what is done or missing, without running anything."""
    from harness.plan.describe import describe, describe_together
    from harness.run.start import print_lacks

    console, plans = new_console(), list["Plan"]()

    def describe_one(one: SuiteOptions) -> int:
        plan, launcher = _planned(one)
        plans.append(plan)
        describe(plan, console)
        for sentence in launcher.describe(plan):
            console.print(sentence, markup=False, soft_wrap=True)
        print_lacks(plan, console, launcher)
        if detect:
            console.print(_edits_to_detect(plan, detect), markup=False, highlight=False, soft_wrap=True)
        return 0

    code = each_suite(options, describe_one, console)
    if len(plans) > 1:
        describe_together(plans, console)
    return code


@app.command(cls=Watching)
@with_options(SuiteOptions)
def status(
    options: SuiteOptions,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    watch: Annotated[
        float | None, typer.Option(parser=positive_float, metavar="[S]", help="Refresh every S seconds (default: 5).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List all cells, even if there are many.")] = False,
) -> int:
    """Show which cells are done, failed, running or still to do; exit with 1 if one failed."""
    from rich.console import Console

    from harness.run.status import show

    console = new_console()

    def show_one(one: SuiteOptions) -> int:
        plan, launcher = _planned(one)
        return show(plan, launcher, console, as_json=as_json, watch_s=watch, everything=everything)

    return each_suite(options, show_one, Console(stderr=True) if as_json else console)


@app.command()
@with_options(SuiteOptions)
def retry(
    options: SuiteOptions,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Failed cells only; this is the default.")] = False,
    strict: StrictOption = False,
    no_report: NoReportOption = False,
    detach: DetachOption = False,
) -> int:
    """Run only the failed cells of a suite again."""
    return _run(options, no_report, failed_only=True, is_strict=strict, detach=detach)


@app.command()
@with_options(SuiteOptions)
def cancel(options: SuiteOptions) -> int:
    """Cancel the cluster jobs of a suite; finished cells are kept."""
    from harness.run.status import cancel as end
    from harness.store.store import Store

    console = new_console()
    return each_suite(options, lambda one: end(Store(one.store), load(one), console), console)


@app.command()
def tune(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Method, as in a suite.")],
    model: Annotated[
        str, typer.Option(metavar="NAME[=SOURCE]", help="Model, as in a suite; NAME=SOURCE for your own.")
    ],
    dataset: Annotated[str, typer.Option(metavar="NAME", help="Dataset, as in a suite.")] = "counterfact",
    trials: Annotated[
        int, typer.Option(parser=positive_int, metavar="N", help="Trials of the study, earlier ones included.")
    ] = 20,
    edits: Annotated[int, typer.Option(parser=positive_int, metavar="N", help="Dev records that a trial edits.")] = 30,
    parallel: Annotated[
        int,
        typer.Option(parser=positive_int, metavar="N", help="Trials proposed and launched together, for a cluster."),
    ] = 1,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ranges to search; default: the method's search.yaml.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write; default: hparams/METHOD/MODEL.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    scale: Annotated[str | None, typer.Option(help="Scale, for example mini.")] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of upstream files.")] = None,
    backend: Annotated[str, typer.Option(metavar="NAME", help="Implementation of the method.")] = registry.NATIVE,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the search.")] = 0,
    launch: Annotated[str | None, typer.Option(metavar="PROFILE", help="Launch profile.")] = None,
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Search the hyper-parameters of a method for a model on dev records, and write the best ones to a file."""
    from harness import tune as tuning
    from harness.run.profiles import load_profile
    from harness.store.store import Store

    if importlib.util.find_spec("optuna") is None:
        raise UserError("`harness tune` needs Optuna", fix="pip install 'editing-harness[tune]'")
    question = tuning.Question(method, model, dataset, edits, scale, data, backend, space, seed)
    search = tuning.Tuning(
        question, Store(store), lambda suite: load_profile(launch or suite.launch, "--launch"), new_console()
    )
    path = tuning.target(question, search.model, to, force)
    result = search.run(trials, parallel)
    tuning.write(result, question, path)
    print(f"best of {result.trials} trials: {result.best}" + (f"; before: {result.before}" if result.before else ""))
    print(f"wrote {path}")
    return 0


@app.command()
def logs(
    cell: CellArgument,
    lines: Annotated[
        int, typer.Option(parser=positive_int, metavar="N", help="Maximum number of lines per file.")
    ] = 100,
    store: StoreOption = Path("results"),
) -> int:
    """Print the end of a cell's log, or of its job's output while it is unfinished."""
    from harness.run.status import logs as show
    from harness.store.store import Store

    return show(Store(store), cell, lines)


def _say_hello(options: SuiteOptions, console: "Console") -> None:
    """Say immediately what is being prepared: planning a large suite and importing torch take a while."""
    scale = f" at scale {options.scale}" if options.scale else ""
    console.print(
        f"planning {options.suite}{scale}, results in {options.store}", markup=False, highlight=False, soft_wrap=True
    )


def _run(options: SuiteOptions, no_report: bool, **how: bool) -> int:
    """Run a suite, or each suite of a suite of suites, and write its reports unless they are not wanted.

    Args:
        options: the suite.
        no_report: whether to write no report.
        how: options of `harness.run.start.run`.
    """
    from harness.run.start import run

    console = new_console()
    report = None if no_report else cli_results.report_run

    def run_one(one: SuiteOptions) -> int:
        _say_hello(one, console)
        plan, launcher = _planned(one)
        return run(plan, launcher, console, report=report, **how)

    code = each_suite(options, run_one, console)
    if report:
        cli_results.write_document(options.as_run, console)
    return code


def load(options: SuiteOptions) -> "Suite":
    """Load a suite as the options ask for it."""
    from harness.suite.load import find_suite, load_suite

    suite = load_suite(
        find_suite(options.suite),
        scale=options.scale,
        only=options.only or (),
        data=options.data,
        edits=options.edits,
        backend=options.backend,
    )
    if not options.launch:
        return suite
    given = {**suite.options, "launch": options.launch}
    return dataclasses.replace(suite, launch=options.launch, launch_at="--launch", options=given)


def _edits_to_detect(plan: "Plan", difference: float) -> str:
    """How many edits per cell it takes until tables mark a difference, from finished cells of the suite if there are any."""
    from reports.frame import load_suite
    from reports.power import ASSUMED_SPREAD, POWER, Contestants, spread_of

    suite = plan.suite
    editing = [each for each in suite.methods if registry.find_method(each.name, each.backend).spec.edits]
    contestants = Contestants(len(editing), len(suite.models), len(suite.datasets))
    if contestants.methods < 2:
        return "nothing to detect: fewer than two methods edit"
    spread, basis = math.nan, "of finished cells"
    with contextlib.suppress(UserError):  # never run, or nothing is finished
        spread = spread_of(load_suite(plan.store.root, suite.name, suite.scale, **cli_results.variant_of(suite)))
    if math.isnan(spread):
        spread, basis = ASSUMED_SPREAD, "assumed"
    planned = min(data.edits for data in suite.datasets)
    return (
        f"to mark an Avg that is {difference:g} higher than all others: "
        f"{contestants.edits_to_detect(difference, spread):,} edits per cell ({POWER:.0%} power, "
        f"{contestants.comparisons} comparisons, SD of paired differences {spread:.2f}, {basis}); "
        f"{counted(planned, 'edit')} can show differences of at least {contestants.detectable(planned, spread):.3f}"
    )


def _planned(options: SuiteOptions) -> "tuple[Plan, Launcher]":
    """Load a suite's plan and its launcher."""
    from harness.plan.plan import Plan
    from harness.run.profiles import load_profile
    from harness.store.store import Store

    suite = load(options)
    launcher = load_profile(suite.launch, suite.launch_at)
    return Plan.on(launcher, suite, Store(options.store)), launcher
