"""From a suite to its cells and their artifacts: what is to do, done or missing. Does not import torch."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from harness import registry
from harness.api import ArtifactSpec, Launcher
from harness.commands import harness_command, same_command
from harness.data import conflicts
from harness.data.load import select
from harness.errors import UnavailableError, UserError
from harness.evaluation import fluency
from harness.evaluation.capability.tasks import TaskRef
from harness.models import catalogue, sources
from harness.models.catalogue import ModelRef
from harness.models.context_length import Reader, reader
from harness.plan.batch import device_memory, rows_that_fit
from harness.plan.cell import Cell, extra, model_artifacts, models_of, stem
from harness.plan.changes import changes
from harness.plan.history import History
from harness.plan.lengths import SHOWN, Text, complaint, texts_of, too_long
from harness.records import DataRef
from harness.store.store import Store
from harness.suite.entries import DataEntry, MethodEntry, ModelEntry, Suite


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A combination of a suite's axes.

    Attributes:
        title: method, model, dataset, and what else distinguishes it.
        backend: whose implementation of the method.
        cell: None where the combination cannot be a cell here, for the reasons in `missing`.
        missing: why it cannot run on this machine.
    """

    title: tuple[str, str, str, str]
    backend: str
    cell: Cell | None
    missing: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """What the name of its folder begins with, whether or not there is a cell."""
        label, model, data, _ = self.title
        return stem(label, model, data)


