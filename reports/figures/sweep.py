"""Scores over the values of a swept setting: the λ curve, and curves of any other suite with a `sweep`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.registry import register_figure
from reports.common import AVERAGED, protocol_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.frame import SuiteFrame
    from reports.scores import Board, Line

LOG_FROM = 8
"""Values of which the largest is at least so many times the smallest are shown on a logarithmic axis."""


@register_figure("sweep")
def sweep(frame: "SuiteFrame") -> "Figure":
    """Scores over the values of a swept setting, such as the weight λ (Table 8 of the OnceEdit paper as curves)."""
    from reports.drawing import COLUMN, PAGE, drawing, grid, legend_above, nothing, row_label
    from reports.scores import boards

    shown, models = boards(frame), frame.models()
    key = _x_axis([line for board in shown for line in board.lines])
    if not key:
        return nothing("No setting with several numbers is swept in this suite.")
    with drawing(PAGE if len(models) > 1 else COLUMN, 0.55 + 1.3 * len(shown)) as figure:
        rows = grid(figure, len(shown), len(models), sharey=True, sharex=True)
        for board, row in zip(shown, rows, strict=True):
            for (model, title), axes in zip(models.items(), row, strict=True):
                _curves(axes, board, model, key)
                axes.set_title(title if board is shown[0] else "")
                axes.set_xlabel(key.replace("_", " ") if board is shown[-1] else "")
            row[0].set_ylabel(row_label(board.title, protocol_title(board.protocol)))
        legend_above(figure, rows[0][0], 4)
    return figure


def _x_axis(lines: "Sequence[Line]") -> str:
    """The last setting that takes several values, all numbers; empty if there is none."""
    values: dict[str, set[str]] = {}
    for line in lines:
        for name, value in _settings(line).items():
            values.setdefault(name, set()).add(value)
    return next((name for name in reversed(values) if len(values[name]) > 1 and all(map(_is_number, values[name]))), "")


def _settings(line: "Line") -> Mapping[str, str]:
    from reports.places import swept

    return swept(line.row.partition("/")[0])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _curves(axes: "Axes", board: "Board", model: str, key: str) -> None:
    """Rel, Gen, Loc and Avg of a single series; of several, the Avg of each."""
    from reports.drawing import AXIS_COLORS, score_axis, series_style, spread_axis

    series: dict[str, list[Line]] = {}
    for line in board.lines:
        settings = _settings(line)
        if key in settings and model in line.by_model:
            others = ", ".join(f"{name}={value}" for name, value in settings.items() if name != key)
            series.setdefault(others, []).append(line)
    drawn = [
        (axis.title() if len(series) == 1 else f"Avg, {others}", axis, lines)
        for others, lines in series.items()
        for axis in ((*AVERAGED, "avg") if len(series) == 1 else ("avg",))
    ]
    values: list[float] = []
    for number, (label, axis, lines) in enumerate(drawn):
        ordered = sorted(lines, key=lambda line: float(_settings(line)[key]))
        x = [float(_settings(line)[key]) for line in ordered]
        found = [line.by_model[model].axes[axis] for line in ordered]
        style = series_style(number) | ({"color": AXIS_COLORS[axis]} if len(series) == 1 else {})
        axes.plot(x, [each.value for each in found], label=label, **style)
        low, high = [each.low for each in found], [each.high for each in found]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.13, lw=0)
        values += x
    spread_axis(axes, values, LOG_FROM)
    score_axis(axes, "")
