"""Scores along a sequence of edits against loops over the answers, and the tables made of them."""

import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness import registry
from harness.errors import UserError
from reports import write_report
from reports.common import AXES
from reports.curves import CurvePoint, curve, load_curves
from reports.frame import load_suite
from reports.layout import DASH
from tests.helpers.fake_store import metrics_of

POINTS = (10, 20, 50)
SPANS = ((1, 10), (11, 20), (21, 50))


def in_sequence(folder, points=POINTS, seed=0):
    """Make a sequence of a finished batch cell: at earlier points its records were answered otherwise."""
    rng = np.random.default_rng(seed)
    rows = pd.read_parquet(folder / "records.parquet")
    edit = rows["record_id"].str.extract(r"^r(\d+)$")[0].astype(float).add(1).fillna(0).astype(int)
    parts = []
    for point in points:
        part = rows[edit <= point].copy()
        if point != points[-1]:
            part["score"] = rng.integers(0, 3, len(part)) / 2
        part.insert(0, "edits", point)
        part.insert(1, "edit", edit[edit <= point])
        parts.append(part)
    pd.concat(parts, ignore_index=True).to_parquet(folder / "curve.parquet")
    metrics = {str(point): metrics_of(part) | {"retained": {}} for point, part in zip(points, parts, strict=True)}
    for at_point in metrics.values():
        at_point.pop("diagnostics")
        at_point.pop("scope", None)
    _change(folder / "metrics.json", lambda content: content | {"curve": metrics})
    schedule = {"kind": "sequential", "block": 10, "score_at": list(points)}
    _change(folder / "cell.json", lambda content: content | {"schedule": schedule})


def _change(file, change):
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.fixture
def sequences(fake):
    """Two methods on two models."""
    fake.write_suite(
        methods=("none", "ft-l"), models=("tiny/llama", "tiny/gptj"), data=("zsre",), tables=("retention",)
    )
    for seed, name in enumerate(fake.cells):
        in_sequence(fake.root / "cells" / name, seed=seed)
    return fake


@pytest.fixture
def frame(sequences):
    return load_suite(sequences.root, "main_table", "mini")


def by_hand(rows, protocol, point, axis, first, last):
    """Mean over records of the mean over probes, as one writes it with loops."""
    name = next(name for name, column in AXES.items() if column == axis)
    scores = {}
    for row in rows.to_dict("records"):
        if (row["protocol"], row["edits"], row["axis"]) == (protocol, point, name) and first <= row["edit"] <= last:
            scores.setdefault(row["record_id"], []).append(row["score"])
    return np.mean([np.mean(probes) for probes in scores.values()])


def test_scores_are_means_over_the_edits_of_each_span(sequences, frame):
    name = sequences.cells[2]
    assert name.startswith("ft-l")
    rows = pd.read_parquet(sequences.root / "cells" / name / "curve.parquet")
    scores = load_curves(frame)
    found = curve(scores[(scores["cell"] == name) & (scores["protocol"] == "generation")], {name: 0})
    assert found.points == POINTS
    spans = {point: {(1, point), *(span for span in SPANS if span[1] <= point)} for point in POINTS}
    wanted = {(point, axis, *span) for point in POINTS for axis in ("rel", "gen", "loc") for span in spans[point]}
    wanted |= {(point, "loc_unrelated", 0, 0) for point in POINTS}
    assert set(found.estimates) == {CurvePoint(*one) for one in wanted}
    for point, estimate in found.estimates.items():
        assert estimate.value == pytest.approx(by_hand(rows, "generation", *point))
        assert estimate.low <= estimate.value <= estimate.high


def test_seeds_are_averaged(fake):
    for seed in (0, 1):
        in_sequence(fake.write_cell("ft-l", "tiny/llama", "zsre", seed=seed), seed=seed)
    fake.write_manifest(["retention"])
    frame = load_suite(fake.root, "main_table", "mini")
    scores = load_curves(frame)
    scores = scores[scores["protocol"] == "generation"]
    seed_of = dict(zip(fake.cells, (0, 1), strict=True))
    both = curve(scores, seed_of).estimates
    alone = [curve(scores[scores["cell"] == cell], {cell: seed}).estimates for cell, seed in seed_of.items()]
    for point, estimate in both.items():
        assert estimate.value == pytest.approx(np.mean([one[point].value for one in alone]))


def test_a_lead_that_depends_on_the_seed_is_not_bold(fake):
    for seed, of_first in enumerate((1.0, 1.0, 0.0)):
        for method, chance in (("ft-l", of_first), ("onceedit", 0.3)):
            chances = dict.fromkeys(("reliability", "generality", "locality"), chance)
            in_sequence(fake.write_cell(method, "tiny/llama", "zsre", seed=seed, chances=chances), seed=seed)
    fake.write_manifest(["retention"])
    (table, *_), _ = registry.tables.get("retention")(load_suite(fake.root, "main_table", "mini"))
    first, second = (row.entries[2] for row in table.sections[0].rows)
    assert (first.value, second.value) == (pytest.approx(2 / 3), pytest.approx(0.3, abs=0.1))
    assert {entry.mark.value for row in table.sections[0].rows for entry in row.entries} == {"none"}


