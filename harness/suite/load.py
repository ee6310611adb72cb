"""Load a suite file: merge its bases, expand the sweep, check names, apply the scale and command-line options."""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness import registry
from harness.commands import harness_command, list_around, same_command
from harness.errors import UnavailableError, UserError, did_you_mean
from harness.evaluation.capability import tasks
from harness.models.sources import is_packed
from harness.models.spec import ModelSpec
from harness.suite import hparams
from harness.suite.entries import DataEntry, MethodEntry, ModelEntry, Suite
from harness.suite.names import check_backend, check_names, chosen, read_filters
from harness.suite.scale import INSTALLED, Scale, by_name, load_scale
from harness.suite.schedule import Schedule
from harness.suite.schema import MethodForm, ModelForm, Overlay, Sequential, SuiteForm
from harness.suite.source import read_form, source_of
from harness.yaml_source import Located


def suite_files() -> dict[str, Path]:
    """Suite files by name: those in `./suites/` first, then the installed ones."""
    return by_name(Path("suites"), INSTALLED)


def find_suite(name: str) -> Path:
    """Find the file of a suite.

    Args:
        name: a path, or a name that is looked up as `suites/NAME.yaml`, then `NAME.yaml` in the current folder, then
            among the installed suites.

    Raises:
        UserError: if there is no such file; suggests the nearest known name.
    """
    path, known = Path(name), suite_files()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if path.is_file():
            return path
        hint = f" (the installed suite is called '{path.stem}')" if path.stem in known else ""
        raise UserError(f"{path}: no such file{hint}", fix=harness_command("list", "suites"))
    here = Path(f"{name}.yaml")
    mine = Path("suites", f"{name}.yaml")
    if found := next((file for file in (mine, here) if file.is_file()), known.get(name)):
        return found
    raise UserError(f"no suite '{name}'{did_you_mean(name, set(known))}", fix=harness_command("list", "suites"))


def load_suite(
    path: Path | str,
    *,
    scale: str | None = None,
    only: Sequence[str] = (),
    data: str | None = None,
    edits: int | None = None,
    backend: str | None = None,
    is_lenient: bool = False,
) -> Suite:
    """Read a suite and resolve everything in it.

    Args:
        path: the suite file.
        scale: name of a file in `suites/scales/`; None or `paper` runs the suite as written.
        only: filters such as `method=none,ft-l` on `model`, `method` (name or label) or `dataset`; what they leave out is
            not resolved and need not be available.
        data: folder of upstream files for datasets without a `path`. The fallbacks are the environment variable
            HARNESS_DATA, then the scale's source; otherwise the plan reports the data as missing.
        edits: number of edits per dataset; overrides suite and scale.
        backend: backend of all methods whose entry names none; overrides suite and scale.
        is_lenient: treat a mistake in an entry in the same way.

    Raises:
        UserError: for any mistake in the files or filters, as one line with file, line, key and a suggestion. What is
            merely not available here is no mistake: its entry says so in `problem`, or the method in `problems`.
    """
    if edits is not None and edits < 1:
        raise UserError(f"--edits {edits}: at least one edit is needed")
    document, form = read_form(Path(path))
    check_names(document, form)
    overlay = load_scale(scale)
    laid, schedule = overlay.form.set, _schedule(form)
    wanted = read_filters(only)
    check_backend(backend, "--backend")
    default_backend = backend or laid.backend or form.backend
    folder = _data_folder(form, data)
    models = _models(document, form, overlay, wanted, is_lenient)
    specs = {model: model.spec for model in models if not model.problem}
    return Suite(
        name=form.name,
        description=form.description,
        file=str(path),
        source=source_of(Path(path), form),
        data=folder,
        variant=_variant(overlay, edits, backend, folder),
        is_lenient=is_lenient,
        scale=overlay.name,
        all_models=tuple(_models(document, form, overlay, {}, is_lenient=True) if "model" in wanted else models),
        models=tuple(models),
        methods=tuple(
            _method_entry(document, index, entry, specs, overlay, default_backend, is_lenient)
            for index, entry in chosen(
                list(enumerate(form.methods)), "method", wanted, lambda item: {item[1].name, item[1].shown}
            )
        ),
        datasets=tuple(dict.fromkeys(_datasets(document, form, overlay, wanted, folder, edits, is_lenient))),
        protocols=tuple(form.protocols),
        prompts=tuple(laid.prompts or form.prompts),
        seeds=tuple(form.seeds),
        schedule=schedule,
        keep_weights=form.keep_weights,
        count_flops=form.count_flops,
        classic=form.classic,
        eval_batch=_written(form, laid, "eval_batch"),
        launch=laid.launch or form.launch,
        launch_at=overlay.launch_at if laid.launch else document.at(("launch",)).where,
        device=_written(form, laid, "device"),
        threads=_written(form, laid, "threads"),
        tables=tuple(form.tables),
        figures=tuple(form.figures),
        published=form.published,
        fluency=form.fluency if isinstance(form.fluency, str) else "" if form.fluency else None,
        capability=tuple(overlay.capability(form.capability, _existing_from(tasks.FOLDER) if form.capability else "")),
        judge=form.judge.model if form.judge else "",
        options={"only": list(only), "data": data, "edits": edits, "backend": backend},
    )


