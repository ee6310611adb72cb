"""A suite with everything resolved: names are known, the scale is applied, hyper-parameters are checked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from harness.models.catalogue import Weights
from harness.suite.hparams import ResolvedHparams
from harness.suite.schedule import Schedule


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model to be edited; `harness.models.catalogue.reference` completes what is None.

    Attributes:
        name: catalogue name, after the scale.
        asked: the name in the suite file, which a scale may have mapped to `name`.
        path: local folder, or empty.
    """

    name: str
    asked: str
    path: str = ""
    weights: Weights | None = None
    dtype: str | None = None

    def is_same_as(self, other: "ModelEntry") -> bool:
        """Whether two entries are one model, as two models of a suite are that share a stand-in."""
        return replace(self, asked="") == replace(other, asked="")


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method with its options.

    Attributes:
        name: registry name; `label` tells apart several entries of one method.
        variant: a named set of hyper-parameters, or None.
        hparams: values and their sources by model name.
    """

    name: str
    label: str
    variant: str | None
    backend: str
    hparams: Mapping[str, ResolvedHparams]


@dataclass(frozen=True, slots=True)
class DataEntry:
    """A dataset and how much of it is used; the fields are those of `harness.records.DataRef`.

    Attributes:
        source: folder of upstream files, `synthetic`, or empty where no folder is given (the plan reports it missing).
    """

    name: str
    source: str
    edits: int
    split: str
    train: int
    unrelated: int
    strip_distractor: bool


@dataclass(frozen=True, slots=True)
class Suite:
    """What to run. Each combination of models, methods, datasets, prompts and seeds is one cell.

    Attributes:
        file: the suite file, as the user named it.
        scale: `paper` for the suite as written, else the name of the scale that is laid over it.
        keep_weights: edited weights are kept next to the results.
        schedule: as written; `Schedule.within` fits it to a dataset.
        launch: name of a launch profile, or the path of one; `launch_at` is where it was written, `file:line`.
    """

    name: str
    description: str
    file: str
    scale: str
    models: tuple[ModelEntry, ...]
    methods: tuple[MethodEntry, ...]
    datasets: tuple[DataEntry, ...]
    protocols: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    schedule: Schedule
    keep_weights: bool
    eval_batch: int
    launch: str
    launch_at: str
    device: Literal["auto", "cpu", "cuda"]
    threads: int | None
    tables: tuple[str, ...]
