"""Score a model with EasyEdit's own functions and with `protocol: easyedit`, and collect all values and times."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

from benchmarks import command
from benchmarks.timing import timed
from harness.evaluation.ask import predict
from harness.evaluation.evaluate import evaluate
from harness.evaluation.probes import LOCALITY_AXES, probe_queries
from harness.evaluation.protocol import Protocol
from harness.evaluation.unedited import UneditedOutputs
from harness.models.edited import WeightEditedModel
from harness.models.loaded import LoadedModel
from harness.records import Dataset, EditRecord
from methods.easyedit.scoring import FORMS

ALGORITHM = {"teacher_forced": "FT", "generation": "GRACE"}
"""For each form of scoring, a method that EasyEdit scores this way."""

Result = TypeVar("Result")

Values = dict[tuple[str, ...], float | list[int]]
"""Scores, or the ids of answers, by time (before or after the edit), record, axis and probe."""


@dataclass(frozen=True)
class Scored:
    """Both sides' values for one model in one form of scoring.

    Attributes:
        ours, theirs: all values of both sides, for the records that EasyEdit can score.
        failed: ids of the records that it cannot score, because an answer ends early and lists of different lengths are compared.
        ours_s, theirs_s: seconds per record, by round.
    """

    ours: Values
    theirs: Values
    failed: list[str] = field(default_factory=list)
    ours_s: list[float] = field(default_factory=list)
    theirs_s: list[float] = field(default_factory=list)

    @property
    def differing(self) -> list[tuple[str, ...]]:
        """Values that differ between the two sides or exist on only one of them."""
        return [of for of in {**self.ours, **self.theirs} if self.ours.get(of) != self.theirs.get(of)]

    @property
    def speed_ups(self) -> list[float]:
        """Speed-up of the harness over EasyEdit in each round."""
        return command.ratios(self.theirs_s, self.ours_s)


class EasyEditScoring:
    """EasyEdit's scoring functions applied to a model; imports EasyEdit into this process, which should do nothing else.

    Args:
        model: the model to score, edited or not.
        scoring: the form of scoring.
    """

    def __init__(self, model: LoadedModel, scoring: str) -> None:
        from easyeditor.editors.editor import finalize_locality_metrics
        from easyeditor.evaluate.evaluate import compute_edit_quality, compute_rewrite_or_rephrase_quality

        tokenizer = copy.deepcopy(model.tokenizer)
        tokenizer.pad_token_id = tokenizer.eos_token_id  # editors/editor.py:148, 152, 177
        hparams = SimpleNamespace(alg_name=ALGORITHM[scoring], max_length=40)
        self._on = (model.model, "model", hparams, tokenizer)
        self._device = str(model.device)
        self._quality, self._rephrase = compute_edit_quality, compute_rewrite_or_rephrase_quality
        self._finish: Callable[..., None] = finalize_locality_metrics

    def quality(self, record: EditRecord) -> dict[str, Any]:
        """The result of `compute_edit_quality` for a record; it takes a single rephrase, so the others are asked separately."""
        metrics: dict[str, Any] = self._quality(*self._on, _request(record), self._device)
        further = [
            self._rephrase(*self._on, rephrase, record.target_new, self._device, test_rephrase=True)["rephrase_acc"][0]
            for rephrase in record.rephrases[1:]
        ]
        return metrics | {"rephrase_acc": [*metrics.get("rephrase_acc", []), *further]}

    def values(self, record: EditRecord, before: dict[str, Any], after: dict[str, Any]) -> Values:
        """All values of a record; `finalize_locality_metrics` adds the comparison with `before` to `after`."""
        _, model_name, hparams, _ = self._on
        self._finish({"pre": before, "post": after}, _request(record), hparams, model_name)
        found: dict[tuple[str, str], Sequence[Any]] = {("after", "locality"): after["locality"].get("probes_acc", [])}
        found["before", "locality"] = before["locality"].get("probes_output", [])
        for when, metrics in (("before", before), ("after", after)):
            found[when, "reliability"] = metrics["rewrite_acc"]
            found[when, "generality"] = metrics["rephrase_acc"]
            found[when, "portability"] = metrics["portability"].get("probes_acc", [])
        return {
            (when, record.id, axis, str(probe)): value
            for (when, axis), values in found.items()
            for probe, value in enumerate(values)
        }


def compare(
    model: LoadedModel, data: Dataset, scoring: str, batch: int, rounds: int, edit: Callable[[LoadedModel], None]
) -> Scored:
    """Score a model before and after an edit, with both EasyEdit and the harness.

    Args:
        model: the unedited model.
        data: the records, without unrelated ones.
        scoring: the form of scoring.
        batch: questions per batch of the harness.
        rounds: number of rounds; EasyEdit scores one share of the records in each. Capped at the number of records.
        edit: changes the model's weights.
    """
    protocol, own = FORMS[scoring], EasyEditScoring(model, scoring)
    outputs, ours = _unedited(model, data, protocol, batch)

    def own_scores(records: Sequence[EditRecord]) -> list[dict[str, Any] | None]:
        return [if_it_can(own.quality, record) for record in records]

    def score() -> Values:
        rows = evaluate(WeightEditedModel(model), data, model.tokenizer, [protocol], batch, outputs)
        return {(row.record_id, row.axis, str(row.probe)): row.score for row in rows}

    ours |= {("before", *of): value for of, value in score().items() if of[1] not in LOCALITY_AXES}
    before = {record.id: scores for record, scores in zip(data.edits, own_scores(data.edits), strict=True)}
    edit(model)
    scored = Scored(ours, {})
    rounds = min(rounds, len(data.edits))
    for turn in range(rounds):
        share = data.edits[turn::rounds]
        seconds, answers = timed(score, model.device)
        scored.ours_s.append(seconds / len(data.edits))
        seconds, after = timed(partial(own_scores, share), model.device)
        scored.theirs_s.append(seconds / len(share))
        ours |= {("after", *of): value for of, value in answers.items()}
        for record, metrics in zip(share, after, strict=True):
            unedited, values = before[record.id], None
            if unedited is not None and metrics is not None:
                values = if_it_can(own.values, record, unedited, metrics)
            if values is None:
                scored.failed.append(record.id)
            else:
                scored.theirs.update(values)
    return replace(scored, ours={of: value for of, value in ours.items() if of[1] not in scored.failed})


def if_it_can(ask: Callable[..., Result], *arguments: Any) -> Result | None:
    """The result of an EasyEdit function; None if it fails because it compares lists of different lengths."""
    try:
        return ask(*arguments)
    except ValueError as error:
        if "could not be broadcast together" not in str(error):
            raise
        return None


def _unedited(model: LoadedModel, data: Dataset, protocol: Protocol, batch: int) -> tuple[UneditedOutputs, Values]:
    """The unedited model's answers to the locality questions, and the ids that are compared."""
    questions = probe_queries(data, model.tokenizer, LOCALITY_AXES, protocol.queries)
    answers = predict(WeightEditedModel(model), questions, protocol, batch)
    compared: Values = {
        ("before", of.record_id, of.axis, str(of.probe)): list(protocol.compared(of.query, ids, model.tokenizer))
        for of, ids in zip(questions, answers, strict=True)
    }
    return UneditedOutputs.of([(protocol, questions, answers)]), compared


def _request(record: EditRecord) -> dict[str, Any]:
    """A record in the form that EasyEdit's editors use (editors/utils.py:159-266)."""
    request: dict[str, Any] = {"prompt": record.prompt, "target_new": record.target_new, "ground_truth": None}
    if record.rephrases:
        request["rephrase_prompt"] = record.rephrases[0]
    for section, probes in (("locality", record.locality), ("portability", record.portability)):
        asked = {"prompt": [one.prompt for one in probes], "ground_truth": [one.answer for one in probes]}
        request[section] = {"probes": asked} if probes else {}
    return request
