"""Time per token of every way to turn both models' distributions into a token, on one pair and one edited plug-in.

    python -m benchmarks.decoders [--quick] [--out FILE]
    python -m benchmarks.decoders --model smollm2-135m --weights pretrained --data DIR --set onceedit.plugin=smollm2-135m

The prompts of edits are continued one at a time (batch 1) by --length tokens. All decoders take turns in one process, with two
references: the unedited target model alone, and one pass of both models per token without any fusion.
    owner, column   OnceEdit: the certified anchor, then its owner, or the search on its column (`column` is the default)
    own start       `column` whose search starts at the target model's logits instead of zero
    soft search     DeePEn: the search towards the whole fused distribution. It needs both matrices R, 2 x V x A numbers in fp32;
                    `--set onceedit.anchor_share=0.25` takes a quarter of the anchors, for all decoders
    gac, unite      the mixture over the union of the vocabularies, of all tokens or of each model's most probable ones
It also says how many of each decoder's tokens are those of `column` at the same place.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks import command
from benchmarks.editing import parsed_settings, quick_hparams
from benchmarks.speculative import ALONE, TWO, continuations, step_by_step, two_forwards
from benchmarks.timing import Candidate, taking_turns
from benchmarks.workbench import MethodBench, Workbench, add_options
from harness.models.edited import WeightEditedModel
from methods.onceedit.ensemble import EnsembleModel

COLUMN = "column"

DECODERS: Mapping[str, Mapping[str, Any]] = {
    COLUMN: {"decoder": "column"},
    "owner": {"decoder": "owner"},
    "own start": {"decoder": "column", "init": "llm"},
    "soft search": {"decoder": "search", "init": "llm", "target": "soft"},
    "gac": {"decoder": "gac"},
    "unite": {"decoder": "unite"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the results."""
    options = _options(arguments)
    console = command.start(options)
    pairs: dict[str, EnsembleModel] = {}
    with Workbench.opened(options, options.edits, console) as bench:
        for name in options.decoders:
            hparams = quick_hparams("onceedit", options.quick) | options.set | DECODERS[name]
            method = MethodBench(bench, "onceedit", hparams)
            method.build()
            pair = method.attached()
            if not isinstance(pair, EnsembleModel):
                raise TypeError(f"onceedit gave a {type(pair).__name__}")
            pairs[name] = pair
        prompts = [record.prompt for record in bench.records.edits][: options.prompts]
        found = measure(pairs, prompts, options.length)
        command.write_results(options, found)
    title = f"{options.model}, batch 1, {options.length} tokens per prompt"
    console.print(table(title, found))


def measure(pairs: Mapping[str, EnsembleModel], prompts: Sequence[str], length: int) -> dict[str, dict[str, float]]:
    """Continue each prompt with each decoder.

    Returns:
        `seconds` per token by candidate, and the share of tokens `equal` to those of `column` by decoder.
    """
    pair = pairs[COLUMN]
    queries = continuations(pair, prompts, length)
    made: dict[str, dict[int, list[int]]] = {name: {} for name in pairs}

    def decoded(name: str) -> Callable[[int], None]:
        def run(turn: int) -> None:
            place = turn % len(queries)  # there may be more warm-up rounds than prompts
            made[name][place] = step_by_step(pairs[name], queries[place])

        return run

    def alone(turn: int) -> None:
        WeightEditedModel(pair.target).generate([queries[turn % len(queries)]])

    def both(turn: int) -> None:
        two_forwards(pair, queries[turn % len(queries)], made[COLUMN][turn % len(queries)])

    ways = {name: decoded(name) for name in pairs}
    for place in range(len(queries)):
        ways[COLUMN](place)
    candidates = [Candidate(name, run) for name, run in ({ALONE: alone, TWO: both} | ways).items()]
    taken = taking_turns(candidates, len(queries), pair.target.device, tracks_memory=False)
    equal = {
        name: sum(a == b for place, ids in of.items() for a, b in zip(ids, made[COLUMN][place], strict=True))
        / (len(of) * length)
        for name, of in made.items()
    }
    return {"seconds": {name: of.mean / length for name, of in taken.items()}, "equal": equal}


def table(title: str, found: Mapping[str, Mapping[str, float]]) -> Table:
    """One row per decoder."""
    made = command.new_table(
        title, ["decoder"], ["ms per token", "× two forwards", "× target alone", "tokens of column"]
    )
    seconds = found["seconds"]
    for name, value in seconds.items():
        ratios = (f"{value / seconds[base]:.2f}" for base in (TWO, ALONE))
        equal = f"{found['equal'][name]:.0%}" if name in found["equal"] else "–"
        made.add_row(name, f"{1e3 * value:.2f}", *ratios, equal)
    return made


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("decoders", __doc__, "4 edits in 2 steps, 6 tokens per prompt")
    add = parser.add_argument
    add("--edits", type=int, default=10, help="facts to edit; default: 10")
    add("--prompts", type=int, default=5, help="prompts to continue; default: 5")
    add("--length", type=int, default=32, help="tokens per prompt; default: 32")
    add(
        "--decoders",
        nargs="+",
        choices=list(DECODERS),
        default=list(DECODERS),
        help="default: all; `column` is always there",
    )
    add("--set", nargs="+", default=[], metavar="onceedit.KEY=VALUE", help="override hyper-parameters of the files")
    add_options(parser)
    options = parser.parse_args(arguments)
    options.set = parsed_settings(options.set).get("onceedit", {})
    options.decoders = list(dict.fromkeys([COLUMN, *options.decoders]))
    if options.quick:
        options.edits, options.prompts, options.length = 4, 2, 6
        options.train, options.unrelated = 20, 4
    return options


if __name__ == "__main__":
    command.run(main)
