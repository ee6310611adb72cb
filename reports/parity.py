"""How near a native implementation is to EasyEdit's of the same method, on the same model, records and seed."""

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.store.store import Store
from reports.frame import SuiteFrame

REFERENCE = "easyedit"
"""The backend that all others are compared with."""

WEIGHTS = "edited.safetensors"
CHANGE_NORMS = "change_norms"
WEIGHTS_WITHIN = 1e-3
"""Largest difference of weights, relative to the norm of the change, that still counts as equivalent."""
PREDICTIONS_FROM = 0.95
"""Smallest share of equal predictions that still counts as equivalent, for methods that change no weights."""

_QUESTION = ["protocol", "axis", "record_id", "probe"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A native cell beside EasyEdit's.

    Attributes:
        native, reference: folders of the cells.
        variant: of the native cell; `is_faithful` where EasyEdit's cell has the same.
        weights: ‖W − W'‖ / ‖W' − W₀‖ over all changed weights (Frobenius; W' is EasyEdit's, W₀ unedited); NaN if either
            has none that were kept.
        same: share of probes with the same prediction, over all protocols; NaN without probes.
        probes: number of probes compared.
        edit_ratio: EasyEdit's seconds of editing, divided by ours; NaN across classes of device.
    """

    native: str
    reference: str
    method: str
    model: str
    section: str
    variant: str
    is_faithful: bool
    weights: float
    same: float
    probes: int
    edit_ratio: float

    @property
    def is_exact(self) -> bool:
        """Whether nothing differs at all: no bit of a weight, no prediction."""
        return self.same == 1.0 and (np.isnan(self.weights) or self.weights == 0.0)

    @property
    def is_equivalent(self) -> bool:
        """Whether all that differs is within rounding: the weights where they change, else the predictions."""
        return self.same >= PREDICTIONS_FROM if np.isnan(self.weights) else self.weights <= WEIGHTS_WITHIN


def comparisons(frame: SuiteFrame) -> Iterator[Comparison]:
    """Every finished native cell that has an EasyEdit cell of the same method, model, records, template and seed."""
    cells = frame.cells.drop_duplicates("cell")
    place = ["method", "model", "section", "template", "seed"]
    for _, same in cells.groupby(place, sort=False):
        references = same[same["backend"] == REFERENCE]
        if references.empty:
            continue
        for native in same[same["backend"] != REFERENCE].to_dict("records"):
            alike = references[references["variant"].map(_name) == _name(native["variant"])]
            reference = (alike if len(alike) else references).iloc[0]
            yield _compare(frame.store, native, reference, is_faithful=len(alike) > 0)


def badge(found: Sequence[Comparison], reasons: Sequence[str]) -> str:
    """How faithful a method is in one word: by its worst comparison on any model, data set and seed.

    Args:
        found: comparisons of its faithful variant.
        reasons: what the adapter says of known differences.
    """
    if any(np.isnan(one.weights) and np.isnan(one.same) for one in found):
        return "not compared: neither answers nor weights"
    if all(one.is_exact for one in found):
        return "exact"
    if all(one.is_equivalent for one in found):
        weights = [one.weights for one in found if not np.isnan(one.weights)]
        if weights:
            return f"equivalent within {max(weights):.0e} of the change of weights"
        return f"equivalent on {min(one.same for one in found):.1%} of predictions"
    return f"differs: {'; '.join(reasons) or 'for no known reason'}"


def differences(store: Path, cell: str) -> list[str]:
    """What the adapter of a cell says of its known differences from the native method, from cell.json."""
    said: list[str] = Store(store).cell(cell).read("cell.json")["method"].get("differences", [])
    return said


def _compare(store: Path, native: Mapping[Hashable, Any], reference: pd.Series, *, is_faithful: bool) -> Comparison:
    left, right = (_predictions(store, str(cell)) for cell in (native["cell"], reference["cell"]))
    both = left.index.intersection(right.index)
    is_one_device = native["device_class"] == reference["device_class"]
    return Comparison(
        native=str(native["cell"]),
        reference=str(reference["cell"]),
        method=str(native["method"]),
        model=str(native["model"]),
        section=str(native["section"]),
        variant=_name(native["variant"]),
        is_faithful=is_faithful,
        weights=_distance(Store(store).cell(native["cell"]).path, Store(store).cell(reference["cell"]).path),
        same=float((left.loc[both] == right.loc[both]).mean()) if len(both) else np.nan,
        probes=len(both),
        edit_ratio=float(reference["edit_s"] / native["edit_s"]) if is_one_device and native["edit_s"] else np.nan,
    )


def _predictions(store: Path, cell: str) -> "pd.Series[str]":
    rows = pd.read_parquet(Store(store).cell(cell).path / "records.parquet", columns=[*_QUESTION, "predicted"])
    predicted: pd.Series[str] = rows.set_index(_QUESTION)["predicted"]
    return predicted


def _distance(native: Path, reference: Path) -> float:
    """Relative Frobenius distance of the kept weights; of a weight that only one of them changed, the change counts."""
    if not ((native / WEIGHTS).is_file() and (reference / WEIGHTS).is_file()):
        return float("nan")
    from safetensors import safe_open  # with torch: numpy has no bfloat16

    with safe_open(native / WEIGHTS, "pt") as ours, safe_open(reference / WEIGHTS, "pt") as theirs:
        changes, wanted = _change_norms(ours), _change_norms(theirs)
        distances = [
            float((ours.get_tensor(name).double() - theirs.get_tensor(name).double()).norm())
            if name in changes and name in wanted
            else {**changes, **wanted}[name]
            for name in {*changes, *wanted}
        ]
    distance, change = np.linalg.norm(distances), np.linalg.norm(list(wanted.values()))
    return float(distance / change) if change else float("inf") if distance else 0.0


def _change_norms(weights: Any) -> dict[str, float]:
    """Frobenius norm of the change of each weight of a file."""
    norms: dict[str, float] = json.loads(weights.metadata()[CHANGE_NORMS])
    return norms


def _name(variant: object) -> str:
    return variant if isinstance(variant, str) else ""
