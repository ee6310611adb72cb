"""Schemas of suite and scale files. Names are checked separately, in `harness.suite.names`."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from harness import registry
from harness.evaluation.capability import tasks
from harness.models import catalogue
from harness.models.architecture import Dtype
from harness.models.catalogue import ModelRef, Weights
from harness.models.layouts import Kernel, Layout
from harness.records import Conflict, DataRef, Relations, Split, Template
from harness.suite.entries import ModelEntry
from harness.yaml_source import StrictModel


@dataclass(frozen=True)
class NameIn:
    """Marks a string as a name in a registry, for completion in editors; validation does not look it up."""

    known: registry.Registry[Any]
    others: tuple[str, ...] = ()

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(core), "enum": [*self.others, *self.known.names()]}


Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+=_-]*$")]
Method = Annotated[str, NameIn(registry.methods)]
Backend = Annotated[str, NameIn(registry.backends, (registry.AUTO, registry.NATIVE))]
Dataset = Annotated[str, NameIn(registry.datasets)]
Protocol = Annotated[str, NameIn(registry.protocols)]
Table = Annotated[str, NameIn(registry.tables)]
Figure = Annotated[str, NameIn(registry.figures)]
Device = Literal["auto", "cpu", "cuda"]
EvalBatch = Annotated[int, Field(ge=1)] | Literal["auto"]
TooLong = Literal["refuse", "drop"]
Scalar = str | int | float | bool | None


class Entry(StrictModel):
    """One entry of an axis: a bare name, or a mapping with a name and options."""

    name: str

    @model_validator(mode="before")
    @classmethod
    def _a_bare_name_is_an_entry(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Describe both spellings, for editors that validate against the schema."""
        entry = handler(core)
        name = {key: value for key, value in entry["properties"]["name"].items() if key in ("type", "enum")}
        return {"anyOf": [name, entry]}


class LayoutForm(StrictModel):
    """Where the modules that methods edit are inside a model whose type the harness does not know; `{}` is the layer."""

    block: str = Field(description="a transformer block: `model.layers.{}`")
    attention: str = Field(description="its attention module: `model.layers.{}.self_attn`")
    mlp: str = Field(description="the module that holds its feed-forward matrices: `model.layers.{}.mlp`")
    matrices: list[str] = Field(min_length=1, description="names of these matrices inside `mlp`, the last one writes")
    final_norm: str = Field(description="the norm after the last block: `model.norm`")
    head: str = Field("lm_head", description="the projection to the vocabulary")
    embeddings: str = Field(description="the token embeddings: `model.embed_tokens`")
    value_norm: str | None = Field(None, description="a norm of what the last matrix adds to the residual stream")
    positions: str | None = Field(None, description="learned position embeddings")
    attention_kernel: Kernel = "eager"

    def layout(self) -> Layout:
        """The layout itself."""
        given = self.model_dump()
        given["matrices"] = tuple(self.matrices)
        return Layout(**given, value_matrix=f"{self.mlp}.{self.matrices[-1]}")


_SOURCE = re.compile(r"[./~]|package:|.*\.gguf$|[\w.-]+/[\w.-]+$")
"""Pattern of a bare string that names a source: a path, a package, a GGUF file or a hub id."""


