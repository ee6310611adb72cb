"""Shared by all figures: sizes, colours and settings for a two-column paper, and empty figures with a reason."""

import contextlib
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from reports.common import few

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from reports.stats import Estimate

COLUMN, PAGE = 3.35, 6.9
"""Width in inches of a column and of both columns of a two-column paper."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#a6761d", "#1b1b1b")
"""Okabe and Ito's colours, which people with colour blindness can tell apart, and two more."""

MARKERS = "os^Dvp*XhP"
"""One more than colours, so that both together repeat only after 90 series."""

REFERENCE: dict[str, Any] = {"color": "#999999", "marker": ".", "linestyle": "--"}
"""How the unedited model is drawn."""

LABEL_WIDTH = 20
"""Characters that fit next to a row of panels."""

AXIS_COLORS = {"rel": "#0072b2", "gen": "#56b4e9", "loc": "#e69f00", "avg": "#1b1b1b"}
"""Colours of the axes of editing quality."""

STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelpad": 2,
    "axes.titlepad": 3,
    "xtick.major.size": 2,
    "ytick.major.size": 2,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "lines.linewidth": 1,
    "lines.markersize": 3,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "text.parse_math": False,  # names may contain dollar signs
}


@contextlib.contextmanager
def drawing(width: float, height: float) -> "Iterator[Figure]":
    """A figure of a size in inches, laid out with these settings at the end of the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.canvas.draw()


def nothing(sentence: str) -> "Figure":
    """An empty figure that says why nothing is shown."""
    with drawing(COLUMN, 0.6) as figure:
        figure.text(0.5, 0.5, sentence, ha="center", va="center")
    return figure


def grid(figure: "Figure", rows: int, columns: int, **shared: Any) -> "list[list[Axes]]":
    """Axes in rows and columns, also if there is only one."""
    made = figure.subplots(rows, columns, squeeze=False, **shared)
    return [list(row) for row in made]


def score_axis(axes: "Axes", label: str) -> None:
    """Let the y-axis show scores from 0 to 1."""
    axes.set_ylim(0, 1.03)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", ".5", "", "1"])
    axes.set_ylabel(label)


def row_label(*parts: str) -> str:
    """Label of a row of panels, in lines that fit next to it."""
    return "\n".join(line for part in parts for line in textwrap.wrap(part, LABEL_WIDTH))


def error_bars(estimates: "Sequence[Estimate]") -> "list[list[float]]":
    """Distances to both ends of the intervals, as matplotlib wants them; 0 where there is no interval."""
    low = [max(0.0, each.value - each.low) if each.low == each.low else 0.0 for each in estimates]
    high = [max(0.0, each.high - each.value) if each.high == each.high else 0.0 for each in estimates]
    return [low, high]


def series_style(number: int) -> dict[str, Any]:
    """Colour and marker of a series by its number."""
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}


def spread_axis(axes: "Axes", values: "Sequence[float]", log_from: float = 50) -> None:
    """Make the x-axis logarithmic, with a tick at each value, if the largest is at least `log_from` times the smallest."""
    if values and 0 < min(values) <= max(values) / log_from:
        ticks = sorted(set(values))
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)


def left_out(names: "Sequence[str]") -> str:
    """A further line of an axis label about what is not drawn because it was timed elsewhere; empty without names."""
    return f"\nnot shown, timed on other devices: {few(names, 'methods')}" if names else ""


def legend_above(figure: "Figure", axes: "Axes", columns: int) -> None:
    """One legend for the whole figure, above it, in at most three columns if the figure is as wide as a column of text."""
    handles, labels = axes.get_legend_handles_labels()
    if figure.get_figwidth() <= COLUMN:
        columns = min(columns, 3)
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=columns, columnspacing=1.2, handlelength=1.4)
