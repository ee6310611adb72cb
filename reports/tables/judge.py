"""A language model's verdicts on free-form answers, and their agreement with exact match: share and Cohen's kappa by method."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.registry import register_table
from harness.store.answers import KEY
from harness.store.store import Store
from harness.store.verdicts import read_verdicts
from reports.common import (
    AXES,
    absent_sections,
    commits_shown,
    empty_rows,
    first_template,
    gap_remarks,
    in_order,
    intervals_shown,
    protocol_title,
    samples_shown,
    seeds_shown,
    suite_shown,
    template_shown,
)
from reports.layout import Column, Section, Table, TableEntry, TableRow

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.stats import Estimate, Floats, Statistic

MEASURES = {"verdict": "Judge", "exact": "Exact match"}
"""Heading of the scores by column."""

SHOWN = {
    "rel": "Rel",
    "gen": "Gen",
    "loc": "Loc",
    "loc_unrelated": "Unrel",
    "port": "Port",
    "robust": "Robust",
    "hops": "Hops",
}

AGREEMENT = ("Share", "Kappa", "Answers")

NOTES = (
    "Judge: share of answers that it finds correct. Exact match: the same by normalised words. Both are means over records of the "
    "mean over the record's answers, on the answers that have a verdict.",
    "Share: share of answers on which both agree. Kappa (Cohen 1960): the same beyond what independent verdicts with these shares "
    "would agree on; 1 is full agreement, 0 none beyond chance, and a dash where both give all answers one verdict. For both, "
    "every answer counts once.",
    "Locality: the unedited model's answer is the reference. The judge does not know which method has answered.",
)

UNJUDGED = "None of these answers has been judged: name a judge in the suite (`judge: {url: …, model: …}`) and run `harness judge`."


@dataclass(frozen=True, slots=True)
class _Line:
    """A method on a model under a judge.

    Attributes:
        scores: by measure and axis.
        agreement, kappa: over all answers.
        answers: that have a verdict, of all seeds.
        without_verdict: the others.
    """

    title: str
    is_reference: bool
    cells: tuple[str, ...]
    scores: dict[tuple[str, str], "Estimate"]
    agreement: "Estimate"
    kappa: "Estimate"
    answers: int
    without_verdict: int


@register_table("judge")
def judge(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Free answers judged by a language model, and its agreement with exact match."""
    import pandas as pd

    verdicts = _verdicts(frame)
    if not len(verdicts):
        return [_unjudged(frame)], pd.DataFrame(columns=["judge", "protocol", "data", "model", "method"])
    tables, numbers = [], []
    for name, of_judge in verdicts.groupby("judge", sort=False):
        for protocol in in_order(of_judge["protocol"].unique()):
            of_protocol = of_judge[of_judge["protocol"] == protocol]
            cells = frame.cells[(frame.cells["protocol"] == protocol) & frame.cells["cell"].isin(of_protocol["cell"])]
            for _, of_section in cells.groupby("section", sort=False):
                data, titles = str(of_section["section_title"].iloc[0]), frame.models()
                by_model = {
                    model: list(_lines(of_section[of_section["model"] == model], of_protocol)) for model in titles
                }
                tables.append(_table(frame, str(name), protocol, of_section, by_model))
                numbers += [
                    {"judge": name, "protocol": protocol, "data": data, "model": titles[model], "method": line.title}
                    | {"quantity": quantity, "axis": axis, **asdict(found)}
                    | {"answers": line.answers, "without_verdict": line.without_verdict, "cells": " ".join(line.cells)}
                    for model, lines in by_model.items()
                    for line in lines
                    for (quantity, axis), found in {
                        **line.scores,
                        ("agreement", ""): line.agreement,
                        ("kappa", ""): line.kappa,
                    }.items()
                ]
    return tables, pd.DataFrame(numbers)


