"""How often tables without any difference have a winner, and how often the winner of a planned size is found.

    python -m benchmarks.winners [--tables 2000] [--edits 50] [--detect 0.05] [--out FILE]

Draws scores of several methods on the same records, some of which are harder than others, and marks them with the code that
marks every table. The second part gives one method an Avg that is higher by `--detect` and as many records as
`harness plan --detect` recommends for it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from harness.files import write_json
from reports.layout import Column, Mark, Section, Table, TableEntry, TableRow
from reports.power import POWER, Contestants
from reports.significance import LEVEL, Contest, judged
from reports.stats import Floats

METHODS, MODELS, AXES = 4, 3, 3
CHANCE = 0.6
"""Of a right answer of a method without an advantage, on average over records."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the simulation shows.

    Attributes:
        tables: number of simulated tables of each kind.
        edits: records of a table without differences.
        with_winner: share of these that have any bold entry.
        spread: standard deviation of the difference in Avg of two methods on a record.
        recommended: records for the difference to be detected.
        power: share of Avg entries of the better method that are bold with so many.
        power_of_score: the same of its Score, the mean over models.
    """

    tables: int
    edits: int
    with_winner: float
    spread: float
    recommended: int
    power: float
    power_of_score: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print and write the shares.

    Returns:
        0, or 1 if more tables than allowed have a winner.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=2000, help="default: 2000")
    parser.add_argument("--edits", type=int, default=50, help="records of a table without differences; default: 50")
    parser.add_argument("--detect", type=float, default=0.05, help="difference in Avg; default: 0.05")
    parser.add_argument("--powered", type=int, default=200, help="tables with a difference; default: 200")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    options = parser.parse_args(arguments)
    found = simulate(options.tables, options.edits, options.detect, options.powered, options.seed)
    print(f"{found.tables} tables of {METHODS} methods on {MODELS} models without any difference, {found.edits} edits:")
    print(f"  with a bold entry: {found.with_winner:.2%} (at most {LEVEL:.0%})")
    print(f"one Avg higher by {options.detect:g}, {found.recommended} edits (differences have SD {found.spread:.2f}):")
    print(
        f"  bold: {found.power:.0%} of its Avg, {found.power_of_score:.0%} of its Score (planned: at least {POWER:.0%})"
    )
    if options.out:
        write_json(options.out, asdict(found))
    return int(found.with_winner > LEVEL)


def simulate(tables: int, edits: int, difference: float, powered: int, seed: int = 0) -> Found:
    """Draw and mark tables; `powered` of them have a difference."""
    rng = np.random.default_rng(seed)
    with_winner = np.mean([max(bold_rows(scores(rng, edits, 0.0))) >= 0 for _ in range(tables)])
    pilot_MARK = scores(rng, 20_000, difference)
    spread = float(np.std(pilot_MARK[0, :, 0].mean(axis=0) - pilot_MARK[1, :, 0].mean(axis=0)))
    recommended = Contestants(METHODS, MODELS, 1).edits_to_detect(difference, spread)
    is_found = np.array([bold_rows(scores(rng, recommended, difference)) for _ in range(powered)]) == 0
    of_avg, of_score = is_found[:, AXES :: AXES + 1], is_found[:, -1]
    return Found(tables, edits, float(with_winner), spread, recommended, float(of_avg.mean()), float(of_score.mean()))


def scores(rng: np.random.Generator, records: int, advantage: float) -> Floats:
    """Right and wrong answers: methods × axes × models × records. Only the first method has the advantage."""
    ease_R = rng.beta(2, 2 * (1 - CHANCE) / CHANCE, records)
    chance_MR = np.stack([ease_R * (1 - advantage / CHANCE * (row > 0)) for row in range(METHODS)])
    drawn = rng.random((METHODS, AXES, MODELS, records)) < chance_MR[:, None, None]
    return drawn.astype(np.float64)


def bold_rows(scores_MARK: Floats) -> list[int]:
    """The method that is bold, or -1, by column: Rel, Gen, Loc and Avg of each model, then Score."""
    records = scores_MARK.shape[-1]
    columns_CMR = [
        column_MR
        for model in range(MODELS)
        for column_MR in (*scores_MARK[:, :, model].swapaxes(0, 1), scores_MARK[:, :, model].mean(axis=1))
    ]
    columns_CMR.append(scores_MARK.mean(axis=(1, 2)))
    shares_CMR = np.stack(columns_CMR) / records
    rows = tuple(
        TableRow(f"method {row}", tuple(TableEntry(float(values_R.sum())) for values_R in shares_CMR[:, row]))
        for row in range(METHODS)
    )
    titles = tuple(Column(str(column)) for column in range(len(shares_CMR)))
    contests = [Contest(0, column, dict(enumerate(values_MR))) for column, values_MR in enumerate(shares_CMR)]
    (section,) = judged(Table("simulated", "", "", titles, (Section("", rows),)), contests).sections
    marks = np.array([[entry.mark is Mark.BEST for entry in row.entries] for row in section.rows])
    return [int(of_column.argmax()) if of_column.any() else -1 for of_column in marks.T]


if __name__ == "__main__":
    raise SystemExit(main())
