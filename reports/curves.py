"""Scores on the way of a sequence: of all edits so far and of those made between two points, with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.errors import UserError
from harness.store.store import Folder, Store
from reports.frame import AVERAGED, AXES, SuiteFrame
from reports.stats import Estimate, resample_means

UNRELATED = "loc_unrelated"


class Figure(NamedTuple):
    """A score: at which point, on which axis, of the edits from `first` to `last`; both 0 for records that nobody edits."""

    edits: int
    axis: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Curve:
    """A method on a model along a sequence.

    Attributes:
        points: numbers of edits so far at which all of them were scored.
        figures: at each point, of all edits so far and of those between each two points before it.
    """

    points: tuple[int, ...]
    figures: Mapping[Figure, Estimate]


def load_curves(frame: SuiteFrame) -> pd.DataFrame:
    """Scores of all finished cells in sequence: one row per cell, protocol, `edits`, axis and record.

    `edit` is the number of the record's edit, 0 for a record that nobody edits; `score` the mean over its probes.

    Raises:
        UserError: if the metrics of a cell contradict its rows.
    """
    folders = [Store(frame.store).cell(str(name)) for name in frame.cells["cell"].unique()]
    found = [_by_record(folder) for folder in folders if (folder.path / "curve.parquet").is_file()]
    columns = ["cell", "protocol", "edits", "axis", "record_id", "edit", "score"]
    return pd.concat([pd.DataFrame(columns=columns), *(rows for rows in found if len(rows))], ignore_index=True)


def curve(scores: pd.DataFrame, seeds: Mapping[str, int]) -> Curve:
    """Figures and intervals of the cells of a method on a model.

    Args:
        scores: rows of `load_curves` of these cells under one protocol.
        seeds: of each of the cells.
    """
    points = tuple(sorted(int(point) for point in scores["edits"].unique()))
    estimates = _estimates(scores[scores["edit"] > 0], seeds, list(_figures(points)))
    unrelated = [Figure(point, UNRELATED, 0, 0) for point in points]
    return Curve(points, estimates | _estimates(scores[scores["edit"] == 0], seeds, unrelated))


def _figures(points: Sequence[int]) -> Iterator[Figure]:
    """Those of the edited records, each once."""
    spans = [(start + 1, end) for start, end in pairwise((0, *points))]
    for point in points:
        for axis in AVERAGED:
            yield from dict.fromkeys(
                Figure(point, axis, first, last) for first, last in ((1, point), *spans) if last <= point
            )


def _estimates(scores: pd.DataFrame, seeds: Mapping[str, int], figures: Sequence[Figure]) -> dict[Figure, Estimate]:
    """Each figure is a mean over records that are drawn together, so that two points differ by what happened between."""
    wanted = scores[scores["axis"].isin({figure.axis for figure in figures})]
    if wanted.empty:
        return {}
    edit_R = wanted.groupby("record_id")["edit"].first()
    cubes = []
    for seed in sorted(set(seeds.values())):
        of_seed = wanted[wanted["cell"].map(dict(seeds)) == seed]
        by_place = of_seed.pivot_table(index="record_id", columns=["edits", "axis"], values="score", dropna=False)
        table = by_place.reindex(index=edit_R.index, columns=pd.MultiIndex.from_tuples([f[:2] for f in figures]))
        scores_RC = table.to_numpy(dtype=np.float64)
        is_meant_RC = [[first <= edit <= last for _, _, first, last in figures] for edit in edit_R]
        cubes.append(np.where(is_meant_RC, scores_RC, np.nan))
    resampled = resample_means(np.stack(cubes))
    return {figure: resampled.estimate(unit_C) for figure, unit_C in zip(figures, np.eye(len(figures)), strict=True)}


def _by_record(folder: Folder) -> pd.DataFrame:
    rows = pd.read_parquet(
        folder.path / "curve.parquet", columns=["protocol", "edits", "axis", "record_id", "edit", "score"]
    )
    rows = rows.assign(cell=folder.path.name, axis=rows["axis"].map(dict(AXES)))
    place = ["cell", "protocol", "edits", "axis", "record_id", "edit"]
    by_record: pd.DataFrame = rows.groupby(place, as_index=False, sort=False)[["score"]].mean()
    _check_against_metrics(folder, by_record)
    return by_record


def _check_against_metrics(folder: Folder, scores: pd.DataFrame) -> None:
    """A table shows what the rows say; a cell whose metrics say something else is refused."""
    curves = folder.read("metrics.json").get("curve", {})
    told = {
        (int(edits), protocol, AXES[axis]): found["score"]
        for edits, at_point in curves.items()
        for protocol, axes in at_point.items()
        if protocol != "retained"
        for axis, found in axes.items()
    }
    means = scores.groupby(["edits", "protocol", "axis"])["score"].mean()
    if told.keys() != set(means.index) or not all(np.isclose(means[place], told[place]) for place in told):
        raise UserError(
            f"{folder.path.name}: metrics.json and curve.parquet disagree on the curve",
            fix=f"delete cells/{folder.path.name} and run the suite again",
        )