class Plan:
    """Cells and artifacts of a suite, and their state in a store.

    Args:
        suite: what to run.
        store: where results are, or will be.
        elsewhere: the device where the cells are to run, if that is not this machine.
        refused: why models cannot be downloaded, by source and revision.
        memory: memory of the device elsewhere in bytes, if known.
    """

    def __init__(
        self,
        suite: Suite,
        store: Store,
        elsewhere: Literal["cpu", "cuda"] | None = None,
        refused: Mapping[tuple[str, str], str] = MappingProxyType({}),
        memory: int | None = None,
    ) -> None:
        self.suite = suite
        self.store = store
        self._elsewhere = elsewhere
        self._memory = memory
        self._refused = refused
        self.device = elsewhere or _device(suite.device)
        self.history = History(store, self.device, suite.threads, is_here=elsewhere is None)
        self._wanted: Callable[[Cell], bool] = lambda cell: True
        self._data = {entry: _reference(entry, suite) for entry in suite.datasets}
        self._apart = {entry: _apart(entry, suite) for entry in suite.datasets}
        self._capability = _capability(suite)
        self._fluency = None if suite.fluency is None else fluency.reference(suite.fluency)
        self._too_long: dict[tuple[DataEntry, str, ModelRef, int], str] = {}
        self._models: dict[tuple[ModelEntry, DataRef | None], ModelRef | str] = {}
        self.cells = [
            self._planned(method, model, entry, self._data[entry], template, seed)
            for entry, model, method, template, seed in product(
                suite.datasets, suite.models, suite.methods, suite.prompts, suite.seeds
            )
        ]

    @classmethod
    def on(cls, launcher: Launcher, suite: Suite, store: Store) -> "Plan":
        """The plan of a suite where a launcher runs cells."""
        device = launcher.device(suite.device)
        return cls(suite, store, device, memory=launcher.memory(device) if device else None)

    def keep(self, wanted: Callable[[Cell], bool]) -> None:
        """Leave only these cells to do."""
        self._wanted = wanted

    @cached_property
    def runnable(self) -> list[Cell]:
        """The cells that can run here, each once, ordered so that a model is loaded once for all its methods."""
        unique = {planned.cell.folder: planned.cell for planned in self.cells if planned.cell and not planned.missing}
        return list(unique.values())

    def todo(self) -> list[Cell]:
        """Runnable cells that the store does not hold finished."""
        there = self.store.cells()
        return [
            cell
            for cell in self.runnable
            if self._wanted(cell) and not (cell.folder in there and self.store.cell(cell.folder).is_done)
        ]

    def artifacts(self, cells: Sequence[Cell]) -> list[tuple[ArtifactSpec, int]]:
        """Artifacts that these cells use and the seed they are built with, each once, needs first."""
        found: dict[str, tuple[ArtifactSpec, int]] = {}
        for cell in cells:
            for root in roots(cell):
                if root.key not in found:
                    found |= {spec.key: (spec, cell.seed) for spec in root.closure() if spec.key not in found}
        return list(found.values())

    def command(self, verb: str, **more: object) -> str:
        """The command line of a verb for the same suite, options and store."""
        return self.suite.command(verb, self.store.root, **more)

    def records(self) -> dict[str, str]:
        """Hash of the records of each dataset entry, by what the entry selects; without entries that select the same in words."""
        selections = {entry: _selection(entry, self.suite) for entry in self._data}
        times = Counter(selections.values())
        return {
            selections[entry]: data.refs["none"].sha256
            for entry, data in self._data.items()
            if not isinstance(data, str) and times[selections[entry]] == 1
        }

    def obstacle(self) -> str:
        """Why no cell at all can run on this machine; empty if some may."""
        return "device 'cuda': no NVIDIA driver here" if self.suite.device == "cuda" and self.device != "cuda" else ""

    def blocked(self) -> list[PlannedCell]:
        """The combinations that cannot run here."""
        return [planned for planned in self.cells if planned.missing]

    def missing(self) -> dict[str, str]:
        """Why combinations cannot run here: each reason once, with the combinations in words."""
        by_reason: dict[str, list[PlannedCell]] = {}
        for planned in self.blocked():
            for reason in planned.missing:
                by_reason.setdefault(reason, []).append(planned)
        return {reason: _named(same, self.cells) for reason, same in by_reason.items()}

    def notes(self) -> list[str]:
        """Notes that stop nothing, such as fewer unrelated records than requested, or scores that a method cannot have."""
        late = [
            f"{entry.name}: score_at {', '.join(map(str, beyond))} lies beyond its {entry.edits} edits; the last point moves there"
            for entry in self.suite.datasets
            if (beyond := [point for point in self.suite.schedule.score_at if point > entry.edits])
        ]
        short = [
            f"{entry.name}: {there} of {asked} records for '{pool}'"
            for entry, data in self._data.items()
            if not isinstance(data, str)
            for ref in [data.refs["none"]]
            for pool, asked, there in (("train", entry.train, ref.train), ("unrelated", entry.unrelated, ref.unrelated))
            if there < asked
        ]
        about = [
            f"{entry.name}: {note}"
            for entry, data in self._data.items()
            if not isinstance(data, str)
            for note in data.notes
        ]
        tasks = () if isinstance(self._capability, str) else self._capability
        unusable = [
            f"capability task '{task.name}': {task.left_out} of the rows of {task.path} left out, because a choice has no text"
            for task in tasks
            if task.left_out
        ]
        downloads = [note for model in self.models() if (note := catalogue.download_note(model))]
        unscored, methods = self._unscored(tasks), self._method_notes()
        return [*short, *about, *unusable, *late, *unscored, *methods, *downloads, *changes(self.todo(), self.store)]

    def models(self) -> list[ModelRef]:
        """The models that the cells load, those of their artifacts too, each once."""
        return list(dict.fromkeys(model for planned in self.cells if planned.cell for model in models_of(planned.cell)))

    def of(self, suite: Suite, refused: Mapping[tuple[str, str], str] = MappingProxyType({})) -> "Plan":
        """The plan of another suite with the same launcher and store, with the results of this one's downloads."""
        return Plan(suite, self.store, self._elsewhere, {**self._refused, **refused}, self._memory)

    def with_models_here(self) -> "Plan":
        """Download every model that can be downloaded, because only its files identify it, and plan again."""
        to_download = [model for model in self.models() if model.is_to_download]
        refused: dict[tuple[str, str], str] = {}
        for model in to_download:
            try:
                sources.obtain(model.source, model.revision)
            except UserError as error:
                refused[model.source, model.revision] = str(error)
        if not to_download:
            return self
        plan = self.of(self.suite, refused)
        plan.keep(self._wanted)
        return plan

    def _method_notes(self) -> list[str]:
        """What methods say about themselves on the models of the suite; a note that several models share, once."""
        models: dict[tuple[str, str], dict[str, None]] = {}
        for cell in self.runnable:
            for note in cell.planned_method.notes_on(cell.model):
                models.setdefault((cell.label, note), {})[cell.model.name] = None
        return [f"{label} on {', '.join(names)}: {note}" for (label, note), names in models.items()]

    def _unscored(self, tasks: Sequence[TaskRef]) -> list[str]:
        """Which methods will have no scores on what compares probabilities of texts, and why."""
        wanted = [task.title for task in tasks if task.compares_probabilities]
        if self.suite.classic:
            wanted.append("CounterFact's metrics by probability")
        reasons = {(cell.label, cell.planned_method.unscored): None for cell in self.runnable} if wanted else {}
        return [f"{label}: no scores on {', '.join(wanted)}: {reason}" for label, reason in reasons if reason]

    def _planned(
        self, method: MethodEntry, model: ModelEntry, entry: DataEntry, data: "_Data | str", template: str, seed: int
    ) -> PlannedCell:
        what = ", ".join(filter(None, [self._apart[entry], extra(template, seed)]))
        title = (method.label, model.name, entry.name, what)
        missing = []
        if (
            self.suite.schedule.is_sequential
            and not registry.find_method(method.name, method.backend).edits_in_sequence()
        ):
            missing.append(
                f"method '{method.name}' makes all its edits at once and cannot continue from them in a sequence"
            )
        target = model.problem or self._model(model, None if isinstance(data, str) else data.refs["none"])
        tasks = self._capability
        missing += [why for why in (data, target, method.problems.get(model), tasks) if isinstance(why, str)]
        if missing or isinstance(data, str) or isinstance(target, str) or isinstance(tasks, str):
            return PlannedCell(title, method.backend, None, tuple(missing))
        resolved = method.hparams[model]
        cell = Cell(
            method=registry.find_method(method.name, method.backend).spec,
            label=method.label,
            variant=method.variant,
            backend=method.backend,
            hparams=resolved.values,
            sources=resolved.sources,
            model=target,
            data=data.refs[template],
            protocols=self.suite.protocols,
            schedule=self.suite.schedule.within(entry.edits),
            seed=seed,
            eval_batch=self._eval_batch(target),
            keep_weights=self.suite.keep_weights,
            count_flops=self.suite.count_flops,
            classic=self.suite.classic,
            fluency=self._fluency,
            capability=tasks,
        )
        try:
            cell.artifacts()
        except UserError as error:
            return PlannedCell(title, method.backend, None, (str(error),))
        if reasons := self._not_here(cell) or self._unreadable(cell, entry, data.texts[template]):
            return PlannedCell(title, method.backend, None, reasons)
        return PlannedCell(title, method.backend, cell)

    def _eval_batch(self, model: ModelRef) -> int:
        """Questions per forward pass; `auto` follows from the model and from the memory of the device.

        Raises:
            UserError: if that memory is not known.
        """
        if self.suite.eval_batch != "auto":
            return self.suite.eval_batch
        memory = self._memory if self._elsewhere else device_memory(self.device)
        if memory is None:
            raise UserError(
                f"eval_batch: auto needs the memory of the {self.device} device, which launch profile '{self.suite.launch}' "
                "does not say",
                fix="gpu_gb in each class of the profile, or eval_batch: 16",
            )
        return rows_that_fit(model.footprint, memory)

    def _not_here(self, cell: Cell) -> tuple[str, ...]:
        """Why models of a cell, its method's own among them, could not be downloaded."""
        keys = [(model.source, model.revision) for model in models_of(cell) if model.is_to_download]
        return tuple(self._refused[key] for key in keys if key in self._refused)

    def _unreadable(self, cell: Cell, entry: DataEntry, texts: Sequence[Text]) -> tuple[str, ...]:
        """Which records the models of a cell cannot read; looked into once per dataset, template and model."""
        overhead, reasons = cell.planned_method.prompt_overhead(), []
        for model in models_of(cell):
            key = (entry, cell.data.template, model, overhead)
            if key not in self._too_long:
                able = reader(model)
                found = too_long(texts, able, overhead) if able.is_exact else {}
                self._too_long[key] = complaint(found, able, entry.name) if found else ""
            reasons.append(self._too_long[key])
        return tuple(filter(None, reasons))

    def _model(self, entry: ModelEntry, corpus: DataRef | None) -> ModelRef | str:
        """The reference to a model, whose files are looked into once, or why it cannot be used."""
        if (entry, corpus) not in self._models:
            try:
                self._models[entry, corpus] = entry.reference(corpus)
            except UserError as error:
                self._models[entry, corpus] = str(error)
        return self._models[entry, corpus]


