"""Histograms of routing scores (OnceEdit's alpha) by axis, and how well they are calibrated."""

from typing import TYPE_CHECKING

from harness.registry import register_figure
from reports.common import first_template

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from reports.frame import SuiteFrame

TITLES = {
    "reliability": "edits",
    "generality": "rephrases",
    "locality": "locality",
    "locality_unrelated": "unrelated",
}
COLORS = {"reliability": "#0072b2", "generality": "#56b4e9", "locality": "#e69f00", "locality_unrelated": "#d55e00"}
NONE = "No finished cell of this suite decides by prompt whether an edit applies."


@register_figure("alpha")
def alpha(frame: "SuiteFrame") -> "Figure":
    """Histograms of routing scores by axis, under the first prompt template; a row per method, a panel per model and dataset."""
    import numpy as np

    from harness.evaluation.scope import BINS
    from reports.drawing import PAGE, drawing, grid, legend_above, nothing

    scopes = _scopes(frame)
    if scopes.empty:
        return nothing(NONE)
    titles = list(dict.fromkeys(scopes["title"]))
    places = list(dict.fromkeys(zip(scopes["section_title"], scopes["model_title"], strict=True)))
    edges = np.linspace(0, 1, BINS + 1)
    with drawing(PAGE, 0.7 + 0.8 * len(titles)) as figure:
        rows = grid(figure, len(titles), len(places), sharex=True, sharey=True)
        for title, row in zip(titles, rows, strict=True):
            for place, axes in zip(places, row, strict=True):
                is_here = (scopes["title"] == title) & (scopes["section_title"] == place[0])
                here = scopes[is_here & (scopes["model_title"] == place[1])]
                for axis, shown in TITLES.items():
                    values = here.loc[here["axis"] == axis, "scope"]
                    if len(values):
                        shares = np.histogram(values, bins=edges)[0] / len(values)
                        axes.stairs(shares, edges, color=COLORS[axis], label=shown, fill=True, alpha=0.18)
                        axes.stairs(shares, edges, color=COLORS[axis], linewidth=0.9)
                if title == titles[0]:
                    axes.set_title("\n".join(place), fontsize=6)
                axes.set_xlim(0, 1)
                axes.set_ylim(0, 1.02)
                axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
            row[0].set_ylabel(title, fontsize=6)
        figure.supxlabel("routing score (α)", fontsize=7)
        figure.supylabel("share of prompts", fontsize=7)
        legend_above(figure, rows[0][0], 4)
    return figure


@register_figure("calibration")
def calibration(frame: "SuiteFrame") -> "Figure":
    """Share of edits and rephrases among prompts by routing score, weighted to half of all; the others are locality and unrelated.

    Under the first prompt template, one curve per model. A dataset asks an arbitrary number of questions in and out of scope, so
    each side is weighted to one half. On the diagonal, the routing score is the probability that an edit applies.
    """
    from reports.drawing import COLUMN, PAGE, drawing, grid, legend_above, nothing, series_style

    scopes = _scopes(frame)
    if scopes.empty:
        return nothing(NONE)
    sections, titles, models = (list(dict.fromkeys(scopes[key])) for key in ("section_title", "title", "model_title"))
    with drawing(PAGE if len(titles) > 1 else COLUMN, 0.6 + 1.5 * len(sections)) as figure:
        rows = grid(figure, len(sections), len(titles), sharex=True, sharey=True)
        for section, row in zip(sections, rows, strict=True):
            for title, axes in zip(titles, row, strict=True):
                axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.6, linestyle="--")
                for number, model in enumerate(models):
                    is_here = (scopes["section_title"] == section) & (scopes["title"] == title)
                    here = scopes[is_here & (scopes["model_title"] == model)]
                    axes.plot(*reliability(here), label=model, alpha=0.8, **series_style(number))
                axes.set_xlim(-0.03, 1.03)
                axes.set_ylim(-0.03, 1.03)
                axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
                axes.set_yticks([0, 0.5, 1], ["0", ".5", "1"])
                axes.set_title(title if section is sections[0] else "")
            row[0].set_ylabel(section)
        figure.supxlabel("routing score (α), mean of the bin", fontsize=7)
        figure.supylabel("share of edits and rephrases\n(weighted to half of all prompts)", fontsize=7)
        legend_above(figure, rows[0][0], 3)
    return figure


def reliability(scopes: "pd.DataFrame") -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """A reliability diagram of routing scores: by bin, their mean and the share of prompts in scope.

    Args:
        scopes: `axis` and `scope` of each question; axes that are neither in nor out of scope, such as portability, do not count.
            Edits with rephrases, and prompts out of scope, have a total weight of one half each.

    Returns:
        Both without values if one of the two sides is missing.
    """
    import numpy as np

    from harness.evaluation.scope import BINS, INSIDE, OUTSIDE

    asked = scopes[scopes["axis"].isin((*INSIDE, *OUTSIDE["both"]))]
    inside = asked["axis"].isin(INSIDE)
    if inside.nunique() < 2:
        asked, inside = asked.iloc[:0], inside.iloc[:0]
    weights = 0.5 / inside.groupby(inside).transform("size")
    bins = np.minimum((asked["scope"] * BINS).astype(int), BINS - 1)
    totals = [(weights * each).groupby(bins).sum() for each in (1, asked["scope"], inside)]
    return totals[1] / totals[0], totals[2] / totals[0]


def _scopes(frame: "SuiteFrame") -> "pd.DataFrame":
    """Routing scores with the titles of their cells, of the first prompt template."""
    columns = ["cell", "title", "model_title", "section_title", "template"]
    cells = frame.cells.drop_duplicates("cell")[columns]
    return frame.scopes.merge(cells[cells["template"] == first_template(frame)], on="cell", how="inner")
