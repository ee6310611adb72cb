"""An edit in the same form for every dataset: the record, the request that a method sees, the probes and their answers."""

from dataclasses import dataclass, fields, replace
from typing import Literal, Self

Split = Literal["test", "dev", "all"]
"""Which records of a file are used, by their ids; `all` ignores the division."""
Template = Literal["none", "paper"]
"""What is written around every prompt; `paper` is OnceEdit's prompt for base models."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt with the answer that the dataset expects from the unedited model."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class EditRequest:
    """All that a method sees of a record that it has to edit: never a rephrase, never a locality probe."""

    record_id: str
    prompt: str
    subject: str
    target_new: str
    ground_truth: str


@dataclass(frozen=True, slots=True)
class EditRecord:
    """One fact to edit and everything that is asked about it afterwards.

    Attributes:
        id: stable under reordering of the file: the upstream id, else a hash of prompt and target.
        subject: occurs in `prompt`; empty where the upstream format names none.
        ground_truth: the answer before the edit; empty where upstream has none.
        rephrases: the same question in other words (generality).
        locality: probes whose answer the edit must not change (locality).
        portability: probes that follow from the new fact.
        attributes: other subjects of which `target_new` is already true (CounterFact `attribute_prompts`).
        generation_prompts: prompts for free generation about the subject; no paraphrases of `prompt`.
        relation: upstream relation id, or empty.
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

    def request(self) -> EditRequest:
        """The part of the record that a method sees."""
        return EditRequest(self.id, self.prompt, self.subject, self.target_new, self.ground_truth)


@dataclass(frozen=True, slots=True)
class DataRef:
    """Which records a cell uses: enough to load them again anywhere, and the hash that proves they are the same.

    Attributes:
        name: name of a registered dataset, such as `zsre`.
        source: a folder of upstream files, or `synthetic` for the generated records. Not part of the identity.
        edits: number of scored records.
        split: `test` or `dev`, by record id; `all` ignores the split.
        train: number of unrelated records that methods may learn from; in a resolved reference, what was found.
        unrelated: number of further unrelated records, kept from the methods, on which locality is also scored.
        strip_distractor: cut the sentence in front of CounterFact's paraphrases.
        template: prompt template around every prompt, `none` or `paper`.
        sha256: hash of the selected records (see `Dataset.sha256`).
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

    def identity(self) -> dict[str, object]:
        """What names these records, wherever they lie."""
        return {
            "name": self.name,
            "edits": self.edits,
            "split": self.split,
            "train": self.train,
            "unrelated": self.unrelated,
            "strip_distractor": self.strip_distractor,
            "template": self.template,
            "sha256": self.sha256,
        }


@dataclass(frozen=True, slots=True)
class Dataset:
    """The records of one cell, in three groups that share no subject.

    Attributes:
        edits: the scored records.
        train: unrelated records that a method may learn from (negatives, hypernetworks).
        unrelated: unrelated records that no method sees; locality is also scored on them.
    """

    ref: DataRef
    edits: tuple[EditRecord, ...]
    train: tuple[EditRecord, ...]
    unrelated: tuple[EditRecord, ...]


@dataclass(frozen=True, slots=True)
class FirstEdits(DataRef):
    """The records of a reference as they are scored during a sequence: only the first `so_far` edits, all the pools.

    Fewer questions mean other batches, in which the unedited model has to be asked too.
    """

    so_far: int = 0

    @classmethod
    def of(cls, whole: DataRef, so_far: int) -> Self:
        """The first edits of a reference."""
        return cls(**{field.name: getattr(whole, field.name) for field in fields(DataRef)}, so_far=so_far)

    @property
    def whole(self) -> DataRef:
        """The reference to all records."""
        return DataRef(**{field.name: getattr(self, field.name) for field in fields(DataRef)})

    def identity(self) -> dict[str, object]:
        """That of the whole, and how many of the edits."""
        return {**self.whole.identity(), "so_far": self.so_far}

    def cut(self, data: Dataset) -> Dataset:
        """The records, out of all of them."""
        return replace(data, ref=self, edits=data.edits[: self.so_far])


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as it is written to `records.parquet`.

    Attributes:
        record_id, protocol, axis, probe: which question, asked how.
        prompt, target: as asked.
        predicted: the ids that were compared, as text.
        n_tokens: length of the target in ids, and of the prediction.
        score: share of ids that are right. What is right: the target, or for locality what the unedited model said.
        exact: 1 if all ids are right, else 0.
        answer_score: for locality, share of ids that equal the dataset's answer; NaN elsewhere.
        scope: routing score of the prompt in [0, 1], 1 if it is treated as one of the edits; NaN if the method has none.
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