class ModelForm(Entry):
    """A model: a name from the catalogue, or a name of your own and a source. A bare source is also enough."""

    source: str | None = Field(
        None,
        validation_alias=AliasChoices("source", "path"),
        description="a folder, relative to the working directory, a .gguf file, package:<distribution>, or a hub id; "
        "default: the catalogue's",
    )
    device_map: Literal["auto", "balanced"] | dict[str, str | int] | None = Field(
        None,
        description="for a model larger than one GPU: how its blocks are spread over several, or the device of each",
    )
    layout: LayoutForm | None = Field(None, description="only for a type of model that the harness does not know")
    weights: Weights | None = Field(
        None, description="`random` measures cost without a checkpoint; default: the catalogue's"
    )
    dtype: Dtype | None = Field(None, description="default: the catalogue's")
    revision: str | None = Field(
        None, min_length=1, description="commit, branch or tag of a model from the hub; default: its main branch"
    )

    @model_validator(mode="before")
    @classmethod
    def _a_bare_source_is_an_entry(cls, value: Any) -> Any:
        name = value.get("name") if isinstance(value, dict) else value
        if not isinstance(name, str) or name in catalogue.CATALOGUE or (isinstance(value, dict) and len(value) > 1):
            return value
        return named_by_source(name)

    def reference(self, corpus: DataRef) -> ModelRef:
        """The model itself; `corpus` has the facts that a model trained on the spot learns.

        Raises:
            UserError: as `harness.models.catalogue.reference`.
        """
        return self.entry().reference(corpus)

    def entry(self) -> ModelEntry:
        """The entry of a resolved suite, before a scale is applied."""
        given = self.device_map
        return ModelEntry(
            self.name,
            asked=self.name,
            source=self.source or "",
            weights=self.weights,
            dtype=self.dtype,
            revision=self.revision or "",
            layout=self.layout.layout() if self.layout else None,
            device_map=tuple(given.items()) if isinstance(given, dict) else given or "",
        )


def named_by_source(text: str) -> dict[str, str]:
    """The entry of a model given by its source alone: named after the last part of the source, or as in the catalogue."""
    import difflib  # slow to import, and rarely needed

    for entry in catalogue.CATALOGUE.values():
        if entry.hub_id == text:
            return {"name": entry.name}
    # A misspelt `tiny/lama` is no hub id, but hub ids may be like names in other case.
    is_near = difflib.get_close_matches(text, list(catalogue.CATALOGUE), n=1)
    if not _SOURCE.match(text) or is_near:
        return {"name": text}
    last = text.removeprefix("package:").rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return {"name": re.sub(r"[^A-Za-z0-9.+=_-]", "-", last).lstrip(".+=_-") or "model", "source": text}


class MethodForm(Entry):
    """A registered method. Any key not listed here is one of its hyper-parameters."""

    model_config = ConfigDict(extra="allow")

    name: Method
    label: Label | None = Field(
        None, description="name in tables and for --only; default: name, name.variant, name.variant.backend"
    )
    variant: str | None = Field(None, description="named set of hyper-parameters in methods/hparams/<method>/")
    backend: Backend | None = Field(
        None, description="implementation to measure, or `auto` as for the suite; default: the suite's"
    )
    hparams: dict[str, Any] = Field(
        default_factory=dict, description="overrides of methods/hparams/<method>/<model>.yaml"
    )

    @property
    def shown(self) -> str:
        """The label, or the default label if none is given."""
        other = self.backend if self.backend not in (registry.AUTO, registry.NATIVE) else None
        return self.label or ".".join(filter(None, (self.name, self.variant, other)))

    @property
    def loose(self) -> dict[str, Any]:
        """Hyper-parameters given next to `name` instead of under `hparams`."""
        return self.model_extra or {}


class DataForm(Entry):
    """A dataset and the selection of its records."""

    name: Dataset
    edits: int = Field(1000, ge=1, description="number of records that are edited and scored")
    split: Split = Field("all", description="by record id; settings are tuned on `dev` and reported on `test`")
    path: str | None = Field(None, description="folder of upstream files, relative to the working directory")
    file: str = Field("", description="file of the folder that provides the edits; default: see docs/data.md")
    train: int = Field(1000, ge=0, description="maximum number of unrelated records that a method may learn from")
    unrelated: int = Field(
        200, ge=0, description="maximum number of unrelated records for locality that no method sees"
    )
    strip_distractor: bool = Field(False, description="remove the unrelated sentence before CounterFact's paraphrases")
    relations: Relations = Field(
        "all",
        description="`seen` and `unseen` edit the same records, those of a fixed half of the relations; methods learn from "
        "records with these relations (`seen`) or with the others (`unseen`)",
    )
    conflicts: Conflict | None = Field(None, description="default: the suite's")
    too_long: TooLong | None = Field(None, description="default: the suite's")


