"""How well routing scores separate prompts in an edit's scope from others: histograms, AUROC, shares above or below thresholds.

A method that routes by prompt gives each question a routing score (`EditedModel.scope`): OnceEdit its alpha, a routed
memory 1 if the memory answers and 0 if not. Every question counts once here, because a threshold applies to prompts; answer
scores, in contrast, are means over records.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.evaluation.probes import AXES
from harness.records import Answer

ABOVE, BELOW = 0.7, 0.3
"""Thresholds: above the first a prompt counts as edited, below the second as unaffected."""

BINS = 10
"""Number of histogram bins, of equal width over [0, 1]; the last bin is closed."""

INSIDE = ("reliability", "generality")
"""Axes whose prompts are in scope: the edits themselves and their rephrases."""

OUTSIDE: Mapping[str, tuple[str, ...]] = {
    "locality": ("locality",),
    "locality_unrelated": ("locality_unrelated",),
    "both": ("locality", "locality_unrelated"),
}
"""Groups of out-of-scope axes that the axes of `INSIDE` are compared with."""

SHARES = {
    **dict.fromkeys(INSIDE, f"share_above_{ABOVE}"),
    **dict.fromkeys(OUTSIDE["both"], f"share_below_{BELOW}"),
}
"""Name of the share of questions on the right side of the threshold, by axis."""


def scope_metrics(rows: Iterable[Answer]) -> dict[str, Any]:
    """Apply `summary` to the rows of a cell; a question has the same routing score under every protocol."""
    scopes: dict[str, dict[tuple[str, int], float]] = {axis: {} for axis in AXES}
    for one in rows:
        scopes[one.axis][one.record_id, one.probe] = one.scope
    return summary({axis: list(values.values()) for axis, values in scopes.items()})


def summary(scopes: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Summarise the routing scores of every axis that has questions.

    Args:
        scopes: by axis, one value in [0, 1] per question; all NaN for a method without routing scores.

    Returns:
        By axis: `questions`, `mean`, `histogram` (counts); for axes in `SHARES` also that share; for axes in `INSIDE` also
        `auroc` against each group of `OUTSIDE` that has questions. Empty for a method without routing scores.

    Raises:
        ValueError: if only some questions have a routing score.
    """
    has_scope = {not math.isnan(value) for values in scopes.values() for value in values}
    if has_scope == {True, False}:
        raise ValueError("only some questions have a routing score")
    if has_scope != {True}:
        return {}
    return {axis: _axis_summary(axis, scopes) for axis, values in scopes.items() if len(values)}


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """Area under the ROC curve: P(inside > outside), counting ties as half (Mann-Whitney U divided by the number of pairs).

    Raises:
        ValueError: if either side is empty.
    """
    from scipy.stats import rankdata  # the import takes most of a second, and few methods need it

    left_N, right_M = np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    if not len(left_N) or not len(right_M):
        raise ValueError(f"AUROC of {len(left_N)} against {len(right_M)} values")
    ranks = rankdata(np.concatenate([left_N, right_M]))[: len(left_N)]
    wins = float(ranks.sum()) - len(left_N) * (len(left_N) + 1) / 2
    return wins / (len(left_N) * len(right_M))


def is_on_the_right_side(axis: str, values_N: ArrayLike) -> NDArray[np.bool_]:
    """Whether each value of an axis in `SHARES` is on the right side of its threshold."""
    values_N = np.asarray(values_N, dtype=np.float64)
    return values_N > ABOVE if axis in INSIDE else values_N < BELOW


def _axis_summary(axis: str, scopes: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    values = scopes[axis]
    statistics: dict[str, Any] = {
        "questions": len(values),
        "mean": math.fsum(values) / len(values),
        "histogram": np.histogram(values, bins=BINS, range=(0, 1))[0].tolist(),
    }
    if axis in SHARES:
        statistics[SHARES[axis]] = float(is_on_the_right_side(axis, values).mean())
    if axis in INSIDE:
        others = {name: [value for other in axes for value in scopes.get(other, ())] for name, axes in OUTSIDE.items()}
        statistics["auroc"] = {name: auroc(values, outside) for name, outside in others.items() if outside}
    return statistics
