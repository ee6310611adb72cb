"""Summary of a suite's cells for MLflow: Score, Freq, times relative to OnceEdit's and FLOPs, per cell and per method."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.store.manifest import Manifest
from harness.store.mlflow_content import WITHIN_LINE, MethodSummary, SuiteSummary, settings
from harness.store.store import Store
from reports.costs import (
    FROM_SCRATCH,
    NOTHING,
    Cost,
    break_even_edits,
    cost_of,
    multiple,
    normalised,
    reference_row,
)

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.scores import Board, Line

_PER_CELL = ("edit_time_vs_onceedit", "time_from_scratch_vs_onceedit", "edit_s_per_edit")


def summarise(store: Path, manifest: Manifest) -> SuiteSummary:
    """Read all finished cells of a suite.

    Raises:
        UserError: as `load_suite`.
    """
    from reports.frame import load_suite
    from reports.scores import boards

    frame = load_suite(store, manifest.suite, manifest.scale, **manifest.options)
    compared = normalised(frame)[list(_PER_CELL)].to_dict("index")
    cells = {str(name): {str(key): float(value) for key, value in row.items()} for name, row in compared.items()}
    by_section: dict[str, list[Board]] = {}
    for board in boards(frame):
        by_section.setdefault(board.section, []).append(board)
    methods = tuple(method for same in by_section.values() for method in _methods(frame, same))
    return SuiteSummary(cells, methods, _description(manifest, by_section))


def _methods(frame: "SuiteFrame", boards: "list[Board]") -> Iterator[MethodSummary]:
    """One per line of the boards of a section, whose cells are those that the table of the last protocol shows."""
    shown = {line.row: _cells_of(frame, line) for line in boards[-1].lines}
    complete = {line.row for line in boards[-1].lines if line.freq is not None}
    row = reference_row(frame)
    reference = cost_of(shown[row]) if row in complete else NOTHING
    for line in boards[-1].lines:
        cells = shown[line.row]
        about = settings(Store(frame.store).cell(cells.iloc[0]["cell"]).read("cell.json"))
        scores = {
            f"{board.protocol}.score": other.score.value
            for board in boards
            for other in board.lines
            if other.row == line.row
        }
        costs = {} if line.is_reference else _costs(cost_of(cells), reference, complete=line.row in complete)
        tokens = {"flops.per_token": float(cells["flops_per_token"].mean())}
        freq = {} if line.freq is None else {"freq": float(line.freq)}
        yield MethodSummary(
            key=f"{line.row} in {boards[-1].section}",
            name=f"{line.title} · {boards[-1].title}",
            params={name: value for name, value in about.items() if name not in WITHIN_LINE},
            metrics={**scores, **freq, **costs, **tokens},
        )


def _costs(cost: Cost, reference: Cost, *, complete: bool) -> dict[str, float]:
    """Totals over all models, nothing if a model is missing."""
    if not complete:
        return {}
    edits = break_even_edits(cost, reference)
    return {
        "edit_time_vs_onceedit": multiple(cost, reference),
        "time_from_scratch_vs_onceedit": multiple(cost, reference, FROM_SCRATCH),
        "break_even_edits": edits.first,
        "break_even_edits_until": edits.last,
        **{f"{phase}_s": seconds for phase, seconds in cost.seconds.items()},
        **{f"flops.{phase}": flops for phase, flops in cost.flops.items()},
        "edit_s_per_edit": cost.marginal_s,
    }


def _cells_of(frame: "SuiteFrame", line: "Line") -> "pd.DataFrame":
    names = [name for score in line.by_model.values() for name in score.cells]
    return frame.cells[frame.cells["cell"].isin(names)].drop_duplicates("cell")


def _description(manifest: Manifest, by_section: "dict[str, list[Board]]") -> str:
    """A table of Score and Freq per dataset and protocol."""
    parts = [f"`{manifest.command}`"]
    for boards in by_section.values():
        for board in boards:
            rows = [
                f"| {_escaped(line.title)} | {line.score.value:.3f} | {'–' if line.freq is None else line.freq} |"
                for line in board.lines
            ]
            head = ["| method | Score | Freq |", "|---|---|---|"]
            parts.append("\n".join([f"**{_escaped(board.title)}, {_escaped(board.protocol)}**", "", *head, *rows]))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+-.!|<>~" else letter for letter in text)