def test_there_is_a_table_per_protocol_and_model_with_a_column_per_point(frame):
    tables, _ = registry.tables.get("retention")(frame)
    assert [table.name for table in tables] == [
        f"retention-{protocol}-{model}"
        for protocol in ("teacher_forced", "generation")
        for model in ("tiny/llama", "tiny/gptj")
    ]
    assert [(column.group, column.title) for column in tables[0].columns] == [
        *(("Rel", str(point)) for point in POINTS),
        *(("Rel of the first edits", str(point)) for point in POINTS[1:]),
        *((group, str(point)) for group in ("Gen", "Loc") for point in POINTS),
    ]


def test_a_row_shows_all_edits_so_far_and_what_is_left_of_the_first(sequences, frame):
    tables, _ = registry.tables.get("retention")(frame)
    table = next(table for table in tables if table.name == "retention-teacher_forced-tiny/gptj")
    name = next(name for name in sequences.cells if name.startswith("ft-l-tiny_gptj"))
    rows = pd.read_parquet(sequences.root / "cells" / name / "curve.parquet")
    wanted = [by_hand(rows, "teacher_forced", point, "rel", 1, point) for point in POINTS]
    wanted += [by_hand(rows, "teacher_forced", point, "rel", 1, 10) for point in POINTS[1:]]
    wanted += [by_hand(rows, "teacher_forced", point, axis, 1, point) for axis in ("gen", "loc") for point in POINTS]
    unedited, edited = table.sections[0].rows
    assert [entry.value for entry in edited.entries] == pytest.approx(wanted)
    assert (unedited.title, unedited.is_reference, edited.is_reference) == ("Unedited", True, False)


def test_the_last_point_equals_the_main_table(frame):
    numbers = registry.tables.get("retention")(frame)[1]
    main = registry.tables.get("main")(frame)[1]
    place = ["protocol", "method", "model", "quantity"]
    last = numbers[(numbers["edits"] == 50) & (numbers["first_edit"] <= 1) & (numbers["last_edit"].isin([0, 50]))]
    both = last.merge(main, on=place, suffixes=("", "_main"))
    assert len(both) == 2 * 2 * 2 * 4
    np.testing.assert_allclose(both["value"], both["value_main"])


def test_a_missing_cell_is_a_dash_with_its_reason(sequences):
    sequences.write_failure("onceedit", "tiny/llama", "zsre", "it rained")
    (name,) = (name for name in sequences.cells if name.startswith("onceedit"))
    failed = sequences.root / "cells" / name / "cell.json"
    _change(failed, lambda cell: cell | {"schedule": {"kind": "sequential", "block": 10, "score_at": list(POINTS)}})
    sequences.write_manifest(["retention"])
    tables, _ = registry.tables.get("retention")(load_suite(sequences.root, "main_table", "mini"))
    section = tables[0].sections[0]
    assert {entry.text for entry in section.rows[-1].entries} == {DASH}
    assert any("it rained" in remark for remark in section.remarks)


def test_a_method_without_a_cell_on_one_model_has_dashes_there(fake):
    for method, model in (("ft-l", "tiny/llama"), ("ft-l", "tiny/gptj"), ("none", "tiny/llama")):
        in_sequence(fake.write_cell(method, model, "zsre"))
    fake.write_manifest(["retention"])
    tables, _ = registry.tables.get("retention")(load_suite(fake.root, "main_table", "mini"))
    rows = {row.title: row for row in tables[1].sections[0].rows}
    assert {entry.text for entry in rows["Unedited"].entries} == {DASH}
    assert DASH not in {entry.text for entry in rows["FT-L"].entries}


@pytest.mark.parametrize("what", ["a score", "a point"])
def test_answers_that_contradict_the_metrics_are_refused(what, sequences, frame):
    folder = sequences.root / "cells" / sequences.cells[0]
    if what == "a score":
        rows = pd.read_parquet(folder / "curve.parquet")
        rows.loc[0, "score"] += 0.5
        rows.to_parquet(folder / "curve.parquet")
    else:
        _change(folder / "metrics.json", lambda m: m | {"curve": {k: v for k, v in m["curve"].items() if k != "20"}})
    with pytest.raises(UserError, match=f"{folder.name}: metrics.json and curve.parquet disagree"):
        load_curves(frame)


def test_the_report_writes_tables_and_numbers(sequences):
    console = Console(quiet=True)
    written = {path.name for path in write_report(sequences.root, "main_table", "mini", console)}
    assert {"retention_table.tex", "retention_table.csv"} <= written
    numbers = pd.read_csv(sequences.root / "reports" / "main_table.mini" / "retention_table.csv")
    assert set(numbers["cells"]) == set(sequences.cells)
    assert numbers[["value", "low", "high"]].notna().all().all()
    text = (sequences.root / "reports" / "main_table.mini" / "retention_table.tex").read_text()
    assert text.count(r"\begin{table*}") == 4
