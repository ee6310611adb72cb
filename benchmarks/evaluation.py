"""Time per record of the batched evaluation, compared with a loop that asks one question at a time.

    python -m benchmarks.evaluation [--quick] [--records 100] [--out FILE]
    python -m benchmarks.evaluation --model llama2-7b --device cuda --dtype bfloat16

The batched side is the harness's own evaluation: questions of similar length are batched, a key-value cache is used, and the
head is applied only where logits are needed. The loop does none of this: batch size 1, a forward pass over the whole sequence
for each new token, and the head at every position (benchmarks/evaluation_loops.py). Both ask the same questions under both
protocols, of
    plain     the model alone, as for every method that edits weights
    pair      the model ensembled with OnceEdit's plug-in, edited with the records

Both sides take turns in one process: in each round, the batched side asks all questions, and the loop those of its next share
of the records. All answers are compared. Questions with different answers are asked again in float64: if the answers now
agree, the difference was rounding; otherwise it is a bug, and the run ends with an error.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from benchmarks import command
from benchmarks.evaluation_comparison import Comparison, TwoWays, compare
from benchmarks.workbench import MethodBench, Workbench, add_options
from harness.evaluation.probes import probe_queries
from harness.evaluation.protocols import OWN


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the results."""
    options = _options(arguments)
    console = command.start(options)
    found: dict[str, dict[str, Comparison]] = {}
    with Workbench.opened(options, options.records, console) as bench:
        questions = probe_queries(bench.records, bench.model.tokenizer)
        per_record = len(questions) / options.records
        target_ids = statistics.fmean(len(asked.query.target_ids) for asked in questions)
        for kind in options.kinds:
            model = KINDS[kind](bench)
            found[kind] = {
                protocol.name: compare(
                    model, questions, protocol, options.eval_batch, options.rounds, bench.model.device
                )
                for protocol in OWN
            }
            results = {
                name: {of: vars(compared) | {"ratios": compared.ratios} for of, compared in protocols.items()}
                for name, protocols in found.items()
            }
            shape = {"questions_per_record": per_record, "target_ids": target_ids}
            command.write_results(options, {**shape, "compared": results})
    console.print(
        f"{options.records} records, {len(questions)} questions with targets of {target_ids:.2f} ids on average, "
        f"batches of {options.eval_batch}"
    )
    console.print(table(f"{options.model}, {options.weights} weights", found, per_record))
    for kind, protocols in found.items():
        for protocol, compared in protocols.items():
            console.print(f"{kind}, {protocol}: {agreement(compared)}")
    if any(compared.differ_in_float64 for protocols in found.values() for compared in protocols.values()):
        raise SystemExit("the two sides differ by more than rounding")


def plain(bench: Workbench) -> TwoWays:
    """The target model alone."""
    return TwoWays.plain(bench.model)


def pair(bench: Workbench) -> TwoWays:
    """The target model with a plug-in that was edited with all records."""
    method = MethodBench(bench, "onceedit", {})
    method.build()
    return TwoWays.pair(method.edit()[0])


KINDS: dict[str, Callable[[Workbench], TwoWays]] = {"plain": plain, "pair": pair}


def table(title: str, found: Mapping[str, Mapping[str, Comparison]], per_record: float) -> Table:
    """One row per kind of model and protocol."""
    made = command.new_table(title, ["model", "protocol"], ["loop, ms per record", "batched, ms per record",
        "times as fast", "range", "equal"])  # fmt: skip
    for kind, protocols in found.items():
        for protocol, compared in protocols.items():
            times = [1e3 * per_record * statistics.median(of) for of in (compared.loop_s, compared.batched_s)]
            made.add_row(
                kind,
                protocol,
                *(f"{value:.2f}" for value in times),
                f"{statistics.median(compared.ratios):.1f}",
                command.spread(compared.ratios, "{:.1f}".format),
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
    parser = command.new_parser("evaluation", __doc__, "4 records")
    add = parser.add_argument
    add("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="default: both")
    add("--records", type=int, default=100, help="records to ask about; default: 100")
    add("--rounds", type=int, default=4, help="the loop asks about one share of the records per round; default: 4")
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        options.records, options.rounds, options.train, options.unrelated = 4, 2, 20, 4
    return options


if __name__ == "__main__":
    command.run(main)
