"""The command line: verbs and their options. What a verb does lies in the module it imports when it is called."""

import argparse
import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from harness.errors import UserError

Number = TypeVar("Number", int, float)

DESCRIPTION = """Compare knowledge-editing methods across language models.

Start with:  python -m harness run suites/main_table.yaml --scale mini --only method=none,ft-l,onceedit
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 if all went well, 1 if a cell failed, 2 for a mistake that the user can mend (printed as one line).
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows where a killed run was
    verb: Callable[[argparse.Namespace], int] = options.verb
    try:
        return verb(options)
    except UserError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("harness: interrupted; finished cells are kept, the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="harness", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    run = _suite_verb(verbs, "run", "run what is missing of a suite, then write its tables and MLflow runs")
    run.add_argument("--force", action="store_true", help="run finished cells again")
    _suite_verb(verbs, "plan", "print cells, artifacts, and what is done or missing; runs nothing")
    status = _suite_verb(verbs, "status", "print which cells are done, failed, running and still to do")
    status.add_argument("--json", action="store_true", help="as data, for scripts")
    status.add_argument(
        "--watch", nargs="?", type=_seconds, const=5, metavar="S", help="again every S seconds (default: 5)"
    )
    status.add_argument("--all", action="store_true", help="of many cells, also those that wait or are done")
    retry = _suite_verb(verbs, "retry", "run the failed cells of a suite again")
    retry.add_argument(
        "--failed", action="store_true", help="the failed ones and no other; this is what it does anyway"
    )
    retry.set_defaults(force=False)
    for running in (run, retry):
        running.add_argument("--no-report", action="store_true", help="leave out tables and MLflow")
        running.add_argument(
            "--detach",
            action="store_true",
            help="on a cluster: return once all is submitted; the same command follows it",
        )
    _suite_verb(verbs, "cancel", "cancel the jobs of a suite on a cluster; what is finished stays")

    logs = _verb(verbs, "logs", "print the end of what a cell has logged, or its job if it has not ended")
    logs.add_argument("cell", help="cell id or folder name, or the beginning of one")
    logs.add_argument("--lines", type=_count, default=100, help="at most so many of each file (default: 100)")
    _store(logs)

    sync = _verb(verbs, "sync", "import finished cells into MLflow")
    sync.add_argument("suite", nargs="?", help="name of a suite, or its file; default: all suites of the store")
    sync.add_argument(
        "--watch", nargs="?", type=_seconds, const=30, metavar="S", help="go on, every S seconds (default: 30)"
    )
    sync.add_argument("--tracking-uri", help="MLflow server (default: MLFLOW_TRACKING_URI, else STORE/mlflow.db)")
    _store(sync)

    report = _verb(verbs, "report", "write the tables of a suite from its finished cells")
    report.add_argument("suite", help="name of a suite, or its file")
    report.add_argument("--scale", default="paper", help="scale that it was run at")
    _store(report)

    explain = _verb(verbs, "explain", "say where the numbers of a cell come from")
    explain.add_argument("cell", help="cell id or folder name, or the beginning of one")
    _store(explain)

    names = _verb(verbs, "list", "list methods, models, data sets, suites, scales or protocols")
    names.add_argument("what", choices=["methods", "models", "datasets", "suites", "scales", "protocols"])
    _verb(verbs, "schema", "print the JSON Schema of suite files")
    _verb(verbs, "doctor", "say what is installed, what is missing and how to mend it")

    easyedit = _verb(verbs, "easyedit", "fetch EasyEdit's code, or show what there is of it")
    easyedit.add_argument("action", choices=["fetch", "show"])
    easyedit.add_argument("--from", dest="source", metavar="URL", help="repository or folder of a clone to fetch from")

    data = _verb(verbs, "data", "list, show or fetch records")
    data.add_argument("action", choices=["list", "show", "fetch"])
    data.add_argument("name", nargs="?", help="data set")
    data.add_argument("--data", help="folder of upstream files (default: HARNESS_DATA, else the built-in world)")
    data.add_argument("--id", help="record to show; default: the first")
    data.add_argument("--to", default="data", help="folder that fetch writes to")
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, help_: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".")
    parser.set_defaults(verb=lambda options: _call(name, options))
    return parser


def _suite_verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, help_: str
) -> argparse.ArgumentParser:
    parser = _verb(verbs, name, help_)
    parser.add_argument("suite", help="suite file, for example suites/main_table.yaml")
    parser.add_argument("--scale", help="lay suites/scales/SCALE.yaml over the suite, for example mini")
    parser.add_argument(
        "--only", action="append", default=[], metavar="AXIS=NAME[,NAME]", help="method=…, model=…, dataset=…"
    )
    parser.add_argument("--data", help="folder of upstream files (default: HARNESS_DATA)")
    parser.add_argument("--edits", type=int, help="number of edits per cell instead of the suite's")
    parser.add_argument(
        "--backend",
        choices=["auto", "native", "easyedit"],
        help="of methods that EasyEdit has too, instead of the suite's; auto: EasyEdit's where a checkout is found",
    )
    parser.add_argument("--launch", help="launch profile instead of the suite's, for example local")
    _store(parser)
    return parser


def _store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, default=Path("results"), help="results folder (default: results)")


def _seconds(text: str) -> float:
    return _above_zero(float, text)


def _count(text: str) -> int:
    return _above_zero(int, text)


def _above_zero(kind: type[Number], text: str) -> Number:
    try:
        number = kind(text)
    except ValueError:
        number = kind(0)
    if not 0 < number < math.inf:
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {what} above 0, found '{text}'")
    return number


def _call(name: str, options: argparse.Namespace) -> int:
    from harness import verbs

    function: Callable[[argparse.Namespace], int] = getattr(verbs, f"{name}_" if name == "list" else name)
    return function(options)
