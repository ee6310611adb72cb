"""Shared by all tables: axes, protocols, sentences of captions, and remarks on missing cells. Does not import pandas."""

import inspect
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from harness import registry
from harness.api import Phase
from reports.layout import DASH, Column, Section, TableEntry, TableRow

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.scores import Board

AXES: Mapping[str, str] = {
    "reliability": "rel",
    "generality": "gen",
    "locality": "loc",
    "locality_unrelated": "loc_unrelated",
    "portability": "port",
    "robustness": "robust",
    "single_hop": "hops",
}
"""Axis in the store → column of a frame."""

AVERAGED = ("rel", "gen", "loc")
"""The axes whose mean is Avg."""

PHASES: tuple[Phase, ...] = get_args(Phase)

UNCITABLE_NOTE = "*"
"""Mark of a time that was measured with an interruption."""

FEW_NAMES = 4
"""Rows, or models and datasets, that a remark names; more are counted."""

_PERCENTAGE = re.compile(r"\b(\d+)%")


def in_order(protocols: Iterable[str]) -> list[str]:
    """Sort protocols as their tables are sorted: in order of registration, those of plug-ins that are not loaded last."""
    known = list(registry.protocols)
    return sorted(protocols, key=lambda name: known.index(name) if name in known else len(known))


def protocol_title(name: str) -> str:
    """The title of a protocol as printed; the name itself if the plug-in that defines the protocol is not loaded."""
    return registry.protocols.get(name).title if name in registry.protocols else name


def samples_shown(frame: "SuiteFrame", cells: "pd.DataFrame") -> Iterator[str]:
    """Sentences on the sample behind the numbers of each section, and that every score can reach 1 where that is known.

    Args:
        frame: the suite.
        cells: rows of `SuiteFrame.cells` that a table shows.
    """
    for section, same in cells.groupby("section", sort=False):
        first = same.iloc[0]
        asked = frame.records[frame.records["cell"].isin(same["cell"]) & (frame.records["axis"] == "rel")]
        subjects = asked["cluster"].nunique()
        about = f" about {subjects} subjects" if subjects not in (0, first["edits"]) else ""
        seeds = ", ".join(str(seed) for seed in sorted(set(same["seed"])))
        maxima = same.loc[~same["is_reference"], [f"{column}_max" for column in AXES.values()]]
        is_unlimited = len(maxima) and (maxima == 1).all(axis=None)
        limit = "; every score can reach 1" if is_unlimited else ""
        yield (
            f"{first['section_title']}: n = {first['edits']} edits{about} of split {json.loads(str(section))['split']}, "
            f"seed{'s' * (',' in seeds)} {seeds}{limit}."
        )


def described(item: object) -> str:
    """The first line of the docstring of a table or a figure."""
    return (inspect.getdoc(item) or "").partition("\n")[0]


def suite_shown(frame: "SuiteFrame") -> str:
    """`Suite main_table at mini scale`."""
    return f"Suite {frame.manifest.suite} at {frame.manifest.scale} scale"


def seeds_shown(frame: "SuiteFrame") -> str:
    """`seed 0`, or `averaged over seeds 0, 1`."""
    seeds = sorted(set(frame.cells["seed"]))
    return ("averaged over seeds " if len(seeds) > 1 else "seed ") + ", ".join(map(str, seeds))


def schedules_shown(frame: "SuiteFrame") -> str:
    """`batch editing`."""
    return f"{' and '.join(dict.fromkeys(frame.cells['schedule']))} editing"


def score_points(section: str) -> list[int]:
    """Numbers of edits after which the sequence of a section is scored, whether or not that has happened."""
    points: list[int] = json.loads(section)["score_at"]
    return points


def sequences_shown(frame: "SuiteFrame") -> str:
    """`ZsRE: 100 edits in blocks of 20` for each section."""
    cells = frame.cells.drop_duplicates("section")
    return "; ".join(
        f"{title}: {edits} edits in blocks of {json.loads(section)['block']}"
        for title, edits, section in zip(cells["section_title"], cells["edits"], cells["section"], strict=True)
    )


def first_template(frame: "SuiteFrame") -> str:
    """The prompt template of tables that show only one: the first of the suite with a finished cell."""
    finished = set(frame.cells["template"])
    return next(template for template in frame.templates() if template in finished)


def template_shown(frame: "SuiteFrame") -> str:
    """`first_template` as a sentence with a space after it; empty if the suite has no other."""
    return f"Prompt template: '{first_template(frame)}'. " if len(frame.templates()) > 1 else ""


