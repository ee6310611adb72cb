"""Registries of methods, backends, datasets, data formats, protocols, tables, figures and launchers.

Any module can register an object with a decorator. Modules are found in three places: the packages of this project, packages
with an entry point in the group `editing_harness.<kind>` (`editing_harness.methods`, …), and modules or single files named by
`--plugin` or by the environment variable `HARNESS_PLUGINS`, separated by colons.
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from harness.code import source_hash
from harness.commands import PLUGINS, harness_command, list_around, plugin_names
from harness.errors import UserError, did_you_mean
from harness.identity import digest

if TYPE_CHECKING:
    from harness.api import Backend, Launcher, Method
    from harness.data.catalogue import DatasetInfo
    from harness.data.formats import Format
    from harness.evaluation.protocol import Protocol

Item = TypeVar("Item")
Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])

NATIVE = "native"
"""Name of the default backend: this project's own implementations."""
FAMILIES = ("reference", "weights", "hypernetwork", "memory", "plug-in")
"""Families of methods; see `MethodSpec`."""
AUTO = "auto"
"""Special backend name: the first available backend that has the method, otherwise the native one."""


class Registry(Generic[Item]):
    """Named objects of one kind, imported on first use.

    Args:
        kind: noun used in messages, such as `data format`.
        group: name of the entry-point group and of the listing in `harness list`, such as `formats`.
        builtin: modules of this project that register objects, imported in this order; packages with all submodules.
    """

    def __init__(self, kind: str, group: str, builtin: Sequence[str]) -> None:
        self.kind, self.group = kind, group
        self._builtin = tuple(builtin)
        self._items: dict[str, Item] = {}
        self._origin: dict[str, str] = {}
        self._is_loaded = False

    def add(self, name: str, item: Item, origin: str) -> Item:
        """Register an object; registering a name again from the same module replaces it.

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
        """Look up an object by name.

        Raises:
            UserError: for an unknown name, suggesting the nearest known one.
        """
        if name not in self:
            raise self.unknown(name)
        return self._items[name]

    def unknown(self, name: str, where: str = "", others: Sequence[str] = ()) -> UserError:
        """Make the error for an unknown name, suggesting the nearest known one.

        Args:
            name: the unknown name.
            where: its `file:line`, if it comes from a file.
            others: further valid values.
        """
        known = [*others, *self.names()]
        titles = {getattr(getattr(item, "spec", item), "title", each): each for each, item in self.all().items()}
        hint = did_you_mean(name, known, titles) or f"; known: {', '.join(known) or 'none'}"
        place = f"{where}: " if where else ""
        return UserError(f"{place}unknown {self.kind} '{name}'{hint}", fix=harness_command("list", self.group))

    def all(self) -> dict[str, Item]:
        """All objects by name: built-in ones first, then in order of registration."""
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
        self._is_loaded = True  # set first, because the modules imported here may use the registry themselves
        try:
            for name in self._builtin:
                _import_tree(importlib.import_module(name))
            for entry in _entry_points().select(group=f"editing_harness.{self.group}"):
                entry.load()
            load_plugins()
        except BaseException:
            self._is_loaded = False  # so that the next look-up fails too instead of missing entries
            raise

    def _rank(self, name: str) -> int:
        """Sort key for `all`, independent of the order in which modules happened to be imported."""
        origin = f"{self._origin[name]}."
        return next((i for i, each in enumerate(self._builtin) if origin.startswith(f"{each}.")), len(self._builtin))


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """Metadata of a method, for plans and tables.

    Attributes:
        name: as written in a suite, `ft-l`.
        title: as printed in a table, `FT-L`.
        family: one of `FAMILIES`.
        version: increased whenever results change; part of every cell's identity.
        edits: False for the unedited reference, which has no meaningful reliability and no cost.
    """

    name: str
    title: str
    family: str
    version: int
    edits: bool = True

    @property
    def is_in_weights(self) -> bool:
        """Whether the method changes only the model's weights and keeps no other state."""
        return self.family in ("reference", "weights", "hypernetwork")


methods: "Registry[type[Method]]" = Registry("method", "methods", ["methods"])
"""Methods of the native backend by name; `find_method` also finds those of other backends."""
backends: "Registry[Backend]" = Registry("backend", "backends", ["methods"])
formats: "Registry[Format]" = Registry(
    "data format", "formats", ["harness.data.schemas", "harness.data.benchmarks", "harness.data.facts"]
)
datasets: "Registry[DatasetInfo]" = Registry("dataset", "datasets", ["harness.data.catalogue"])
protocols: "Registry[Protocol]" = Registry(
    "protocol", "protocols", ["harness.evaluation.protocols", "harness.evaluation.natural", "methods"]
)
tables: "Registry[Any]" = Registry("table", "tables", ["reports.tables"])
figures: "Registry[Any]" = Registry("figure", "figures", ["reports.figures"])
launchers: "Registry[type[Launcher]]" = Registry("launcher", "launchers", ["harness.run.local", "slurm.launcher"])

_adapters: "dict[str, Registry[type[Method]]]" = {}
"""Methods of each backend other than the native one."""


def register(
    name: str, *, title: str, family: str, version: int, edits: bool = True, backend: str = NATIVE
) -> Callable[[Class], Class]:
    """Class decorator: register a method, or another backend's implementation of it under the same name.

    Args:
        name, title, family, version, edits: see `MethodSpec`.
        backend: name of the backend that the class belongs to.

    Raises:
        ValueError: for an unknown family, or a name that is taken.
        TypeError: for a class that lacks a method which every method has.
    """
    if family not in FAMILIES:
        hint = did_you_mean(family, FAMILIES) or f"; known: {', '.join(FAMILIES)}"
        raise ValueError(f"method '{name}': unknown family '{family}'{hint}")

    def put(cls: Class) -> Class:
        if lacking := sorted(getattr(cls, "__abstractmethods__", ())):
            raise TypeError(f"method '{name}': class {cls.__name__} does not define {', '.join(lacking)}")
        cls.spec = MethodSpec(name, title, family, version, edits)  # type: ignore[attr-defined]
        implementations(backend).add(name, cls, cls.__module__)
        return cls

    return put


