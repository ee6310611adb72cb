"""Dataset-independent records: edits, the requests that methods see, probes and scored answers."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

from harness.identity import ADDED, LABEL

Split = Literal["test", "dev", "all"]
"""Subset of a file's records, determined by their ids; `all` is the whole file."""
Template = Literal["none", "paper"]
"""Template around every prompt; `paper` is OnceEdit's template for base models."""
Relations = Literal["all", "seen", "unseen"]
"""Whether methods learn from records with the relations of the edits; `all` makes no difference between relations."""
Conflict = Literal["keep", "drop"]
"""What happens to edits that contradict each other."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt with the answer that the dataset expects.

    Attributes:
        kind: what the dataset calls questions of this sort, such as `Reasoning`; reports group by it.
        aliases: other acceptable answers; only protocols that compare words look at them.
        needs: ids of the other edits that the answer follows from; the question is asked if all of them are made.
        chain: what questions about the same chain of facts have in common.
        has_answer: whether `answer` is one. Otherwise it only says how many tokens are compared with the unedited model's.
    """

    prompt: str
    answer: str
    kind: str = field(default="", metadata=LABEL)
    aliases: tuple[str, ...] = field(default=(), metadata=ADDED)
    needs: tuple[str, ...] = field(default=(), metadata=ADDED)
    chain: str = field(default="", metadata=LABEL)
    has_answer: bool = field(default=True, metadata=ADDED)


@dataclass(frozen=True, slots=True)
class EditRequest:
    """The part of a record that a method sees: no rephrases and no locality probes."""

    record_id: str
    prompt: str
    subject: str
    target_new: str
    ground_truth: str


