"""Compare the scores of `protocol: easyedit` with those of EasyEdit's own functions: values and time.

    python -m benchmarks.easyedit_scores [--quick] [--data FOLDER] [--records 200] [--models tiny/llama …] [--out FILE]

Needs a checkout of EasyEdit (EASYEDIT_HOME, or `harness easyedit fetch`). Each model answers the questions of all records before
and after FT-L edits it with all of them: through `compute_edit_quality`, one record at a time, and through the harness, in
batches. Every value is compared, including the ids of the unedited model's answers to locality questions. Both sides take
turns: in each round, the harness scores all records with the edited model, and EasyEdit its next share of them.

Both of EasyEdit's forms of scoring are compared, the one for most methods and the one for GRACE, on the same models, because
only the scoring matters here. EasyEdit's generation form also computes an F1 score that the harness does not use, and
generates a second time for it.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks import command
from benchmarks.easyedit_own_scores import Scored, compare
from benchmarks.workbench import MethodBench, Workbench, add_options
from methods.easyedit import checkout, loader
from methods.easyedit.scoring import FORMS


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the results."""
    options = _options(arguments)
    checkout.require(["sklearn", "nltk", "regex"])
    found_at = checkout.find()
    loader.install(found_at.folder)
    console = command.start(options)
    found: dict[str, dict[str, Scored]] = {}
    for name in options.models:
        options.model = name
        found[name] = {scoring: _scored(options, scoring, console) for scoring in FORMS}
    title = (
        f"EasyEdit {found_at.commit[:12]}, {options.records} records of {options.dataset}, {options.weights} weights"
    )
    console.print(table(title, found))
    scored = {
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
    command.write_results(options, {"easyedit": found_at.identity, "scored": scored})
    if any(one.differing for forms in found.values() for one in forms.values()):
        raise SystemExit("the two sides differ")


def _scored(options: argparse.Namespace, scoring: str, console: Console) -> Scored:
    with Workbench.opened(options, options.records, console) as bench:
        model, undo = bench.model, []
        if bench.is_random:  # unlike a checkpoint, a random model has no matching end-of-text id
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
    """One row per model and form of scoring."""
    made = command.new_table(title, ["model", "scored by"], ["values", "differing", "EasyEdit fails", "mean",
        "EasyEdit, ms per record", "harness, ms per record", "times as fast"])  # fmt: skip
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
                f"{statistics.median(scored.speed_ups):.1f}",
            )
    return made


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("easyedit_scores", __doc__, "4 records")
    add = parser.add_argument
    add("--models", nargs="+", default=["tiny/llama", "tiny/mistral", "tiny/gptj"], help="default: three tiny models")
    add("--records", type=int, default=200, help="default: 200")
    add("--rounds", type=int, default=4, help="EasyEdit scores one share of the records per round; default: 4")
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        options.records, options.rounds = 4, 2
    options.unrelated = 0
    return options


if __name__ == "__main__":
    command.run(main)