def register_backend(name: str) -> Callable[[Class], Class]:
    """Class decorator: register a backend, a different code base that implements methods."""
    return _instance_in(backends, name)


def register_protocol(cls: Class) -> Class:
    """Class decorator: register an evaluation protocol under `cls.name`."""
    return _instance_in(protocols, cls.name)(cls)  # type: ignore[attr-defined]


def register_launcher(name: str) -> Callable[[Class], Class]:
    """Class decorator: register a launcher, which launch profiles select with `launcher: <name>`."""
    return _item_in(launchers, name)


def register_table(name: str, *, needs_sequence: bool = False) -> Callable[[Function], Function]:
    """Decorator: register a table, a function from `reports.frame.SuiteFrame` to its tables and their numbers.

    Args:
        name: as written in a suite.
        needs_sequence: whether the table requires a sequential schedule.
    """

    def put(function: Function) -> Function:
        function.needs_sequence = needs_sequence  # type: ignore[attr-defined]
        return tables.add(name, function, function.__module__)  # type: ignore[no-any-return]

    return put


def register_figure(name: str) -> Callable[[Function], Function]:
    """Decorator: register a figure, a function that draws a `reports.frame.SuiteFrame`."""
    return _item_in(figures, name)


def implementations(backend: str) -> "Registry[type[Method]]":
    """The methods of a backend, by name."""
    if backend == NATIVE:
        return methods
    return _adapters.setdefault(backend, Registry("method", "methods", ["methods"]))


def find_method(name: str, backend: str = NATIVE) -> "type[Method]":
    """Look up the class of a method.

    Raises:
        UserError: for an unknown name, or a backend without the method.
    """
    known = implementations(backend)
    if name not in known and name in methods:
        raise UserError(
            f"backend '{backend}' has no method '{name}'; it has: {', '.join(known.names()) or 'none'}",
            fix=f"backend: {NATIVE}",
        )
    return known.get(name)


def choose_backend(name: str, wanted: str) -> str:
    """Choose the backend of a method when one backend is requested for all methods.

    Args:
        name: name of the method.
        wanted: name of a backend, or `auto` for the first one that has the method and is available here.

    Returns:
        The requested backend, or `native` if it lacks the method.

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


def load_plugins(given: Collection[str] = ()) -> None:
    """Import every plug-in module or file named in the environment.

    Args:
        given: those that were put there by `--plugin`.

    Raises:
        UserError: for a plug-in that does not exist or cannot be imported, with the line where it fails.
    """
    for name in plugin_names():
        source = "--plugin" if name in given else PLUGINS
        try:
            _import_plugin(name)
        except UserError as error:
            raise UserError(f"{source}: {error.message}", fix=error.fix) from error
        except Exception as error:
            reason = (str(error) if not isinstance(error, SyntaxError) else error.msg).partition("\n")[0]
            raise UserError(f"{source}: {_place(error, name)}: {type(error).__name__}: {reason}") from error


def code_of(item: Any) -> dict[str, Any]:
    """Hash of the code of an object's class, in addition to its version; empty if all of it is this project's.

    Contains the hash of source from outside this project, the versions of registered methods that the class is derived from, and
    what a method says itself about third-party code.
    """
    classes = type(item).__mro__
    modules = {cls.__module__ for cls in classes} - sys.stdlib_module_names
    sources = sorted(filter(None, map(source_hash, modules)))
    said = dict(item.code_identity()) if hasattr(item, "code_identity") else {}
    if not sources:
        return said
    specs = [vars(cls)["spec"] for cls in classes[1:] if "spec" in vars(cls)]
    bases = {spec.name: spec.version for spec in specs}
    return {**said, "source": digest(sources), **({"derived_from": bases} if bases else {})}


def source_file(item: Any) -> Path | None:
    """The file that defines a registered class or function, if any."""
    found = inspect.getsourcefile(item)
    return Path(found) if found else None


@cache
def _entry_points() -> Any:
    return metadata.entry_points()  # slow, because it reads the metadata of every installed package


def _place(error: Exception, name: str) -> str:
    """File and line of a plug-in where its import fails: the innermost in its own file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    own = (__file__, importlib.__file__)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in own and not frame.filename.startswith("<frozen")
    ]
    lines = [frame.lineno for frame in frames if frame.filename == frames[0].filename]
    return f"{frames[0].filename}:{lines[-1]}" if lines else name


@cache
def _import_plugin(name: str) -> ModuleType:
    if name.endswith(".py"):
        return _import_file(Path(name).expanduser().resolve())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the plug-in exists, but a module that it imports is missing
        raise UserError(
            f"no module '{name}'",
            fix="add its folder to PYTHONPATH, or pass the file: --plugin FILE.py",
        ) from None


def _import_file(file: Path) -> ModuleType:
    """Import a file as a module named after it, so that other processes can import what it defines."""
    if not file.is_file():
        raise UserError(f"no such file: {file}", fix=list_around(file))
    name = re.sub(r"\W", "_", file.stem)
    if (taken := importlib.util.find_spec(name)) is not None:
        if taken.origin == str(file):
            return importlib.import_module(name)
        name = f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"not a Python file: {file}", fix="--plugin FILE.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_tree(module: ModuleType) -> None:
    """Import the direct submodules of a package, which register their objects."""
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