def roots(cell: Cell) -> list[ArtifactSpec]:
    """The artifacts that a cell itself reads: its model if trained here, the unedited answers and scores, the method's own."""
    unedited = (*cell.all_unedited_outputs(), *cell.unedited_capability())
    return [*model_artifacts(cell.model).values(), *unedited, *cell.artifacts().values()]


@dataclass(frozen=True, slots=True)
class _Data:
    """A dataset of the suite.

    Attributes:
        refs: its reference under each template and under none.
        texts: what models read of it under each template.
        notes: what should be known about its records.
    """

    refs: dict[str, DataRef]
    texts: dict[str, tuple[Text, ...]]
    notes: tuple[str, ...]


def _selection(entry: DataEntry, suite: Suite) -> str:
    """What an entry selects, in words; the folder only where the suite has the dataset from several."""
    folders = {other.source for other in suite.datasets if other.name == entry.name}
    return ", ".join(
        [
            f"{entry.name}, {entry.edits} edits of split {entry.split}",
            *["no distractors"] * entry.strip_distractor,
            f"{entry.train} and {entry.unrelated} unrelated, conflicts: {entry.conflicts}",
            *[f"relations: {entry.relations}"] * (entry.relations != "all"),
            *[f"file: {entry.file}"] * bool(entry.file),
            *[f"path: {entry.source}"] * (len(folders) > 1),
        ]
    )


