"""Scores along a sequence of edits: over all edits so far and over those between two points, with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.commands import rerun
from harness.errors import UserError
from harness.store.store import Folder, Store
from reports.common import AVERAGED, AXES
from reports.frame import SuiteFrame
from reports.scores import Board, Line, ModelScore, boards
from reports.stats import Estimate, Floats, Resampled, resample_means, shares

UNRELATED = "loc_unrelated"


class CurvePoint(NamedTuple):
    """Identifies a score: after `edits` edits, on an axis, over edits `first` to `last`; both 0 for unrelated records."""

    edits: int
    axis: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Scores of a method on a model along a sequence of edits.

    Attributes:
        points: numbers of edits after which all edits so far were scored.
        estimates: at each point, over all edits so far and over those between any two adjacent earlier points.
        shares_K: what each cluster of records adds to each of them.
        resampled: each of them alone; all of them on the same resamples.
        has_seeds: whether seeds add to the variation between records.
    """

    points: tuple[int, ...]
    estimates: Mapping[CurvePoint, Estimate]
    shares_K: Mapping[CurvePoint, Floats]
    resampled: Mapping[CurvePoint, Resampled]
    has_seeds: bool

    def value(self, edits: int, axis: str, last: int) -> float:
        """The score after `edits` edits over edits 1 to `last`; NaN where it was not measured."""
        found = self.estimates.get(CurvePoint(edits, axis, 1, last))
        return found.value if found else np.nan

    def p_value(self, place: CurvePoint, other: "Curve", other_place: CurvePoint) -> float | None:
        """P-value of the resampled difference to a score of another method, where seeds are averaged."""
        if not (self.has_seeds or other.has_seeds):
            return None
        return self.resampled[place].p_value(other.resampled[other_place], np.ones(1))


@dataclass(frozen=True, slots=True)
class MethodCurve:
    """The curve of a method on a model in one section, under the prompt template shown in the main table."""

    board: Board
    line: Line
    score: ModelScore
    found: Curve


@lru_cache(maxsize=1)
def method_curves(frame: SuiteFrame) -> tuple[MethodCurve, ...]:
    """The curves of all methods, in the order of `boards`."""
    scores, cells = load_curves(frame), frame.cells.drop_duplicates("cell")
    seed_of = dict(zip(cells["cell"], cells["seed"], strict=True))
    curves = []
    for board in boards(frame):
        of_protocol = scores[scores["protocol"] == board.protocol]
        for number, line in enumerate(board.lines):
            for score in line.by_model.values():
                of_cells = of_protocol[of_protocol["cell"].isin(score.cells)]
                if len(of_cells):
                    found = curve(of_cells, {cell: seed_of[cell] for cell in score.cells}, method=number)
                    curves.append(MethodCurve(board, line, score, found))
    return tuple(curves)


def load_curves(frame: SuiteFrame) -> pd.DataFrame:
    """Scores of all finished cells with a sequential schedule: one row per cell, protocol, `edits`, axis and record.

    `edit` is the number of the record's edit, 0 for unrelated records; `score` is the mean over the record's probes;
    `cluster` as in `SuiteFrame.records`.

    Raises:
        UserError: if the metrics of a cell contradict its scored answers.
    """
    folders = [Store(frame.store).cell(str(name)) for name in frame.cells["cell"].unique()]
    found = [_by_record(folder) for folder in folders if (folder.path / "curve.parquet").is_file()]
    columns = ["cell", "protocol", "edits", "axis", "record_id", "edit", "score"]
    scores = pd.concat([pd.DataFrame(columns=columns), *(rows for rows in found if len(rows))], ignore_index=True)
    clusters = frame.records.drop_duplicates(["cell", "record_id"])[["cell", "record_id", "cluster"]]
    return scores.merge(clusters, on=["cell", "record_id"], how="left")


def curve(scores: pd.DataFrame, seeds: Mapping[str, int], *, method: int = 0) -> Curve:
    """Scores with intervals over the cells of a method on a model.

    Args:
        scores: rows of `load_curves` for these cells and one protocol.
        seeds: seed of each cell.
        method: number of the method, see `reports.stats.resample`.
    """
    points = tuple(sorted(int(point) for point in scores["edits"].unique()))
    resampled, added = _resampled(scores[scores["edit"] > 0], seeds, list(_curve_points(points)), method)
    unrelated = [CurvePoint(point, UNRELATED, 0, 0) for point in points]
    everything = resampled | _resampled(scores[scores["edit"] == 0], seeds, unrelated, method)[0]
    estimates = {place: found.estimate(np.ones(1)) for place, found in everything.items()}
    return Curve(points, estimates, added, resampled, len(set(seeds.values())) > 1)


def _curve_points(points: Sequence[int]) -> Iterator[CurvePoint]:
    """All scores over edited records, each once."""
    spans = [(start + 1, end) for start, end in pairwise((0, *points))]
    for point in points:
        for axis in AVERAGED:
            yield from dict.fromkeys(
                CurvePoint(point, axis, first, last) for first, last in ((1, point), *spans) if last <= point
            )


def _resampled(
    scores: pd.DataFrame, seeds: Mapping[str, int], wanted: Sequence[CurvePoint], method: int
) -> tuple[dict[CurvePoint, Resampled], dict[CurvePoint, Floats]]:
    """Resampled means over records, and what each cluster adds; records are resampled for all points at once."""
    rows = scores[scores["axis"].isin({one.axis for one in wanted})]
    if rows.empty:
        return {}, {}
    of_record = rows.groupby("record_id")[["edit", "cluster"]].first()
    edit_R, cluster_R = of_record["edit"], pd.factorize(of_record["cluster"])[0].astype(np.intp)
    cubes = []
    for seed in sorted(set(seeds.values())):
        of_seed = rows[rows["cell"].map(dict(seeds)) == seed]
        by_place = of_seed.pivot_table(index="record_id", columns=["edits", "axis"], values="score", dropna=False)
        table = by_place.reindex(index=edit_R.index, columns=pd.MultiIndex.from_tuples([one[:2] for one in wanted]))
        scores_RC = table.to_numpy(dtype=np.float64)
        is_counted_RC = [[first <= edit <= last for _, _, first, last in wanted] for edit in edit_R]
        cubes.append(np.where(is_counted_RC, scores_RC, np.nan))
    scores_SRC = np.stack(cubes)
    resampled, shares_KC = resample_means(scores_SRC, cluster_R, method=method), shares(scores_SRC, cluster_R)
    alone = {one: resampled.columns(place, place + 1) for place, one in enumerate(wanted)}
    return alone, dict(zip(wanted, shares_KC.T, strict=True))


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
    """Refuse a cell whose metrics contradict its scored answers."""
    curves = folder.read("metrics.json").get("curve", {})
    stated = {
        (int(edits), protocol, AXES[axis]): found["score"]
        for edits, at_point in curves.items()
        for protocol, axes in at_point.items()
        if protocol != "retained"
        for axis, found in axes.items()
    }
    means = scores.groupby(["edits", "protocol", "axis"])["score"].mean()
    if stated.keys() != set(means.index) or not all(np.isclose(means[place], stated[place]) for place in stated):
        raise UserError(
            f"{folder.path.name}: metrics.json and curve.parquet disagree on the curve",
            fix=rerun(folder.path),
        )
