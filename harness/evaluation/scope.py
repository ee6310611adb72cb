"""How well routing scores separate prompts that an edit is meant for from others: histograms, AUROC, shares beyond thresholds.

A method that decides by prompt gives each question a routing score (`EditedModel.scope`): OnceEdit its alpha, a routed
memory 1 if the memory answers and 0 if it does not. Every question counts once here, because a threshold is a statement
about prompts; scores of answers are means over records instead.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.evaluation.probes import AXES
from harness.records import Answer

ABOVE, BELOW = 0.7, 0.3
"""Thresholds above which a prompt counts as treated as an edit, and below which as left alone."""

BINS = 10
"""Of a histogram, of equal width over [0, 1]; the last one is closed."""

INSIDE = ("reliability", "generality")
"""Axes whose prompts an edit is meant for: the edits themselves and their rephrases."""

OUTSIDE: Mapping[str, tuple[str, ...]] = {
    "locality": ("locality",),
    "locality_unrelated": ("locality_unrelated",),
    "both": ("locality", "locality_unrelated"),
}
"""Axes that the prompts of `INSIDE` are separated from."""

SHARES = {
    **dict.fromkeys(INSIDE, f"share_above_{ABOVE}"),
    **dict.fromkeys(OUTSIDE["both"], f"share_below_{BELOW}"),
}
"""Name of the share of questions on the right side of its threshold, by axis."""


def scope_metrics(rows: Iterable[Answer]) -> dict[str, Any]:
    """`summary` of the rows of a cell; the routing score of a question is the same under every protocol."""
    scopes: dict[str, dict[tuple[str, int], float]] = {axis: {} for axis in AXES}
    for one in rows:
        scopes[one.axis][one.record_id, one.probe] = one.scope
    return summary({axis: list(values.values()) for axis, values in scopes.items()})


def summary(scopes: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Statistics of every axis that has questions.

    Args:
        scopes: by axis, one value in [0, 1] per question, all NaN for a method without routing scores.

    Returns:
        By axis: `questions`, `mean`, `histogram` (counts); for axes of `SHARES` that share; for axes of `INSIDE`
        `auroc` by what they are separated from, if both sides have questions. Empty for a method without routing scores.

    Raises:
        ValueError: if some questions have a scope and others have none.
    """
    has_scope = {not math.isnan(value) for values in scopes.values() for value in values}
    if has_scope == {True, False}:
        raise ValueError("some questions have a scope and others have none")
    if has_scope != {True}:
        return {}
    return {axis: _axis_summary(axis, scopes) for axis, values in scopes.items() if len(values)}


def auroc(inside: ArrayLike, outside: ArrayLike) -> float:
    """Probability that a value of `inside` is above one of `outside`, ties counted half: Mann-Whitney's U over all pairs.

    Raises:
        ValueError: if one side has no value.
    """
    from scipy.stats import rankdata  # takes most of a second, and few methods need it

    left_N, right_M = np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    if not len(left_N) or not len(right_M):
        raise ValueError(f"AUROC of {len(left_N)} against {len(right_M)} values")
    ranks = rankdata(np.concatenate([left_N, right_M]))[: len(left_N)]
    wins = float(ranks.sum()) - len(left_N) * (len(left_N) + 1) / 2
    return wins / (len(left_N) * len(right_M))


def is_on_the_right_side(axis: str, values_N: ArrayLike) -> NDArray[np.bool_]:
    """Whether each value of an axis of `SHARES` is beyond the threshold that it should be beyond."""
    values_N = np.asarray(values_N, dtype=np.float64)
    return values_N > ABOVE if axis in INSIDE else values_N < BELOW


def _axis_summary(axis: str, scopes: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    values = scopes[axis]
    figures: dict[str, Any] = {
        "questions": len(values),
        "mean": math.fsum(values) / len(values),
        "histogram": np.histogram(values, bins=BINS, range=(0, 1))[0].tolist(),
    }
    if axis in SHARES:
        figures[SHARES[axis]] = float(is_on_the_right_side(axis, values).mean())
    if axis in INSIDE:
        others = {name: [value for other in axes for value in scopes.get(other, ())] for name, axes in OUTSIDE.items()}
        figures["auroc"] = {name: auroc(values, outside) for name, outside in others.items() if outside}
    return figures
