"""Costs of methods over several cells: times as multiples of OnceEdit's, seconds per edit, and break-even points.

There are two bases of comparison, `EDITS` and `FROM_SCRATCH`. Seconds and FLOPs of a row are sums over its models, in which
an edit run that serves several models counts once, and means over the seeds that have all of these models. Two times are
compared only if every phase in them was measured on one class of device; a model in another precision is another model (see
`SuiteFrame`).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from harness.api import Phase
from reports.common import PHASES

if TYPE_CHECKING:
    from reports.frame import SuiteFrame

REFERENCE = "onceedit"
"""The method whose editing time is 1, as in Table 4 of the OnceEdit paper."""

MANY_TIMES = 100
"""A larger multiple is printed as `> 100`, as in the paper."""

EDITS: tuple[Phase, ...] = ("edit",)
"""The edits alone, without what an edit run prepares or attaches."""

FROM_SCRATCH: tuple[Phase, ...] = ("setup", "edit", "attach")
"""Everything between unedited and edited models."""

ONCE_PER_EDIT_RUN: tuple[Phase, ...] = ("setup", "edit")
"""Phases that models share whenever they share an edit run."""

FLOPS = (*PHASES, "per_edit", "per_prompt", "per_token")
FORMULA = ("attach", "per_token", "attach_in_tokens")
"""Names under `flops`, and under `flops` / `formula`, in cost.json."""


def flops_columns(cost: Mapping[str, Any]) -> dict[str, float]:
    """Columns of a frame for the FLOPs in a cell's cost.json, NaN where they are not known.

    `flops_<phase>`, `flops_per_edit`, `flops_per_prompt`, `flops_per_token`; `formula_attach`, `formula_per_token` and
    `formula_attach_in_tokens` are what the paper's formulas give.
    """
    counted = cost.get("flops", {})
    formula = counted.get("formula", {})
    columns = {f"flops_{name}": float(counted.get(name, np.nan)) for name in FLOPS}
    return columns | {f"formula_{name}": float(formula.get(name, np.nan)) for name in FORMULA}


@dataclass(frozen=True, slots=True)
class Cost:
    """Costs of a method on one model or on several; NaN where nothing was measured.

    Attributes:
        edits: number of edits per model.
        models: number of models.
        seconds: by phase.
        flops: by phase.
        device_classes: by phase, what its seconds were measured on; empty for a phase that took no time.
        is_shared: whether the edits are an artifact, which serves any number of models.
        is_citable: whether no measurement was interrupted.
    """

    edits: int
    models: int
    seconds: Mapping[str, float]
    flops: Mapping[str, float]
    device_classes: Mapping[str, frozenset[str]]
    is_shared: bool
    is_citable: bool

    def seconds_of(self, basis: Sequence[Phase]) -> float:
        """Seconds of some phases together."""
        return sum(self.seconds[phase] for phase in basis)

    def measured_on(self, basis: Sequence[Phase]) -> frozenset[str]:
        """Classes of device that the seconds of some phases come from."""
        return frozenset().union(*(self.device_classes[phase] for phase in basis))

    @property
    def edit_s(self) -> float:
        """Seconds of the edits alone."""
        return self.seconds_of(EDITS)

    @property
    def from_scratch_s(self) -> float:
        """Seconds from unedited to edited models: setup, edits and attaching."""
        return self.seconds_of(FROM_SCRATCH)

    @property
    def fixed_s(self) -> float:
        """Seconds of an edit run that do not depend on its number of edits: setup and attaching."""
        return self.seconds["setup"] + self.seconds["attach"]

    @property
    def marginal_s(self) -> float:
        """Seconds of an additional edit, on all models."""
        return self.edit_s / self.edits if self.edits else math.nan

    def total_s(self, edits: float) -> float:
        """Seconds for a number of edits in one edit run, setup included, by linear extrapolation from the measurement."""
        return self.fixed_s + edits * self.marginal_s

    @property
    def once_s(self) -> float:
        """Seconds that do not depend on the number of models: setup and edits that serve any number of them."""
        return self.seconds_of(ONCE_PER_EDIT_RUN) if self.is_shared else 0.0

    @property
    def per_model_s(self) -> float:
        """Seconds of an additional model, at the mean over those that were measured."""
        return (self.from_scratch_s - self.once_s) / self.models if self.models else math.nan


_UNKNOWN: dict[str, float] = dict.fromkeys(PHASES, math.nan)
NOTHING = Cost(0, 0, _UNKNOWN, _UNKNOWN, dict.fromkeys(PHASES, frozenset()), is_shared=False, is_citable=True)


def cost_of(cells: pd.DataFrame) -> Cost:
    """The cost of cells of one row and section, one prompt template per model; `cells` are rows of `SuiteFrame.cells`.

    Seeds without a cell on one of the models do not count, so that all sums are over the same models.
    """
    cells = cells.drop_duplicates("cell")
    cells = cells[cells.groupby("seed")["model"].transform("nunique") == cells["model"].nunique()]
    if cells.empty:
        return NOTHING
    return Cost(
        edits=int(cells["edits"].iloc[0]),
        models=cells["model"].nunique(),
        seconds={phase: _total(cells, f"{phase}_s", phase) for phase in PHASES},
        flops={phase: _total(cells, f"flops_{phase}", phase) for phase in PHASES},
        device_classes={phase: frozenset().union(*cells[f"{phase}_classes"]) for phase in PHASES},
        is_shared=bool(cells["is_edit_shared"].any()),
        is_citable=bool(cells["citable"].all()),
    )


def multiple(cost: Cost, reference: Cost, basis: Sequence[Phase] = EDITS) -> float:
    """A time as a multiple of the reference's; NaN unless both were measured on one and the same class of device.

    Args:
        cost: of a method.
        reference: of OnceEdit.
        basis: the phases that count on both sides.
    """
    theirs = reference.seconds_of(basis)
    if len(cost.measured_on(basis) | reference.measured_on(basis)) != 1 or not theirs > 0:
        return math.nan
    return cost.seconds_of(basis) / theirs


def shown_multiple(value: float) -> str:
    """A multiple as the paper prints it: `2.29`, `> 100` for more than that, `< 0.01` for what would round to zero.

    Empty for NaN.
    """
    if math.isnan(value):
        return ""
    if value > MANY_TIMES:
        return f"> {MANY_TIMES}"
    return f"{value:.2f}" if value >= 0.005 or value == 0 else "< 0.01"


def on_one_device(costs: Mapping[str, Cost]) -> tuple[dict[str, Cost], list[str]]:
    """What can be drawn on one axis: the costs from scratch that were measured on the class of device of most of them.

    Returns:
        These, and the names of the others: costs of another class, or of several.
    """
    classes = {name: cost.measured_on(FROM_SCRATCH) for name, cost in costs.items()}
    common = Counter(found for found in classes.values() if len(found) == 1).most_common(1)
    shown = {name: cost for name, cost in costs.items() if common and classes[name] == common[0][0]}
    return shown, [name for name in costs if name not in shown]


class BreakEven(NamedTuple):
    """The numbers for which the reference is at least as fast from scratch.

    Attributes:
        first: the smallest, 1 or more; inf if there is none.
        last: the largest; inf if there is no end, 0 if there is none.
    """

    first: float
    last: float


def break_even_edits(cost: Cost, reference: Cost) -> BreakEven:
    """The numbers of edits for which the reference, with setup and attaching, is at least as fast.

    NaN unless both were measured on one class of device.
    """
    if math.isnan(multiple(cost, reference, FROM_SCRATCH)):
        return BreakEven(math.nan, math.nan)
    return _break_even(reference.fixed_s - cost.fixed_s, cost.marginal_s - reference.marginal_s)


def break_even_models(cost: Cost, reference: Cost) -> BreakEven:
    """The numbers of models for which the reference is at least as fast.

    Edits that serve any number of models are paid once, together with their setup, and everything else per model. NaN unless
    both were measured on one class of device.
    """
    if math.isnan(multiple(cost, reference, FROM_SCRATCH)):
        return BreakEven(math.nan, math.nan)
    return _break_even(reference.once_s - cost.once_s, cost.per_model_s - reference.per_model_s)


def _break_even(more_s: float, saved_s: float) -> BreakEven:
    """The whole numbers n ≥ 1 with n · saved_s ≥ more_s.

    Args:
        more_s: seconds that the reference needs once and the other method does not.
        saved_s: seconds that the reference saves each time; negative if it needs more.
    """
    if saved_s > 0:
        return BreakEven(float(max(1, math.ceil(more_s / saved_s))), math.inf)
    if more_s > saved_s:
        return BreakEven(math.inf, 0.0)
    return BreakEven(1.0, float(math.floor(more_s / saved_s)) if saved_s else math.inf)


def total_curve(costs: Mapping[str, Cost], edits: Sequence[float]) -> pd.DataFrame:
    """Seconds by number of edits, a row per number and a column per method: the lines whose crossings are the break-even."""
    return pd.DataFrame(
        {name: [cost.total_s(n) for n in edits] for name, cost in costs.items()}, index=pd.Index(edits, name="edits")
    )


def reference_row(frame: "SuiteFrame") -> str:
    """The row that multiples refer to: the first of OnceEdit in the suite that has a finished cell; empty if none has."""
    once = frame.cells[frame.cells["method"] == REFERENCE]
    known = frame.in_order(pd.concat([once, frame.missing[frame.missing["row"].isin(once["row"])]]))
    return str(known["row"].iloc[0]) if len(known) else ""


def normalised(frame: "SuiteFrame") -> pd.DataFrame:
    """Each finished cell against that of `reference_row` on the same model, dataset, prompt template and seed.

    Returns:
        One row per cell, indexed by its name, with `edit_time_vs_onceedit`, `time_from_scratch_vs_onceedit`,
        `edit_s_per_edit`, and `break_even_edits`, `break_even_models` and the same with `_until` (see `BreakEven`); NaN where
        there is nothing to compare with.
    """
    cells = frame.cells.drop_duplicates("cell")
    place = ["model", "section", "template", "seed"]
    references = cells[cells["row"] == reference_row(frame)].set_index(place)["cell"].to_dict()
    by_cell = {str(name): cost_of(same) for name, same in cells.groupby("cell", sort=False)}
    rows = {}
    for name, *where, is_reference in cells[["cell", *place, "is_reference"]].itertuples(index=False):
        cost, reference = by_cell[name], by_cell.get(references.get(tuple(where), ""), NOTHING)
        cost = NOTHING if is_reference else cost
        edits, models = break_even_edits(cost, reference), break_even_models(cost, reference)
        rows[name] = {
            "edit_time_vs_onceedit": multiple(cost, reference),
            "time_from_scratch_vs_onceedit": multiple(cost, reference, FROM_SCRATCH),
            "edit_s_per_edit": cost.marginal_s,
            "break_even_edits": edits.first,
            "break_even_edits_until": edits.last,
            "break_even_models": models.first,
            "break_even_models_until": models.last,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _total(cells: pd.DataFrame, column: str, phase: Phase) -> float:
    """Sum over models, averaged over seeds."""
    by_seed = []
    for _, same in cells.groupby("seed"):
        values = same.groupby("edit_actions")[column].max() if phase in ONCE_PER_EDIT_RUN else same[column]
        by_seed.append(float(values.sum(skipna=False)))
    return float(np.mean(by_seed))
