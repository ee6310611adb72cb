"""What a table leaves open: cells that failed or were not run, with the reason."""

from collections.abc import Iterator

import pandas as pd

from reports.frame import SuiteFrame
from reports.layout import DASH, Entry, Row


def empty_rows(frame: SuiteFrame, section: str, shown: set[str], width: int) -> Iterator[Row]:
    """A row of dashes for each method that has no finished cell in the section."""
    missing = _missing_in(frame, section)
    lines = missing[~missing["row"].isin({*shown, ""})].drop_duplicates("row")
    for title, is_reference in zip(lines["title"], lines["is_reference"], strict=True):
        yield Row(title, (Entry(),) * width, is_reference)


def gap_remarks(frame: SuiteFrame, section: str, section_title: str) -> Iterator[str]:
    """One sentence per method, template, seed and reason."""
    yield from _sentences(frame, _missing_in(frame, section), section_title)


def absent_sections(frame: SuiteFrame) -> Iterator[str]:
    """The same for data sets of which no cell is finished, and for cells whose folder does not say what they were."""
    missing = frame.missing
    is_placed = missing["section"].isin(frame.cells["section"]) | (
        (missing["section"] == "") & missing["data"].isin(frame.cells["data"])
    )
    absent: pd.DataFrame = missing[~is_placed]
    for title, same in absent.groupby("data_title", sort=False):
        yield from _sentences(frame, same, str(title))


def _missing_in(frame: SuiteFrame, section: str) -> pd.DataFrame:
    """Unfinished cells of a section; where only the data set is known, of all its sections."""
    data = frame.cells.loc[frame.cells["section"] == section, "data"].iloc[0]
    missing = frame.missing
    is_here = (missing["section"] == section) | ((missing["section"] == "") & (missing["data"] == data))
    here: pd.DataFrame = missing[is_here]
    return here


def _sentences(frame: SuiteFrame, missing: pd.DataFrame, where: str) -> Iterator[str]:
    has_templates, has_seeds = (frame.cells[axis].nunique() > 1 for axis in ("template", "seed"))
    for (title, template, seed, reason), same in missing.groupby(["title", "template", "seed", "reason"], sort=False):
        models = ", ".join(model for model in dict.fromkeys(same["model_title"]) if model)
        place = f"{where}: " if where else ""
        how = [f" on {models}"] * bool(models)
        how += [f", prompt '{template}'"] * bool(template and has_templates)
        how += [f", seed {seed}" if seed else ", some of the seeds"] * has_seeds
        yield f"{DASH} {place}{title}{''.join(how)}: {str(reason).rstrip('.')}."