class CapabilityForm(Entry):
    """A benchmark task that is asked before and after editing."""

    path: str | None = Field(
        None,
        description="a file of JSON Lines or the folder of such files, relative to the working directory; default: the folder "
        f"in {tasks.FOLDER}",
    )
    source: tasks.Source = Field("file", description="`lm-eval` for a task of that package, with its own data")
    items: int | None = Field(
        None,
        ge=1,
        description="maximum number of items: the first of the file, or of each subject in turn (MMLU); default: all",
    )
    shots: int | None = Field(
        None, ge=0, description="rows before them that are shown as examples; default: as in lm-eval's task"
    )

    @property
    def has_rows(self) -> bool:
        """Whether it needs no file: the rows are made by the harness, or lm-eval's."""
        return self.source == "lm-eval" or (self.name in tasks.FORMS and tasks.FORMS[self.name].rows is not None)


class JudgeForm(StrictModel):
    """A language model with an OpenAI-compatible API that judges free-form answers; see docs/metrics.md."""

    url: str = Field(description="address of the API, such as `http://127.0.0.1:8000/v1`")
    model: str = Field(min_length=1, description="name of the judge there")
    revision: str = Field(
        "",
        description="version of the judge, such as a commit or a quantisation; a judge keeps its verdicts at another address only "
        "with the same revision",
    )
    api_key_env: str | None = Field(
        None, description="environment variable that holds the API key, which is never stored"
    )
    parallel: int = Field(8, ge=1, description="requests at a time")
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one reply")

    @property
    def title(self) -> str:
        """What tells the judge from others: its name with its revision or, if none is given, with the address that serves it."""
        return f"{self.model} ({self.revision})" if self.revision else f"{self.model} at {self.url}"

    @field_validator("url")
    @classmethod
    def _url_is_plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as http://127.0.0.1:8000/v1")
        if "@" in parts.netloc or parts.query:
            raise ValueError("expected an address without a password or key; name the key's variable in api_key_env")
        return url.rstrip("/").removesuffix("/chat/completions")

    @field_validator("api_key_env")
    @classmethod
    def _key_is_elsewhere(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("expected the name of an environment variable, not the key itself")
        return name


class Blocks(StrictModel):
    """Blocks of a sequential schedule."""

    block: int = Field(ge=1, description="number of edits applied together")
    score_at: list[Annotated[int, Field(ge=1)]] = Field(
        min_length=1,
        description="numbers of edits after which all edits so far are scored; a block ends there. The end is always scored",
    )

    @model_validator(mode="after")
    def _score_at_ascends(self) -> Self:
        if sorted(set(self.score_at)) != self.score_at:
            raise ValueError("score_at must be strictly increasing")
        return self


class Sequential(StrictModel):
    """`schedule: {sequential: {block: 10, score_at: [10, 100]}}`."""

    sequential: Blocks


def _kind_of_schedule(value: Any) -> str | None:
    if isinstance(value, dict | Sequential):
        return "sequential"
    return "batch" if value == "batch" else None


ScheduleForm = Annotated[
    Annotated[Literal["batch"], Tag("batch")] | Annotated[Sequential, Tag("sequential")],
    Discriminator(
        _kind_of_schedule,
        custom_error_type="schedule",
        custom_error_message="expected batch or {sequential: {block: ..., score_at: [...]}}",
    ),
]


class SuiteForm(StrictModel):
    """A suite file; every combination of its axes is one cell."""

    name: Label = Field(description="name of the results; a suite that extends another needs its own")
    description: str = ""
    extends: str | None = Field(None, description="a suite file relative to this one: mappings merge, lists replace")
    models: list[ModelForm] = Field(min_length=1)
    methods: list[MethodForm] = Field(min_length=1)
    datasets: list[DataForm] = Field(min_length=1)
    protocols: list[Protocol] = Field(["teacher_forced", "generation"], min_length=1)
    prompts: list[Template] = Field(["none"], min_length=1, description="template around every prompt; an axis")
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    conflicts: Conflict = Field(
        "keep",
        description="`drop` replaces edits that contradict themselves or an earlier edit by the next records of the file",
    )
    too_long: TooLong = Field(
        "refuse",
        description="what happens to records with more tokens than one of the models can read; `drop` replaces them by "
        "the next records of the file, for all models",
    )
    schedule: ScheduleForm = "batch"
    backend: Backend = Field(
        registry.NATIVE,
        description="implementation to measure if this backend has the method, otherwise the native one; `auto`: the first "
        "available backend; --backend overrides it",
    )
    keep_weights: bool = Field(False, description="save the edited weights of each cell next to its results")
    count_flops: int = Field(
        3, ge=0, description="edits on which FLOPs are counted, after everything is timed; 0 to count none"
    )
    classic: bool = Field(
        False, description="also compute CounterFact's ES, PS and NS, for methods that give probabilities"
    )
    fluency: bool | str = Field(
        False,
        description="also n-gram entropy of generated text and norm drift of edited matrices; a file of reference texts, relative "
        "to the working directory, adds TF-IDF consistency and essence",
    )
    capability: list[CapabilityForm] = Field(
        default_factory=list,
        description="benchmark tasks that are asked through lm-eval before and after editing (docs/capability.md)",
    )
    judge: JudgeForm | None = Field(
        None, description="a language model that `harness judge` asks about the answers under `natural` protocols"
    )
    eval_batch: EvalBatch = Field(16, description="rows per forward pass in evaluation; `auto`: as many as fit")
    launch: str = Field("local", description="name (`harness list profiles`) or path of a launch profile")
    device: Device = "auto"
    threads: int | None = Field(None, ge=1, description="CPU threads per cell; default: torch's")
    tables: list[Table] = Field(default_factory=list, description="tables that `harness report` writes")
    figures: list[Figure] = Field(default_factory=list, description="figures that `harness report` writes")
    published: str = Field(
        "",
        description="published numbers to show next to measured ones, on the same models: a file in reports/numbers/",
    )
    sweep: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="`<axis>.<entry>.<option>: [values]` replaces that entry with one per value",
    )