def intervals_shown(frame: "SuiteFrame", *, has_choice: bool = False) -> str:
    """What `±` means, as a sentence.

    Args:
        frame: the suite.
        has_choice: whether the better prompt template is chosen again in each resample.
    """
    from reports.stats import RESAMPLES

    is_clustered = not (frame.records["cluster"] == frame.records["record_id"]).all()
    resampled = "subjects with all their records" if is_clustered else "records"
    over = f"seeds and {resampled}" if frame.cells["seed"].nunique() > 1 else resampled
    choice = ", including the choice of the template" if has_choice and frame.cells["template"].nunique() > 1 else ""
    return f"±: half the width of the 95% bootstrap confidence interval over {over}{choice} (BCa, {RESAMPLES:,} resamples)."


def marks_of(sections: Iterable[Section]) -> set[str]:
    """The symbols at entries of a table."""
    return {entry.note for section in sections for row in section.rows for entry in row.entries}


def doubts_shown(cells: "pd.DataFrame", sections: Iterable[Section]) -> Iterator[str]:
    """Sentences on why some times of a table are not to be quoted; none if all may be.

    Args:
        cells: rows of `SuiteFrame.cells` that the table shows.
        sections: of the table.
    """
    if UNCITABLE_NOTE in marks_of(sections):
        yield f"{UNCITABLE_NOTE} not citable: the measurement was interrupted"
    if (processes := cells["shared_by"].max()) > 1:
        yield f"Measured with {processes} processes on one device: not to be quoted."


def commits_shown(frame: "SuiteFrame") -> str:
    """The commits that computed the cells, as a sentence."""
    return f"Code: {', '.join(frame.commits())}."


def complete_section(
    frame: "SuiteFrame",
    board: "Board",
    rows: Iterable[TableRow],
    columns: Sequence[Column],
    *remarks: str,
    model: str | None = None,
) -> Section:
    """A section with a row of dashes for each method without a finished cell, and a remark on each missing cell.

    Args:
        frame: the suite.
        board: the section and its lines.
        rows: one per line of the board.
        columns: of the table.
        remarks: further remarks, printed last.
        model: that the table is about; None for all.
    """
    missing = empty_rows(frame, board.section, {line.row for line in board.lines}, len(columns), model)
    gaps = gap_remarks(frame, board.section, board.title, model)
    limits = limit_remarks(frame, board.section, board.title, board.protocol)
    return Section(board.title, (*rows, *missing), (*gaps, *limits, *remarks))


def empty_rows(
    frame: "SuiteFrame", section: str, shown: set[str], width: int, model: str | None = None
) -> Iterator[TableRow]:
    """A row of dashes for each method that was to be run in the section, on a model if one is given, and is not shown."""
    missing = _missing_in(frame, section, model)
    lines = missing[missing["was_asked"] & ~missing["row"].isin({*shown, ""})].drop_duplicates("row")
    for title, is_reference in zip(lines["title"], lines["is_reference"], strict=True):
        yield TableRow(title, (TableEntry(),) * width, is_reference)


def gap_remarks(frame: "SuiteFrame", section: str, section_title: str, model: str | None = None) -> Iterator[str]:
    """One sentence on the missing cells of a section, or of one model in it, per reason, template, seed and group of models."""
    yield from _sentences(frame, _missing_in(frame, section, model), section_title)


def limit_remarks(frame: "SuiteFrame", section: str, section_title: str, *protocols: str) -> Iterator[str]:
    """One sentence on scores that no method can exceed, with a range where they differ between models or templates."""
    cells = frame.cells[(frame.cells["section"] == section) & ~frame.cells["is_reference"]]
    for protocol in protocols:
        limits = [
            f"{column.title()} {_range(values)}"
            for column in AVERAGED
            if (known := cells.loc[cells["protocol"] == protocol, f"{column}_max"].dropna()).size
            and min(values := [_four_digits(value) for value in known]) < 1
        ]
        if limits:
            under = f", {protocol_title(protocol)}" if len(protocols) > 1 else ""
            yield (
                f"{section_title}{under}: a model with all edits can reach at most {', '.join(limits)}, "
                "because some records contradict each other."
            )


def _range(values: Sequence[float]) -> str:
    return "–".join(f"{value:g}" for value in sorted({min(values), max(values)}))


