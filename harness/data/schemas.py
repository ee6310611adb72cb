"""Schemas of the upstream formats, one class per format, each with its conversion to an `EditRecord`.

A schema declares only the fields that the harness uses; other keys are allowed. Surrounding whitespace is stripped, because
a target is always appended to its prompt with one space.
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
    """Take the first of several acceptable answers; KnowEdit gives a string or a list."""
    return value[0] if isinstance(value, list) and value else value


def _holds_one_place(template: str) -> str:
    if template.count("{}") != 1 or template.count("{") + template.count("}") != 2:
        raise ValueError("does not contain {} exactly once")
    return template


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
Answer = Annotated[Text, BeforeValidator(_first)]
Template = Annotated[str, AfterValidator(_holds_one_place)]


def content_id(prompt: str, target: str) -> str:
    """Id for a record without an upstream id: a hash of prompt and target."""
    return hashlib.sha256(f"{prompt}\0{target}".encode()).hexdigest()[:16]


@dataclass(config=STRICT, slots=True)
class _PromptAndAnswer:
    prompt: Text
    ground_truth: Answer

    def probe(self) -> Probe:
        return Probe(self.prompt, self.ground_truth)


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
class _Rewrite:
    prompt: Template
    relation_id: Text
    subject: Text
    target_new: _Object
    target_true: _Object


@register_format(
    "counterfact",
    dataset="counterfact",
    title="CounterFact (ROME)",
    recognise=lambda keys: "requested_rewrite" in keys and bool(keys & {"paraphrase_prompts", "neighborhood_prompts"}),
)
@dataclass(config=STRICT, slots=True)
class CounterFact:
    """CounterFact as ROME published it, with or without the portability question."""

    case_id: int
    requested_rewrite: _Rewrite
    paraphrase_prompts: Texts
    neighborhood_prompts: Texts
    attribute_prompts: list[Text]
    generation_prompts: list[Text]
    portability: _OneHop | None = None

    def record(self) -> EditRecord:
        """Convert. Neighbours share the true object; attributes are subjects that already have the new object."""
        rewrite = self.requested_rewrite
        true, new = rewrite.target_true.str_, rewrite.target_new.str_
        return EditRecord(
            id=str(self.case_id),
            prompt=rewrite.prompt.replace("{}", rewrite.subject),
            subject=rewrite.subject,
            target_new=new,
            ground_truth=true,
            rephrases=tuple(self.paraphrase_prompts),
            locality=tuple(Probe(prompt, true) for prompt in self.neighborhood_prompts),
            portability=(self.portability.probe(),) if self.portability else (),
            attributes=tuple(Probe(prompt, new) for prompt in self.attribute_prompts),
            generation_prompts=tuple(self.generation_prompts),
            relation=rewrite.relation_id,
        )


@register_format(
    "counterfact-flat",
    dataset="counterfact",
    title="CounterFact (EasyEdit, flat)",
    recognise=lambda keys: bool(keys & {"locality_prompt", "locality_ground_truth"}),
)
@dataclass(config=STRICT, slots=True)
class CounterFactFlat:
    """CounterFact in EasyEdit's flat format."""

    case_id: int
    prompt: Text
    target_new: Text
    subject: Text
    ground_truth: Text
    rephrase_prompt: Text
    locality_prompt: Text
    locality_ground_truth: Text

    def record(self) -> EditRecord:
        """Convert without rephrases: upstream's `rephrase_prompt` is one of CounterFact's generation prompts."""
        return EditRecord(
            id=str(self.case_id),
            prompt=self.prompt,
            subject=self.subject,
            target_new=self.target_new,
            ground_truth=self.ground_truth,
            locality=(Probe(self.locality_prompt, self.locality_ground_truth),),
            generation_prompts=(self.rephrase_prompt,),
        )


@register_format(
    "knowedit",
    dataset="zsre",
    title="ZsRE (KnowEdit)",
    recognise=lambda keys: "rephrase_prompt" in keys and bool(keys & {"locality", "portability"}),
)
@dataclass(config=STRICT, slots=True)
class KnowEdit:
    """ZsRE as in KnowEdit, the version that OnceEdit uses. Any key is allowed under `locality` and `portability`."""

    subject: Text
    target_new: Text
    prompt: Text
    ground_truth: Texts
    rephrase_prompt: Text
    locality: dict[str, list[_PromptAndAnswer]]
    portability: dict[str, list[_PromptAndAnswer]]

    def record(self) -> EditRecord:
        """Convert. The target is `target_new`, the original answer the first of `ground_truth`."""
        return EditRecord(
            id=content_id(self.prompt, self.target_new),
            prompt=self.prompt,
            subject=self.subject,
            target_new=self.target_new,
            ground_truth=self.ground_truth[0],
            rephrases=(self.rephrase_prompt,),
            locality=tuple(probe.probe() for probes in self.locality.values() for probe in probes),
            portability=tuple(probe.probe() for probes in self.portability.values() for probe in probes),
        )


@register_format(
    "mend",
    dataset="zsre",
    title="ZsRE (MEND)",
    recognise=lambda keys: len(keys & {"src", "alt", "rephrase", "loc", "loc_ans", "pred"}) >= 3,
    tolerates_flaws=True,
)
@dataclass(config=STRICT, slots=True)
class Mend:
    """ZsRE as MEND published it, with or without the portability question. A few official records have no `alt`."""

    subject: Text
    src: Text
    rephrase: Text
    alt: str
    answers: Texts
    loc: Text
    loc_ans: Text
    portability: _OneHop | None = None

    def record(self) -> EditRecord:
        """Convert. The target is `alt`, never one of `answers`; a missing question mark is added to `loc`."""
        return EditRecord(
            id=content_id(self.src, self.alt),
            prompt=self.src,
            subject=self.subject,
            target_new=self.alt,
            ground_truth=self.answers[0],
            rephrases=(self.rephrase,),
            locality=(Probe(self.loc if self.loc.endswith("?") else self.loc + "?", self.loc_ans),),
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
    tolerates_flaws=True,
)
@dataclass(config=STRICT, slots=True)
class MendRow:
    """A line of MEND's training table: a question and an answer, without subject or original answer."""

    src: Text
    alt: str

    def record(self) -> EditRecord:
        """Convert to an unrelated fact, whose answer the model should keep giving."""
        return EditRecord(content_id(self.src, self.alt), self.src, "", self.alt, self.alt)
