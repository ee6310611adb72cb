"""Scores with intervals for each line of a table: averaged over seeds, under the better prompt template, over all models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from reports.common import AVERAGED, AXES
from reports.frame import SuiteFrame
from reports.stats import Estimate, Floats, Indices, Resampled, choose, resample_means, shares, side_by_side

MISSING = Estimate(np.nan, np.nan, np.nan)
AVG_WEIGHTS = np.full(len(AVERAGED), 1 / len(AVERAGED))


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One method on one model under one prompt template, over all its seeds.

    Attributes:
        scores_SRC: S seeds × R records × (rel, gen, loc), NaN for a seed without a finished cell. Seeds and records are
            those of the whole line and section, in the same order for all models.
        shares_KC: what each of the K clusters of records adds to rel, gen and loc.
        resampled: rel, gen and loc; of the template that is shown, including the choice among all templates.
        axes: estimates by column: rel, gen, loc, avg and the other axes that have a score.
        exact: exact-match rates by column.
        cells: folders of the cells, one per seed.
        edit_actions: ids of the edit runs that the cells used.
    """

    model: str
    template: str
    scores_SRC: Floats
    shares_KC: Floats
    resampled: Resampled
    axes: dict[str, Estimate]
    exact: dict[str, float]
    cells: tuple[str, ...]
    edit_actions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Line:
    """A method in one section under one protocol.

    Attributes:
        by_model: scores under the chosen template, for each model with a finished cell; intervals include the choice.
        passed_over: scores under the other templates.
        score: mean of Avg over all models of the suite; NaN if a model is missing.
        freq: number of distinct edit runs over all models for one seed; None if a model is missing.
        is_reference: whether this is the unedited model.
        has_choice: whether the seeds or the choice of a template add to the variation between records.
    """

    row: str
    title: str
    by_model: dict[str, ModelScore]
    passed_over: tuple[ModelScore, ...]
    score: Estimate
    freq: int | None
    is_reference: bool
    has_choice: bool

    def resampled(self) -> Resampled:
        """Rel, gen and loc of all models next to each other."""
        return side_by_side([score.resampled for score in self.by_model.values()])


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
        return best, second, best.resampled().minus(second.resampled(), score_weights(len(self.models)))


def score_weights(models: int) -> Floats:
    """Weights with which rel, gen and loc of several models next to each other add up to Score."""
    return np.tile(AVG_WEIGHTS, models) / models


@lru_cache(maxsize=1)
def boards(frame: SuiteFrame) -> tuple[Board, ...]:
    """One board per protocol and section, in the order of the suite; computed once for all tables and figures of a suite."""
    return tuple(_boards(frame))


def _boards(frame: SuiteFrame) -> Iterator[Board]:
    models = frame.models()
    templates = frame.templates()
    for protocol, of_protocol in frame.cells.groupby("protocol", sort=False):
        for section, cells in of_protocol.groupby("section", sort=False):
            scores = frame.records[
                (frame.records["protocol"] == protocol) & frame.records["cell"].isin(cells["cell"])
            ].set_index("cell")
            wanted = scores[scores["axis"].isin(AVERAGED)]
            order = wanted.groupby("record_id")["cluster"].first()  # sorted by id
            lines = tuple(
                _line(number, str(row), of_row, scores, order, models, templates)
                for number, (row, of_row) in enumerate(cells.groupby("row", sort=False))
            )
            yield Board(str(protocol), str(section), cells.iloc[0]["section_title"], models, lines)


def cell_scores(frame: SuiteFrame, cell: str, protocol: str) -> dict[str, Estimate]:
    """Estimates of one cell under one protocol by column, as in `ModelScore.axes`."""
    cells = frame.cells[(frame.cells["cell"] == cell) & (frame.cells["protocol"] == protocol)]
    scores = frame.records[(frame.records["cell"] == cell) & (frame.records["protocol"] == protocol)].set_index("cell")
    order = scores[scores["axis"].isin(AVERAGED)].groupby("record_id")["cluster"].first()
    return _model_score(cells, scores, order, [int(cells.iloc[0]["seed"])], 0).axes


def shown_cells(frame: SuiteFrame, section: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """Cells of a section by row and model, under the prompt template that the first table of quality shows."""
    board = next(board for board in boards(frame) if board.section == section)
    return {(line.row, model): score.cells for line in board.lines for model, score in line.by_model.items()}


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
    number: int,
    row: str,
    cells: pd.DataFrame,
    scores: pd.DataFrame,
    order: "pd.Series[str]",
    models: dict[str, str],
    templates: Sequence[str],
) -> Line:
    seeds = sorted(set(cells["seed"]))
    candidates = [
        _model_score(same, scores, order, seeds, number) for _, same in cells.groupby(["model", "template"], sort=False)
    ]
    chosen = best_prompt(candidates, templates)
    passed_over = tuple(score for score in candidates if score is not chosen.get(score.model))
    by_model = _with_choice({model: chosen[model] for model in models if model in chosen}, candidates)
    first = cells.iloc[0]
    has_choice = len(seeds) > 1 or bool(passed_over and first["edit_actions"])
    line = Line(row, first["title"], by_model, passed_over, MISSING, None, bool(first["is_reference"]), has_choice)
    if len(by_model) < len(models):
        return line
    score = line.resampled().estimate(score_weights(len(models)))
    return replace(line, score=score, freq=_edit_runs(cells, by_model))


