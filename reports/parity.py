"""How closely a native implementation agrees with another backend's, on the same model, records and seed."""

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.registry import NATIVE
from harness.store.store import Store
from reports.frame import SuiteFrame

WEIGHTS = "edited.safetensors"
CHANGE_NORMS = "change_norms"
WEIGHTS_WITHIN = 1e-3
"""Largest difference in weights, relative to the norm of the change, that still counts as equivalent."""
PREDICTIONS_FROM = 0.95
"""Smallest share of identical predictions that still counts as equivalent, for methods that change no weights."""

_QUESTION = ["protocol", "axis", "record_id", "probe"]


@dataclass(frozen=True, slots=True)
class BackendComparison:
    """A native cell and the corresponding cell of another backend, the reference.

    Attributes:
        backend: backend of the reference.
        native, reference: folders of the cells.
        variant: of the native cell; `is_faithful` if it is also the variant of the reference.
        weights: ‖W − W'‖ / ‖W' − W₀‖ (Frobenius) over all changed weights, where W' is the reference's and W₀ unedited;
            NaN if the edited weights of either cell were not kept.
        same: share of probes with identical predictions over all protocols; NaN without probes.
        probes: number of probes compared.
        edit_ratio: edit time of the reference divided by that of the native cell; NaN if the device classes differ.
    """

    backend: str
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
        """Whether all compared weights and predictions are identical."""
        return self.same == 1.0 and (np.isnan(self.weights) or self.weights == 0.0)

    @property
    def is_equivalent(self) -> bool:
        """Whether the differences are within rounding: those of the weights if they were compared, else of predictions."""
        return self.same >= PREDICTIONS_FROM if np.isnan(self.weights) else self.weights <= WEIGHTS_WITHIN


def comparisons(frame: SuiteFrame) -> Iterator[BackendComparison]:
    """Pair each finished native cell with another backend's cell of the same method, model, records, template and seed.

    There is one comparison per backend, with a cell of the same variant if there is one.
    """
    cells = frame.cells.drop_duplicates("cell")
    place = ["method", "model", "section", "template", "seed"]
    for _, same in cells.groupby(place, sort=False):
        natives = same[same["backend"] == NATIVE].to_dict("records")
        for _, references in same[same["backend"] != NATIVE].groupby("backend", sort=False):
            for native in natives:
                alike = references[references["variant"].map(_name) == _name(native["variant"])]
                reference = (alike if len(alike) else references).iloc[0]
                yield _compare(frame.store, native, reference, is_faithful=len(alike) > 0)


def badge(found: Sequence[BackendComparison], reasons: Sequence[str]) -> str:
    """Summarise fidelity by the worst comparison over all models, datasets and seeds.

    Args:
        found: comparisons of a method's faithful variant.
        reasons: the differences that the backend's adapter declares.
    """
    if any(np.isnan(one.weights) and np.isnan(one.same) for one in found):
        return "not compared: neither answers nor weights"
    if all(one.is_exact for one in found):
        return "exact"
    if all(one.is_equivalent for one in found):
        weights = [one.weights for one in found if not np.isnan(one.weights)]
        if weights:
            return f"equivalent within {max(weights):.0e} of the weight change"
        return f"equivalent on {min(one.same for one in found):.1%} of predictions"
    return f"differs: {'; '.join(reasons)}" if reasons else "differs, cause unknown"


def differences(store: Path, cell: str) -> list[str]:
    """Known differences from the native method that the adapter of a cell declares, from cell.json."""
    declared: list[str] = Store(store).cell(cell).read("cell.json")["method"].get("differences", [])
    return declared


def _compare(
    store: Path, native: Mapping[Hashable, Any], reference: pd.Series, *, is_faithful: bool
) -> BackendComparison:
    left, right = (_predictions(store, str(cell)) for cell in (native["cell"], reference["cell"]))
    both = left.index.intersection(right.index)
    is_one_device = len(native["edit_classes"] | reference["edit_classes"]) == 1
    return BackendComparison(
        backend=str(reference["backend"]),
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
    """Relative Frobenius distance of the kept weights; a weight changed by only one side counts with its whole change."""
    if not ((native / WEIGHTS).is_file() and (reference / WEIGHTS).is_file()):
        return float("nan")
    from safetensors import safe_open  # read with torch: numpy has no bfloat16

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
    """Frobenius norm of the change of each weight in a file."""
    norms: dict[str, float] = json.loads(weights.metadata()[CHANGE_NORMS])
    return norms


def _name(variant: object) -> str:
    return variant if isinstance(variant, str) else ""
