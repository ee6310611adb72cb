"""Curves of a sequence of edits: how much is left of the first edits, and the quality over all edits so far."""

from typing import TYPE_CHECKING

from harness.registry import register_figure
from reports.common import AVERAGED, protocol_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from reports.curves import Curve
    from reports.frame import SuiteFrame


@register_figure("retention")
def retention(frame: "SuiteFrame") -> "Figure":
    """Edits in sequence: reliability of the first edits, and Avg over all edits so far, by number of edits."""
    from reports.curves import method_curves
    from reports.drawing import (
        COLUMN,
        PAGE,
        REFERENCE,
        drawing,
        grid,
        legend_above,
        nothing,
        score_axis,
        series_style,
        spread_axis,
    )

    curves = list(method_curves(frame))
    if not curves:
        return nothing("No finished cell of this suite edits in sequence.")
    models = frame.models()
    boards = list({(one.board.protocol, one.board.section): one.board for one in curves}.values())
    titles = list(dict.fromkeys(one.line.title for one in curves))
    with drawing(PAGE if len(models) > 1 else COLUMN, 0.6 + 2.0 * len(boards)) as figure:
        rows = grid(figure, 2 * len(boards), len(models), sharex=True, sharey=True)
        for number, board in enumerate(boards):
            for column, (model, title) in enumerate(models.items()):
                first, all_so_far = rows[2 * number][column], rows[2 * number + 1][column]
                for one in curves:
                    if one.board is board and one.score.model == model:
                        place = titles.index(one.line.title)
                        style = REFERENCE if one.line.is_reference else series_style(place)
                        points = one.found.points
                        kept = [one.found.value(point, "rel", points[0]) for point in points]
                        first.plot(points, kept, label=one.line.title, **style)
                        all_so_far.plot(points, [_average(one.found, point) for point in points], **style)
                first.set_title(title if number == 0 else "")
                score_axis(first, "")
                score_axis(all_so_far, "")
                spread_axis(all_so_far, [point for one in curves for point in one.found.points])
                all_so_far.set_xlabel("edits so far" if number == len(boards) - 1 else "")
            where = f"{board.title}\n{protocol_title(board.protocol)}"
            rows[2 * number][0].set_ylabel(f"{where}\nRel, first edits")
            rows[2 * number + 1][0].set_ylabel(f"{where}\nAvg, all edits")
        legend_above(figure, rows[0][0], 5)
    return figure


def _average(curve: "Curve", point: int) -> float:
    """Mean of Rel, Gen and Loc over all edits so far."""
    return sum(curve.value(point, axis, point) for axis in AVERAGED) / len(AVERAGED)