def _four_digits(value: float) -> float:
    """Rounded up, so that no score exceeds it."""
    return math.ceil(value * 10_000 - 1e-6) / 10_000


def remarks_shown(frame: "SuiteFrame") -> tuple[str, ...]:
    """Remarks of edited models: each once, with the methods, models and datasets that it applies to.

    Remarks that differ in a percentage only are one, with the range of it.
    """
    has_sections = frame.cells["section"].nunique() > 1
    said: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for cell in frame.cells.to_dict("records"):
        place = f"{cell['model_title']}, {cell['section_title']}" if has_sections else cell["model_title"]
        for remark in cell["remarks"]:
            key = _PERCENTAGE.sub("%", remark) if len(_PERCENTAGE.findall(remark)) == 1 else remark
            said.setdefault((cell["title"], key), []).append((place, remark))
    methods: dict[tuple[str, str], list[str]] = {}
    for (method, _), found in said.items():
        where, remarks = (list(dict.fromkeys(column)) for column in zip(*found, strict=True))
        methods.setdefault((few(where, "models and datasets"), _together(remarks)), []).append(method)
    return tuple(f"{few(by, 'rows')} on {where}: {remark}." for (where, remark), by in methods.items())


def few(names: Sequence[str], of: str) -> str:
    """The names, or how many there are."""
    return "; ".join(names) if len(names) <= FEW_NAMES else f"{len(names)} {of}"


def _together(remarks: Sequence[str]) -> str:
    """One remark for several that differ in one percentage at most."""
    if len(remarks) == 1:
        return remarks[0]
    found = [int(_PERCENTAGE.findall(remark)[0]) for remark in remarks]
    return _PERCENTAGE.sub(f"{min(found)} to {max(found)}%", remarks[0])


def absent_sections(frame: "SuiteFrame", *, by_model: bool = False) -> Iterator[str]:
    """The same for datasets and settings without any finished cell, and for cells that cannot be assigned to a section.

    Args:
        frame: the suite.
        by_model: whether the parts of a table are about one model each, so that no part is about a model that was never run.
    """
    missing = frame.missing
    placed = [number for section in frame.cells["section"].unique() for number in _missing_in(frame, section).index]
    is_placed = missing.index.isin(placed)
    is_elsewhere = missing["data"].isin(frame.cells["data"]) & ~is_placed
    missing = missing.assign(where=missing["data_title"] + is_elsewhere.map({True: " with other settings", False: ""}))
    absent: pd.DataFrame = missing[~is_placed | (by_model & ~missing["model"].isin(frame.models()))]
    for where, same in absent.groupby("where", sort=False):
        yield from _sentences(frame, same, str(where))


def _missing_in(frame: "SuiteFrame", section: str, model: str | None = None) -> "pd.DataFrame":
    """Unfinished cells of a section, or of one model in it.

    A cell of which only the dataset is known counts in all sections of that dataset, unless the only cell that it could be there
    is finished.
    """
    cells, missing = frame.cells[frame.cells["section"] == section], frame.missing
    is_open = (missing["section"] == "") & (missing["data"] == cells["data"].iloc[0])
    if len(frame.cells[["template", "seed"]].drop_duplicates()) == 1:
        finished, wanted = (each.set_index(["row", "model"]).index for each in (cells, missing))
        is_open &= ~wanted.isin(finished)
    is_here = (missing["section"] == section) | is_open
    here: pd.DataFrame = missing[is_here if model is None else is_here & (missing["model"] == model)]
    return here


def _sentences(frame: "SuiteFrame", missing: "pd.DataFrame", where: str) -> Iterator[str]:
    has_templates, has_seeds = (frame.cells[axis].nunique() > 1 for axis in ("template", "seed"))
    for (template, seed, reason), alike in missing.groupby(["template", "seed", "reason"], sort=False):
        titles: dict[str, list[str]] = {}
        for title, same in alike.groupby("title", sort=False):
            models = ", ".join(model for model in dict.fromkeys(same["model_title"]) if model)
            titles.setdefault(models, []).append(str(title))
        for models, methods in titles.items():
            place = f"{where}: " if where else ""
            how = [f" on {models}"] * bool(models)
            how += [f", prompt template '{template}'"] * bool(template and has_templates)
            how += [f", seed {seed}" if seed else ", some seeds"] * has_seeds
            yield f"{DASH} {place}{', '.join(methods)}{''.join(how)}: {str(reason).rstrip('.')}."
