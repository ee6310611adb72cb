"""The similarity above which a prompt is taken for another wording of an edit, chosen on train records for a model and a dataset.

How similar a rephrase is to its edit depends on the embeddings (`methods.common.similarity`): with those of SmolLM2-135M and
CounterFact, half of all rephrases are above .92, with those of a model of width 96, above .86; and how similar an unrelated
question is depends on the dataset. So train records are taken for edits, and the threshold that best separates their rephrases
from their locality probes is used for the edits themselves.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field

from harness.api import ArtifactSpec, Context, Hparams
from harness.errors import UserError
from harness.files import write_json
from harness.records import DataRef

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from harness.models.catalogue import ModelRef
    from harness.records import EditRecord
    from methods.common.similarity import Embeddings

H = TypeVar("H", bound=Hparams)

Threshold = Annotated[float, Field(ge=-1, le=1)] | Literal["calibrated"]
"""A cosine, or `calibrated`: the value that `artifact` chooses."""

VERSION = 1
"""Increment when another threshold is chosen from the same records."""

ROLE, FILE = "threshold", "threshold.json"

RECORDS = 200
"""Most train records that are taken for edits; more hardly change the threshold."""


def artifact(model: "ModelRef", data: DataRef, subject_share: float, method: str, option: str) -> ArtifactSpec:
    """The threshold for a model's embeddings and the train records of a dataset.

    Args:
        model: whose embeddings texts are compared by.
        data: the dataset.
        subject_share: share of the subject's tokens in the similarity.
        method, option: names of the method and of its hyper-parameter, for the message.

    Raises:
        UserError: if no train record has a rephrase and a locality probe.
    """
    if not (data.train if data.examples is None else data.examples):
        raise UserError(
            f"{method}: `{option}: calibrated` needs train records with a rephrase and a locality probe, but none of the "
            f"{data.train:,} of '{data.name}' has both",
            fix=f"{option}: 0.9" + ("" if data.train else f", or datasets: [{{name: {data.name}, train: {RECORDS}}}]"),
        )
    return ArtifactSpec(
        name="similarity-threshold",
        kind="setup",
        identity={
            "model": model.identity(),
            "data": data.identity(),
            "subject_share": subject_share,
            "version": VERSION,
        },
        builder="methods.common.threshold:build",
        inputs={"model": model, "data": data},
        needs=model.artifacts(),
        passes=0,
    )


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Choose the threshold and write it with the shares of rephrases above and of locality probes below it."""
    import numpy as np

    from methods.common.similarity import embeddings_of

    model = context.load_model(spec.inputs["model"])
    records = [each for each in context.load_data(spec.inputs["data"]).train if each.is_example][:RECORDS]
    with context.clock.phase("setup"):
        rephrases, others = similarities(embeddings_of(model), records, spec.identity["subject_share"])
        threshold = separating(rephrases, others)
    write_json(
        folder / FILE,
        {
            "threshold": threshold,
            "records": len(records),
            "rephrases_above": float(np.mean(np.asarray(rephrases) >= threshold)),
            "locality_below": float(np.mean(np.asarray(others) < threshold)),
        },
    )


def load(folder: Path) -> float:
    """Read the threshold of an artifact."""
    return float(json.loads((folder / FILE).read_text(encoding="utf-8"))["threshold"])


def settled(hparams: H, option: str, artifacts: Mapping[str, Path]) -> H:
    """Hyper-parameters whose threshold is a number: the calibrated one, if it is among the artifacts."""
    if ROLE not in artifacts:
        return hparams
    return hparams.model_copy(update={option: load(artifacts[ROLE])})


def similarities(
    embeddings: "Embeddings", records: "Sequence[EditRecord]", subject_share: float
) -> tuple[list[float], list[float]]:
    """Similarity of every rephrase and of every locality probe to the nearest of the records' prompts."""
    from methods.common.similarity import PromptMemory

    memory = PromptMemory.of(embeddings, [record.request() for record in records], subject_share)
    rephrases = [memory.similarity(text) for record in records for text in record.rephrases]
    others = [memory.similarity(probe.prompt) for record in records for probe in record.locality]
    return rephrases, others


def separating(inside: "ArrayLike", outside: "ArrayLike") -> float:
    """The threshold with the largest share of `inside` above it plus share of `outside` below it (Youden's J).

    It lies halfway between two values, or is the lowest one. Of several with this sum, it is the one in the widest gap.
    """
    import numpy as np

    inside_N, outside_M = np.sort(np.asarray(inside, float)), np.sort(np.asarray(outside, float))
    values_V = np.unique(np.concatenate([inside_N, outside_M]))
    between_V = np.concatenate([values_V[:1], (values_V[1:] + values_V[:-1]) / 2])
    gaps_V = np.concatenate([[0.0], np.diff(values_V)])
    below_V = [np.searchsorted(sorted_, between_V) / len(sorted_) for sorted_ in (inside_N, outside_M)]
    return float(between_V[np.lexsort([gaps_V, below_V[1] - below_V[0]])[-1]])
