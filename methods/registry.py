"""The dictionary of methods. A module in this folder that registers a class adds a method; nothing else is edited."""

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import TypeVar

import methods
from harness.errors import UserError, did_you_mean
from methods.base import Editor

EditorType = TypeVar("EditorType", bound=Editor)

_METHODS: dict[str, type[Editor]] = {}

PLANNED = {
    "emsedit": "EMSEdit",
}
"""Methods that suites may name and that are not built yet; each leaves this list with the module that builds it."""


def register(cls: type[EditorType]) -> type[EditorType]:
    """Class decorator: put a method into the registry under `cls.spec.name`."""
    name = cls.spec.name
    if _METHODS.get(name, cls).__module__ != cls.__module__:
        raise ValueError(f"two methods are called '{name}': {_METHODS[name].__module__} and {cls.__module__}")
    _METHODS[name] = cls
    return cls


def available() -> dict[str, type[Editor]]:
    """All methods by name, in alphabetical order; imports their modules on first use."""
    _import_all()
    return dict(sorted(_METHODS.items()))


def get(name: str) -> type[Editor]:
    """The class of a method.

    Raises:
        UserError: for a name that is unknown or not built yet, with the names of those that are.
    """
    known = available()
    if name in known:
        return known[name]
    built = ", ".join(known)
    if name in PLANNED:
        raise UserError(f"method '{name}' is not built yet; built are: {built}", fix=f"--only method={','.join(known)}")
    raise UserError(
        f"unknown method '{name}'{did_you_mean(name, {*known, *PLANNED})}; built are: {built}",
        fix="python -m harness list methods",
    )


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules([str(Path(methods.__file__).parent)]):
        if module.name not in {"base", "registry", "common", "hparams"}:
            importlib.import_module(f"methods.{module.name}")