def _written(form: SuiteForm, laid: Overlay, option: str) -> Any:
    """An option as the suite has it; where it says nothing, as the scale has it."""
    own = getattr(form, option)
    return own if option in form.model_fields_set else getattr(laid, option) or own


def whole(suite: Suite) -> Suite:
    """The suite without its `--only` filters; entries that cannot be resolved here keep the reason."""
    options = {name: value for name, value in suite.options.items() if name not in ("only", "launch")}
    found = load_suite(suite.file, scale=suite.scale, **options, is_lenient=True)
    return replace(found, launch=suite.launch, launch_at=suite.launch_at)


def _data_folder(form: SuiteForm, data: str | None) -> str:
    """The folder of upstream files for datasets that name none; empty if there is no such dataset or no folder."""
    if all(entry.path for entry in form.datasets):
        return ""
    if not data:
        return _existing_from("HARNESS_DATA")
    return _existing(data, "--data", lambda file: same_command(data=file.parent))


def _existing_from(variable: str) -> str:
    """The folder in an environment variable; empty if it is not set."""
    name = os.environ.get(variable)
    if not name:
        return ""
    return _existing(name, variable, lambda file: f"export {variable}={shlex.quote(str(file.parent))}")


def _variant(overlay: Scale, edits: int | None, backend: str | None, folder: str) -> str:
    """A name for results that no table may mix with those of the suite as written."""
    replaces_data = folder and overlay.form.set.datasets.source
    parts = ("data" if replaces_data else "", f"edits-{edits}" if edits else "", backend or "")
    return ".".join(part for part in parts if part)


def _models(
    document: Located, form: SuiteForm, overlay: Scale, wanted: Mapping[str, Sequence[str]], is_lenient: bool
) -> list[ModelEntry]:
    """The selected models, each once: several may share a stand-in."""
    models: list[ModelEntry] = []
    for index, entry in chosen(
        list(enumerate(form.models)), "model", wanted, lambda item: {item[1].name, overlay.stand_in(item[1].name)}
    ):
        try:
            model = overlay.model(_model(document, index, entry))
        except UserError as error:
            model = ModelEntry(overlay.stand_in(entry.name), entry.name, problem=_reason(error, is_lenient))
        if not model.problem:
            try:
                _ = model.spec.layout
            except UserError as error:
                model = replace(model, problem=str(error))
        if not any(map(model.is_same_as, models)):
            models.append(model)
    return models


def _model(document: Located, index: int, entry: ModelForm) -> ModelEntry:
    """An entry as it is written; a `path` must be an existing folder or a packed model."""
    if entry.source and is_packed(entry.source):
        return entry.entry()
    folder = _folder(document, "models", index)
    return replace(entry.entry(), source=folder) if folder else entry.entry()


