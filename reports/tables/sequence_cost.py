"""Sequential editing: time, memory and growth of the weights by position in the sequence."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.registry import register_table
from reports.common import (
    UNCITABLE_NOTE,
    absent_sections,
    commits_shown,
    doubts_shown,
    empty_rows,
    gap_remarks,
    marks_of,
    score_points,
    seeds_shown,
    sequences_shown,
    suite_shown,
)
from reports.layout import Column, Section, Table, TableEntry, TableRow, amount

if TYPE_CHECKING:
    import pandas as pd

    from reports.blocks import MethodBlocks
    from reports.frame import SuiteFrame

TIME, MEMORY, GROWTH = "ms per edit", "MiB at most", "Growth"
"""Groups of columns."""

TIMES = ("first", "middle", "last", "last/first")
MEMORIES = ("first", "last", "all")
HELD_NOTE = "‡"

NOTES = (
    f"{TIME}: in the first, middle and last fifth of the blocks, attaching included. last/first: 1 if the time of an edit does not "
    "depend on the number of edits before.",
    f"{MEMORY}: highest memory use, with the model, while the first fifth, the last fifth, and all of the blocks were applied.",
    f"{GROWTH}: of the norm of the changed matrices after so many edits, relative to their norm before; 0 if no weight changes.",
)


@register_table("sequence_cost", needs_sequence=True)
def sequence_cost(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Time per edit, memory and growth of the weights along a sequence of edits; the CSV has every block."""
    from reports.blocks import method_blocks

    found = list(method_blocks(frame))
    tables = [
        _table(frame, [one for one in found if one.model == model], model, shown)
        for model, shown in frame.models().items()
    ]
    return tables, _numbers(frame)


def _table(frame: "SuiteFrame", found: "Sequence[MethodBlocks]", model: str, shown: str) -> Table:
    titles = dict(zip(frame.cells["section"], frame.cells["section_title"], strict=True))
    points = sorted({point for section in titles for point in score_points(section)})
    columns = tuple(
        Column(str(title), group, is_ranked=False)
        for group, of_group in ((TIME, TIMES), (MEMORY, MEMORIES), (GROWTH, points))
        for title in of_group
    )
    sections = []
    for section, title in titles.items():
        of_section = [one for one in found if one.section == section]
        rows = [TableRow(one.title, tuple(_entries(one, points)), one.is_reference) for one in of_section]
        missing = empty_rows(frame, section, {one.row for one in of_section}, len(columns), model)
        sections.append(Section(title, (*rows, *missing), tuple(gap_remarks(frame, section, title, model))))
    held = [f"{HELD_NOTE} most memory in use at the end of a block: peaks were not recorded."]
    return Table(
        f"sequence-cost-{model}",
        f"Costs of sequential editing of {shown}",
        _caption(frame),
        columns,
        tuple(sections),
        (
            *NOTES,
            *held * (HELD_NOTE in marks_of(sections)),
            *doubts_shown(frame.cells, sections),
            *absent_sections(frame, by_model=True),
        ),
    )


def _entries(one: "MethodBlocks", points: Sequence[int]) -> Iterator[TableEntry]:
    fifths, doubt = one.fifths(), "" if one.is_citable else UNCITABLE_NOTE
    times = [one.ms_per_edit(blocks) for blocks in fifths.values()]
    ratio = times[-1] / times[0] if one.is_on_one_device and times[0] > 0 else math.nan
    for value in (*times, ratio):
        yield _entry(value, doubt)
    for blocks in (fifths["first"], fifths["last"], slice(None)):
        peak = one.peak_mib(blocks)
        yield (
            TableEntry(one.held_mib(blocks), digits=0, note=HELD_NOTE)
            if math.isnan(peak)
            else TableEntry(peak, digits=0)
        )
    for point in points:
        yield _entry(one.growth(point))


def _entry(value: float, note: str = "") -> TableEntry:
    """A number of up to three decimals, with fewer from 10 on; a plain 0 for nothing."""
    if math.isnan(value):
        return TableEntry()
    before_point = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return replace(amount(value, digits=max(0, 3 - before_point) if value else 0), note=note)


def _caption(frame: "SuiteFrame") -> str:
    of_phases = (frame.cells[f"{phase}_classes"] for phase in ("edit", "attach"))
    devices = frozenset().union(*(classes for of_phase in of_phases for classes in of_phase))
    return (
        f"{suite_shown(frame)}, {seeds_shown(frame)}. {sequences_shown(frame)}. "
        f"Device: {'; '.join(sorted(devices))}. {commits_shown(frame)}"
    )


def _numbers(frame: "SuiteFrame") -> "pd.DataFrame":
    """Every block of every finished cell."""
    from reports.blocks import load_blocks

    names = {"section_title": "data", "title": "method", "model_title": "model"}
    cells = frame.cells.drop_duplicates("cell")[["cell", *names, "template", "seed"]]
    numbers = cells.rename(columns=names).merge(load_blocks(frame), on="cell")
    return numbers[[*numbers.columns.drop("cell"), "cell"]]
