"""The highest scores that a model with all edits can attain where questions contradict an edit or each other.

A model gives one id to one context, so of two questions that want different ids in the same context one loses. An upper
bound therefore follows from the questions alone, whatever the method.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.evaluation.probes import LOCALITY_AXES, ProbeQuery, probe_queries
from harness.evaluation.protocol import Protocol
from harness.evaluation.unedited import UneditedOutputs
from harness.records import Dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Wishes = Mapping[Hashable, Mapping[int, float]]
"""For each context, the ids that questions expect there, each with the part of the axis's score that depends on it."""


def attainable(
    data: Dataset, tokenizer: "PreTrainedTokenizerBase", protocols: Sequence[Protocol], unedited: UneditedOutputs
) -> dict[str, dict[str, float]]:
    """Highest score of each axis under each protocol for a model that makes every edit, given only where it is below 1.

    Args:
        data: the records.
        tokenizer: of the target model.
        protocols: in the form used for the method.
        unedited: the unedited model's answers, which locality is measured against.
    """
    found: dict[str, dict[str, float]] = {}
    for protocol in protocols:
        asked = probe_queries(data, tokenizer, tokenise=protocol.queries)
        wanted = [
            protocol.compared(one.query, unedited.ids(protocol, one), tokenizer)
            if one.axis in LOCALITY_AXES
            else one.query.target_ids
            for one in asked
        ]
        below = {axis: value for axis, value in maxima(asked, wanted, protocol).items() if value < 1}
        if below:
            found[protocol.name] = below
    return found


def maxima(asked: Sequence[ProbeQuery], wanted: Sequence[Sequence[int]], protocol: Protocol) -> dict[str, float]:
    """Highest score of each axis among the models with the highest reliability.

    Each axis is maximised by itself: no single model need reach all of them.

    Args:
        asked: the questions.
        wanted: for each question the ids that score, as many as its target has.
        protocol: says which questions share a context.
    """
    axes: dict[str, list[tuple[ProbeQuery, Sequence[int]]]] = defaultdict(list)
    for question, ids in zip(asked, wanted, strict=True):
        axes[question.axis].append((question, ids))
    wishes = {axis: _wishes(questions, protocol) for axis, questions in axes.items()}
    edits = {context: _best(ids) for context, ids in wishes.get("reliability", {}).items()}
    return {axis: 1 - math.fsum(_losses(of_axis, edits)) for axis, of_axis in wishes.items()}


def _wishes(questions: Iterable[tuple[ProbeQuery, Sequence[int]]], protocol: Protocol) -> Wishes:
    """An axis's score is the mean over records of the mean over probes of the share of right ids."""
    questions = list(questions)
    probes: dict[str, int] = defaultdict(int)
    for question, _ in questions:
        probes[question.record_id] += 1
    wishes: dict[Hashable, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for number, (question, ids) in enumerate(questions):
        weight = 1 / (len(probes) * probes[question.record_id] * len(ids))
        for position, wanted in enumerate(ids):
            context = protocol.context(question.query, position)
            wishes[(question.axis, number, position) if context is None else context][wanted] += weight
    return wishes


def _best(ids: Mapping[int, float]) -> set[int]:
    """The ids that satisfy most of the wishes in a context."""
    most = max(ids.values())
    return {token for token, weight in ids.items() if math.isclose(weight, most)}


def _losses(wishes: Wishes, edits: Mapping[Hashable, set[int]]) -> Iterator[float]:
    """What an axis must lose in each context with more than one wish, or with an edit that has another."""
    for context, ids in wishes.items():
        possible = [ids.get(token, 0.0) for token in edits.get(context, ids)]
        if len(ids) > 1 or max(possible) == 0:
            yield math.fsum(ids.values()) - max(possible)
