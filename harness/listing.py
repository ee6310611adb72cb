"""The names that a suite may use, each with a few words."""

from collections.abc import Callable
from pathlib import Path

from harness import registry
from harness.data.catalogue import DATASETS
from harness.models.catalogue import CATALOGUE
from harness.suite.scale import PAPER, SCALES
from harness.yaml_source import read_yaml

SUITES = Path(__file__).parents[1] / "suites"


def listing(what: str) -> dict[str, str]:
    """Names of one kind with their meaning, for `harness list`."""
    return LISTINGS[what]()


def _methods() -> dict[str, str]:
    return {name: f"{method.spec.title}, {method.spec.family}" for name, method in registry.methods.all().items()}


def _models() -> dict[str, str]:
    return {
        name: f"{entry.title}: {entry.hub_id or 'trained on the spot'}, {entry.parameters / 1e6:,.1f} M parameters"
        for name, entry in CATALOGUE.items()
    }


def _files(folder: Path) -> dict[str, str]:
    return {path.stem: read_yaml(path).plain().get("description", "") for path in sorted(folder.glob("*.yaml"))}


def _protocols() -> dict[str, str]:
    return {name: (type(protocol).__doc__ or "").split("\n")[0] for name, protocol in registry.protocols.all().items()}


LISTINGS: dict[str, Callable[[], dict[str, str]]] = {
    "methods": _methods,
    "models": _models,
    "datasets": lambda: {name: entry.title for name, entry in DATASETS.items()},
    "suites": lambda: _files(SUITES),
    "scales": lambda: {PAPER: "a suite as written", **_files(SCALES)},
    "protocols": _protocols,
}
