"""Answers of a cell next to those of the unedited model to the same questions."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.files import understood
from harness.store.store import Folder, Store

if TYPE_CHECKING:
    import pandas as pd

KEY = ["protocol", "axis", "record_id", "probe"]
"""Columns that identify a question within a cell."""


def with_unedited(store: Store, folder: Folder) -> "pd.DataFrame":
    """Answers of a finished cell, next to those of the unedited model.

    Returns:
        The columns of `harness.records.Answer`, and `unedited`: the answer to the same question in a cell of this store with
        the unedited model; None if there is no such cell.

    Raises:
        UserError: if a file is damaged.
    """
    import pandas as pd

    with understood(folder.path):
        rows = pd.read_parquet(folder.path / "records.parquet")
    rows = rows.merge(_unedited(store, folder), on=KEY, how="left", sort=False)
    rows["unedited"] = rows["unedited"].astype(object).where(rows["unedited"].notna(), None)
    return rows


def _unedited(store: Store, folder: Folder) -> "pd.DataFrame":
    """Answers of the cell of the unedited model that asked the same questions of the same model; empty without one."""
    import pandas as pd

    with understood(folder.path):
        cell = folder.read("cell.json")
    same = f"-{cell['model']['name'].replace('/', '_')}-{cell['data']['name']}-"
    for name in sorted(name for name in store.cells() if same in name):
        other = store.cell(name)
        if other.is_done and (other.path / "cell.json").is_file():
            with understood(other.path):
                found = other.read("cell.json")
                is_same = all(found[part] == cell[part] for part in ("model", "data", "protocols", "schedule"))
                if is_same and not found["method"]["edits"]:
                    return _predicted(other.path)
    return pd.DataFrame(
        {**dict.fromkeys(KEY, pd.Series(dtype=object)), "probe": pd.Series(dtype="int64"), "unedited": []}
    )


@lru_cache(maxsize=8)
def _predicted(cell: Path) -> "pd.DataFrame":
    import pandas as pd

    rows = pd.read_parquet(cell / "records.parquet", columns=[*KEY, "predicted"])
    return rows.rename(columns={"predicted": "unedited"})