class CapForm(StrictModel):
    """Upper limits set by a scale."""

    edits: int | None = Field(None, ge=1)
    edits_in_sequence: int | None = Field(None, ge=1, description="cap for sequential schedules; default: `edits`")
    items: int | None = Field(None, ge=1, description="maximum number of items of each capability task")


class DataOverlay(StrictModel):
    """Dataset options set by a scale."""

    split: Split | None = None
    train: int | None = Field(None, ge=0)
    unrelated: int | None = Field(None, ge=0)
    strip_distractor: bool | None = None
    source: Literal["synthetic"] | None = Field(
        None, description="used if neither suite, command line nor HARNESS_DATA names a source"
    )


class Overlay(StrictModel):
    """Suite options set by a scale."""

    prompts: list[Template] | None = Field(None, min_length=1)
    backend: Backend | None = None
    eval_batch: EvalBatch | None = None
    launch: str | None = None
    device: Device | None = None
    threads: int | None = Field(None, ge=1)
    datasets: DataOverlay = DataOverlay()
    capability: list[CapabilityForm] = Field(
        default_factory=list, description=f"asked in place of tasks that have no file, if {tasks.FOLDER} is not set"
    )


class ScaleForm(StrictModel):
    """A scale file, applied on top of any suite."""

    description: str = ""
    model_map: dict[str, str] = Field(default_factory=dict, description="stand-in for each model of a suite")
    cap: CapForm = CapForm()
    set: Overlay = Overlay()


def suite_json_schema() -> dict[str, Any]:
    """Build the JSON Schema of suite files, for editors and `harness schema`."""
    schema = SuiteForm.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
