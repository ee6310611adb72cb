"""Costs of methods over several cells: time as a multiple of OnceEdit's, with setup, per edit, and break-even points.

Seconds and FLOPs of a row are sums over its models, in which an edit run that serves several models counts once, and means
over seeds. Two times are compared only if they were measured on one class of device; a model in another precision is
another model (see `SuiteFrame`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        device_class: of all cells, empty if they differ.
        is_citable: whether no measurement was disturbed.
    """

    edits: int
    models: int
    seconds: Mapping[str, float]
    flops: Mapping[str, float]
    device_class: str
    is_citable: bool

    @property
    def edit_s(self) -> float:
        """Seconds of the edits alone."""
        return self.seconds["edit"]

    @property
    def fixed_s(self) -> float:
        """Seconds that do not depend on the number of edits: setup and attaching."""
        return self.seconds["setup"] + self.seconds["attach"]

    @property
    def with_setup_s(self) -> float:
        """Seconds from scratch to edited models."""
        return self.fixed_s + self.edit_s

    @property
    def marginal_s(self) -> float:
        """Seconds of an additional edit, on all models."""
        return self.edit_s / self.edits if self.edits else math.nan

    @property
    def is_setup_dominant(self) -> bool:
        """Whether setup takes longer than all edits, so that the edits alone say little about the cost."""
        return self.seconds["setup"] > self.edit_s

    def total_s(self, edits: float) -> float:
        """Seconds for a number of edits, setup included, by linear extrapolation from the measurement."""
        return self.fixed_s + edits * self.marginal_s

    def amortised_s(self, edits: float) -> float:
        """Seconds per edit if setup serves a number of edits."""
        return self.total_s(edits) / edits


NOTHING = Cost(0, 0, dict.fromkeys(PHASES, math.nan), dict.fromkeys(PHASES, math.nan), "", is_citable=True)


def cost_of(cells: pd.DataFrame) -> Cost:
    """The cost of cells of one row and section, one prompt template per model; `cells` are rows of `SuiteFrame.cells`."""
    cells = cells.drop_duplicates("cell")
    if cells.empty:
        return NOTHING
    classes = set(cells["device_class"])
    return Cost(
        edits=int(cells["edits"].iloc[0]),
        models=cells["model"].nunique(),
        seconds={phase: _total(cells, f"{phase}_s", phase) for phase in PHASES},
        flops={phase: _total(cells, f"flops_{phase}", phase) for phase in PHASES},
        device_class=classes.pop() if len(classes) == 1 else "",
        is_citable=bool(cells["citable"].all()),
    )


def multiple(cost: Cost, reference: Cost, *, with_setup: bool = False) -> float:
    """The time of the edits as a multiple of the reference's; NaN unless both were measured on one class of device."""
    ours, theirs = (each.with_setup_s if with_setup else each.edit_s for each in (cost, reference))
    if not cost.device_class or cost.device_class != reference.device_class or not theirs > 0:
        return math.nan
    return ours / theirs


def shown_multiple(cost: Cost, reference: Cost) -> tuple[float, str]:
    """The multiple as the paper prints it, and its text; it includes setup where that takes longer than the edits.

    Returns:
        The value, and `2.29`, `> 100` for more than that, `< 0.01` for what would round to zero, or an empty text for NaN.
    """
    value = multiple(cost, reference, with_setup=cost.is_setup_dominant)
    if math.isnan(value):
        return value, ""
    if value > MANY_TIMES:
        return value, f"> {MANY_TIMES}"
    return value, f"{value:.2f}" if value >= 0.005 or value == 0 else "< 0.01"


def break_even_edits(cost: Cost, reference: Cost) -> float:
    """Smallest number of edits for which the reference, with setup and attaching, is at least as fast; inf if there is none.

    NaN unless both were measured on one class of device.
    """
    if math.isnan(multiple(cost, reference)):
        return math.nan
    if reference.total_s(1) <= cost.total_s(1):
        return 1.0
    saved_s = cost.marginal_s - reference.marginal_s
    return float(math.ceil((reference.fixed_s - cost.fixed_s) / saved_s)) if saved_s > 0 else math.inf


def break_even_models(cost: Cost, reference: Cost) -> float:
    """Smallest number of models for which editing once and attaching is cheaper; inf if there is none.

    The reference pays setup and edits once and attaching per model, the other method everything per model, each at its mean
    over the models that were measured. NaN unless both were measured on one class of device.
    """
    if math.isnan(multiple(cost, reference)):
        return math.nan
    once_s = reference.seconds["setup"] + reference.edit_s
    saved_s = cost.with_setup_s / cost.models - reference.seconds["attach"] / reference.models
    return float(max(1, math.ceil(once_s / saved_s))) if saved_s > 0 else math.inf


def total_curve(costs: Mapping[str, Cost], edits: Sequence[int]) -> pd.DataFrame:
    """Seconds by number of edits, a row per number and a column per method: the lines whose crossings are the break-even."""
    return pd.DataFrame(
        {name: [cost.total_s(n) for n in edits] for name, cost in costs.items()}, index=pd.Index(edits, name="edits")
    )


def normalised(frame: "SuiteFrame") -> pd.DataFrame:
    """Each finished cell against OnceEdit's cell on the same model, dataset, prompt template and seed.

    Returns:
        One row per cell, indexed by its name, with `edit_time_vs_onceedit`, `edit_time_with_setup_vs_onceedit`,
        `edit_s_per_edit`, `break_even_edits` and `break_even_models`; NaN where there is nothing to compare with.
    """
    cells = frame.cells.drop_duplicates("cell")
    place = ["model", "section", "template", "seed"]
    references = cells[cells["method"] == REFERENCE].drop_duplicates(place).set_index(place)["cell"].to_dict()
    by_cell = {str(name): cost_of(same) for name, same in cells.groupby("cell", sort=False)}
    rows = {}
    for name, *where, is_reference in cells[["cell", *place, "is_reference"]].itertuples(index=False):
        cost, reference = by_cell[name], by_cell.get(references.get(tuple(where), ""), NOTHING)
        cost = NOTHING if is_reference else cost
        rows[name] = {
            "edit_time_vs_onceedit": multiple(cost, reference),
            "edit_time_with_setup_vs_onceedit": multiple(cost, reference, with_setup=True),
            "edit_s_per_edit": cost.marginal_s,
            "break_even_edits": break_even_edits(cost, reference),
            "break_even_models": break_even_models(cost, reference),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _total(cells: pd.DataFrame, column: str, phase: Phase) -> float:
    """Sum over models, averaged over seeds."""
    by_seed = []
    for _, same in cells.groupby("seed"):
        values = same.groupby("edit_actions")[column].max() if phase in ONCE_PER_EDIT_RUN else same[column]
        by_seed.append(float(values.sum(skipna=False)))
    return float(np.mean(by_seed))
