"""Avg of each row of a suite as bars, grouped by model, to show what the components of a method add."""

from typing import TYPE_CHECKING

from harness.registry import register_figure
from reports.common import protocol_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.frame import SuiteFrame


@register_figure("components")
def components(frame: "SuiteFrame") -> "Figure":
    """Avg with and without the components of a method, by model."""
    from reports.drawing import COLORS, COLUMN, PAGE, drawing, error_bars, grid, legend_above, score_axis
    from reports.scores import MISSING, boards

    shown = boards(frame)
    across = 2 if len(shown) > 1 else 1
    down = -(-len(shown) // across)
    with drawing(PAGE if across > 1 else COLUMN, 0.5 + 1.35 * down) as figure:
        panels = [axes for row in grid(figure, down, across) for axes in row]
        for board, axes in zip(shown, panels, strict=False):
            models = [*board.models.values(), *["Score"] * (len(board.models) > 1)]
            width = 0.85 / max(1, len(board.lines))
            for number, line in enumerate(board.lines):
                found = [
                    line.by_model[model].axes["avg"] if model in line.by_model else MISSING for model in board.models
                ]
                found += [line.score] * (len(models) > len(found))
                places = [place - 0.425 + (number + 0.5) * width for place in range(len(models))]
                axes.bar(
                    places, [each.value for each in found], width * 0.94, yerr=error_bars(found),
                    color=COLORS[number % len(COLORS)], label=line.title, error_kw={"elinewidth": 0.5, "ecolor": "#333333"},
                )  # fmt: skip
            score_axis(axes, "Avg")
            axes.set_xticks(range(len(models)), models)
            axes.set_title(f"{board.title}, {protocol_title(board.protocol)}")
        for unused in panels[len(shown) :]:
            unused.set_axis_off()
        legend_above(figure, panels[0], 3)
    return figure