def _verdicts(frame: "SuiteFrame") -> "pd.DataFrame":
    """Verdicts under the first prompt template of the suite, with the answers' exact match and the clusters of their records.

    Axes are named as in a frame.
    """
    import pandas as pd

    parts = []
    for name in dict.fromkeys(frame.cells.loc[frame.cells["template"] == first_template(frame), "cell"]):
        folder = Store(frame.store).cell(name)
        verdicts = read_verdicts(folder)[[*KEY, "judge", "verdict"]]
        if len(verdicts):
            answers = pd.read_parquet(folder.path / "records.parquet", columns=[*KEY, "exact"])
            parts.append(verdicts.merge(answers, on=KEY, validate="many_to_one").assign(cell=name))
    if not parts:
        return pd.DataFrame()
    found = pd.concat(parts, ignore_index=True)
    found["axis"] = found["axis"].map(dict(AXES))
    clusters = frame.records.drop_duplicates(["cell", "record_id"])[["cell", "record_id", "cluster"]]
    return found.merge(clusters, on=["cell", "record_id"], validate="many_to_one")


def _lines(cells: "pd.DataFrame", verdicts: "pd.DataFrame") -> Iterator[_Line]:
    """One per method."""
    for _, of_row in cells.groupby("row", sort=False):
        names = tuple(of_row.sort_values("seed")["cell"])
        asked = verdicts[verdicts["cell"].isin(names)]
        said = asked[asked["verdict"].notna()]
        if not len(said):
            continue
        agreement, kappa = _agreement(said, names)
        yield _Line(
            str(of_row["title"].iloc[0]),
            bool(of_row["is_reference"].iloc[0]),
            names,
            _scores(said, names),
            agreement,
            kappa,
            len(said),
            len(asked) - len(said),
        )


def _scores(said: "pd.DataFrame", cells: Sequence[str]) -> dict[tuple[str, str], "Estimate"]:
    """Means of verdicts and exact match by axis."""
    import numpy as np
    import pandas as pd

    from reports.stats import resample_means

    axes = [axis for axis in SHOWN if axis in set(said["axis"])]
    columns = [(measure, axis) for measure in MEASURES for axis in axes]
    by_record = said.pivot_table(index=["cell", "record_id"], columns="axis", values=list(MEASURES))
    by_record = by_record.reindex(columns=pd.MultiIndex.from_tuples(columns))
    records = sorted(set(said["record_id"]))
    scores_SRC = np.stack(
        [by_record.xs(cell).reindex(index=records).to_numpy(np.float64) for cell in cells if cell in by_record.index]
    )
    cluster_of = said.drop_duplicates("record_id").set_index("record_id")["cluster"]
    resampled = resample_means(scores_SRC, pd.factorize(cluster_of.loc[records])[0].astype(np.intp))
    return {column: resampled.estimate(unit_C) for column, unit_C in zip(columns, np.eye(len(columns)), strict=True)}


def _agreement(said: "pd.DataFrame", cells: Sequence[str]) -> tuple["Estimate", "Estimate"]:
    """Share of answers on which judge and exact match agree, and Cohen's kappa."""
    import numpy as np

    from reports.stats import resample

    clusters = sorted(set(said["cluster"]))
    counted = said.assign(n=1.0, agree=(said["verdict"] == said["exact"]).astype(float))
    columns = ["n", "agree", "verdict", "exact"]
    sums = counted.groupby(["cell", "cluster"])[columns].sum()
    by_seed = [
        agreement_of(sums.loc[cell].reindex(clusters, fill_value=0.0).to_numpy(np.float64))
        for cell in cells
        if cell in sums.index
    ]
    resampled = resample(by_seed, [len(clusters)])
    share, kappa = (resampled.estimate(unit_C) for unit_C in np.eye(2))
    return share, kappa


