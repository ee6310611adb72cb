"""A resolved suite: names checked, scale applied, hyper-parameters validated."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from harness.commands import harness_command
from harness.evaluation.capability import tasks
from harness.models import catalogue
from harness.models.catalogue import ModelRef, Places, Weights
from harness.models.layouts import Layout
from harness.models.spec import ModelSpec
from harness.records import DataRef
from harness.suite.hparams import ResolvedHparams
from harness.suite.schedule import Schedule

PAPER = "paper"
"""Name of the scale that leaves a suite as written."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model to edit; `harness.models.catalogue.reference` fills in what is None.

    Attributes:
        name: its name, after the scale was applied.
        asked: name in the suite file, which a scale may have mapped to `name`.
        source: as in the suite, or empty for the catalogue's.
        revision: commit, branch or tag of a model from the hub, or empty.
        layout: module paths of a type of model that the harness does not know, or None.
        device_map: how it is spread over several GPUs, or empty.
        problem: why the model cannot be used here, or empty.
    """

    name: str
    asked: str
    source: str = ""
    weights: Weights | None = None
    dtype: str | None = None
    revision: str = ""
    layout: Layout | None = None
    device_map: Places = ""
    problem: str = ""

    @property
    def spec(self) -> ModelSpec:
        """What is known about the model before it is loaded.

        Raises:
            UserError: if nothing is; for an entry without a `problem`, something is known.
        """
        return catalogue.known_spec(self.name, self.source, self.revision, self.weights, self.layout)

    def reference(self, corpus: DataRef | None) -> ModelRef:
        """The model itself; `corpus` has the facts that a model trained on the spot learns.

        Raises:
            UserError: as `harness.models.catalogue.reference`.
        """
        return catalogue.reference(
            self.name,
            weights=self.weights,
            source=self.source,
            dtype=self.dtype,
            corpus=corpus,
            revision=self.revision,
            layout=self.layout,
            device_map=self.device_map,
        )

    def is_same_as(self, other: "ModelEntry") -> bool:
        """Whether two entries refer to the same model, for example because they share a stand-in."""
        return replace(self, asked="") == replace(other, asked="")


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method with its options.

    Attributes:
        name: registry name.
        label: unique name of the entry; distinguishes several entries of one method.
        variant: named set of hyper-parameters, or None.
        hparams: values and their sources, by model; names of models need not be unique.
        problems: why there are no hyper-parameters for a model.
    """

    name: str
    label: str
    variant: str | None
    backend: str
    hparams: Mapping[ModelEntry, ResolvedHparams]
    problems: Mapping[ModelEntry, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DataEntry:
    """A dataset and the selection of its records; the other fields are those of `harness.records.DataRef`.

    Attributes:
        source: folder of upstream files, `synthetic`, or empty if none is given (the plan then reports missing data).
        too_long: `refuse` or `drop` records that a model of the suite cannot read.
        problem: why there are no records, or empty.
    """

    name: str
    source: str
    edits: int
    split: str
    train: int
    unrelated: int
    strip_distractor: bool
    conflicts: str
    too_long: Literal["refuse", "drop"]
    file: str
    relations: str = "all"
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CapabilityEntry:
    """A benchmark task; see `harness.evaluation.capability.tasks.reference`.

    Attributes:
        path: a file, a folder, or empty.
    """

    name: str
    source: tasks.Source
    path: str
    items: int | None
    shots: int | None

    def reference(self) -> tasks.TaskRef:
        """The task with its rows.

        Raises:
            UserError: as `harness.evaluation.capability.tasks.reference`.
        """
        return tasks.reference(self.name, source=self.source, path=self.path, items=self.items, shots=self.shots)


@dataclass(frozen=True, slots=True)
class SuiteSource:
    """Origin of a suite, to tell whether two runs under one name are of the same suite.

    Attributes:
        file: absolute path, or `installed:<file>` for a suite that ships with the harness.
        sha256: hash of what the file and its bases say; comments and layout do not count.
    """

    name: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Suite:
    """An experiment: each combination of models, methods, datasets, prompts and seeds is one cell.

    Attributes:
        file: the suite file, as the user named it.
        source: the same, whatever the working directory, and a hash of the content.
        data: folder of upstream files, from the command line or HARNESS_DATA; empty if no dataset uses it.
        variant: name of the results, apart from those of the suite as written; empty if no option changes its cells.
        is_lenient: whether entries that cannot be resolved here say why, instead of stopping everything.
        scale: `paper` for the suite as written, otherwise the name of the scale applied to it.
        all_models: models before `--only`; those of them that are run are in `models`.
        keep_weights: whether to save the edited weights next to the results.
        count_flops: number of edits on which FLOPs are counted, 0 for none.
        classic: whether to compute CounterFact's metrics by probability as well.
        schedule: as written; `Schedule.within` fits it to a dataset.
        launch: name or path of a launch profile.
        launch_at: where the profile was chosen, as `file:line`.
        fluency: file of reference texts for metrics of generated text, empty for none; None if these are not wanted.
        capability: benchmark tasks that are asked before and after editing.
        published: name of published numbers that tables show next to measured ones, or empty.
        judge: name of the language model that `harness judge` asks, or empty.
        options: command-line options that it was read with, apart from the scale, by name.
    """

    name: str
    description: str
    file: str
    source: SuiteSource
    data: str
    variant: str
    is_lenient: bool
    scale: str
    all_models: tuple[ModelEntry, ...]
    models: tuple[ModelEntry, ...]
    methods: tuple[MethodEntry, ...]
    datasets: tuple[DataEntry, ...]
    protocols: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    schedule: Schedule
    keep_weights: bool
    count_flops: int
    classic: bool
    eval_batch: int | Literal["auto"]
    launch: str
    launch_at: str
    device: Literal["auto", "cpu", "cuda"]
    threads: int | None
    tables: tuple[str, ...]
    figures: tuple[str, ...] = ()
    published: str = ""
    fluency: str | None = None
    capability: tuple[CapabilityEntry, ...] = ()
    judge: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def command(self, verb: str, store: Path, **more: object) -> str:
        """The command line of a verb for the same suite, options and store."""
        scale = "" if self.scale == PAPER else self.scale
        return harness_command(verb, self.file, scale=scale, **self.options, **more, store=store)
