"""Scores with intervals for each line of a table: averaged over seeds, under the better prompt template, over all models."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pandas as pd

from reports.common import AVERAGED
from reports.frame import SuiteFrame
from reports.stats import Estimate, Floats, estimate, paired_difference, resample_means

MISSING = Estimate(np.nan, np.nan, np.nan)
_AVG_WEIGHTS = np.full(len(AVERAGED), 1 / len(AVERAGED))


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One method on one model under one prompt template, over all its seeds.

    Attributes:
        scores_SRC: S seeds × R records × (rel, gen, loc), NaN for a seed without a finished cell. Seeds and records are
            those of the whole line and section, in the same order for all models.
        axes: estimates by column: rel, gen, loc, avg and, where scored, loc_unrelated and port.
        exact: exact-match rates by column.
        cells: folders of the cells, one per seed.
        edit_actions: ids of the edit runs behind the cells.
    """

    model: str
    template: str
    scores_SRC: Floats
    axes: dict[str, Estimate]
    exact: dict[str, float]
    cells: tuple[str, ...]
    edit_actions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Line:
    """A method in one section under one protocol.

    Attributes:
        by_model: scores under the chosen template, for each model with a finished cell.
        passed_over: scores under the other templates.
        score: mean of Avg over all models of the suite; NaN if a model is missing.
        freq: number of distinct edit runs over all models for one seed; None if a model is missing.
        is_reference: whether this is the unedited model.
    """

    row: str
    title: str
    by_model: dict[str, ModelScore]
    passed_over: tuple[ModelScore, ...]
    score: Estimate
    freq: int | None
    is_reference: bool


@dataclass(frozen=True, slots=True)
class Board:
    """All lines of one section (dataset) under one protocol, with titles of the models in the order of the suite."""

    protocol: str
    section: str
    title: str
    models: dict[str, str] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()

    def lead(self) -> tuple[Line, Line, Estimate] | None:
        """The two best methods by Score and their paired difference; None if fewer than two methods are complete."""
        complete = [line for line in self.lines if not line.is_reference and not np.isnan(line.score.value)]
        if len(complete) < 2:
            return None
        best, second = sorted(complete, key=lambda line: line.score.value, reverse=True)[:2]
        weights_C = np.tile(_AVG_WEIGHTS, len(self.models)) / len(self.models)
        left_SRC, right_SRC = (_side_by_side(line.by_model, self.models) for line in (best, second))
        return best, second, paired_difference(left_SRC, right_SRC, weights_C)


@lru_cache(maxsize=1)
def boards(frame: SuiteFrame) -> tuple[Board, ...]:
    """One board per protocol and section, in the order of the suite; computed once for all tables and figures of a suite."""
    return tuple(_boards(frame))


def _boards(frame: SuiteFrame) -> Iterator[Board]:
    models = frame.models()
    templates = list(dict.fromkeys(frame.cells["template"]))
    for protocol, of_protocol in frame.cells.groupby("protocol", sort=False):
        for section, cells in of_protocol.groupby("section", sort=False):
            scores = frame.records[
                (frame.records["protocol"] == protocol) & frame.records["cell"].isin(cells["cell"])
            ].set_index("cell")
            wanted = scores[scores["axis"].isin(AVERAGED)]
            order = sorted(set(wanted["record_id"]))
            lines = tuple(
                _line(row, of_row, scores, order, models, templates) for row, of_row in cells.groupby("row", sort=False)
            )
            yield Board(str(protocol), str(section), cells.iloc[0]["section_title"], models, lines)


def best_prompt(candidates: Sequence[ModelScore], templates: Sequence[str]) -> dict[str, ModelScore]:
    """Choose the template to show for each model: the one with the highest Avg, as the paper did for its baselines.

    A method whose edit serves several models gets one template for all of them, since two templates would take two
    edits: the one that covers most models and, among those, has the highest mean of Avg. Ties go to the earlier
    template. The unedited model is always shown with the first template of the suite.
    """
    ordered = sorted(candidates, key=lambda score: templates.index(score.template))
    if not any(score.edit_actions for score in ordered):
        return {score.model: score for score in reversed(ordered)}
    if _shares_edits(ordered):
        by_template = {
            score.template: [other for other in ordered if other.template == score.template] for score in ordered
        }
        winner = max(by_template.values(), key=lambda scores: (len(scores), _mean_avg(scores)))
        return {score.model: score for score in winner}
    return {
        model: max((score for score in ordered if score.model == model), key=lambda score: _mean_avg([score]))
        for model in dict.fromkeys(score.model for score in ordered)
    }


