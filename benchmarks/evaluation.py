"""Seconds per record of the batched evaluation, beside a loop that asks one question at a time.

    python -m benchmarks.evaluation [--quick] [--records 100] [--out FILE]
    python -m benchmarks.evaluation --model llama2-7b --device cuda --dtype bfloat16

The batched side is the harness's own: questions of like length together, a key-value cache, the head where its logits are
read. The loop does without: batch 1, everything so far once more for each new token, the head at every position
(benchmarks/one_by_one.py). Both ask the same questions of the same models under both protocols, for
    plain     the model by itself, as all methods are evaluated whose edit lies in the weights
    pair      the model beside OnceEdit's plug-in, which was edited with the records

Both sides take turns in one process: in each round the batched side asks all questions, and the loop those of its next share of
the records. All answers are compared. Where any differ, the same questions are asked again in float64, by both sides: what is
equal there differed by rounding, and what is not is a bug, and ends the run with an error.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.both_ways import Comparison, Subject, compare
from benchmarks.workbench import MethodBench, Workbench, add_options, chosen, machine
from harness.errors import UserError
from harness.evaluation.probes import probe_queries
from harness.evaluation.protocols import OWN
from harness.files import write_json
from harness.run.progress import ProgressBars


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the figures."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    found: dict[str, dict[str, Comparison]] = {}
    with tempfile.TemporaryDirectory() as folder, ProgressBars(console) as bars:
        bench = Workbench.of(options, options.records, Path(folder), bars)
        questions = probe_queries(bench.records, bench.model.tokenizer)
        for name in options.subjects:
            subject = SUBJECTS[name](bench)
            found[name] = {
                protocol.name: compare(
                    subject, questions, protocol, options.eval_batch, options.rounds, bench.model.device
                )
                for protocol in OWN
            }
    per_record = len(questions) / options.records
    target_ids = statistics.fmean(len(asked.query.target_ids) for asked in questions)
    origin = machine(options.device)
    console.print(f"{origin['device_class']}, torch {torch.__version__}")
    console.print(
        f"{options.records} records, {len(questions)} questions with targets of {target_ids:.2f} ids on average, "
        f"batches of {options.eval_batch}"
    )
    console.print(table(f"{options.model}, {options.weights} weights", found, per_record))
    for name, protocols in found.items():
        for protocol, compared in protocols.items():
            console.print(f"{name}, {protocol}: {agreement(compared)}")
    if options.out:
        figures = {
            name: {of: vars(compared) | {"ratios": compared.ratios} for of, compared in protocols.items()}
            for name, protocols in found.items()
        }
        content = {"questions_per_record": per_record, "target_ids": target_ids, "compared": figures}
        write_json(options.out, {"benchmark": "evaluation", "options": chosen(options), **origin, **content})
    if any(compared.differ_in_float64 for protocols in found.values() for compared in protocols.values()):
        raise SystemExit("the two sides differ by more than rounding")


def plain(bench: Workbench) -> Subject:
    """The target model by itself."""
    return Subject.plain(bench.model)


def pair(bench: Workbench) -> Subject:
    """The target model and a plug-in that was edited with all records."""
    method = MethodBench(bench, "onceedit", {})
    method.build()
    return Subject.pair(method.edit()[0], bench.requests)


SUBJECTS: dict[str, Callable[[Workbench], Subject]] = {"plain": plain, "pair": pair}


def table(title: str, found: Mapping[str, Mapping[str, Comparison]], per_record: float) -> Table:
    """One row per model and protocol."""
    made = Table(title=title, title_justify="left")
    for column in ("model", "protocol"):
        made.add_column(column)
    for column in ("loop, ms per record", "batched, ms per record", "times as fast", "range", "equal"):
        made.add_column(column, justify="right")
    for name, protocols in found.items():
        for protocol, compared in protocols.items():
            times = [1e3 * per_record * statistics.median(of) for of in (compared.loop_s, compared.batched_s)]
            ratios = compared.ratios
            made.add_row(
                name,
                protocol,
                *(f"{value:.2f}" for value in times),
                f"{statistics.median(ratios):.1f}",
                f"{min(ratios):.1f} to {max(ratios):.1f}",
                f"{1 - compared.differ / compared.questions:.2%}",
            )
    return made


def agreement(compared: Comparison) -> str:
    """How the answers of both sides compare."""
    equal = f"{compared.questions - compared.differ} of {compared.questions} answers are equal"
    if not compared.differ:
        return equal
    return f"{equal}, {compared.differ} differ; in float64 {compared.differ_in_float64} of these do"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = parser.add_argument
    say("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), help="default: both")
    say("--records", type=int, default=100, help="records to ask about; default: 100")
    say("--rounds", type=int, default=4, help="in each the loop asks about its share of the records; default: 4")
    add_options(parser)
    say("--quick", action="store_true", help="4 records: shows that all of it runs, measures nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        options.records, options.rounds, options.train, options.unrelated = 4, 2, 20, 4
    return options


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
