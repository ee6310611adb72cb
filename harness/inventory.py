"""Content of `harness list` and `harness doctor`: available names and installed software."""

import inspect
import itertools
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from harness import registry
from harness.api import Finding
from harness.errors import UserError

Kind = Literal[
    "methods", "models", "datasets", "formats", "protocols", "tables", "figures", "suites", "scales", "profiles", "launchers",
    "backends",
]  # fmt: skip
Rows = Iterator[tuple[str, ...]]
YES = "yes"
REAL_RECORDS = "for real ones: python -m harness data fetch, then --data data, or HARNESS_DATA"


def findings() -> Iterator[Finding]:
    """Check everything that affects which suites can run here and which outputs are written."""
    yield Finding("editing-harness", True, f"{metadata.version('editing-harness')}, Python {platform.python_version()}")
    for package in ("torch", "transformers", "mlflow", "submitit", "pandas", "scipy"):
        try:
            yield Finding(package, True, metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding(package, False, "python -m pip install editing-harness", is_optional=False)
    yield _cuda()
    yield _records()
    for name, _, obstacle in _profiles():
        yield Finding(f"launch profile {name}", obstacle == YES, "can be used here" if obstacle == YES else obstacle)
    pdflatex = shutil.which("pdflatex")
    otherwise = "not found; tables are written but not compiled: apt-get install texlive-latex-recommended"
    yield Finding("LaTeX", pdflatex is not None, pdflatex or otherwise)
    for backend in registry.backends.all().values():
        yield from backend.findings()


def _cuda() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("CUDA", False, f"torch cannot be imported: {error}", is_optional=False)
    if torch.cuda.is_available():
        return Finding("CUDA", True, torch.cuda.get_device_name(0))
    return Finding("CUDA", False, "no device; cells run on the CPU")


def _records() -> Finding:
    folder = os.environ.get("HARNESS_DATA")
    if not folder:
        return Finding("datasets", False, f"synthetic records only; {REAL_RECORDS}")
    is_there = Path(folder).expanduser().is_dir()
    found = folder if is_there else f"HARNESS_DATA: no such folder: {folder}"
    return Finding("datasets", is_there, found, is_optional=False)


def _methods() -> Rows:
    known = {backend: registry.implementations(backend).all() for backend in (registry.NATIVE, *registry.backends)}
    for name in dict.fromkeys(itertools.chain.from_iterable(known.values())):
        of = [backend for backend, methods in known.items() if name in methods]
        spec = known[of[0]][name].spec
        yield name, spec.title, spec.family, ", ".join(of)


def _models() -> Rows:
    from harness.models.catalogue import CATALOGUE

    for name, entry in CATALOGUE.items():
        yield name, entry.title, f"{entry.spec.parameters / 1e6:,.1f} M", entry.hub_id or "trained on the spot"


def _datasets() -> Rows:
    for name, info in registry.datasets.all().items():
        yield name, info.title, ", ".join(info.edited_formats), info.homepage


def _formats() -> Rows:
    for name, form in registry.formats.all().items():
        yield name, form.dataset, form.title


def _described(kind: "registry.Registry[Any]") -> Callable[[], Rows]:
    """List a registry, describing each object by its docstring."""

    def rows() -> Rows:
        for name, item in kind.all().items():
            yield name, _first_line(item)

    return rows


def _suites() -> Rows:
    from harness.suite.load import suite_files

    for name, file in suite_files().items():
        yield name, _description(file), str(file)


def _scales() -> Rows:
    from harness.suite.entries import PAPER
    from harness.suite.scale import scale_files

    yield PAPER, "the suite as written", ""
    for name, file in scale_files().items():
        yield name, _description(file), str(file)


def _description(file: Path) -> str:
    """Description of a suite or scale, or the error if it cannot be read."""
    from harness.yaml_source import read_yaml

    try:
        return str(read_yaml(file).plain().get("description", ""))
    except UserError as error:
        return error.message


def _profiles() -> Rows:
    from harness.run.profiles import described, load_profile, profile_names

    for name in profile_names():
        try:
            launcher = load_profile(name)
        except UserError as error:  # in a profile of the user's own
            yield name, "", error.message
        else:
            yield name, described(name), launcher.obstacle() or launcher.silence() or YES


def _backends() -> Rows:
    yield registry.NATIVE, "This project's own implementations.", YES
    for name, backend in registry.backends.all().items():
        yield name, _first_line(backend), YES if backend.is_available() else "no"


def _first_line(item: object) -> str:
    """First line of the docstring of a function, or of an object's class."""
    documented = item if inspect.isroutine(item) or inspect.isclass(item) else type(item)
    return (inspect.getdoc(documented) or "").partition("\n")[0]


LISTINGS: dict[Kind, tuple[tuple[str, ...], Callable[[], Rows]]] = {
    "methods": (("method", "title", "family", "backends"), _methods),
    "models": (("model", "title", "parameters", "weights"), _models),
    "datasets": (("dataset", "title", "edit formats", "homepage"), _datasets),
    "formats": (("format", "dataset", "title"), _formats),
    "protocols": (("protocol", "description"), _described(registry.protocols)),
    "tables": (("table", "description"), _described(registry.tables)),
    "figures": (("figure", "description"), _described(registry.figures)),
    "suites": (("suite", "description", "file"), _suites),
    "scales": (("scale", "description", "file"), _scales),
    "profiles": (("profile", "description", "usable here"), _profiles),
    "launchers": (("launcher", "description"), _described(registry.launchers)),
    "backends": (("backend", "description", "usable here"), _backends),
}
