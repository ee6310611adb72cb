"""Break-even: from how many edits or models on it is cheaper to edit a plug-in once; seconds of all methods with setup."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.registry import register_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.costs import Cost
    from reports.frame import SuiteFrame

MODELS = 12
EDITS = (1, 10, 100, 1000, 10_000)


@register_figure("break_even")
def break_even(frame: "SuiteFrame") -> "Figure":
    """Seconds of all methods, setup included, by number of edits and by number of models, extrapolated from measurements."""
    from reports.drawing import PAGE, drawing, grid, legend_above, nothing

    sections = {
        str(section): (str(same.iloc[0]["section_title"]), found)
        for section, same in frame.cells.groupby("section", sort=False)
        if (found := _costs(frame, str(section)))
    }
    if not sections:
        return nothing("No method of this suite has been timed on all of its models.")
    with drawing(PAGE, 0.6 + 1.9 * len(sections)) as figure:
        rows = grid(figure, len(sections), 2)
        for (title, found), row in zip(sections.values(), rows, strict=True):
            _by_edits(row[0], found)
            _by_models(row[1], found)
            row[0].set_ylabel(f"{title}\nseconds")
        legend_above(figure, rows[0][0], 5)
    return figure


@dataclass(frozen=True, slots=True)
class _Line:
    """A method's cost on all models together, and whether these share its edits."""

    cost: "Cost"
    is_shared: bool


def _costs(frame: "SuiteFrame", section: str) -> dict[str, _Line]:
    """Lines by title of the method, if every model has been timed on one class of device."""
    from reports.tables.time import costs

    cells = frame.cells[(frame.cells["section"] == section) & ~frame.cells["is_reference"]]
    found = {
        str(same.iloc[0]["title"]): _Line(costs(frame, section, str(row))["total"], _shares_edits(same))
        for row, same in cells.groupby("row", sort=False)
    }
    return {title: line for title, line in found.items() if line.cost.device_class}


def _shares_edits(cells: "pd.DataFrame") -> bool:
    """Whether an edit run serves several models."""
    pairs = {(model, run) for model, runs in zip(cells["model"], cells["edit_actions"], strict=True) for run in runs}
    return len({run for _, run in pairs}) < len(pairs)


def _by_edits(axes: "Axes", found: Mapping[str, _Line]) -> None:
    from reports.costs import total_curve
    from reports.drawing import series

    curve = total_curve({title: line.cost for title, line in found.items()}, EDITS)
    for number, (title, line) in enumerate(found.items()):
        cost, style = line.cost, series(number)
        axes.plot(EDITS, curve[title], color=style["color"], label=title)
        axes.plot([cost.edits], [cost.with_setup_s], **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    models = next(iter(found.values())).cost.models
    axes.set_xlabel(f"edits on {models} models" if models > 1 else "edits")


def _by_models(axes: "Axes", found: Mapping[str, _Line]) -> None:
    """Edits that models share are paid once, everything else per model, at its mean over the models that were measured."""
    from reports.drawing import COLORS

    counts = list(range(1, MODELS + 1))
    for number, line in enumerate(found.values()):
        cost = line.cost
        shared_s = cost.seconds["setup"] + cost.edit_s if line.is_shared else 0.0
        per_model_s = (cost.with_setup_s - shared_s) / cost.models
        axes.plot(counts, [shared_s + per_model_s * count for count in counts], color=COLORS[number % len(COLORS)])
    axes.set_yscale("log")
    axes.set_xlabel(f"models, {next(iter(found.values())).cost.edits} edits each")
