"""Scores from predicted ids: one row per question, averaged over each record's probes, then over records."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypedDict

from harness.evaluation.probes import LOCALITY_AXES, ProbeQuery
from harness.records import Answer

OTHER_KEYS = ("diagnostics", "scope", "curve", "attainable", "classic", "fluency", "capability")
"""Keys of metrics.json that are not names of protocols."""


class AxisMetrics(TypedDict, total=False):
    """Means of one axis over `n` records.

    `answer_score` is only for locality questions with an answer in the dataset, `contains` only for answers that end by
    themselves.
    """

    score: float
    exact: float
    answer_score: float
    contains: float
    n: int


def agreement(predicted: Sequence[int], expected: Sequence[int]) -> float:
    """Fraction of positions at which two id sequences of equal length agree.

    Raises:
        ValueError: for different or zero lengths, which no protocol may produce.
    """
    if len(predicted) != len(expected) or not expected:
        raise ValueError(f"{len(predicted)} predicted ids where {len(expected)} are expected")
    return sum(left == right for left, right in zip(predicted, expected, strict=True)) / len(expected)


def row(
    asked: ProbeQuery,
    protocol: str,
    predicted_ids: Sequence[int],
    predicted: str,
    unedited_ids: Sequence[int] | None,
    scope: float,
) -> Answer:
    """Score one answer.

    Args:
        asked: the question.
        protocol: name of the protocol.
        predicted_ids: ids of the edited model's answer that are compared, as many as in the target.
        predicted: the same ids as text.
        unedited_ids: ids of the unedited model's answer that are compared; given for locality only.
        scope: routing score of the prompt; NaN if the method has none.
    """
    is_locality = asked.axis in LOCALITY_AXES
    if is_locality != (unedited_ids is not None):
        raise ValueError(f"{asked.axis} of record {asked.record_id}: unedited ids {unedited_ids}")
    against_target = agreement(predicted_ids, asked.query.target_ids)
    score = against_target if unedited_ids is None else agreement(predicted_ids, unedited_ids)
    return Answer(
        record_id=asked.record_id,
        protocol=protocol,
        axis=asked.axis,
        probe=asked.probe,
        prompt=asked.query.prompt,
        target=asked.query.target,
        predicted=predicted,
        n_tokens=len(asked.query.target_ids),
        score=score,
        exact=float(score == 1.0),
        answer_score=against_target if asked.has_known_answer else math.nan,
        scope=scope,
    )


def aggregate(rows: Iterable[Answer]) -> dict[str, dict[str, AxisMetrics]]:
    """Aggregate rows by protocol and axis: the mean over records of the mean over each record's probes.

    An axis without questions is absent. `n` counts records.
    """
    groups: dict[str, dict[str, dict[str, list[Answer]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for one in rows:
        groups[one.protocol][one.axis][one.record_id].append(one)
    return {
        protocol: {axis: _axis_metrics(axis, list(records.values())) for axis, records in axes.items()}
        for protocol, axes in groups.items()
    }


def _axis_metrics(axis: str, records: Sequence[Sequence[Answer]]) -> AxisMetrics:
    metrics = AxisMetrics(
        score=_mean(_mean(one.score for one in probes) for probes in records),
        exact=_mean(_mean(one.exact for one in probes) for probes in records),
        n=len(records),
    )
    answered = [known for probes in records if (known := [one for one in probes if not math.isnan(one.answer_score)])]
    if answered:
        metrics["answer_score"] = _mean(_mean(one.answer_score for one in probes) for probes in answered)
    if not math.isnan(records[0][0].contains):
        metrics["contains"] = _mean(_mean(one.contains for one in probes) for probes in records)
    return metrics


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
