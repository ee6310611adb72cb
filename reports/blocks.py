"""Costs along a sequence of edits, block by block: time, memory, and growth of the changed matrices."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.store.store import Folder, Store
from reports.frame import SuiteFrame
from reports.scores import shown_cells

QUANTITIES = ("ms_per_edit", "memory_bytes", "peak_memory_bytes", "norm_drift")
"""Columns of `load_blocks` that are averaged over seeds."""

MIB = 2**20


@dataclass(frozen=True, slots=True)
class MethodBlocks:
    """The blocks of a method on a model in one section, under the prompt template shown in the main table.

    Attributes:
        section: as in `SuiteFrame.cells`.
        row: the same.
        model: the same.
        blocks: one row per block, `first_edit` to `edits`, with the means of `QUANTITIES` over seeds; empty if none were recorded.
        is_citable: whether no cell was interrupted.
        is_on_one_device: whether the times of all blocks were measured on the same class of device.
    """

    section: str
    row: str
    title: str
    is_reference: bool
    model: str
    blocks: pd.DataFrame
    is_citable: bool
    is_on_one_device: bool

    def ms_per_edit(self, blocks: slice) -> float:
        """Milliseconds per edit over some blocks; NaN if nothing was timed."""
        some = self.blocks.iloc[blocks]
        edits_B = some["edits"] - some["first_edit"] + 1
        return float(np.average(some["ms_per_edit"], weights=edits_B)) if len(some) else np.nan

    def peak_mib(self, blocks: slice) -> float:
        """Highest memory use in MiB over some blocks; NaN unless it was recorded for each."""
        return float(self.blocks["peak_memory_bytes"].iloc[blocks].max(skipna=False)) / MIB

    def held_mib(self, blocks: slice) -> float:
        """Most memory in use at the end of one of some blocks, in MiB."""
        return float(self.blocks["memory_bytes"].iloc[blocks].max(skipna=False)) / MIB

    def growth(self, edits: int) -> float:
        """Growth of the norm of the changed matrices after so many edits; NaN where it was not recorded."""
        return float(self.blocks.loc[self.blocks["edits"] == edits, "norm_drift"].mean())

    def fifths(self) -> dict[str, slice]:
        """The first, middle and last fifth of the blocks, of one block each if there are fewer than ten."""
        count = len(self.blocks)
        size = max(1, count // 5)
        middle = (count - size) // 2
        return {
            "first": slice(0, size),
            "middle": slice(middle, middle + size),
            "last": slice(max(0, count - size), count),
        }


def method_blocks(frame: SuiteFrame) -> Iterator[MethodBlocks]:
    """The blocks of all methods, in the order of the main table."""
    found = load_blocks(frame)
    for section, cells in frame.cells.groupby("section", sort=False):
        for (row, model), names in shown_cells(frame, str(section)).items():
            of_method, blocks = cells[cells["cell"].isin(names)], found[found["cell"].isin(names)]
            yield MethodBlocks(
                section=str(section),
                row=row,
                title=str(of_method["title"].iloc[0]),
                is_reference=bool(of_method["is_reference"].iloc[0]),
                model=model,
                blocks=blocks.groupby(["first_edit", "edits"], as_index=False)[list(QUANTITIES)].agg(_mean),
                is_citable=bool(of_method["citable"].all()),
                is_on_one_device=blocks["device_classes"].nunique() == 1,
            )


def load_blocks(frame: SuiteFrame) -> pd.DataFrame:
    """The blocks of all finished cells with a sequential schedule.

    Building the artifacts of a block (`Method.artifacts_in_sequence`) adds to its time, and its memory counts where it was more.

    Returns:
        One row per cell and block: `first_edit` and `edits`, the numbers of its first and its last edit; `ms_per_edit`, NaN for
        the unedited model; `memory_bytes` in use at its end and `peak_memory_bytes` while it was applied, NaN where that is not
        known; `norm_drift`, growth of the norm of the matrices changed so far; `citable`; `device_classes`, what the time was
        measured on.
    """
    store = Store(frame.store)
    rows = [row for name in frame.cells["cell"].unique() for row in _blocks(store, store.cell(str(name)))]
    columns = ["cell", "first_edit", "edits", *QUANTITIES, "citable", "device_classes"]
    return pd.DataFrame(rows, columns=columns)


def _blocks(store: Store, folder: Folder) -> Iterator[dict[str, Any]]:
    cost, artifacts, first = folder.read("cost.json"), folder.read("provenance.json")["artifacts"], 1
    for block in cost.get("blocks", ()):
        own = [key for role, key in artifacts.items() if role.endswith(f"/{block['edits']}")]
        costs = [{**block, "device_class": cost["device_class"]}, *(_artifact_cost(store, key) for key in own)]
        seconds = [second for one in costs for second in one["phases_s"].values()]
        yield {
            "cell": folder.path.name,
            "first_edit": first,
            "edits": block["edits"],
            "ms_per_edit": 1000 * sum(seconds) / (block["edits"] - first + 1) if seconds else np.nan,
            "memory_bytes": block["memory_bytes"],
            "peak_memory_bytes": np.max([one.get("peak_memory_bytes", np.nan) for one in costs]),
            "norm_drift": block["norm_drift"],
            "citable": block["citable"],
            "device_classes": "; ".join(dict.fromkeys(one["device_class"] for one in costs)),
        }
        first = block["edits"] + 1


def _artifact_cost(store: Store, key: str) -> Mapping[str, Any]:
    """The cost of an artifact; unknown if it has been removed since."""
    for path in (store.root / "artifacts").glob(f"*/{key}"):
        return {"device_class": "", **Folder(path).read("cost.json")}
    return {"phases_s": {"edit": np.nan}, "device_class": ""}


def _mean(values: pd.Series) -> float:
    return float(values.mean(skipna=False))
