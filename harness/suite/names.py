"""Names in a suite: each must be known, none may stand in an axis twice, and `--only` picks among them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from harness import registry
from harness.data import catalogue as data_catalogue
from harness.errors import UserError, did_you_mean
from harness.models import catalogue as model_catalogue
from harness.suite.schema import SuiteForm
from harness.yaml_source import Located

FILTERS = ("model", "method", "dataset")

Item = TypeVar("Item")


def check_names(document: Located, form: SuiteForm) -> None:
    """Compare every name with its catalogue. Methods that are planned but not built are known.

    Raises:
        UserError: for the first name that is unknown or repeated.
    """
    known: dict[str, set[str]] = {
        "models": set(model_catalogue.names()),
        "methods": set(registry.methods),
        "datasets": set(data_catalogue.DATASETS),
    }
    for axis, names in known.items():
        for index, entry in enumerate(getattr(form, axis)):
            if entry.name not in names:
                at = document.at((axis, index, "name")).where
                kind = "data set" if axis == "datasets" else axis.removesuffix("s")
                guess = did_you_mean(entry.name, names)
                command = "data list" if axis == "datasets" else f"list {axis}"
                raise UserError(f"{at}: unknown {kind} '{entry.name}'{guess}", fix=f"python -m harness {command}")
    _refuse_repeats(document, "methods", [entry.shown for entry in form.methods])
    for axis in ("models", "datasets", "protocols", "prompts", "seeds", "tables"):
        _refuse_repeats(document, axis, getattr(form, axis))


def read_filters(only: Sequence[str]) -> dict[str, list[str]]:
    """`["method=none,ft-l"]` as `{"method": ["none", "ft-l"]}`.

    Raises:
        UserError: for anything but `model=`, `method=` or `dataset=` with names.
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
    """The items that the filters of an axis leave, in the order of the suite; all where there is no filter.

    Raises:
        UserError: for a wanted name that no item has.
    """
    if axis not in wanted:
        return list(items)
    known = {name for item in items for name in names_of(item)}
    for name in wanted[axis]:
        if name not in known:
            there = ", ".join(sorted(known))
            raise UserError(f"--only: the suite has no {axis} '{name}'{did_you_mean(name, known)}; it has {there}")
    return [item for item in items if names_of(item) & set(wanted[axis])]


def _refuse_repeats(document: Located, axis: str, values: Sequence[Any]) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            shown = getattr(value, "name", value)
            advice = "; give one of them a label" if axis == "methods" else ""
            raise UserError(f"{document.at((axis, index)).where}: {axis}: '{shown}' stands here twice{advice}")