def _datasets(
    document: Located,
    form: SuiteForm,
    overlay: Scale,
    wanted: Mapping[str, Sequence[str]],
    folder: str,
    edits: int | None,
    is_lenient: bool,
) -> Iterator[DataEntry]:
    for index, entry in chosen(list(enumerate(form.datasets)), "dataset", wanted, lambda item: {item[1].name}):
        source = problem = ""
        try:
            source = _folder(document, "datasets", index) or folder
        except UserError as error:
            problem = _reason(error, is_lenient)
        yield overlay.data(
            DataEntry(
                *(entry.name, source, entry.edits, entry.split, entry.train, entry.unrelated, entry.strip_distractor),
                conflicts=entry.conflicts or form.conflicts,
                too_long=entry.too_long or form.too_long,
                file=entry.file,
                relations=entry.relations,
                problem=problem,
            ),
            edits,
            written=entry.model_fields_set,
            is_sequential=form.schedule != "batch",
        )


def _method_entry(
    document: Located,
    index: int,
    entry: MethodForm,
    specs: Mapping[ModelEntry, ModelSpec],
    overlay: Scale,
    wanted: str,
    is_lenient: bool,
) -> MethodEntry:
    at = document.at(("methods", index))
    twice = entry.loose.keys() & entry.hparams.keys()
    if twice:
        raise UserError(
            f"{at.where}: methods[{index}]: '{min(twice)}' is given both next to the name and under hparams"
        )
    written = {**entry.loose, **entry.hparams}
    where = {key: at.at((key,) if key in entry.loose else ("hparams", key)).where for key in written}
    backend, resolved, problems = registry.NATIVE, {}, {}
    for model, spec in specs.items():
        try:
            backend = _backend(entry, wanted, at.at(("backend",)))
            resolve = partial(
                hparams.resolve,
                entry.name,
                model.name,
                variant=entry.variant,
                at=at.at(("variant",)).where,
                neighbours=MethodForm.model_fields,
                backend=backend,
                spec=spec,
            )
            found = resolve(written, where=where)
            stand_ins = {key: own for key, value in found.values.items() if (own := overlay.option(value)) != value}
            if stand_ins:
                file = overlay.file
                places = {key: f"{where[key]} ({file})" if key in where else str(file) for key in stand_ins}
                found = resolve(written | stand_ins, where=where | places)
            resolved[model] = found
        except UserError as error:
            problems[model] = _reason(error, is_lenient)
    return MethodEntry(entry.name, entry.shown, entry.variant, backend, resolved, problems)


def _reason(error: UserError, is_lenient: bool) -> str:
    """The reason why an entry cannot be resolved, if others can be used without it or all reasons are wanted.

    Raises:
        UserError: the error itself, otherwise.
    """
    if not (is_lenient or isinstance(error, UnavailableError)):
        raise error
    return str(error)


def _folder(document: Located, axis: str, index: int) -> str:
    """Read the `path` of an entry, an existing folder; empty if not given."""
    entry = document.at((axis, index)).value
    if not isinstance(entry, dict) or "path" not in entry or entry["path"].value is None:
        return ""

    def in_place(file: Path) -> str:
        return f"path: {file.parent}" + (f", file: {file.name}" if axis == "datasets" else "")

    return _existing(entry["path"].value, f"{entry['path'].where}: {axis}[{index}].path", in_place, UnavailableError)


def _existing(name: str, origin: str, in_place: Callable[[Path], str], refusal: type[UserError] = UserError) -> str:
    """An existing folder; `in_place` says what to write in place of a file."""
    folder = Path(name).expanduser()
    if folder.is_file():
        raise refusal(f"{origin}: a file where a folder is expected: {name}", fix=in_place(folder))
    if not folder.is_dir():
        raise refusal(f"{origin}: no such folder: {name}", fix=list_around(folder))
    return str(folder)


def _backend(entry: MethodForm, wanted: str, at: Located) -> str:
    """Choose the backend of an entry; a backend named by the entry itself is never replaced."""
    if entry.backend in (None, registry.AUTO):
        return registry.choose_backend(entry.name, entry.backend or wanted)
    if entry.name not in registry.implementations(entry.backend):
        there = ", ".join(registry.implementations(entry.backend).names()) or "none"
        raise UserError(
            f"{at.where}: backend '{entry.backend}' has no method '{entry.name}'; it has: {there}",
            fix=f"backend: {registry.NATIVE}",
        )
    return entry.backend


def _schedule(form: SuiteForm) -> Schedule:
    if isinstance(form.schedule, Sequential):
        return Schedule("sequential", form.schedule.sequential.block, tuple(form.schedule.sequential.score_at))
    return Schedule()
