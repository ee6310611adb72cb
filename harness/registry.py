"""Everything a suite can name: methods, backends, datasets, their formats, protocols, tables, figures and launchers.

One decorator adds one of them, from any module. Modules are found in three places: the packages of this project, packages
that declare an entry point in the group `editing_harness.<kind>` (`editing_harness.methods`, …), and modules or single
files named by `--plugin` or by the environment variable `HARNESS_PLUGINS`, separated by colons.
"""

import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from harness.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from harness.api import Backend, Launcher, Method
    from harness.data.catalogue import DatasetInfo
    from harness.data.formats import Format
    from harness.evaluation.protocol import Protocol

Item = TypeVar("Item")
Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])

PLUGINS = "HARNESS_PLUGINS"
"""Environment variable: plug-in modules or files, separated by colons. Worker processes and cluster jobs inherit it."""

NATIVE = "native"
"""Name of the backend that every method has unless its decorator says otherwise: this project's own implementation."""
AUTO = "auto"
"""Written in place of a backend: the first one that has the method and is available, else the native one."""


class Registry(Generic[Item]):
    """Named objects of one kind, imported on first use.

    Args:
        kind: what one of them is called in messages, `data format`.
        group: entry-point group and name for `harness list`, `formats`.
        builtin: modules of this project that register some, imported in this order; of a package all submodules are.
    """

    def __init__(self, kind: str, group: str, builtin: Sequence[str]) -> None:
        self.kind, self.group = kind, group
        self._builtin = tuple(builtin)
        self._items: dict[str, Item] = {}
        self._origin: dict[str, str] = {}
        self._is_loaded = False

    def add(self, name: str, item: Item, origin: str) -> Item:
        """Register an object; registering it again from the same module replaces it.

        Args:
            name: as written in a suite.
            item: the object.
            origin: name of the module that registers it.

        Raises:
            ValueError: if another module has already registered the name.
        """
        if (first := self._origin.setdefault(name, origin)) != origin:
            raise ValueError(f"two {self.kind}s are called '{name}': one in {first}, one in {origin}")
        self._items[name] = item
        return item

    def discard(self, name: str) -> None:
        """Unregister an object, if it is registered."""
        self._items.pop(name, None)
        self._origin.pop(name, None)

    def get(self, name: str) -> Item:
        """The object of a name.

        Raises:
            UserError: for an unknown name, with the nearest known one.
        """
        if name not in self:
            raise self.unknown(name)
        return self._items[name]

    def unknown(self, name: str, where: str = "", others: Sequence[str] = ()) -> UserError:
        """The error about an unknown name, with the nearest known one.

        Args:
            name: as written.
            where: `file:line` of it, if it was written in a file.
            others: what may be written besides the names.
        """
        known = [*others, *self.names()]
        hint = did_you_mean(name, known) or f"; known: {', '.join(known) or 'none'}"
        place = f"{where}: " if where else ""
        return UserError(f"{place}unknown {self.kind} '{name}'{hint}", fix=f"python -m harness list {self.group}")

    def all(self) -> dict[str, Item]:
        """All objects by name: those of this project first, then as they were registered."""
        self._load()
        return {name: self._items[name] for name in sorted(self._items, key=self._rank)}

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self.all())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.all())

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True  # first, because the modules imported here may look something up themselves
        try:
            for name in self._builtin:
                _import_tree(importlib.import_module(name))
            for entry in _entry_points().select(group=f"editing_harness.{self.group}"):
                entry.load()
            load_plugins()
        except BaseException:
            self._is_loaded = False  # the next look-up must fail too, not miss a part
            raise

    def _rank(self, name: str) -> int:
        """Place in `all`, which must not depend on which module happened to be imported first."""
        origin = f"{self._origin[name]}."
        return next((i for i, each in enumerate(self._builtin) if origin.startswith(f"{each}.")), len(self._builtin))


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """What the plan and the tables know of a method.

    Attributes:
        name: as written in a suite, `ft-l`.
        title: as printed in a table, `FT-L`.
        family: `reference`, `weights`, `hypernetwork`, `memory` or `plug-in`.
        version: raised whenever results change; part of every cell's identity.
        edits: False for the unedited reference, which has no reliability to speak of and no cost.
    """

    name: str
    title: str
    family: str
    version: int
    edits: bool = True

    @property
    def is_in_weights(self) -> bool:
        """Whether an edited model is the model itself with other weights, and nothing next to them."""
        return self.family in ("reference", "weights", "hypernetwork")


methods: "Registry[type[Method]]" = Registry("method", "methods", ["methods"])
"""Methods of the native backend by name; `find_method` also knows those of other backends."""
backends: "Registry[Backend]" = Registry("backend", "backends", ["methods"])
formats: "Registry[Format]" = Registry("data format", "formats", ["harness.data.schemas"])
datasets: "Registry[DatasetInfo]" = Registry("dataset", "datasets", ["harness.data.catalogue"])
protocols: "Registry[Protocol]" = Registry("protocol", "protocols", ["harness.evaluation.protocols", "methods"])
tables: "Registry[Any]" = Registry("table", "tables", ["reports.tables"])
figures: "Registry[Any]" = Registry("figure", "figures", ["reports.figures"])
launchers: "Registry[type[Launcher]]" = Registry("launcher", "launchers", ["harness.run.local", "slurm.launcher"])

