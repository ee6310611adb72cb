"""Scores of `protocol: easyedit` beside those of EasyEdit's own functions: are they the same, and how long do both take?

    python -m benchmarks.easyedit_scores [--quick] [--data FOLDER] [--records 200] [--models tiny/llama …] [--out FILE]

Needs a checkout of EasyEdit (EASYEDIT_HOME, or `harness easyedit fetch`). Each model is asked about all records before and after
FT-L has edited it with all of them: by `compute_edit_quality`, a record after the other, and by the harness, in batches. Every
value is compared, the ids of the unedited model's answers to locality questions too. Both sides take turns: in each
round the harness scores all records of the edited model, and EasyEdit its next share of them.

Both of EasyEdit's ways to score are compared, the one of most methods and that of GRACE, on the same models: what is compared
is the scoring. EasyEdit's generation also computes an F1 that the harness has no use for, and generates a second time for it.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.as_easyedit import Scored, compare
from benchmarks.workbench import MethodBench, Workbench, add_options, chosen, machine
from harness.errors import UserError
from harness.files import write_json
from harness.run.progress import ProgressBars
from methods.easyedit import checkout, loader
from methods.easyedit.scoring import FORMS


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the figures."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    checkout.require(["sklearn", "nltk", "regex"])
    found_at = checkout.find()
    loader.install(found_at.folder)
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    found: dict[str, dict[str, Scored]] = {}
    for name in options.models:
        options.model = name
        with tempfile.TemporaryDirectory() as folder, ProgressBars(console) as bars:
            found[name] = {scoring: _on_bench(options, scoring, Path(folder), bars) for scoring in FORMS}
    origin = machine(options.device)
    console.print(f"{origin['device_class']}, torch {torch.__version__}, EasyEdit {found_at.commit[:12]}")
    console.print(table(f"{options.records} records of {options.dataset}, {options.weights} weights", found))
    if options.out:
        figures = {
            name: {
                of: {
                    "values": len(one.theirs),
                    "differing": one.differing,
                    "failed": one.failed,
                    "ours_s": one.ours_s,
                    "theirs_s": one.theirs_s,
                }
                for of, one in forms.items()
            }
            for name, forms in found.items()
        }
        content = {"easyedit": found_at.identity, "scored": figures}
        write_json(options.out, {"benchmark": "easyedit_scores", "options": chosen(options), **origin, **content})
    if any(scored.differing for forms in found.values() for scored in forms.values()):
        raise SystemExit("the two sides differ")


def _on_bench(options: argparse.Namespace, scoring: str, folder: Path, bars: ProgressBars) -> Scored:
    bench = Workbench.of(options, options.records, folder, bars)
    model, undo = bench.model, []
    if bench.is_drawn:  # checkpoints name it, drawn models have none or that of another vocabulary
        model.model.generation_config.eos_token_id = model.tokenizer.eos_token_id
    try:
        edit = MethodBench(bench, "ft-l", {}).edit
        return compare(
            model, bench.records, scoring, options.eval_batch, options.rounds, lambda _: undo.append(edit()[0])
        )
    finally:
        for edited in undo:
            edited.revert()


def table(title: str, found: Mapping[str, Mapping[str, Scored]]) -> Table:
    """One row per model and form."""
    made = Table(title=title, title_justify="left")
    for column in ("model", "scored by"):
        made.add_column(column)
    for column in ("values", "differing", "EasyEdit fails", "mean"):
        made.add_column(column, justify="right")
    for column in ("EasyEdit, ms per record", "harness, ms per record", "times as fast"):
        made.add_column(column, justify="right")
    for name, forms in found.items():
        for of, scored in forms.items():
            scores = [value for value in scored.theirs.values() if not isinstance(value, list)]
            made.add_row(
                name,
                of,
                str(len(scored.theirs)),
                str(len(scored.differing)),
                f"{len(scored.failed)} records",
                f"{statistics.fmean(scores):.3f}",
                *(f"{1e3 * statistics.median(seconds):.2f}" for seconds in (scored.theirs_s, scored.ours_s)),
                f"{scored.ratio:.1f}",
            )
    return made


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.easyedit_scores",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = parser.add_argument
    say(
        "--models", nargs="+", default=["tiny/llama", "tiny/mistral", "tiny/gptj"], help="default: the three of the zoo"
    )
    say("--records", type=int, default=200, help="default: 200")
    say("--rounds", type=int, default=4, help="in each EasyEdit scores its share of the records; default: 4")
    add_options(parser)
    say("--quick", action="store_true", help="4 records: shows that all of it runs, measures nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        options.records, options.rounds = 4, 2
    options.unrelated = 0
    return options


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
