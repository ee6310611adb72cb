"""Check the names in a suite for typos and duplicates, and apply `--only` filters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from harness import registry
from harness.errors import NoMatchError, UserError, did_you_mean
from harness.evaluation.capability import tasks
from harness.models import catalogue
from harness.suite.schema import SuiteForm
from harness.yaml_source import Located

FILTERS = ("model", "method", "dataset")

Item = TypeVar("Item")


def check_names(document: Located, form: SuiteForm) -> None:
    """Check every name in a suite against its registry.

    Raises:
        UserError: for the first unknown or duplicate name.
    """
    for index, model in enumerate(form.models):
        if model.name not in catalogue.CATALOGUE and not model.source:
            raise catalogue.unknown(model.name, document.at(("models", index, "name")).where)
    names: Mapping[str, tuple[registry.Registry[Any], Sequence[str]]] = {
        "methods": (registry.methods, [entry.name for entry in form.methods]),
        "datasets": (registry.datasets, [entry.name for entry in form.datasets]),
        "protocols": (registry.protocols, form.protocols),
        "tables": (registry.tables, form.tables),
        "figures": (registry.figures, form.figures),
    }
    for axis, (kind, written) in names.items():
        for index, name in enumerate(written):
            if name not in kind:
                raise kind.unknown(name, document.at((axis, index, "name")).where)
    for index, name in enumerate(form.tables):
        if form.schedule == "batch" and getattr(registry.tables.get(name), "needs_sequence", False):
            where = document.at(("tables", index)).where
            raise UserError(f"{where}: table '{name}' needs `schedule: {{sequential: ...}}`")
    for index, task in enumerate(form.capability):
        if task.source == "file":
            tasks.check_name(task.name, document.at(("capability", index, "name")).where)
    check_backend(form.backend, document.at(("backend",)).where)
    for index, method in enumerate(form.methods):
        check_backend(method.backend, document.at(("methods", index, "backend")).where)
    _refuse_repeats(document, "methods", [entry.shown for entry in form.methods])
    for axis in ("models", "datasets", "protocols", "prompts", "seeds", "tables", "figures"):
        _refuse_repeats(document, axis, getattr(form, axis))
    _refuse_repeats(document, "capability", [entry.name for entry in form.capability])


def check_backend(name: str | None, where: str) -> None:
    """Check a backend name given at `where`; None, `auto` and `native` are always valid.

    Raises:
        UserError: for an unknown backend.
    """
    if name not in (None, registry.AUTO, registry.NATIVE) and name not in registry.backends:
        raise registry.backends.unknown(str(name), where, others=(registry.AUTO, registry.NATIVE))


def read_filters(only: Sequence[str]) -> dict[str, list[str]]:
    """Parse `--only` filters: `["method=none,ft-l"]` becomes `{"method": ["none", "ft-l"]}`.

    Raises:
        UserError: for anything but `model=`, `method=` or `dataset=` followed by names.
    """
    wanted: dict[str, list[str]] = {}
    for text in only:
        axis, _, rest = text.partition("=")
        names = [name.strip() for name in rest.split(",") if name.strip()]
        if axis not in FILTERS or not names:
            expected = ", ".join(f"{known}=NAME,…" for known in FILTERS)
            guess = "" if axis in FILTERS else did_you_mean(axis, FILTERS)
            raise UserError(f"--only '{text}': expected {expected}{guess}")
        wanted.setdefault(axis, []).extend(names)
    return wanted


def chosen(
    items: Sequence[Item], axis: str, wanted: Mapping[str, Sequence[str]], names_of: Callable[[Item], set[str]]
) -> list[Item]:
    """Filter the items of an axis, keeping the suite's order; without a filter, keep all.

    Raises:
        NoMatchError: for a name that matches no item.
    """
    if axis not in wanted:
        return list(items)
    known = {name for item in items for name in names_of(item)}
    for name in wanted[axis]:
        if name not in known:
            there = ", ".join(sorted(known))
            raise NoMatchError(f"--only: the suite has no {axis} '{name}'{did_you_mean(name, known)}; it has {there}")
    return [item for item in items if names_of(item) & set(wanted[axis])]


def _refuse_repeats(document: Located, axis: str, values: Sequence[Any]) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            shown = getattr(value, "name", value)
            advice = "; give one of them a label" if axis == "methods" else ""
            raise UserError(f"{document.at((axis, index)).where}: {axis}: '{shown}' is listed twice{advice}")