_adapters: "dict[str, Registry[type[Method]]]" = {}
"""Methods of each backend but the native one."""


def register(
    name: str, *, title: str, family: str, version: int, edits: bool = True, backend: str = NATIVE
) -> Callable[[Class], Class]:
    """Class decorator: add a method, or another backend's implementation of one under the same name.

    Args:
        name, title, family, version, edits: see `MethodSpec`.
        backend: whose implementation the class is.
    """

    def put(cls: Class) -> Class:
        cls.spec = MethodSpec(name, title, family, version, edits)  # type: ignore[attr-defined]
        implementations(backend).add(name, cls, cls.__module__)
        return cls

    return put


def register_backend(name: str) -> Callable[[Class], Class]:
    """Class decorator: add a backend, another code base whose implementations stand next to the native ones."""
    return _instance_in(backends, name)


def register_protocol(cls: Class) -> Class:
    """Class decorator: add an evaluation protocol under `cls.name`."""
    return _instance_in(protocols, cls.name)(cls)  # type: ignore[attr-defined]


def register_launcher(name: str) -> Callable[[Class], Class]:
    """Class decorator: add a launcher; launch profiles name it as `launcher: <name>`."""
    return _item_in(launchers, name)


def register_table(name: str, *, needs_sequence: bool = False) -> Callable[[Function], Function]:
    """Decorator: add a table, a function from `reports.frame.SuiteFrame` to its tables and their numbers.

    Args:
        name: as written in a suite.
        needs_sequence: whether it says nothing about a suite that does not edit in sequence.
    """

    def put(function: Function) -> Function:
        function.needs_sequence = needs_sequence  # type: ignore[attr-defined]
        return tables.add(name, function, function.__module__)  # type: ignore[no-any-return]

    return put


def register_figure(name: str) -> Callable[[Function], Function]:
    """Decorator: add a figure, a function from `reports.frame.SuiteFrame` to what is drawn."""
    return _item_in(figures, name)


def implementations(backend: str) -> "Registry[type[Method]]":
    """The methods that a backend has, by name."""
    if backend == NATIVE:
        return methods
    return _adapters.setdefault(backend, Registry("method", "methods", ["methods"]))


def find_method(name: str, backend: str = NATIVE) -> "type[Method]":
    """The class of a method.

    Raises:
        UserError: for an unknown name, or a backend that does not have the method.
    """
    known = implementations(backend)
    if name not in known and name in methods:
        raise UserError(
            f"method '{name}' has no backend '{backend}'; that backend has: {', '.join(known.names()) or 'none'}",
            fix=f"backend: {NATIVE}",
        )
    return known.get(name)


def choose_backend(name: str, wanted: str) -> str:
    """The backend that runs a method if a suite names one backend for all methods.

    Args:
        name: of a method.
        wanted: a backend's name, or `auto` for the first one that has the method and is available here.

    Returns:
        The wanted backend, or `native` if it does not have the method.

    Raises:
        UserError: for an unknown backend.
    """
    if wanted == NATIVE:
        return NATIVE
    candidates = backends.all() if wanted == AUTO else {wanted: backends.get(wanted)}
    for backend, found in candidates.items():
        if name in implementations(backend) and (wanted != AUTO or found.is_available()):
            return backend
    return NATIVE


def plugin_names() -> list[str]:
    """The plug-ins named by the environment, in their order."""
    return [name for name in os.environ.get(PLUGINS, "").split(":") if name]


def load_plugins() -> None:
    """Import every plug-in module or file that the environment names.

    Raises:
        UserError: for one that does not exist.
    """
    for name in plugin_names():
        _import_plugin(name)


def source_file(item: Any) -> Path | None:
    """The file that defines a registered class or function, if it comes from one."""
    found = inspect.getsourcefile(item)
    return Path(found) if found else None


@cache
def _entry_points() -> Any:
    return metadata.entry_points()  # reads the metadata of every installed package: once is slow enough


@cache
def _import_plugin(name: str) -> ModuleType:
    if name.endswith(".py"):
        return _import_file(Path(name).expanduser().resolve())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the plug-in exists and imports another module that does not
        raise UserError(
            f"{PLUGINS}: there is no module '{name}'",
            fix="put its folder on PYTHONPATH, or name the file: --plugin FILE.py",
        ) from None


def _import_file(file: Path) -> ModuleType:
    """Import a file as a module of its own name, under which other processes find what it defines too."""
    if not file.is_file():
        raise UserError(f"{PLUGINS}: no such file: {file}", fix=f"ls {file.parent}")
    name = re.sub(r"\W", "_", file.stem)
    if (taken := importlib.util.find_spec(name)) is not None:
        if taken.origin == str(file):
            return importlib.import_module(name)
        name = f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"{PLUGINS}: not a Python file: {file}", fix="--plugin FILE.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_tree(module: ModuleType) -> None:
    """Import the direct submodules of a package, which register what they define."""
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        importlib.import_module(f"{module.__name__}.{found.name}")


def _instance_in(registry: Registry[Any], name: str) -> Callable[[Class], Class]:
    def put(cls: Class) -> Class:
        registry.add(name, cls(), cls.__module__)
        return cls

    return put


def _item_in(registry: Registry[Any], name: str) -> Callable[[Item], Item]:
    def put(item: Item) -> Item:
        registry.add(name, item, item.__module__)
        return item

    return put
