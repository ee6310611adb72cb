"""Results as a data frame and as files."""

import io
import json

import numpy as np
import pandas as pd
import pytest

import harness
from harness.cli import main
from harness.errors import UserError
from reports.frame import load_suite
from reports.results import COLUMNS, FORMATS, as_bytes


@pytest.fixture
def store(fake):
    return fake.write_suite(data=("zsre",)).root


def test_every_cell_and_protocol_is_a_row_with_the_documented_columns(store):
    results = harness.load_results(store, "main_table", "mini")
    assert list(results.columns) == list(COLUMNS)
    assert len(results) == 9 * 2
    cells = load_suite(store, "main_table", "mini").cells
    assert np.array_equal(results["score"], cells["avg"])
    edited = results[results["method"] == "ft-l"]
    assert set(edited["edit_time_vs_onceedit"]) == {2.0}
    assert set(edited["flops_edit"]) == {10**12}
    assert set(edited["attach_per_edit_run_s"]) == {0.05}
    assert set(edited["peak_memory_with_artifacts_bytes"]) == {3 * 2**30}
    assert results.loc[results["method"] == "none", "edit_time_vs_onceedit"].isna().all()


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_holds_the_same_numbers(store, form):
    results = harness.load_results(str(store), "main_table", "mini")
    content = as_bytes(results, form)
    read = {
        "csv": lambda: pd.read_csv(io.BytesIO(content)),
        "json": lambda: pd.DataFrame(json.loads(content)),
        "parquet": lambda: pd.read_parquet(io.BytesIO(content)),
    }[form]()
    assert list(read.columns) == list(COLUMNS)
    assert np.allclose(read["score"], results["score"])
    assert read["edit_time_vs_onceedit"].isna().sum() == 6


def test_a_suite_that_was_not_run_is_refused(store):
    with pytest.raises(UserError, match="suite 'speed' has not been run"):
        harness.load_results(store, "speed", "mini")


def test_a_suite_of_suites_has_the_rows_of_those_that_were_run(store, tmp_path, capsys):
    file = tmp_path / "all.yaml"
    file.write_text("name: all\nsuites: [cost, main_table]\n")
    assert main(["results", str(file), "--scale", "mini", "--store", str(store)]) == 1
    written = capsys.readouterr()
    found = pd.read_csv(io.StringIO(written.out))
    assert list(found["suite"].unique()) == ["main_table"]
    assert len(found) == 9 * 2
    assert "suite 'cost' has not been run" in written.err


def test_the_ending_of_a_file_decides_its_format_and_an_unknown_one_is_refused(store, tmp_path, capsys):
    command = ["results", "main_table", "--scale", "mini", "--store", str(store), "--to"]
    assert main([*command, str(tmp_path / "all.json")]) == 0
    assert len(json.loads((tmp_path / "all.json").read_text())) == 9 * 2

    assert main([*command, str(tmp_path / "all.xlsx")]) == 2
    assert "unknown format 'xlsx'; known: csv, json, parquet" in capsys.readouterr().err
    assert not (tmp_path / "all.xlsx").exists()
    assert main([*command, str(tmp_path / "all.txt"), "--format", "csv"]) == 0
