"""What `benchmarks.editing` found: figures of each method, their ratios, and a table for the terminal."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from benchmarks.numbers import number

REFERENCE = "onceedit"
"""The method whose times the others are multiples of."""

EDIT, ATTACH, EVALUATE = "edit_s", "attach_s", "evaluate_s"


@dataclass
class Figures:
    """What was measured of a method.

    Attributes:
        seconds: one value per round: per edit, per target model and per record.
        artifacts_s: by phase, of each artifact that is no edit.
        diagnostics: of the last edit.
        reason: why there is no more; None if nothing failed.
    """

    title: str
    hparams: Mapping[str, Any] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {EDIT: [], ATTACH: [], EVALUATE: []})
    artifacts_s: dict[str, dict[str, float]] = field(default_factory=dict)
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    reason: str | None = None


def ratios(found: Mapping[str, Figures]) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds per edit and per record as multiples of the reference's in the same round."""
    if REFERENCE not in found or found[REFERENCE].reason is not None:
        return {}
    base = found[REFERENCE].seconds
    return {
        name: {
            key: _summary([own / its for own, its in zip(of.seconds[key], base[key], strict=True)])
            for key in (EDIT, EVALUATE)
            if any(of.seconds[key])
        }
        for name, of in found.items()
        if of.reason is None
    }


def table(title: str, found: Mapping[str, Figures], against: Mapping[str, Any]) -> Table:
    """One row per method."""
    made = Table(title=title, title_justify="left")
    made.add_column("method")
    for column in ("ms per edit", "range", "× OnceEdit", "attach s", "artifacts s", "evaluation, ms per record", "range",
                   "× OnceEdit"):  # fmt: skip
        made.add_column(column, justify="right")
    for name, of in found.items():
        if of.reason is not None:
            made.add_row(of.title, "failed, see below")
            continue
        cells = []
        for key in (EDIT, EVALUATE):
            if not any(of.seconds[key]):
                cells.append(["–"] * 3)
                continue
            summary = _summary([1e3 * value for value in of.seconds[key]])
            spread = f"{number(summary['low'])} to {number(summary['high'])}"
            cells.append([number(summary["median"]), spread, f"{against[name][key]['median']:.2f}" if against else "–"])
        built = sum(sum(phases.values()) for phases in of.artifacts_s.values())
        attach = statistics.median(of.seconds[ATTACH])
        made.add_row(of.title, *cells[0], *(number(value) if value else "–" for value in (attach, built)), *cells[1])
    return made


def remarks(found: Mapping[str, Figures]) -> list[str]:
    """What failed, and what artifacts took: to be said below the table."""
    lines = [f"{of.title}: {of.reason}" for of in found.values() if of.reason is not None]
    artifacts = {name: phases for of in found.values() for name, phases in of.artifacts_s.items()}
    for name, phases in artifacts.items():
        users = ", ".join(of.title for of in found.values() if name in of.artifacts_s)
        seconds = ", ".join(f"{phase} {number(value)} s" for phase, value in phases.items())
        lines.append(f"artifact {name.split()[0]} of {users}: {seconds}")
    return lines


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}
