"""Costs along a sequence of edits: time per edit, and growth of the changed matrices."""

from typing import TYPE_CHECKING

from harness.registry import register_figure
from reports.common import score_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.frame import SuiteFrame

LINEAR_TO = 0.01
"""Growth up to here is shown on a linear scale, which has a place for none and for shrinking."""

MARKED = 10
"""Blocks that have a marker, about."""


@register_figure("sequence_cost")
def sequence_cost(frame: "SuiteFrame") -> "Figure":
    """Edits in sequence: time per edit, and growth of the norm of the changed matrices, by number of edits."""
    from reports.blocks import method_blocks
    from reports.drawing import (
        COLUMN,
        PAGE,
        drawing,
        grid,
        legend_above,
        nothing,
        row_label,
        series_style,
        spread_axis,
    )

    found = [one for one in method_blocks(frame) if not one.is_reference and len(one.blocks)]
    if not found:
        return nothing("No finished cell of this suite edits in sequence.")
    models = frame.models()
    sections = dict(zip(frame.cells["section"], frame.cells["section_title"], strict=True))
    titles = list(dict.fromkeys(one.title for one in found))
    with drawing(PAGE if len(models) > 1 else COLUMN, 0.8 + 3.0 * len(sections)) as figure:
        rows = grid(figure, 2 * len(sections), len(models), sharex=True, sharey="row")
        for number, (section, title) in enumerate(sections.items()):
            for column, (model, shown) in enumerate(models.items()):
                time, growth = rows[2 * number][column], rows[2 * number + 1][column]
                for one in found:
                    if (one.section, one.model) == (section, model):
                        style = series_style(titles.index(one.title)) | {"markevery": max(1, len(one.blocks) // MARKED)}
                        time.plot(one.blocks["edits"], one.blocks["ms_per_edit"], label=one.title, **style)
                        growth.plot(one.blocks["edits"], one.blocks["norm_drift"], **style)
                time.set_yscale("log")
                growth.set_yscale("symlog", linthresh=LINEAR_TO)
                growth.margins(y=0.1)
                for axes in (time, growth):
                    axes.yaxis.set_major_formatter("{x:,g}")
                time.set_title(shown if number == 0 else "")
                spread_axis(growth, score_points(section))
            rows[2 * number][0].set_ylabel(row_label(title, "ms per edit"))
            rows[2 * number + 1][0].set_ylabel(row_label(title, "growth of norms"))
        for axes in rows[-1]:
            axes.set_xlabel("edits so far")
        legend_above(figure, rows[0][0], 5)
    return figure
