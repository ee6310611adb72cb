"""Build the artifacts of a causal trace."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import ArtifactSpec, Context
from harness.errors import UserError
from harness.files import write_json
from harness.identity import digest
from harness.records import EditRecord
from harness.subjects import last_mention, token_span
from harness.tokens import Query, joint_query
from harness.tracing.artifact import ASKED_TOGETHER
from harness.tracing.measure import draw_noise, embedding_std, measure
from harness.tracing.trace import Kind, Trace, TracedFact, roles_of

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

KNOWN = "known.json"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fact that can be traced: its subject is in the prompt and ends before the prompt does.

    Attributes:
        first, last: indices of the subject's first and last token.
    """

    record: EditRecord
    query: Query
    first: int
    last: int

    @classmethod
    def of(cls, model: "LoadedModel", record: EditRecord) -> "Candidate | None":
        """The fact of a record, if it can be traced.

        At the end of a prompt a state determines the answer whatever it says of the subject, so a subject that ends there
        cannot be told from the end.
        """
        try:
            mention = last_mention(record.prompt, record.subject)
            query = joint_query(model.tokenizer, record.prompt, record.ground_truth)
            first, last = token_span(model.tokenizer, record.prompt, mention)
        except ValueError:
            return None
        fits = len(query.prompt_ids) + len(query.target_ids) - 1 <= model.context
        return cls(record, query, first, last) if fits and last < len(query.prompt_ids) - 1 else None

    @property
    def subject_ids(self) -> tuple[int, ...]:
        """Ids of the subject."""
        return self.query.prompt_ids[self.first : self.last + 1]


def build_known(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Find facts among the train records that the model answers correctly, every token of the answer, and write their ids.

    Raises:
        UserError: if it knows none of them.
    """
    model, data = context.load_model(spec.inputs["model"]), context.load_data(spec.inputs["data"])
    candidates = [found for record in data.train if (found := Candidate.of(model, record))]
    known: list[str] = []
    with (
        context.progress(f"facts that {model.ref.name} knows", spec.identity["facts"]) as advance,
        context.clock.phase("setup"),
    ):
        for found in _known(model, candidates):
            known.append(found.record.id)
            advance()
            if len(known) == spec.identity["facts"]:
                break
    if not known:
        raise UserError(
            f"{model.ref.name} answers none of the {len(candidates)} train records of {data.ref.name} that can be traced",
            fix="a larger `train`, or layers that are given as numbers",
        )
    std = embedding_std(model, [id_ for found in candidates for id_ in found.subject_ids])
    write_json(folder / KNOWN, {"known": known, "candidates": len(candidates), "embedding_std": std})


def build_part(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Trace a few of the known facts; none, if the model knows fewer than were wanted."""
    model, data = context.load_model(spec.inputs["model"]), context.load_data(spec.inputs["data"])
    wanted: dict[str, Any] = dict(spec.identity)
    found = json.loads((context.artifact(spec.needs["known"]) / KNOWN).read_text(encoding="utf-8"))
    std = wanted["noise"] * found["embedding_std"]
    records = {record.id: record for record in data.train}
    chosen = found["known"][wanted["start"] : wanted["stop"]]
    facts = []
    with context.progress(f"causal tracing of {model.ref.name}", len(chosen)) as advance, context.clock.phase("setup"):
        for name in chosen:
            candidate = Candidate.of(model, records[name])
            assert candidate is not None, "it was one when it was asked"
            facts.append(traced(model, candidate, std, wanted["samples"], wanted["windows"], wanted["seed"]))
            advance()
    Trace(tuple(facts), spec.needs["known"].identity["facts"], wanted["windows"], std).save(folder)


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Join the parts."""
    Trace.joined(Trace.load(context.artifact(part)) for part in spec.needs.values()).save(folder)


def traced(
    model: "LoadedModel", fact: Candidate, std: float, samples: int, windows: dict[Kind, int], seed: int
) -> TracedFact:
    """Trace one fact.

    Args:
        model: the unedited model.
        fact: what to trace.
        std: standard deviation of the noise.
        samples, windows: see `measure`.
        seed: the noise follows from it and from the record, whatever was traced before.
    """
    ids, record = fact.query.prompt_ids, fact.record
    width = model.config.hidden_size
    own_seed = int(digest([seed, record.id], 15), 16)
    noise_SKD = draw_noise(std, samples, len(fact.subject_ids), width, own_seed)
    found = measure(model, ids, fact.first, noise_SKD, fact.query.target_ids[0], windows)
    return TracedFact(
        record.id,
        record.prompt,
        record.subject,
        record.ground_truth,
        tokens=tuple(model.tokenizer.decode([id_]) for id_ in ids[fact.first :]),
        roles=tuple(roles_of(len(fact.subject_ids), len(ids) - 1 - fact.last)),
        clean=found.clean,
        corrupted=found.corrupted,
        effects={kind: (restored - found.corrupted).numpy() for kind, restored in found.restored.items()},
    )


def _known(model: "LoadedModel", candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """The facts that a model answers correctly under teacher forcing, which greedy decoding then says too, in order."""
    from harness.models.edited import WeightEditedModel

    for start in range(0, len(candidates), ASKED_TOGETHER):
        asked = candidates[start : start + ASKED_TOGETHER]
        answers = WeightEditedModel(model).teacher_forced([each.query for each in asked])
        for each, ids in zip(asked, answers, strict=True):
            if tuple(ids) == each.query.target_ids:
                yield each
