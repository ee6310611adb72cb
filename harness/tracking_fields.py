"""What MLflow shows of a cell: parameters and metrics, each a flat mapping."""

import math
from collections.abc import Mapping
from typing import Any

from harness.store import Folder


def params(cell: Mapping[str, Any]) -> dict[str, str]:
    """What the cell is, flat; these are the columns of MLflow's run table."""
    method, data = cell["method"], cell["data"]
    return {
        "label": cell["label"],
        "method": method["name"],
        "variant": str(method["variant"]),
        "backend": method["backend"],
        "method_version": str(method["version"]),
        "model": cell["model"]["name"],
        "dataset": data["name"],
        "edits": str(data["edits"]),
        "split": data["split"],
        "template": data["template"],
        "seed": str(cell["seed"]),
        "cell_id": cell["cell_id"],
        **{key: str(value) for key, value in _flat(cell["schedule"], "schedule", ".").items()},
        **{key: str(value) for key, value in _flat(method["hparams"], "hparams", ".").items()},
    }


def metrics(folder: Folder) -> dict[str, float]:
    """All numbers of metrics.json and cost.json; what is missing or not a number has no metric."""
    flat = {**_flat(folder.read("metrics.json"), "", "/"), **_flat(folder.read("cost.json"), "cost", "/")}
    numbers = {key: float(value) for key, value in flat.items() if isinstance(value, int | float)}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def _flat(value: Any, prefix: str, separator: str) -> dict[str, Any]:
    """Leaves of nested mappings by joined keys; lists are leaves."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves.update(_flat(inner, f"{prefix}{separator}{key}" if prefix else str(key), separator))
    return leaves
