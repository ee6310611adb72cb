"""Scales: stand-in models, a cap on edits and lighter settings, applied on top of any suite."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.commands import harness_command
from harness.errors import UserError, did_you_mean
from harness.evaluation.capability.tasks import check_name
from harness.models import catalogue
from harness.suite.entries import PAPER, CapabilityEntry, DataEntry, ModelEntry
from harness.suite.names import check_backend
from harness.suite.schema import CapabilityForm, ScaleForm
from harness.yaml_source import read_yaml, validate

INSTALLED = Path(__file__).parents[2] / "suites"
"""Suites that ship with the harness: the package `suites`, always installed next to `harness`."""
SCALES = INSTALLED / "scales"


@dataclass(frozen=True, slots=True)
class Scale:
    """A scale with its name and file; `launch_at` is the place in it that names a launch profile."""

    name: str
    file: Path
    form: ScaleForm
    launch_at: str = ""

    def model(self, model: ModelEntry) -> ModelEntry:
        """Replace a model with its stand-in, which has its own weights and precision. Stand-ins and the user's own models stay.

        Raises:
            UserError: for a model that the scale has no stand-in for.
        """
        is_stand_in = model.name in self.form.model_map.values()
        if not self.form.model_map or is_stand_in or model.name not in catalogue.CATALOGUE:
            return model
        if model.name not in self.form.model_map:
            raise UserError(f"{self.file}: scale '{self.name}' has no stand-in for '{model.name}': add it to model_map")
        return ModelEntry(self.form.model_map[model.name], asked=model.asked)

    def stand_in(self, model: str) -> str:
        """Name of the stand-in for a model; the model's own name if it has none."""
        return self.form.model_map.get(model, model)

    def option(self, value: Any) -> Any:
        """Map a value that names a model, by a name or like an entry of `models`, to its stand-in; keep all others."""
        name = value.get("name") if isinstance(value, dict) else value
        return self.form.model_map.get(name, value) if isinstance(name, str) else value

    def data(self, entry: DataEntry, edits: int | None, written: Collection[str], is_sequential: bool) -> DataEntry:
        """Apply the scale to a dataset; `edits` from the command line overrides the cap.

        A split and `strip_distractor` are kept if the suite sets them (`written`), so that a suite on dev records uses them at
        every scale; so are smaller numbers of `train` and `unrelated` records.
        """
        cap = (is_sequential and self.form.cap.edits_in_sequence) or self.form.cap.edits
        overlay = self.form.set.datasets
        kept = {"split", "strip_distractor"}.intersection(written)
        sizes = overlay.model_dump(exclude={"source", *kept}, exclude_none=True)
        for pool, asked in (("train", entry.train), ("unrelated", entry.unrelated)):
            sizes[pool] = min(asked, sizes.get(pool, asked))
        capped = min(entry.edits, cap or entry.edits)
        return replace(entry, **sizes, edits=edits or capped, source=entry.source or overlay.source or "")

    def capability(self, entries: Sequence[CapabilityForm], folder: str) -> Iterator[CapabilityEntry]:
        """The tasks of a suite with their files; the scale's own tasks replace those without a file.

        Args:
            entries: as the suite has them.
            folder: of the files of tasks that name none, or empty.
        """
        lacking = [entry for entry in entries if not (folder or entry.path or entry.has_rows)]
        stand_ins = self.form.set.capability if lacking else []
        there = [entry for entry in entries if entry not in lacking] if stand_ins else entries
        names = {entry.name for entry in there}
        for entry in (*there, *(task for task in stand_ins if task.name not in names)):
            path = entry.path or ("" if entry.has_rows else folder)
            items = min(filter(None, (entry.items, self.form.cap.items)), default=None)
            yield CapabilityEntry(entry.name, entry.source, path, items, entry.shots)


def scale_files() -> dict[str, Path]:
    """Scale files by name: those in `./suites/scales/` first, then the installed ones."""
    return by_name(Path("suites", "scales"), SCALES)


def by_name(*folders: Path) -> dict[str, Path]:
    """YAML files by stem; if several folders have the same stem, the first folder wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.glob("*.yaml")):
            found.setdefault(file.stem, file)
    return found


def load_scale(name: str | None) -> Scale:
    """Load a scale by name (see `scale_files`); None and `paper` change nothing.

    Raises:
        UserError: for an unknown or invalid scale.
    """
    if name is None or name == PAPER:
        return Scale(PAPER, SCALES, ScaleForm())
    files = scale_files()
    known = {PAPER, *files}
    if name not in known:
        raise UserError(
            f"unknown scale '{name}'{did_you_mean(name, known)}; known: {', '.join(sorted(known))}",
            fix=harness_command("list", "scales"),
        )
    file = files[name]
    document = read_yaml(file)
    form = validate(ScaleForm, document)
    for asked, stand_in in form.model_map.items():
        at = document.at(("model_map", asked)).where
        for model in (asked, stand_in):
            if model not in catalogue.names():
                guess = did_you_mean(model, set(catalogue.names()))
                raise UserError(f"{at}: unknown model '{model}'{guess}", fix=harness_command("list", "models"))
    for index, task in enumerate(form.set.capability):
        check_name(task.name, document.at(("set", "capability", index)).where)
    check_backend(form.set.backend, document.at(("set", "backend")).where)
    return Scale(name, file, form, launch_at=document.at(("set", "launch")).where)
