"""The harness's own format of records: JSON Lines with the fields of an `EditRecord` under their own names (docs/data.md)."""

import contextlib
import json
from dataclasses import MISSING, fields
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from harness.data.formats import register_format
from harness.data.schemas import STRICT, Id, Text, all_of, id_of
from harness.records import PROBES, EditRecord, Probe


def _listed(value: Any) -> Any:
    """A list, which is JSON in a cell of a table."""
    if isinstance(value, str):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(value)
    return all_of(value)


Texts = Annotated[list[Text], BeforeValidator(_listed)]


@dataclass(config=STRICT, slots=True)
class Question:
    """A `Probe`."""

    prompt: Text
    answer: Text
    kind: str = ""
    aliases: Texts = Field(default_factory=list)
    needs: Texts = Field(default_factory=list)
    chain: str = ""
    has_answer: bool = True

    def probe(self) -> Probe:
        """Convert."""
        of_chain = (tuple(self.needs), self.chain)
        return Probe(self.prompt, self.answer, self.kind, tuple(self.aliases), *of_chain, self.has_answer)


Questions = Annotated[list[Question], BeforeValidator(_listed)]


@register_format("facts", dataset="facts", title="Facts")
@dataclass(config=STRICT, slots=True)
class Fact:
    """A fact with the fields of an `EditRecord`; only prompt and target are required."""

    prompt: Text
    target_new: Text
    id: Id | None = None
    subject: str = ""
    ground_truth: str = ""
    aliases: Texts = Field(default_factory=list)
    rephrases: Texts = Field(default_factory=list)
    forms: Questions = Field(default_factory=list)
    locality: Questions = Field(default_factory=list)
    portability: Questions = Field(default_factory=list)
    robustness: Questions = Field(default_factory=list)
    hops: Questions = Field(default_factory=list)
    attributes: Questions = Field(default_factory=list)
    generation_prompts: Texts = Field(default_factory=list)
    relation: str = ""
    group: str = ""

    def record(self) -> EditRecord:
        """Convert."""
        return EditRecord(
            id=id_of(self.id, self.prompt, self.target_new),
            prompt=self.prompt,
            subject=self.subject,
            target_new=self.target_new,
            ground_truth=self.ground_truth,
            aliases=tuple(self.aliases),
            rephrases=tuple(self.rephrases),
            generation_prompts=tuple(self.generation_prompts),
            relation=self.relation,
            group=self.group,
            **{name: tuple(question.probe() for question in getattr(self, name)) for name in PROBES},
        )


def as_fact(record: EditRecord) -> dict[str, Any]:
    """Write a record with the keys of `Fact`, without empty ones except those that tell it from other formats."""
    probes = {
        name: [_without_defaults(probe) for probe in probes] for name, probes in record.probes().items() if probes
    }
    return {"subject": "", "rephrases": [], **_without_defaults(record), **probes}


def json_line(record: EditRecord) -> str:
    """A record as one line of a file."""
    return json.dumps(as_fact(record), ensure_ascii=False) + "\n"


def _without_defaults(value: EditRecord | Probe) -> dict[str, Any]:
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {
        field.name: list(found[field.name]) if isinstance(found[field.name], tuple) else found[field.name]
        for field in fields(value)
        if field.default is MISSING or found[field.name] != field.default
    }
