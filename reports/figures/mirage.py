"""What is left of a teacher-forced score, step by step, up to answers as in practice."""

from typing import TYPE_CHECKING

from harness.registry import register_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.frame import SuiteFrame
    from reports.tables.mirage import Line

STAGES = ("teacher-\nforced", "own\nwords", "whole\ntarget", "own\nlength", "instruc-\ntion")
"""What is new at each stage of the table `mirage`."""

SPREAD = 0.28
"""Width over which the points of a stage are spread, so that intervals of several methods can be told apart."""


@register_figure("mirage")
def mirage(frame: "SuiteFrame") -> "Figure":
    """From teacher-forced to natural answers: the score of each method at each stage, under the first prompt template."""
    from reports.drawing import COLUMN, PAGE, drawing, grid, legend_above, nothing, row_label, score_axis
    from reports.tables.mirage import AXES, changes, missing_protocols

    if missing := missing_protocols(frame):
        return nothing(f"This figure needs the protocol {missing[0]}.")
    models = frame.models()
    sections = frame.cells.groupby("section", sort=False)
    found = [
        (
            (str(cells["section_title"].iloc[0]), title),
            {model: list(changes(frame, cells[cells["model"] == model], axis)) for model in models},
        )
        for _, cells in sections
        for axis, title in AXES.items()
    ]
    found = [(label, by_model) for label, by_model in found if any(by_model.values())]
    titles = list(dict.fromkeys(line.title for _, by_model in found for lines in by_model.values() for line in lines))
    with drawing(PAGE if len(models) > 1 else COLUMN, 0.75 + 1.25 * len(found)) as figure:
        rows = grid(figure, len(found), len(models), sharex=True, sharey=True)
        for row, (label, by_model) in zip(rows, found, strict=True):
            for axes, (model, title) in zip(row, models.items(), strict=True):
                for line in by_model[model]:
                    _draw(axes, line, titles)
                axes.set_title(title if row is rows[0] else "")
                score_axis(axes, "")
                axes.set_xticks(range(len(STAGES)), STAGES)
                axes.set_xlim(-0.4, len(STAGES) - 0.6)
                axes.label_outer()
            row[0].set_ylabel(row_label(*label))
        legend_above(figure, rows[0][0], 5)
    return figure


def _draw(axes: "Axes", line: "Line", titles: "list[str]") -> None:
    from reports.drawing import REFERENCE, error_bars, series_style

    place = titles.index(line.title)
    shift = SPREAD * (place / max(1, len(titles) - 1) - 0.5)
    style = REFERENCE if line.is_reference else series_style(place)
    axes.errorbar(
        [number + shift for number in range(len(line.stages))], [each.value for each in line.stages],
        yerr=error_bars(line.stages), label=line.title, elinewidth=0.5, markersize=2.5, linewidth=0.9, **style,
    )  # fmt: skip
