"""Editing time against editing quality, with the Pareto front."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.registry import register_figure
from reports.common import protocol_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.frame import SuiteFrame
    from reports.scores import Board


NAMED = 10
"""Up to this many methods are named next to their points; more have a legend."""

LINE = 0.075
"""Height of a name, as a share of the axis."""


@register_figure("pareto")
def pareto(frame: "SuiteFrame") -> "Figure":
    """Editing time against Score, with the Pareto front; one panel per dataset and protocol."""
    from reports.drawing import COLUMN, PAGE, drawing, grid, legend_above
    from reports.scores import boards

    shown = boards(frame)
    across = 2 if len(shown) > 1 else 1
    down = -(-len(shown) // across)
    with drawing(PAGE if across > 1 else COLUMN, 0.3 + 1.9 * down) as figure:
        panels = [axes for row in grid(figure, down, across) for axes in row]
        for board, axes in zip(shown, panels, strict=False):
            _scatter(axes, frame, board)
            axes.set_title(f"{board.title}, {protocol_title(board.protocol)}")
            axes.set_ylabel("Score")
        for unused in panels[len(shown) :]:
            unused.set_axis_off()
        if max((len(board.lines) for board in shown), default=0) > NAMED:
            legend_above(figure, panels[0], 6)
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats: at most as expensive and at least as good, and better in one.

    Args:
        points: cost and quality.
    """
    return [
        index
        for index, (cost, quality) in enumerate(points)
        if not any(other[0] <= cost and other[1] >= quality and other != (cost, quality) for other in points)
    ]


def _scatter(axes: "Axes", frame: "SuiteFrame", board: "Board") -> None:
    from reports.costs import on_one_device
    from reports.drawing import error_bars, left_out, series_style
    from reports.tables.time import costs

    lines = {line.title: line for line in board.lines if not math.isnan(line.score.value) and not line.is_reference}
    timed = {title: costs(frame, board.section, line.row)["total"] for title, line in lines.items()}
    shown, others = on_one_device({title: cost for title, cost in timed.items() if cost.from_scratch_s > 0})
    points = [(cost.from_scratch_s, lines[title].score.value) for title, cost in shown.items()]
    on_front = sorted(points[index] for index in front(points))
    axes.step(
        [x for x, _ in on_front], [y for _, y in on_front], where="post", color="#999999", linewidth=0.8, zorder=0
    )
    for number, line in enumerate(board.lines):
        if line.title in shown:
            axes.errorbar(
                [shown[line.title].from_scratch_s], [line.score.value], yerr=error_bars([line.score]),
                linewidth=0.6, markersize=4, label=line.title, **series_style(number),
            )  # fmt: skip
        elif line.title in others:
            axes.plot([], [], linestyle="none", label=line.title, **series_style(number))
    axes.set_xlabel(f"seconds to edit all models, from scratch{left_out(others)}")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.03)
    axes.margins(x=0.15)
    if len(board.lines) <= NAMED:
        _label(axes, [(title, *point) for title, point in zip(shown, points, strict=True)])


def _label(axes: "Axes", points: Sequence[tuple[str, float, float]]) -> None:
    """Name the points, from the highest to the lowest; a name that would touch an earlier one moves down."""
    from math import log10

    low, high = (log10(limit) for limit in axes.get_xlim())
    at = [((log10(seconds) - low) / (high - low), score) for _, seconds, score in points]
    taken = [(x - 0.015, x + 0.015, y) for x, y in at]
    for title, seconds, score in sorted(points, key=lambda point: -point[2]):
        start, y = (log10(seconds) - low) / (high - low), score + 0.02
        end = start + 0.03 + 0.022 * len(title)
        while any(start < right and end > left and abs(y - other) < LINE for left, right, other in taken):
            y -= LINE / 4
        taken.append((start, end, y))
        axes.annotate(
            title, (seconds, score), xytext=(seconds * 10 ** (0.02 * (high - low)), y), fontsize=6.5,
            arrowprops={"arrowstyle": "-", "linewidth": 0.3, "color": "#999999", "shrinkA": 0, "shrinkB": 1},
        )  # fmt: skip
