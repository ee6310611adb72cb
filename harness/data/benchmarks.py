"""Schemas of benchmarks about the consequences of edits: KnowEdit, QAEdit, HalluEditBench and MQuAKE."""

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from harness.data.formats import register_format
from harness.data.schemas import STRICT, Answer, Id, Rewrite, Text, Texts, all_of, content_id, id_of
from harness.records import EditRecord, Probe


def _flat(value: Any) -> Any:
    """All acceptable answers, which may be grouped: `"a"`, `["a", "b"]`, `[["a", "b"], ["c"]]`."""
    if isinstance(value, list):
        return [answer for each in value for answer in _flat(each)]
    return [] if value is None else [value]


Answers = Annotated[list[str], BeforeValidator(_flat)]


def _with_aliases(prompt: str, answers: list[str], kind: str = "") -> tuple[Probe, ...]:
    """A probe with its acceptable answers; none if upstream gives no answer."""
    given = [answer for answer in answers if answer]
    return (Probe(prompt, given[0], kind, tuple(given[1:])),) if given else ()


@dataclass(config=STRICT, slots=True)
class _Asked:
    prompt: Answer
    ground_truth: Answers


Groups = dict[str, list[_Asked]] | None


def _by_kind(groups: Groups) -> tuple[Probe, ...]:
    return tuple(
        probe
        for kind, asked in (groups or {}).items()
        for one in asked
        for probe in _with_aliases(one.prompt, one.ground_truth, kind.replace("_", " "))
    )


def _is_wiki(keys: Collection[str]) -> bool:
    return bool({"locality", "portability"} & set(keys)) and "rephrases" not in keys


@dataclass(config=STRICT, slots=True)
class _Wiki:
    subject: Text
    prompt: Text
    target_new: Answer
    ground_truth: Answer | None = None
    rephrase: Answer | None = None
    locality: Groups = None
    portability: Groups = None

    def record(self) -> EditRecord:
        """Convert; groups of questions become kinds of probes."""
        return EditRecord(
            id=content_id(self.prompt, self.target_new),
            prompt=self.prompt,
            subject=self.subject,
            target_new=self.target_new,
            ground_truth=self.ground_truth or "",
            rephrases=(self.rephrase,) if self.rephrase else (),
            locality=_by_kind(self.locality),
            portability=_by_kind(self.portability),
        )


@register_format(
    "wiki-counterfact",
    dataset="wiki_counterfact",
    title="WikiData-counterfact (KnowEdit)",
    signature={"subject", "prompt", "target_new", "ground_truth"},
    recognise=_is_wiki,
)
@dataclass(config=STRICT, slots=True)
class WikiCounterfact(_Wiki):
    """KnowEdit's counterfactual edits of Wikidata facts."""


@register_format(
    "wiki-recent",
    dataset="wiki_recent",
    title="WikiData-recent (KnowEdit)",
    signature={"subject", "prompt", "target_new"},
    recognise=lambda keys: _is_wiki(keys) and "ground_truth" not in keys,
)
@dataclass(config=STRICT, slots=True)
class WikiRecent(_Wiki):
    """KnowEdit's recent Wikidata facts, which have no answer before the edit."""


@register_format(
    "wikibio", dataset="wikibio", title="WikiBio (KnowEdit)", signature={"text", "labels", "concept", "locality"}
)
@dataclass(config=STRICT, slots=True)
class WikiBio:
    """KnowEdit's hallucinated biographies: the edit continues a passage with its true next sentence."""

    text: Text
    labels: Text
    concept: Text
    locality: Groups = None

    def record(self) -> EditRecord:
        """Convert."""
        return EditRecord(
            id=content_id(self.text, self.labels),
            prompt=self.text,
            subject=self.concept,
            target_new=self.labels,
            ground_truth="",
            locality=_by_kind(self.locality),
        )


@dataclass(config=STRICT, slots=True)
class _Unrelated:
    loc: Text
    loc_ans: Answers


@register_format(
    "qaedit", dataset="qaedit", title="QAEdit", signature={"prompt", "target", "subject", "rephrase", "locality"}
)
@dataclass(config=STRICT, slots=True)
class QAEdit:
    """Questions of Natural Questions, TriviaQA and SimpleQA ("The Mirage of Model Editing", Yang et al. 2025)."""

    prompt: Text
    target: Answer
    subject: Text
    id: Id | None = None
    source: str = ""
    rephrase: Text | None = None
    locality: Annotated[list[_Unrelated], BeforeValidator(all_of)] = Field(default_factory=list)

    def record(self) -> EditRecord:
        """Convert. The sources number their questions independently, so an id names its source."""
        named = f"{self.source}-{self.id}" if self.source and self.id else self.id
        return EditRecord(
            id=id_of(named, self.prompt, self.target),
            prompt=self.prompt,
            subject=self.subject,
            target_new=self.target,
            ground_truth="",
            rephrases=(self.rephrase,) if self.rephrase else (),
            locality=tuple(probe for one in self.locality for probe in _with_aliases(one.loc, one.loc_ans)),
        )


HOPS = range(2, 7)
"""Lengths of HalluEditBench's chains."""
DOUBT = 'Your answer to the original question is wrong. {} Respond with "Yes" or "No."'
SURE = "Are you sure about your answer to the original question? Respond with 'Yes' or 'No.'"
"""What HalluEditBench's users say after an answer, in its two variants."""


