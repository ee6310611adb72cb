"""Break-even: for how many edits or models it is cheaper to edit a plug-in once; seconds of all methods from scratch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.registry import register_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.costs import Cost
    from reports.frame import SuiteFrame

MODELS = 12
EDITS = tuple(10 ** (step / 10) for step in range(41))
"""From 1 to 10,000, close enough together for lines to cross where they should on logarithmic axes."""


@register_figure("break_even")
def break_even(frame: "SuiteFrame") -> "Figure":
    """Seconds of all methods, setup included, by number of edits and by number of models, extrapolated from measurements."""
    from reports.costs import on_one_device
    from reports.drawing import PAGE, drawing, grid, left_out, legend_above, nothing

    sections = {
        str(same.iloc[0]["section_title"]): found
        for section, same in frame.cells.groupby("section", sort=False)
        if on_one_device(found := _costs(frame, str(section)))[0]
    }
    if not sections:
        return nothing("No method of this suite has been timed on all of its models, on one class of device.")
    with drawing(PAGE, 0.6 + 1.9 * len(sections)) as figure:
        rows = grid(figure, len(sections), 2)
        for (title, found), row in zip(sections.items(), rows, strict=True):
            shown, others = on_one_device(found)
            _by_edits(row[0], found, shown)
            _by_models(row[1], found, shown)
            row[0].set_ylabel(f"{title}\nseconds")
            for axes in row:
                axes.set_xlabel(axes.get_xlabel() + left_out(others))
        legend_above(figure, rows[0][0], 5)
    return figure


def _costs(frame: "SuiteFrame", section: str) -> "dict[str, Cost]":
    """Costs on all models together by title of the method, if every model has been timed."""
    from reports.tables.time import costs

    cells = frame.cells[(frame.cells["section"] == section) & ~frame.cells["is_reference"]]
    found = {
        str(same.iloc[0]["title"]): costs(frame, section, str(row))["total"]
        for row, same in cells.groupby("row", sort=False)
    }
    return {title: cost for title, cost in found.items() if cost.models}


def _by_edits(axes: "Axes", found: "Mapping[str, Cost]", shown: "Mapping[str, Cost]") -> None:
    from reports.costs import total_curve
    from reports.drawing import series_style

    curve = total_curve(shown, EDITS)
    for number, title in enumerate(found):
        style = series_style(number)
        axes.plot(EDITS if title in shown else [], curve.get(title, []), color=style["color"], label=title)
        if title in shown:
            axes.plot([shown[title].edits], [shown[title].from_scratch_s], **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    models = next(iter(shown.values())).models
    axes.set_xlabel(f"edits on {models} models" if models > 1 else "edits")


def _by_models(axes: "Axes", found: "Mapping[str, Cost]", shown: "Mapping[str, Cost]") -> None:
    from reports.drawing import series_style

    counts = range(1, MODELS + 1)
    for number, title in enumerate(found):
        if title in shown:
            cost, style = shown[title], series_style(number)
            axes.plot(counts, [cost.once_s + cost.per_model_s * count for count in counts], color=style["color"])
    axes.set_yscale("log")
    axes.set_xlabel(f"models, {next(iter(shown.values())).edits} edits each")
