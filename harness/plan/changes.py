"""Why cells are new although the store has results with the same settings: changed code or files."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from harness.identity import digest
from harness.plan.cell import Cell
from harness.store.store import Folder, Store

_CAUSES = {
    ("method", "code"): "the code of '{label}' has changed",
    ("method", "version"): "'{label}' has another version",
    ("method", "precision"): "'{label}' edits {model} in another precision",
    ("protocols",): "the code or version of a protocol has changed",
    ("model", "sha256"): "the files of {model} have changed",
    ("data", "sha256"): "the records of {data} have changed",
}
"""Parts of an identity that depend on code and files, not on the suite."""


def changes(cells: Sequence[Cell], store: Store) -> list[str]:
    """One sentence for each change that makes cells run again, with their number.

    Args:
        cells: those to do.
        store: where results of earlier runs are.
    """
    there, planned = defaultdict(list), {cell.folder for cell in cells}
    for folder in sorted(store.cells() - planned):
        there[folder.rpartition("-")[0]].append(folder)
    found: Counter[str] = Counter()
    for cell in cells:
        earlier = [store.cell(folder) for folder in there[cell.folder.rpartition("-")[0]]]
        if causes := next(filter(None, (_causes(cell, folder) for folder in earlier if folder.is_done)), None):
            found[" and ".join(causes)] += 1
    return [f"{count} {'cell is' if count == 1 else 'cells are'} new: {cause}" for cause, count in found.items()]


def _causes(cell: Cell, earlier: Folder) -> list[str]:
    """What has changed since an earlier result; nothing if the suite asks for something else now."""
    now = cell.identity()
    try:
        old = earlier.read("cell.json")
        if digest(_asked(now)) != digest(_asked(old)):
            return []
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # damaged, or of another version: not a result that is used again
        return []
    named = {"label": cell.label, "model": cell.model.name, "data": cell.data.name}
    return [text.format(**named) for part, text in _CAUSES.items() if _at(now, part) != _at(old, part)]


def _asked(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What of an identity, or of a description that contains it, a suite decides."""
    model, data = identity["model"], identity["data"]
    return {
        "method": [identity["method"][key] for key in ("name", "backend", "hparams")],
        "model": [model["name"], model["weights"], model["dtype"], model.get("hub")],
        "data": {key: value for key, value in data.items() if key not in ("sha256", "title")},
        "protocols": sorted(identity["protocols"]),
        **{
            key: identity.get(key)
            for key in ("schedule", "seed", "eval_batch", "keep_weights", "classic", "fluency", "capability")
        },
    }


def _at(identity: Mapping[str, Any], part: Sequence[str]) -> Any:
    value: Any = identity
    for key in part:
        value = value.get(key)
    return value