def _with_choice(chosen: dict[str, ModelScore], candidates: Sequence[ModelScore]) -> dict[str, ModelScore]:
    """The chosen scores; the template is chosen again in every resample, as `best_prompt` does."""
    if not any(score.edit_actions for score in candidates):
        return chosen
    by_template: dict[str, dict[str, ModelScore]] = {}
    for score in candidates:
        by_template.setdefault(score.template, {})[score.model] = score
    if _shares_edits(candidates):
        able = [of_models for of_models in by_template.values() if of_models.keys() >= chosen.keys()]
        together = [side_by_side([of_models[model].resampled for model in chosen]) for of_models in able]
        best, width = choose(together, score_weights(len(chosen))), len(AVERAGED)
        found = {model: best.columns(width * place, width * (place + 1)) for place, model in enumerate(chosen)}
    else:
        found = {
            model: choose([each.resampled for each in candidates if each.model == model], AVG_WEIGHTS)
            for model in chosen
        }
    return {
        model: replace(score, resampled=found[model], axes={**score.axes, **_axes(found[model])})
        for model, score in chosen.items()
    }


def _axes(resampled: Resampled) -> dict[str, Estimate]:
    """Rel, gen, loc and avg."""
    axes = {axis: resampled.estimate(unit_C) for axis, unit_C in zip(AVERAGED, np.eye(len(AVERAGED)), strict=True)}
    return {**axes, "avg": resampled.estimate(AVG_WEIGHTS)}


def _edit_runs(cells: pd.DataFrame, by_model: dict[str, ModelScore]) -> int:
    """Number of distinct edit runs of the chosen cells for one seed; seeds may differ in missing cells, so the maximum."""
    chosen = cells[cells["cell"].isin([name for score in by_model.values() for name in score.cells])]
    return max(len(frozenset().union(*same["edit_actions"])) for _, same in chosen.groupby("seed"))


def _model_score(
    cells: pd.DataFrame, scores: pd.DataFrame, order: "pd.Series[str]", seeds: list[int], number: int
) -> ModelScore:
    of_cells = scores.loc[scores.index.isin(cells["cell"])]
    scores_SRC, cluster_R = _cube(of_cells, cells, list(order.index), seeds, AVERAGED), _numbered(order)
    resampled = resample_means(scores_SRC, cluster_R, method=number)
    axes = _axes(resampled)
    for axis in (column for column in AXES.values() if column not in AVERAGED):
        of_axis = of_cells[of_cells["axis"] == axis]
        if len(of_axis):
            asked = of_axis.groupby("record_id")["cluster"].first()
            cube_SRC = _cube(of_cells, cells, list(asked.index), seeds, [axis])
            axes[axis] = resample_means(cube_SRC, _numbered(asked), method=number).estimate(np.ones(1))
    return ModelScore(
        model=str(cells.iloc[0]["model"]),
        template=str(cells.iloc[0]["template"]),
        scores_SRC=scores_SRC,
        shares_KC=shares(scores_SRC, cluster_R),
        resampled=resampled,
        axes=axes,
        exact={str(axis): float(rate) for axis, rate in of_cells.groupby("axis")["exact"].mean().items()},
        cells=tuple(cells["cell"]),
        edit_actions=frozenset().union(*cells["edit_actions"]),
    )


def _numbered(clusters: "pd.Series[str]") -> Indices:
    """Clusters by number, in order of appearance."""
    return pd.factorize(clusters)[0].astype(np.intp)


def _cube(
    of_cells: pd.DataFrame, cells: pd.DataFrame, records: list[str], seeds: list[int], axes: Sequence[str]
) -> Floats:
    """Scores by seed, record and axis, S × R × C."""
    seed_of = dict(zip(cells["cell"], cells["seed"], strict=True))
    place = [of_cells.index.map(seed_of), of_cells["record_id"].array, of_cells["axis"].array]
    by_place = pd.Series(of_cells["score"].array, index=pd.MultiIndex.from_arrays(place))
    wanted = pd.MultiIndex.from_product([seeds, records, axes])
    return by_place.reindex(wanted).to_numpy(dtype=np.float64).reshape(len(seeds), len(records), len(axes))
