"""The table `judge`: scores by verdict, agreement and Cohen's kappa against values computed by hand."""

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from harness import registry
from harness.store.store import Folder
from harness.store.verdicts import write_verdicts
from reports import write_report
from reports.frame import load_suite
from reports.tables.judge import agreement_of
from tests.helpers import fake_store


@pytest.fixture
def judged(fake, monkeypatch):
    """Two methods, of which a judge has seen one: it finds three of four exact answers correct, and one of ten others."""
    monkeypatch.setattr(fake_store, "PROTOCOLS", ("natural",))
    fake.write_suite(methods=("none", "ft-l"), models=("tiny/llama",), data=("zsre",), seeds=(0, 1))
    for folder in (fake.root / "cells").glob("ft-l-*"):
        rows = pd.read_parquet(folder / "records.parquet")
        number = np.arange(len(rows))
        rows["verdict"] = np.where(rows["exact"] == 1, number % 4 != 0, number % 10 == 0).astype(float)
        rows.loc[::50, "verdict"] = np.nan
        rows = rows.assign(judge="some/wise_judge", judge_prompt="?", judge_reply="!")
        write_verdicts(Folder(folder), rows, "some/wise_judge")
    return load_suite(fake.root, "main_table", "mini")


def test_scores_and_agreement_are_those_of_the_answers_with_a_verdict(judged):
    (table,), numbers = registry.tables.get("judge")(judged)
    rows = pd.concat(
        pd.read_parquet(path / "verdicts.parquet")
        .merge(pd.read_parquet(path / "records.parquet"), on=["protocol", "axis", "record_id", "probe"])
        .assign(cell=path.name)
        for path in (judged.store / "cells").glob("ft-l-*")
    )
    said = rows[rows["verdict"].notna()]
    found = numbers.set_index(["quantity", "axis"])
    for axis, name in (("reliability", "rel"), ("locality", "loc")):
        for measure in ("verdict", "exact"):
            of_axis = said[said["axis"] == axis].groupby(["cell", "record_id"])[measure].mean()
            assert found.loc[(measure, name), "value"] == pytest.approx(of_axis.groupby("cell").mean().mean())
    by_seed = []
    for _, of_seed in said.groupby("cell"):
        share = (of_seed["verdict"] == of_seed["exact"]).mean()
        judge, exact = of_seed["verdict"].mean(), of_seed["exact"].mean()
        chance = judge * exact + (1 - judge) * (1 - exact)
        by_seed.append((share, (share - chance) / (1 - chance)))
    shares, kappas = np.mean(by_seed, axis=0)
    assert found.loc[("agreement", ""), "value"] == pytest.approx(shares)
    assert found.loc[("kappa", ""), "value"] == pytest.approx(kappas)
    assert (numbers["low"] < numbers["value"]).all()
    assert (numbers["value"] < numbers["high"]).all()
    assert set(numbers["answers"]) == {len(said)}
    (section,) = table.sections
    assert section.remarks[-2:] == (
        f"FT-L: {len(rows) - len(said)} answers without a verdict.",
        "Not judged: Unedited.",
    )


def test_a_failed_cell_is_a_dash_below_its_own_model(judged, fake):
    fake.write_failure("ft-l", "tiny/gptj", "zsre", "out of memory")
    fake.write_manifest()
    (table,), _ = registry.tables.get("judge")(load_suite(fake.root, "main_table", "mini"))
    first, second = table.sections
    assert not any("failed" in remark for remark in first.remarks)
    assert [(row.title, row.entries[0].text) for row in second.rows] == [("FT-L", "–")]
    assert second.remarks == ("– ZsRE: FT-L on GPT-J-6B (mini), seed 0: failed: out of memory.",)


def test_of_several_templates_the_first_is_shown_and_named(fake, monkeypatch):
    monkeypatch.setattr(fake_store, "PROTOCOLS", ("natural",))
    fake.write_suite(methods=("ft-l",), models=("tiny/llama",), data=("zsre",), templates=("none", "paper"))
    for folder in (fake.root / "cells").iterdir():
        rows = pd.read_parquet(folder / "records.parquet")
        rows = rows.assign(verdict=rows["exact"], judge="wise (50% sparse)", judge_prompt="?", judge_reply="!")
        write_verdicts(Folder(folder), rows, "wise (50% sparse)")
    (table,), numbers = registry.tables.get("judge")(load_suite(fake.root, "main_table", "mini"))
    assert table.name == "judge-wise-50-sparse--natural-ZsRE", "no sign that LaTeX reads as more than text"
    assert "Prompt template: 'none'. ±: half" in table.caption
    assert "choice of the template" not in table.caption
    assert set(numbers["cells"]) == {fake.cells[0]}
    assert not any("Not judged" in remark for remark in table.sections[0].remarks)
    assert table.notes[-1] == "ZsRE: n = 50 edits of split test, seed 0."


def test_kappa_of_a_table_of_counts():
    """Cohen's example: 20 and 15 of 50 agree, 5 and 10 do not; kappa is 0.4. One verdict for all leaves it open."""
    both, judge_only, exact_only, none = 20, 5, 10, 15
    sums = np.array([[50.0, both + none, both + judge_only, both + exact_only], [0, 0, 0, 0]])
    share, kappa = agreement_of(sums)(np.ones((1, 2)))[0]
    assert (share, kappa) == (pytest.approx(0.7), pytest.approx(0.4))
    same = agreement_of(np.array([[8.0, 8.0, 8.0, 8.0]]))(np.ones((1, 1)))[0]
    assert same[0] == 1
    assert np.isnan(same[1])


def test_a_report_has_the_table_once_something_was_judged(judged, fake):
    quiet = Console(quiet=True)
    written = {file.name for file in write_report(fake.root, "main_table", "mini", quiet)}
    assert {"judge_table.md", "judge_table.tex", "judge_table.csv"} <= written
    for file in (fake.root / "cells").glob("*/verdicts.parquet"):
        file.unlink()
    written = {file.name for file in write_report(fake.root, "main_table", "mini", quiet)}
    assert "judge_table.md" not in written


def test_a_suite_that_asks_for_the_table_is_told_how_to_fill_it(fake, monkeypatch):
    monkeypatch.setattr(fake_store, "PROTOCOLS", ("natural",))
    fake.write_suite(methods=("none",), models=("tiny/llama",), data=("zsre",), tables=("judge",))
    write_report(fake.root, "main_table", "mini", Console(quiet=True))
    text = (fake.root / "reports" / "main_table.mini" / "judge_table.txt").read_text()
    assert "run `harness judge`" in text