def _apart(entry: DataEntry, suite: Suite) -> str:
    """The settings in which an entry differs from others of the same dataset: `relations unseen`."""
    same = [asdict(other) for other in suite.datasets if other.name == entry.name]
    differing = [key for key, value in asdict(entry).items() if any(other[key] != value for other in same)]
    return ", ".join(f"{key} {getattr(entry, key)}" for key in differing)


def _capability(suite: Suite) -> tuple[TaskRef, ...] | str:
    """The benchmark tasks of a suite with their rows, or why they cannot be asked here."""
    try:
        return tuple(entry.reference() for entry in suite.capability)
    except UserError as error:
        if not (suite.is_lenient or isinstance(error, UnavailableError)):
            raise
        return str(error)


def _reference(entry: DataEntry, suite: Suite) -> _Data | str:
    """The records under each template (and under none, for the corpus of tiny models), or why they are missing."""
    if entry.problem:
        return entry.problem
    if not entry.source:
        return str(_no_folder(entry, suite))
    try:
        return _records(entry, suite)
    except UserError as error:
        if not (suite.is_lenient or isinstance(error, UnavailableError)):
            raise
        return str(error)


def _no_folder(entry: DataEntry, suite: Suite) -> UnavailableError:
    """That no folder with records is given, with the commands that download all that are missing and go on with them."""
    info, missing = registry.datasets.get(entry.name), {each.name for each in suite.datasets if not each.source}
    fetch = harness_command("data", "fetch", *(missing if len(missing) == 1 else ()), to="data")
    return UnavailableError(
        f"no records of '{entry.name}': no folder given, by --data or HARNESS_DATA",
        fix=f"{fetch} && {same_command(data='data')}" if info.downloads else info.remedy(),
    )


def _records(entry: DataEntry, suite: Suite) -> _Data:
    options = {field.name: getattr(entry, field.name) for field in fields(DataRef) if hasattr(entry, field.name)}
    asked, readers, dropped = DataRef(**options), _readers(entry, suite), dict[str, int]()
    while True:
        asked = replace(asked, without=tuple(sorted(dropped)))
        found = {
            template: select(replace(asked, template=template)) for template in dict.fromkeys(["none", *suite.prompts])
        }
        texts = {template: texts_of(data) for template, data in found.items()}
        longer = [too_long(texts[template], one) for template in suite.prompts for one in readers]
        if not any(longer):
            break
        for each in longer:
            dropped |= each
    notes = list(found["none"].notes)
    if dropped:
        named = ", ".join(asked.without[:SHOWN]) + (", …" if len(dropped) > SHOWN else "")
        notes.append(f"{len(dropped)} left out, because a model of the suite cannot read them: {named}")
    if contradictory := found["none"].contradictory:
        notes.append(f"{contradictory} left out, because they contradict themselves or an earlier edit")
    if contradictions := conflicts.count(found["none"].edits):
        notes.append(f"{entry.edits} edits, of which {contradictions} (`conflicts: drop` replaces these records)")
    return _Data({template: data.ref for template, data in found.items()}, texts, tuple(notes))


def _readers(entry: DataEntry, suite: Suite) -> list[Reader]:
    """What all models of a suite can read, also those not chosen, so that every choice has the same records."""
    if entry.too_long != "drop":
        return []
    if problem := next((model.problem for model in suite.all_models if model.problem), ""):
        raise UnavailableError(
            f"{entry.name}: too_long: drop needs every model of the suite: {problem}", fix="too_long: refuse"
        )
    return [reader(model.reference(None)) for model in suite.all_models]


def _named(some: Sequence[PlannedCell], of: Sequence[PlannedCell]) -> str:
    """Combinations by what distinguishes them: `4 cells of rome, memit on llama2-7b`."""
    parts = [f"{len(some)} cell{'s' * (len(some) != 1)}"]
    for axis, word in enumerate(("of", "on", "with")):
        found = list(dict.fromkeys(planned.title[axis] for planned in some))
        if len(found) < len({planned.title[axis] for planned in of}):
            parts.append(f"{word} {', '.join(found[:SHOWN])}" + (", …" if len(found) > SHOWN else ""))
    return " ".join(parts)


def _device(wanted: str) -> str:
    """`auto` is CUDA where the driver is loaded; asked of the kernel because torch is slow to import."""
    has_driver = Path("/proc/driver/nvidia/version").exists()
    return "cuda" if has_driver and wanted != "cpu" else "cpu"