def agreement_of(sums_KC: "Floats") -> "Statistic":
    """Share of agreement and kappa as functions of the weights of K clusters.

    Args:
        sums_KC: of each cluster the number of answers, of those on which both agree, of those that the judge finds correct, and
            of exact matches.
    """

    def statistic(weights_BK: "Floats") -> "Floats":
        import numpy as np

        from reports.stats import quotient

        n_B, agree_B, judge_B, exact_B = (weights_BK @ sums_KC).T
        share_B, judge_B, exact_B = (quotient(part_B, n_B) for part_B in (agree_B, judge_B, exact_B))
        chance_B = judge_B * exact_B + (1 - judge_B) * (1 - exact_B)
        return np.stack([share_B, quotient(share_B - chance_B, 1 - chance_B)], axis=1)

    return statistic


def _table(
    frame: "SuiteFrame", judge: str, protocol: str, cells: "pd.DataFrame", by_model: dict[str, list[_Line]]
) -> Table:
    section, data = (str(cells[column].iloc[0]) for column in ("section", "section_title"))
    there = {key for lines in by_model.values() for line in lines for key in line.scores}
    keys = [(measure, axis) for measure in MEASURES for axis in SHOWN if (measure, axis) in there]
    columns = [Column(SHOWN[axis], MEASURES[measure], is_ranked=False) for measure, axis in keys]
    columns += [Column(title, "Agreement", is_ranked=False) for title in AGREEMENT]
    is_here = (frame.cells["section"] == section) & (frame.cells["protocol"] == protocol)
    finished = frame.cells[is_here & (frame.cells["template"] == first_template(frame))]
    sections = []
    for model, lines in by_model.items():
        rows = [TableRow(line.title, tuple(_entries(line, keys)), line.is_reference) for line in lines]
        of_model = finished[finished["model"] == model]
        missing = empty_rows(frame, section, set(of_model["row"]), len(columns), model)
        judged = {cell for line in lines for cell in line.cells}
        others = of_model[~of_model["cell"].isin(judged)]
        unclear = [
            f"{line.title}: {line.without_verdict:,} answer{'s' * (line.without_verdict != 1)} without a verdict."
            for line in lines
            if line.without_verdict
        ]
        if len(others):
            unclear.append(f"Not judged: {', '.join(dict.fromkeys(others['title']))}.")
        gaps = gap_remarks(frame, section, data, model)
        sections.append(Section(frame.models()[model], (*rows, *missing), (*gaps, *unclear)))
    return Table(
        f"judge-{re.sub('[^A-Za-z0-9./_-]+', '-', judge)}-{protocol}-{data}",  # a LaTeX label
        f"Judged by {judge}: {data}, {protocol_title(protocol)}",
        f"{suite_shown(frame)}, {seeds_shown(frame)}. {template_shown(frame)}{intervals_shown(frame)} {commits_shown(frame)}",
        tuple(columns),
        tuple(sections),
        (*NOTES, *samples_shown(frame, cells), *absent_sections(frame, by_model=True)),
    )


def _unjudged(frame: "SuiteFrame") -> Table:
    """What a report shows of a suite that asks for this table before anything was judged."""
    columns = tuple(Column(title, "Agreement", is_ranked=False) for title in AGREEMENT)
    sections = []
    for model, shown in frame.models().items():
        rows = frame.cells[frame.cells["model"] == model].drop_duplicates("row")
        empty = (TableEntry(),) * len(columns)
        titles = zip(rows["title"], rows["is_reference"], strict=True)
        sections.append(Section(shown, tuple(TableRow(title, empty, is_reference) for title, is_reference in titles)))
    return Table("judge", "Judged answers", f"{suite_shown(frame)}.", columns, tuple(sections), (UNJUDGED,))


def _entries(line: _Line, keys: Sequence[tuple[str, str]]) -> Iterator[TableEntry]:
    for key in keys:
        found = line.scores.get(key)
        yield TableEntry(found.value, found.half_width) if found else TableEntry()
    yield TableEntry(line.agreement.value, line.agreement.half_width)
    yield TableEntry(line.kappa.value, line.kappa.half_width)
    yield TableEntry(line.answers, digits=0)
