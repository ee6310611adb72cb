"""Schemas of the formats of ZsRE and CounterFact, one class per format, each with its conversion to an `EditRecord`.

A schema declares only the fields that the harness uses; other keys are allowed. Only the edit itself is required: a record
without some kind of probe, or with null in its place, has no such probes. Surrounding whitespace is stripped, because a
target is always appended to its prompt with one space.
"""

import hashlib
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from harness.data.formats import register_format
from harness.records import EditRecord, Probe

STRICT = ConfigDict(strict=True, str_strip_whitespace=True)
"""Schema configuration: no type coercion, surrounding whitespace stripped."""


def _first(value: Any) -> Any:
    """Take the first of several acceptable answers, which may be grouped: `["a", "b"]`, `[["a", "b"], ["c"]]`."""
    while isinstance(value, list) and value:
        value = value[0]
    return value


def all_of(value: Any) -> Any:
    """A list that upstream may leave null."""
    return [] if value is None else value


def _written(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _holds_one_place(template: str) -> str:
    if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
        raise ValueError("does not contain {} exactly once")
    return template


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], BeforeValidator(all_of)]
Answer = Annotated[Text, BeforeValidator(_first)]
Id = Annotated[str, BeforeValidator(_written)]
Template = Annotated[str, AfterValidator(_holds_one_place)]


def content_id(prompt: str, target: str) -> str:
    """Id for a record without an upstream id: a hash of prompt and target."""
    return hashlib.sha256(f"{prompt}\0{target}".encode()).hexdigest()[:16]


def id_of(upstream: str | None, prompt: str, target: str) -> str:
    """Upstream's id, or else `content_id`."""
    return upstream or content_id(prompt, target)


def _probe(prompt: str | None, answer: str | None) -> tuple[Probe, ...]:
    return (Probe(prompt, answer),) if prompt and answer else ()


@dataclass(config=STRICT, slots=True)
class _PromptAndAnswer:
    prompt: Text
    ground_truth: Answer


def _probes(groups: dict[str, list[_PromptAndAnswer]] | None) -> tuple[Probe, ...]:
    return tuple(
        Probe(probe.prompt, probe.ground_truth, kind.replace("_", " "))
        for kind, probes in (groups or {}).items()
        for probe in probes
    )


@dataclass(config=STRICT, slots=True)
class _OneHop:
    """The portability question that EasyEdit's authors added to MEND's and ROME's records."""

    question: Text = Field(alias="New Question")
    answer: Text = Field(alias="New Answer")

    def probe(self) -> Probe:
        return Probe(self.question, self.answer)


@dataclass(config=STRICT, slots=True)
class _Object:
    str_: Text = Field(alias="str")


@dataclass(config=STRICT, slots=True)
class Rewrite:
    """An edit as ROME describes it."""

    prompt: Template
    subject: Text
    target_new: _Object
    target_true: _Object
    relation_id: str | None = None

    @property
    def filled(self) -> str:
        """The prompt with its subject."""
        return self.prompt.replace("{}", self.subject)


@register_format(
    "counterfact",
    dataset="counterfact",
    title="CounterFact (ROME)",
    signature={"requested_rewrite", "paraphrase_prompts", "neighborhood_prompts"},
)
@dataclass(config=STRICT, slots=True)
class CounterFact:
    """CounterFact as ROME published it, with or without the portability question."""

    requested_rewrite: Rewrite
    case_id: Id | None = None
    paraphrase_prompts: Texts = Field(default_factory=list)
    neighborhood_prompts: Texts = Field(default_factory=list)
    attribute_prompts: Texts = Field(default_factory=list)
    generation_prompts: Texts = Field(default_factory=list)
    portability: _OneHop | None = None

    def record(self) -> EditRecord:
        """Convert. Neighbours share the true object; attributes are subjects that already have the new object."""
        rewrite = self.requested_rewrite
        true, new = rewrite.target_true.str_, rewrite.target_new.str_
        prompt = rewrite.filled
        return EditRecord(
            id=id_of(self.case_id, prompt, new),
            prompt=prompt,
            subject=rewrite.subject,
            target_new=new,
            ground_truth=true,
            rephrases=tuple(self.paraphrase_prompts),
            locality=tuple(Probe(prompt, true) for prompt in self.neighborhood_prompts),
            portability=(self.portability.probe(),) if self.portability else (),
            attributes=tuple(Probe(prompt, new) for prompt in self.attribute_prompts),
            generation_prompts=tuple(self.generation_prompts),
            relation=rewrite.relation_id or "",
        )


