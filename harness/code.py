"""Hash of code from outside this project, for which there is no version to raise when its results change."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from harness.identity import digest, file_digest

PROJECT = ("harness", "methods", "reports", "slurm", "suites")
"""Packages of this project. Their methods and protocols have versions, so that a changed comment does not invalidate results."""
_INSTALLED = ("site-packages", "dist-packages")


@cache
def source_hash(module: str) -> str:
    """Hash of a module's source and of the local modules that it imports, directly or not; empty within this project.

    Local modules are those of the same package and, unless that is installed, those next to it. They are found by their
    import statements without being imported, because a plan must not import what computes.
    """
    if module.partition(".")[0] in ("", *PROJECT):
        return ""
    sources = {name: file_digest(path) for name, path in _sources(module).items()}
    return digest(sources) if sources else ""


def _sources(module: str) -> dict[str, Path]:
    """The source files of a module and its local imports, by their path in the folder that they are imported from."""
    file, home = _file(module), _home(module)
    if file is None or home is None:
        return {}
    top = module.partition(".")[0]
    is_installed = any(part in _INSTALLED for part in home.parts)
    found: dict[str, Path] = {}
    waiting = [(module, file)]
    while waiting:
        name, path = waiting.pop()
        place = path.relative_to(home).as_posix() if path.is_relative_to(home) else path.name
        if place in found:
            continue
        found[place] = path
        for imported in (*_parents(name), *_imports(path, name)):
            first = imported.partition(".")[0]
            if first not in PROJECT and (first == top or not is_installed) and (local := _local(home, imported)):
                waiting.append((imported, local))
    return found


def _file(module: str) -> Path | None:
    if (loaded := sys.modules.get(module)) is not None:
        origin = getattr(loaded, "__file__", None)
    else:
        home = _home(module)
        origin = _local(home, module) if home else None
    return Path(origin) if origin else None


def _home(module: str) -> Path | None:
    """The folder from which the top-level package or module of a module is imported."""
    top = module.partition(".")[0]
    loaded = sys.modules.get(top)
    spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(top)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    origin = folders[0] if folders else spec.origin
    return Path(origin).parent if origin else None


def _local(home: Path, module: str) -> Path | None:
    """The source file of a module in a folder, if it is there."""
    path = home.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _parents(module: str) -> Iterator[str]:
    """The packages that a module is in, whose `__init__` is run before it."""
    parts = module.split(".")
    yield from (".".join(parts[:end]) for end in range(1, len(parts)))


def _imports(file: Path, module: str) -> Iterator[str]:
    """Names of everything that a source file imports, wherever in the file."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # its bytes count all the same
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, parts), *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names if alias.name != "*")
