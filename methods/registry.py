"""The dictionary of methods. A module in this folder that registers a class adds a method; nothing else is edited.

So does a module from elsewhere that the environment names: `HARNESS_METHODS=mine:yours.methods`.
"""

import importlib
import os
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

import methods
from harness.errors import UserError, did_you_mean
from methods.base import Backend, Editor

EditorType = TypeVar("EditorType", bound=Editor)

OUTSIDE = "HARNESS_METHODS"
"""Environment variable: modules that register methods and lie elsewhere, separated by colons."""

_METHODS: dict[str, type[Editor]] = {}
_ADAPTERS: dict[str, type[Editor]] = {}

PLANNED = {
    "emsedit": "EMSEdit",
}
"""Methods that suites may name and that are not built yet; each leaves this list with the module that builds it."""


def register(cls: type[EditorType]) -> type[EditorType]:
    """Class decorator: put a method into the registry under `cls.spec.name`."""
    return register_backend("native")(cls)


def register_backend(backend: Backend) -> Callable[[type[EditorType]], type[EditorType]]:
    """Class decorator: put another implementation of a method beside our own, under the same name."""

    def put(cls: type[EditorType]) -> type[EditorType]:
        name, known = cls.spec.name, _of(backend)
        if known.get(name, cls).__module__ != cls.__module__:
            raise ValueError(f"two methods are called '{name}': {known[name].__module__} and {cls.__module__}")
        known[name] = cls
        return cls

    return put


def available(backend: Backend = "native") -> dict[str, type[Editor]]:
    """All methods of a backend by name, in alphabetical order; imports their modules on first use."""
    _import_all()
    return dict(sorted(_of(backend).items()))


def get(name: str, backend: Backend = "native") -> type[Editor]:
    """The class of a method.

    Raises:
        UserError: for a name that is unknown, not built yet or not of this backend, with the names of those that are.
    """
    known = available(backend)
    if name in known:
        return known[name]
    built = ", ".join(known)
    if name in available():
        raise UserError(f"method '{name}' has no backend '{backend}'; it has: {built}", fix="backend: native")
    if name in PLANNED:
        raise UserError(f"method '{name}' is not built yet; built are: {built}", fix=f"--only method={','.join(known)}")
    raise UserError(
        f"unknown method '{name}'{did_you_mean(name, {*known, *PLANNED})}; built are: {built}",
        fix="python -m harness list methods",
    )


def settled(name: str, wanted: Literal["auto", "native", "easyedit"]) -> Backend:
    """The backend of a method where a suite names one for all of them.

    Args:
        name: of a method; one without an adapter is always `native`.
        wanted: `auto` is EasyEdit where there is a checkout of it.
    """
    from methods.easyedit import checkout

    if wanted == "native" or name not in available("easyedit") or (wanted == "auto" and not checkout.is_present()):
        return "native"
    return "easyedit"


def _of(backend: Backend) -> dict[str, type[Editor]]:
    return _METHODS if backend == "native" else _ADAPTERS


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules([str(Path(methods.__file__).parent)]):
        if module.name not in {"base", "registry", "common", "hparams"}:
            importlib.import_module(f"methods.{module.name}")
    for name in filter(None, os.environ.get(OUTSIDE, "").split(":")):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and imports another that is not
            raise UserError(f"{OUTSIDE}: there is no module '{name}'", fix="put its folder into PYTHONPATH") from None