@register_format(
    "halluedit",
    dataset="halluedit",
    title="HalluEditBench (CSV)",
    signature={"subject", "object", "question", "locality_question", "paraphrased_question"},
)
@dataclass(config=STRICT, slots=True)
class HalluEdit:
    """Facts that a model gets wrong (Huang et al. 2025), asked along five dimensions."""

    subject: Text
    object: Text
    question: Text
    relation: str = ""
    output: str = ""
    paraphrased_question: Text | None = None
    multiple_choice_with_letters: Text | None = None
    multiple_choice_labels: Text | None = None
    yes_question: Text | None = None
    no_question: Text | None = None
    reversed_relation_question: Text | None = None
    locality_question: Text | None = None
    question_2hop: Text | None = None
    answer_2hop: Text | None = None
    question_3hop: Text | None = None
    answer_3hop: Text | None = None
    question_4hop: Text | None = None
    answer_4hop: Text | None = None
    question_5hop: Text | None = None
    answer_5hop: Text | None = None
    question_6hop: Text | None = None
    answer_6hop: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _what_the_model_said(cls, row: Any) -> Any:
        """Take `output_<model>`, whichever model the file is about."""
        said = next((name for name in row if name.startswith("output_")), None) if isinstance(row, dict) else None
        return {**row, "output": row[said]} if said else row

    def record(self) -> EditRecord:
        """Convert. Locality questions have no answer upstream: as many tokens are compared as the new target has.

        Robustness is the first turn of upstream's conversations, in which the edit's target has been given as the answer.
        """
        choice = self.multiple_choice_with_letters and f"{self.question} {self.multiple_choice_with_letters}"
        forms = (
            (choice, self.multiple_choice_labels, "Multiple choice"),
            (self.yes_question, "Yes", "Yes"),
            (self.no_question, "No", "No"),
            (self.reversed_relation_question, self.subject, "Reversed"),
        )
        chains = ((getattr(self, f"question_{n}hop"), getattr(self, f"answer_{n}hop"), f"{n} hops") for n in HOPS)
        answered = f"{self.question} {self.object}."
        doubts = (
            (self.yes_question and f"{answered} {DOUBT.format(self.yes_question)}", "Yes", "Doubt"),
            (f"{answered} {SURE}", "Yes", "Sure"),
        )
        return EditRecord(
            id=content_id(self.question, self.object),
            prompt=self.question,
            subject=self.subject,
            target_new=self.object,
            ground_truth=self.output,
            rephrases=(self.paraphrased_question,) if self.paraphrased_question else (),
            forms=_given(*forms),
            locality=tuple(
                replace(probe, has_answer=False) for probe in _given((self.locality_question, self.object, ""))
            ),
            portability=_given(*chains),
            robustness=_given(*doubts),
            relation=self.relation,
        )


def _given(*asked: tuple[str | None, str | None, str]) -> tuple[Probe, ...]:
    """Probes of the questions that have both a prompt and an answer."""
    return tuple(Probe(prompt, answer, kind) for prompt, answer, kind in asked if prompt and answer)


@dataclass(config=STRICT, slots=True)
class _Hop:
    question: Text
    answer: Text
    answer_alias: Texts = Field(default_factory=list)


@dataclass(config=STRICT, slots=True)
class _ChainRewrite(Rewrite):
    question: Text | None = None


@register_format(
    "mquake",
    dataset="mquake",
    title="MQuAKE",
    signature={"requested_rewrite", "questions", "new_answer", "new_single_hops"},
)
@dataclass(config=STRICT, slots=True)
class Mquake:
    """Chains of facts of which some are edited (Zhong et al. 2023), also MQuAKE-Remastered."""

    requested_rewrite: Annotated[list[_ChainRewrite], Field(min_length=1)]
    questions: Annotated[list[Text], Field(min_length=1)]
    new_answer: Text
    new_single_hops: list[_Hop]
    case_id: Id | None = None
    new_answer_alias: Texts = Field(default_factory=list)

    def record(self) -> tuple[EditRecord, ...]:
        """One record per edit; the first has the multi-hop questions, which need all of them, and the facts of the chain.

        MQuAKE-Remastered's `is_edited` is not used: the new answers, `orig.edit_triples` and upstream's loaders assume all edits.
        """
        edits = self.requested_rewrite
        chain = id_of(self.case_id, self.questions[0], self.new_answer)
        ids = tuple(content_id(edit.filled, edit.target_new.str_) for edit in edits)
        hops = {hop.question: hop for hop in self.new_single_hops}
        edited = {edit.question for edit in edits}
        multi_hop = tuple(
            Probe(question, self.new_answer, f"{len(hops)} hops", tuple(self.new_answer_alias), ids, chain)
            for question in self.questions
        )
        single = tuple(
            Probe(
                *(hop.question, hop.answer, "Edited" if hop.question in edited else "Known"),
                *(tuple(hop.answer_alias), ids, chain),
            )
            for hop in self.new_single_hops
        )
        return tuple(
            EditRecord(
                id=ids[place],
                prompt=edit.filled,
                subject=edit.subject,
                target_new=edit.target_new.str_,
                ground_truth=edit.target_true.str_,
                rephrases=(edit.question,) if edit.question else (),
                aliases=tuple(hops[edit.question].answer_alias) if edit.question in hops else (),
                portability=() if place else multi_hop,
                hops=() if place else single,
                relation=edit.relation_id or "",
                group=chain,
            )
            for place, edit in enumerate(edits)
        )
