"""Load a suite file: merge its bases, expand the sweep, check names, apply the scale and command-line options."""

import os
from collections.abc import Sequence
from pathlib import Path

from harness import registry
from harness.errors import UserError, did_you_mean
from harness.suite import hparams
from harness.suite.entries import DataEntry, MethodEntry, ModelEntry, Suite
from harness.suite.names import check_backend, check_names, chosen, read_filters
from harness.suite.scale import INSTALLED, Scale, by_name, load_scale
from harness.suite.schedule import Schedule
from harness.suite.schema import DataForm, MethodForm, ModelForm, Sequential, SuiteForm
from harness.suite.sweep import expand
from harness.yaml_source import Located, merge, read_chain, validate


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
        raise UserError(f"{path}: no such file{hint}", fix="python -m harness list suites")
    here = Path(f"{name}.yaml")
    mine = Path("suites", f"{name}.yaml")
    if found := next((file for file in (mine, here) if file.is_file()), known.get(name)):
        return found
    raise UserError(f"no suite '{name}'{did_you_mean(name, set(known))}", fix="python -m harness list suites")


def load_suite(
    path: Path | str,
    *,
    scale: str | None = None,
    only: Sequence[str] = (),
    data: str | None = None,
    edits: int | None = None,
    backend: str | None = None,
) -> Suite:
    """Read a suite and resolve everything in it.

    Args:
        path: the suite file.
        scale: name of a file in `suites/scales/`; None or `paper` runs the suite as written.
        only: filters such as `method=none,ft-l` on `model`, `method` (name or label) or `dataset`.
        data: folder of upstream files for datasets without a `path`. The fallbacks are the environment variable
            HARNESS_DATA, then the scale's source; otherwise the plan reports the data as missing.
        edits: number of edits per dataset; overrides suite and scale.
        backend: backend of all methods whose entry names none; overrides suite and scale.

    Raises:
        UserError: for any mistake in the files or filters, as one line with file, line, key and a suggestion.
    """
    if edits is not None and edits < 1:
        raise UserError(f"--edits {edits}: at least one edit is needed")
    document, form = _read(Path(path))
    check_names(document, form)
    overlay = load_scale(scale)
    laid, schedule = overlay.form.set, _schedule(form)
    wanted = read_filters(only)
    check_backend(backend, "--backend")
    asked_backend = backend
    backend = backend or laid.backend or form.backend

    models = [overlay.model(_model_entry(document, index, entry)) for index, entry in enumerate(form.models)]
    models = chosen(models, "model", wanted, lambda entry: {entry.name, entry.asked})
    models = [entry for index, entry in enumerate(models) if not any(map(entry.is_same_as, models[:index]))]
    methods = chosen(list(enumerate(form.methods)), "method", wanted, lambda item: {item[1].name, item[1].shown})
    datasets = [
        overlay.data(
            _data_entry(document, index, entry, form, data),
            edits,
            has_split="split" in entry.model_fields_set,
            is_sequential=schedule.is_sequential,
        )
        for index, entry in enumerate(form.datasets)
    ]
    datasets = chosen(datasets, "dataset", wanted, lambda entry: {entry.name})
    return Suite(
        name=form.name,
        description=form.description,
        file=str(path),
        scale=overlay.name,
        models=tuple(models),
        methods=tuple(_method_entry(document, index, entry, models, overlay, backend) for index, entry in methods),
        datasets=tuple(dict.fromkeys(datasets)),
        protocols=tuple(form.protocols),
        prompts=tuple(laid.prompts or form.prompts),
        seeds=tuple(form.seeds),
        schedule=schedule,
        keep_weights=form.keep_weights,
        eval_batch=laid.eval_batch or form.eval_batch,
        launch=laid.launch or form.launch,
        launch_at=overlay.launch_at if laid.launch else document.at(("launch",)).where,
        device=laid.device or form.device,
        threads=laid.threads or form.threads,
        tables=tuple(form.tables),
        figures=tuple(form.figures),
        options={"only": list(only), "data": data, "edits": edits, "backend": asked_backend},
    )


def _read(path: Path) -> tuple[Located, SuiteForm]:
    chain = read_chain(path, INSTALLED)
    document = chain[0]
    for over in chain[1:]:
        document = merge(document, over)
    if "name" in document.value and "name" not in chain[-1].value:
        raise UserError(
            f"{path}:1: a suite that extends another needs its own name, or their results would be mixed up"
        )
    schema_command = "python -m harness schema"
    form = validate(SuiteForm, document, fix=schema_command)
    expanded = expand(document, form)
    return expanded, validate(SuiteForm, expanded, fix=schema_command)


def _folder(document: Located, axis: str, index: int) -> str:
    """Read the `path` of an entry, which must be an existing folder; empty if not given."""
    entry = document.at((axis, index)).value
    if not isinstance(entry, dict) or "path" not in entry or entry["path"].value is None:
        return ""
    return _existing(entry["path"].value, f"{entry['path'].where}: {axis}[{index}].path")


def _existing(name: str, origin: str) -> str:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{origin}: {what}: {name}", fix=f"ls {folder.parent}")
    return str(folder)


def _model_entry(document: Located, index: int, entry: ModelForm) -> ModelEntry:
    return ModelEntry(entry.name, entry.name, _folder(document, "models", index), entry.weights, entry.dtype)


def _data_entry(document: Located, index: int, entry: DataForm, form: SuiteForm, data: str | None) -> DataEntry:
    source = _folder(document, "datasets", index)
    environment = os.environ.get("HARNESS_DATA")
    if not source and data:
        source = _existing(data, "--data")
    elif not source and environment:
        source = _existing(environment, "HARNESS_DATA")
    return DataEntry(
        *(entry.name, source, entry.edits, entry.split, entry.train, entry.unrelated, entry.strip_distractor),
        conflicts=entry.conflicts or form.conflicts,
    )


def _method_entry(
    document: Located, index: int, entry: MethodForm, models: Sequence[ModelEntry], overlay: Scale, wanted: str
) -> MethodEntry:
    at = document.at(("methods", index))
    backend = _backend(entry, wanted, at.at(("backend",)))
    twice = entry.loose.keys() & entry.hparams.keys()
    if twice:
        raise UserError(
            f"{at.where}: methods[{index}]: '{min(twice)}' is given both next to the name and under hparams"
        )
    written = {**entry.loose, **entry.hparams}
    where = {key: at.at((key,) if key in entry.loose else ("hparams", key)).where for key in written}
    options = {key: overlay.option(value) for key, value in written.items()}
    where |= {key: f"{where[key]} ({overlay.file})" for key in options if options[key] != written[key]}
    resolved = {
        model.name: hparams.resolve(
            entry.name,
            model.name,
            options,
            variant=entry.variant,
            where=where,
            at=at.at(("variant",)).where,
            neighbours=MethodForm.model_fields,
            backend=backend,
        )
        for model in models
    }
    return MethodEntry(entry.name, entry.shown, entry.variant, backend, resolved)


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