def _shares_edits(scores: Sequence[ModelScore]) -> bool:
    """Whether one edit run serves more than one model."""
    pairs = {(score.model, action) for score in scores for action in score.edit_actions}
    return len(pairs) > len({action for _, action in pairs})


def _mean_avg(scores: Sequence[ModelScore]) -> float:
    """Mean of Avg; -1, below every possible score, if one is missing."""
    mean = float(np.mean([score.axes["avg"].value for score in scores]))
    return -1.0 if np.isnan(mean) else mean


def _line(
    row: object,
    cells: pd.DataFrame,
    scores: pd.DataFrame,
    order: list[str],
    models: dict[str, str],
    templates: Sequence[str],
) -> Line:
    seeds = sorted(set(cells["seed"]))
    candidates = [
        _model_score(same, scores, order, seeds) for _, same in cells.groupby(["model", "template"], sort=False)
    ]
    chosen = best_prompt(candidates, templates)
    by_model = {model: chosen[model] for model in models if model in chosen}
    passed_over = tuple(score for score in candidates if score is not by_model.get(score.model))
    score, freq = MISSING, None
    if len(by_model) == len(models):
        score = estimate(_side_by_side(by_model, models), np.tile(_AVG_WEIGHTS, len(models)) / len(models))
        freq = _edit_runs(cells, by_model)
    first = cells.iloc[0]
    return Line(str(row), first["title"], by_model, passed_over, score, freq, bool(first["is_reference"]))


def _edit_runs(cells: pd.DataFrame, by_model: dict[str, ModelScore]) -> int:
    """Number of distinct edit runs behind the chosen cells for one seed; seeds may differ in missing cells, so the maximum."""
    chosen = cells[cells["cell"].isin([name for score in by_model.values() for name in score.cells])]
    return max(len(frozenset().union(*same["edit_actions"])) for _, same in chosen.groupby("seed"))


def _model_score(cells: pd.DataFrame, scores: pd.DataFrame, order: list[str], seeds: list[int]) -> ModelScore:
    of_cells = scores.loc[scores.index.isin(cells["cell"])]
    scores_SRC = _cube(of_cells, cells, order, seeds, AVERAGED)
    resampled = resample_means(scores_SRC)
    axes = {axis: resampled.estimate(unit_C) for axis, unit_C in zip(AVERAGED, np.eye(len(AVERAGED)), strict=True)}
    axes["avg"] = resampled.estimate(_AVG_WEIGHTS)
    for axis in ("loc_unrelated", "port"):
        asked = sorted(set(of_cells.loc[of_cells["axis"] == axis, "record_id"]))
        if asked:
            axes[axis] = estimate(_cube(of_cells, cells, asked, seeds, [axis]), np.ones(1))
    return ModelScore(
        model=str(cells.iloc[0]["model"]),
        template=str(cells.iloc[0]["template"]),
        scores_SRC=scores_SRC,
        axes=axes,
        exact={str(axis): float(rate) for axis, rate in of_cells.groupby("axis")["exact"].mean().items()},
        cells=tuple(cells["cell"]),
        edit_actions=frozenset().union(*cells["edit_actions"]),
    )


def _cube(
    of_cells: pd.DataFrame, cells: pd.DataFrame, records: list[str], seeds: list[int], axes: Sequence[str]
) -> Floats:
    """Scores by seed, record and axis, S × R × C."""
    seed_of = dict(zip(cells["cell"], cells["seed"], strict=True))
    place = [of_cells.index.map(seed_of), of_cells["record_id"].array, of_cells["axis"].array]
    by_place = pd.Series(of_cells["score"].array, index=pd.MultiIndex.from_arrays(place))
    wanted = pd.MultiIndex.from_product([seeds, records, axes])
    return by_place.reindex(wanted).to_numpy(dtype=np.float64).reshape(len(seeds), len(records), len(axes))


def _side_by_side(by_model: Mapping[str, ModelScore], models: Iterable[str]) -> Floats:
    return np.concatenate([by_model[model].scores_SRC for model in models], axis=2)