@register_format(
    "counterfact-flat",
    dataset="counterfact",
    title="CounterFact (EasyEdit, flat)",
    signature={"prompt", "target_new", "subject", "locality_prompt", "locality_ground_truth"},
)
@dataclass(config=STRICT, slots=True)
class CounterFactFlat:
    """CounterFact in EasyEdit's flat format."""

    prompt: Text
    target_new: Text
    subject: Text
    case_id: Id | None = None
    ground_truth: Answer | None = None
    rephrase_prompt: Text | None = None
    locality_prompt: Text | None = None
    locality_ground_truth: Answer | None = None

    def record(self) -> EditRecord:
        """Convert without rephrases: upstream's `rephrase_prompt` is one of CounterFact's generation prompts."""
        return EditRecord(
            id=id_of(self.case_id, self.prompt, self.target_new),
            prompt=self.prompt,
            subject=self.subject,
            target_new=self.target_new,
            ground_truth=self.ground_truth or "",
            locality=_probe(self.locality_prompt, self.locality_ground_truth),
            generation_prompts=(self.rephrase_prompt,) if self.rephrase_prompt else (),
        )


@register_format(
    "knowedit",
    dataset="zsre",
    title="ZsRE (KnowEdit)",
    signature={"prompt", "target_new", "subject", "rephrase_prompt"},
    recognise=lambda keys: bool(keys & {"locality", "portability"}),
)
@dataclass(config=STRICT, slots=True)
class KnowEdit:
    """ZsRE as in KnowEdit, the version that OnceEdit uses. Any key is allowed under `locality` and `portability`."""

    subject: Text
    target_new: Text
    prompt: Text
    ground_truth: Answer | None = None
    rephrase_prompt: Text | None = None
    locality: dict[str, list[_PromptAndAnswer]] | None = None
    portability: dict[str, list[_PromptAndAnswer]] | None = None

    def record(self) -> EditRecord:
        """Convert. The target is `target_new`, the original answer the first of `ground_truth`."""
        return EditRecord(
            id=content_id(self.prompt, self.target_new),
            prompt=self.prompt,
            subject=self.subject,
            target_new=self.target_new,
            ground_truth=self.ground_truth or "",
            rephrases=(self.rephrase_prompt,) if self.rephrase_prompt else (),
            locality=_probes(self.locality),
            portability=_probes(self.portability),
        )


@register_format(
    "mend",
    dataset="zsre",
    title="ZsRE (MEND)",
    signature={"subject", "src", "alt"},
    recognise=lambda keys: bool(keys & {"rephrase", "loc", "answers"}),
)
@dataclass(config=STRICT, slots=True)
class Mend:
    """ZsRE as MEND published it, with or without the portability question. A few official records have no `alt`."""

    subject: Text
    src: Text
    alt: str
    rephrase: Text | None = None
    answers: Answer | None = None
    loc: Text | None = None
    loc_ans: Answer | None = None
    portability: _OneHop | None = None

    def record(self) -> EditRecord:
        """Convert. The target is `alt`, never one of `answers`; a missing question mark is added to `loc`."""
        return EditRecord(
            id=content_id(self.src, self.alt),
            prompt=self.src,
            subject=self.subject,
            target_new=self.alt,
            ground_truth=self.answers or "",
            rephrases=(self.rephrase,) if self.rephrase else (),
            locality=_probe(self.loc and self.loc.removesuffix("?") + "?", self.loc_ans),
            portability=(self.portability.probe(),) if self.portability else (),
        )


def _is_question_table(lines: list[str]) -> bool:
    """Whether most lines are a question, a tab and an answer."""
    questions = sum(line.split("\t")[0].rstrip().endswith("?") and "\t" in line for line in lines)
    return questions > 0 and questions >= 0.8 * len(lines)


def _question_and_answer(line: str) -> dict[str, str]:
    cells = line.split("\t")
    if len(cells) != 2:
        raise ValueError(f"expected a question and an answer, found {len(cells)} columns")
    return {"src": cells[0], "alt": cells[1]}


@register_format(
    "mend-tsv",
    dataset="zsre",
    title="ZsRE (MEND, table)",
    recognise=_is_question_table,
    parse_line=_question_and_answer,
)
@dataclass(config=STRICT, slots=True)
class MendRow:
    """A line of MEND's training table: a question and an answer, without subject or original answer."""

    src: Text
    alt: str

    def record(self) -> EditRecord:
        """Convert to an unrelated fact, whose answer the model should keep giving."""
        return EditRecord(content_id(self.src, self.alt), self.src, "", self.alt, self.alt)