@dataclass(frozen=True, slots=True)
class EditRecord:
    """One fact to edit, with all its evaluation probes.

    Attributes:
        id: upstream id, otherwise a hash of prompt and target; independent of the order of the file, and unique among
            all records of a dataset.
        subject: subject as it occurs in `prompt`; empty if the upstream format has none.
        ground_truth: answer before the edit; empty if upstream has none.
        rephrases: paraphrases of the prompt (generality).
        locality: probes whose answer the edit must not change (locality).
        portability: probes that follow from the new fact.
        attributes: probes of other subjects for which `target_new` is already true (CounterFact `attribute_prompts`).
        generation_prompts: prompts for free generation about the subject; not paraphrases of `prompt`.
        relation: upstream relation id, or empty.
        aliases: other wordings of `target_new`, as for a probe.
        forms: the fact asked in forms with answers of their own, such as multiple choice (generality).
        robustness: the fact asked again after the user challenges the answer.
        hops: the facts, edited or not, that multi-hop questions of `portability` combine.
        group: records of the same group are in the same split; empty for a record on its own.
    """

    id: str
    prompt: str
    subject: str
    target_new: str
    ground_truth: str
    rephrases: tuple[str, ...] = ()
    locality: tuple[Probe, ...] = ()
    portability: tuple[Probe, ...] = ()
    attributes: tuple[Probe, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    relation: str = ""
    aliases: tuple[str, ...] = field(default=(), metadata=ADDED)
    forms: tuple[Probe, ...] = field(default=(), metadata=ADDED)
    robustness: tuple[Probe, ...] = field(default=(), metadata=ADDED)
    hops: tuple[Probe, ...] = field(default=(), metadata=ADDED)
    group: str = field(default="", metadata=LABEL)

    def request(self) -> EditRequest:
        """Return the part of the record that a method sees."""
        return EditRequest(self.id, self.prompt, self.subject, self.target_new, self.ground_truth)

    @property
    def split_id(self) -> str:
        """The id that decides the split."""
        return self.group or self.id

    @property
    def is_example(self) -> bool:
        """Whether it shows both what an edit changes and what it leaves alone: it has a rephrase and a locality probe."""
        return bool(self.rephrases and self.locality)

    @property
    def known_locality(self) -> Probe | None:
        """The first locality probe with an answer, the only kind that can be shown as a fact."""
        return next((probe for probe in self.locality if probe.has_answer), None)

    def probes(self) -> dict[str, tuple[Probe, ...]]:
        """All probes by field."""
        return {name: getattr(self, name) for name in PROBES}

    def with_probes(self, change: Callable[[Probe], Probe | None]) -> Self:
        """Change every probe, or leave out those for which `change` returns None."""
        changed: dict[str, Any] = {
            name: tuple(new for probe in probes if (new := change(probe)) is not None)
            for name, probes in self.probes().items()
            if probes
        }
        return replace(self, **changed)


PROBES = ("locality", "portability", "attributes", "forms", "robustness", "hops")
"""Fields of an `EditRecord` with probes."""


def askable(edits: Iterable[EditRecord]) -> tuple[EditRecord, ...]:
    """Drop the questions that need an edit that is not among the records edited together."""
    edits = tuple(edits)
    ids = {record.id for record in edits}
    return tuple(
        record.with_probes(lambda probe: probe if ids.issuperset(probe.needs) else None)
        if any(probe.needs for probes in record.probes().values() for probe in probes)
        else record
        for record in edits
    )


@dataclass(frozen=True, slots=True)
class DataRef:
    """Reference to the records of a cell: how to load them anywhere, and a hash to verify them.

    Attributes:
        name: name of a registered dataset, such as `zsre`.
        source: folder of upstream files, or `synthetic` for generated records. Not part of the identity.
        edits: number of scored records.
        split: `test` or `dev`, by record id; `all` ignores the split.
        train: number of unrelated records that methods may learn from; in a resolved reference, the number found.
        unrelated: number of further unrelated records, hidden from methods, on which locality is also scored.
        strip_distractor: remove the unrelated sentence before CounterFact's paraphrases.
        template: prompt template around every prompt, `none` or `paper`.
        sha256: hash of the selected records.
        conflicts: `keep` or `drop` edits that contradict themselves or an earlier edit. Which records are left says
            `sha256`, so this is not part of the identity.
        without: ids of records that are left out, for the same reason not part of the identity.
        file: file of `source` that provides the edits; empty to choose one. Not part of the identity either.
        relations: with `seen` and `unseen`, the edits have relations of a fixed half; methods learn from records with these
            relations (`seen`) or with the others (`unseen`). Both edit the same records.
        examples: number of train records with a rephrase and a locality probe, from which hypernetworks learn; None until they
            are counted. `sha256` decides it, so this is not part of the identity.
        without_subject: number of edits without a subject, which some methods need; None and identity as for `examples`.
    """

    name: str
    source: str
    edits: int
    split: str = "test"
    train: int = 0
    unrelated: int = 0
    strip_distractor: bool = False
    template: str = "none"
    sha256: str = ""
    conflicts: str = "keep"
    without: tuple[str, ...] = ()
    file: str = ""
    relations: str = "all"
    examples: int | None = None
    without_subject: int | None = None

    @property
    def title(self) -> str:
        """The dataset, and the prompt template unless it is none."""
        return self.name if self.template == "none" else f"{self.name} with prompt {self.template}"

    def identity(self) -> dict[str, object]:
        """What identifies these records, independent of their location."""
        return {
            "name": self.name,
            "edits": self.edits,
            "split": self.split,
            "train": self.train,
            "unrelated": self.unrelated,
            "strip_distractor": self.strip_distractor,
            "template": self.template,
            "sha256": self.sha256,
            **({"relations": self.relations} if self.relations != "all" else {}),
        }


@dataclass(frozen=True, slots=True)
class Dataset:
    """The records of one cell, in three groups with disjoint subjects.

    Attributes:
        edits: the scored records.
        train: unrelated records that a method may learn from (negatives, hypernetworks).
        unrelated: unrelated records that no method sees; locality is also scored on them.
        contradictory: number of records before the last edit that `conflicts: drop` has left out.
        notes: what should be known about the files, such as unusable records.
    """

    ref: DataRef
    edits: tuple[EditRecord, ...]
    train: tuple[EditRecord, ...]
    unrelated: tuple[EditRecord, ...]
    contradictory: int = 0
    notes: tuple[str, ...] = ()


def same_subject(records: Iterable[EditRecord]) -> list[list[str]]:
    """Ids of records about one subject, for each subject with several records; a subject's case does not matter."""
    by_subject: dict[str, list[str]] = {}
    for record in records:
        if record.subject:
            by_subject.setdefault(record.subject.casefold(), []).append(record.id)
    return [ids for ids in by_subject.values() if len(ids) > 1]


@dataclass(frozen=True, slots=True)
class FirstEdits(DataRef):
    """The records scored at one point of a sequence: the first `so_far` edits and the complete pools.

    Fewer questions form different batches, so the unedited model needs its own reference for them.
    """

    so_far: int = 0

    @classmethod
    def of(cls, whole: DataRef, so_far: int) -> Self:
        """Restrict a reference to its first edits."""
        return cls(**{field.name: getattr(whole, field.name) for field in fields(DataRef)}, so_far=so_far)

    @property
    def whole(self) -> DataRef:
        """The reference to all records."""
        return DataRef(**{field.name: getattr(self, field.name) for field in fields(DataRef)})

    @property
    def title(self) -> str:
        """As that of all records, and the number of edits."""
        return f"{self.whole.title} after {self.so_far} edits"

    def identity(self) -> dict[str, object]:
        """Identity of the full reference plus the number of edits."""
        return {**self.whole.identity(), "so_far": self.so_far}

    def cut(self, data: Dataset) -> Dataset:
        """Select the records from the full dataset."""
        return replace(data, ref=self, edits=askable(data.edits[: self.so_far]))


def first_edits(data: DataRef, edits: int) -> DataRef:
    """The reference to the first edits; `data` itself if these are all."""
    return data if edits == data.edits else FirstEdits.of(data, edits)


@dataclass(frozen=True, slots=True)
class Answer:
    """One scored answer, a row of `records.parquet`.

    Attributes:
        record_id, protocol, axis, probe: key of the question.
        prompt, target: text of the question.
        predicted: the compared ids as text.
        n_tokens: number of ids of the prediction; those of the target are as many, unless the answer ends by itself.
        score: fraction of ids that match the target or, for locality, the unedited model's answer; of an answer that ends by
            itself, F1 of its words instead.
        exact: 1 if all ids match, otherwise 0; of an answer that ends by itself, whether its words are the same.
        answer_score: for locality, `score` against the dataset's answer; NaN for other axes, and without such an answer.
        scope: routing score of the prompt in [0, 1], 1 for in scope of an edit; NaN if the method has none.
        contains: 1 if an answer that ends by itself contains what it is compared with, otherwise 0; NaN for other protocols.
        kind, chain: those of the probe; empty for edits and rephrases.
    """

    record_id: str
    protocol: str
    axis: str
    probe: int
    prompt: str
    target: str
    predicted: str
    n_tokens: int
    score: float
    exact: float
    answer_score: float
    scope: float
    contains: float = math.nan
    kind: str = ""
    chain: str = ""


@dataclass(frozen=True, slots=True)
class ItemScore:
    """A model's score on one item of a benchmark task.

    Attributes:
        task, metric, item: key of the score; items are numbered from 0.
        value: the metric; of a perplexity, the log-probability of the text.
        weight: how much the item counts in the mean; of a perplexity, its number of words.
    """

    task: str
    metric: str
    item: int
    value: float
    weight: float
