"""The unedited model's answers to the locality questions, computed once per model and dataset for all methods."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import registry
from harness.api import ArtifactSpec
from harness.evaluation.ask import predict
from harness.evaluation.probes import LOCALITY_AXES, ProbeQuery, check_lengths, probe_queries, question_count
from harness.evaluation.protocol import Protocol
from harness.models.catalogue import ModelRef
from harness.records import DataRef

if TYPE_CHECKING:
    from harness.api import Context

FILE = "unedited.json"
LOCALITY_PROBES = 10
"""Questions per record for time estimates: as many as CounterFact has."""


@dataclass(frozen=True, slots=True)
class _Key:
    protocol: str
    axis: str
    record_id: str
    probe: int


class UneditedOutputs:
    """Predicted ids of the unedited model, by protocol and question."""

    def __init__(self, ids: Mapping[_Key, tuple[int, ...]]) -> None:
        self._ids = dict(ids)

    @classmethod
    def of(
        cls, answered: Iterable[tuple[Protocol, Sequence[ProbeQuery], Sequence[Sequence[int]]]]
    ) -> "UneditedOutputs":
        """Collect predictions, given as (protocol, questions, one list of ids per question)."""
        return cls(
            {
                _key(protocol, asked): tuple(ids)
                for protocol, questions, answers in answered
                for asked, ids in zip(questions, answers, strict=True)
            }
        )

    def ids(self, protocol: Protocol, asked: ProbeQuery) -> tuple[int, ...]:
        """The unedited model's answer to a question.

        Raises:
            ValueError: if the question was never asked.
        """
        key = _key(protocol, asked)
        if key not in self._ids:
            raise ValueError(f"the unedited model was never asked {key}")
        return self._ids[key]

    def save(self, folder: Path) -> None:
        """Write `unedited.json` into a folder."""
        outputs = [asdict(key) | {"ids": list(ids)} for key, ids in self._ids.items()]
        (folder / FILE).write_text(json.dumps({"outputs": outputs}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "UneditedOutputs":
        """Read `unedited.json` from a folder."""
        outputs: list[dict[str, Any]] = json.loads((folder / FILE).read_text(encoding="utf-8"))["outputs"]
        return cls({_Key(**output): tuple(ids) for output in outputs for ids in [output.pop("ids")]})


def artifact(
    model: ModelRef,
    data: DataRef,
    protocols: Sequence[str],
    batch_size: int,
) -> ArtifactSpec:
    """Describe the unedited outputs as an artifact; its identity includes the batch size, which affects rounding.

    All methods share the artifact, because it covers every form of each protocol.

    Args:
        model: the unedited model.
        data: the records; only their locality questions are used.
        protocols: names of the protocols.
        batch_size: as in `evaluate`.

    Raises:
        UserError: for an unknown protocol.
    """
    return ArtifactSpec(
        name="unedited-outputs",
        kind="setup",
        identity={
            "model": model.identity(),
            "data": data.identity(),
            "protocols": protocol_versions(protocols),
            "batch_size": batch_size,
        },
        builder="harness.evaluation.unedited:build",
        inputs={"model": model, "data": data},
        needs=model.artifacts(),
        passes=len(protocols) * (LOCALITY_PROBES * data.edits + data.unrelated),
        memory={"answers": model.footprint.answering(batch_size)},
    )


def protocol_versions(names: Sequence[str]) -> dict[str, Any]:
    """What identifies each protocol: its version, and a hash of its code if that is from outside this project."""
    found = {name: registry.protocols.get(name) for name in names}
    codes = {name: registry.code_of(protocol) for name, protocol in found.items()}
    return {
        name: {"version": protocol.version, "code": codes[name]} if codes[name] else protocol.version
        for name, protocol in found.items()
    }


def build(spec: ArtifactSpec, context: "Context", folder: Path) -> None:
    """Build `artifact`."""
    answers(spec, context).save(folder)


def answers(spec: ArtifactSpec, context: "Context") -> UneditedOutputs:
    """Load the model of `artifact` and ask it the locality questions."""
    from harness.models.edited import WeightEditedModel

    model = context.load_model(spec.inputs["model"])
    data = context.load_data(spec.inputs["data"])
    protocols = [form for name in spec.identity["protocols"] for form in registry.protocols.get(name).forms()]
    questions = [probe_queries(data, model.tokenizer, LOCALITY_AXES, protocol.queries) for protocol in protocols]
    for asked in questions:
        check_lengths(asked, model.positions)
    total = question_count(data, len(protocols), LOCALITY_AXES)
    asking = f"unedited answers of {model.ref.name}"
    with context.progress(asking, total) as advance, context.clock.phase("evaluate"):
        ids = [
            predict(WeightEditedModel(model), asked, protocol, spec.identity["batch_size"], advance)
            for protocol, asked in zip(protocols, questions, strict=True)
        ]
    return UneditedOutputs.of(zip(protocols, questions, ids, strict=True))


def _key(protocol: Protocol, asked: ProbeQuery) -> _Key:
    return _Key(protocol.key, asked.axis, asked.record_id, asked.probe)
