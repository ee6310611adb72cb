"""Scored answers and items in Parquet files, which round-trip exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd

from harness.records import Answer, ItemScore

COLUMNS = [field.name for field in fields(Answer)]


def frame(rows: Sequence[Answer]) -> pd.DataFrame:
    """Convert answers to a data frame, one row per answer."""
    return pd.DataFrame([asdict(row) for row in rows], columns=COLUMNS)


def write_rows(rows: Sequence[Answer], file: Path) -> None:
    """Write answers to a Parquet file."""
    frame(rows).to_parquet(file, index=False)


def read_rows(file: Path) -> list[Answer]:
    """Read answers from a Parquet file."""
    return [
        Answer(**{str(name): value for name, value in row.items()}) for row in pd.read_parquet(file).to_dict("records")
    ]


def curve(points: Mapping[int, Sequence[Answer]], place: Mapping[str, int]) -> pd.DataFrame:
    """Combine the answers at all scoring points of a sequence.

    Args:
        points: answers by the number of edits so far.
        place: 1-based position of each record's edit in the sequence.

    Returns:
        As `frame`, with the columns `edits`, the number of edits so far, and `edit`, the position of the record's own
        edit; 0 for records that are not edited.
    """
    parts = [frame(rows) for rows in points.values()]
    for part, edits in zip(parts, points, strict=True):
        part.insert(0, "edits", edits)
        part.insert(1, "edit", [place.get(record, 0) for record in part["record_id"]])
    return pd.concat(parts, ignore_index=True)


def write_items(points: Mapping[int, Sequence[ItemScore]], file: Path) -> None:
    """Write the scores of benchmark items to a Parquet file.

    Args:
        points: scores by the number of edits so far; 0 for the unedited model.
        file: where to.
    """
    rows = [{"edits": edits, **asdict(one)} for edits, scores in points.items() for one in scores]
    pd.DataFrame(rows).to_parquet(file, index=False)


def read_items(file: Path) -> dict[int, list[ItemScore]]:
    """Read what `write_items` has written."""
    points: dict[int, list[ItemScore]] = {}
    for row in pd.read_parquet(file).to_dict("records"):
        points.setdefault(row.pop("edits"), []).append(ItemScore(**{str(name): value for name, value in row.items()}))
    return points
