"""Bars of reliability, generality and locality by method and model (figure 3 of the OnceEdit paper)."""

from typing import TYPE_CHECKING

from harness.registry import register_figure
from reports.common import AVERAGED, protocol_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.frame import SuiteFrame
    from reports.scores import Board

NAMES = {"rel": "Reliability", "gen": "Generality", "loc": "Locality"}
WIDTH = 0.27
"""Of a bar, where methods are 1 apart."""

CROWDED = 12
"""The names of more methods than these are written upwards, not at an angle."""


@register_figure("quality_bars")
def quality_bars(frame: "SuiteFrame") -> "Figure":
    """Reliability, generality and locality of all methods as bars (figure 3 of the OnceEdit paper)."""
    from reports.drawing import COLUMN, PAGE, drawing, grid, legend_above, row_label
    from reports.scores import boards

    shown = boards(frame)
    models = list(frame.models())
    with drawing(PAGE if len(models) > 1 else COLUMN, 0.75 + 1.15 * len(shown)) as figure:
        rows = grid(figure, len(shown), len(models), sharey=True)
        for board, row in zip(shown, rows, strict=True):
            for model, axes in zip(models, row, strict=True):
                _bars(axes, board, model)
                axes.set_title(board.models[model] if board is shown[0] else "")
                axes.label_outer()
            row[0].set_ylabel(row_label(board.title, protocol_title(board.protocol)))
        legend_above(figure, rows[0][0], 3)
    return figure


def _bars(axes: "Axes", board: "Board", model: str) -> None:
    from reports.drawing import AXIS_COLORS, error_bars, score_axis
    from reports.scores import MISSING

    for number, axis in enumerate(AVERAGED):
        found = [line.by_model[model].axes[axis] if model in line.by_model else MISSING for line in board.lines]
        places = [place + (number - 1) * WIDTH for place in range(len(found))]
        values = [each.value for each in found]
        axes.bar(
            places, values, WIDTH * 0.92, yerr=error_bars(found), color=AXIS_COLORS[axis], label=NAMES[axis],
            error_kw={"elinewidth": 0.5, "ecolor": "#333333"},
        )  # fmt: skip
    score_axis(axes, "")
    axes.set_xlim(-0.6, len(board.lines) - 0.4)
    titles, is_crowded = [line.title for line in board.lines], len(board.lines) > CROWDED
    axes.set_xticks(
        range(len(titles)), titles, rotation=90 if is_crowded else 45, ha="right",
        va="center" if is_crowded else "baseline", rotation_mode="anchor",
    )  # fmt: skip
