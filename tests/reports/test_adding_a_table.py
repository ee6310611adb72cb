"""A table and a figure in one file outside the tree, named by --plugin."""

import csv
import re
import subprocess
import sys

import pytest

from harness import registry
from tests.helpers.commands import ROOT, environment, harness_here

PLUGIN = '''"""Reliability alone, as a table and as a figure."""

import pandas as pd
from matplotlib.figure import Figure

from harness.registry import register_figure, register_table
from reports.frame import SuiteFrame
from reports.layout import Column, Section, Table, TableEntry, TableRow


@register_table("reliability")
def reliability(frame: SuiteFrame) -> tuple[list[Table], pd.DataFrame]:
    """Mean reliability per method."""
    means = frame.cells.groupby("title", sort=False)["rel"].mean()
    rows = tuple(TableRow(str(title), (TableEntry(mean),)) for title, mean in means.items())
    table = Table("reliability", "Reliability", "Mean over cells.", (Column("Rel"),), (Section("All data", rows),))
    return [table], means.reset_index()


@register_figure("bars")
def bars(frame: SuiteFrame) -> Figure:
    """The same as bars."""
    figure = Figure()
    means = frame.cells.groupby("title", sort=False)["rel"].mean()
    figure.subplots().bar(means.index, means.to_numpy())
    return figure
'''


@pytest.fixture
def plugin(tmp_path):
    file = tmp_path / "reliability.py"
    file.write_text(PLUGIN)
    yield file
    registry.tables.discard("reliability")
    registry.figures.discard("bars")
    registry._import_plugin.cache_clear()
    del sys.modules["reliability"]


def test_a_table_and_a_figure_in_a_plug_in_file_are_listed_and_written(fake, plugin):
    fake.write_suite(models=("tiny/llama",), data=("zsre",), tables=("reliability",), figures=("bars",))
    folder = fake.root / "reports" / "main_table.mini"

    listed = harness_here("list", "tables", "--plugin", plugin)
    assert "Mean reliability per method." in listed.stdout, listed.stderr
    done = harness_here("report", "main_table", "--scale", "mini", "--store", fake.root, "--plugin", plugin)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"bars_figure +\.pdf", done.stdout)
    assert "Reliability: All data" in done.stdout

    with (folder / "reliability_table.csv").open() as file:
        numbers = {row["title"]: float(row["rel"]) for row in csv.DictReader(file)}
    assert list(numbers) == ["Unedited", "FT-L", "OnceEdit"]
    tex = (folder / "reliability_table.tex").read_text()
    assert rf"OnceEdit & {numbers['OnceEdit']:.2f} \\" in tex
    drawn = (folder / "bars_figure.pdf").read_bytes()
    assert drawn.startswith(b"%PDF")
    assert (folder / "bars_figure.png").read_bytes().startswith(b"\x89PNG")

    harness_here("report", "main_table", "--scale", "mini", "--store", fake.root, "--plugin", plugin)
    assert (folder / "bars_figure.pdf").read_bytes() == drawn


def test_without_the_plug_in_the_table_is_unknown(fake):
    fake.write_suite(models=("tiny/llama",), data=("zsre",), tables=("reliability",))
    done = harness_here("report", "main_table", "--scale", "mini", "--store", fake.root)
    assert done.returncode == 2
    assert "unknown table 'reliability'" in done.stderr
    assert not (fake.root / "reports").exists()


def test_names_of_tables_and_figures_are_known_without_pandas():
    code = """
import sys
from harness import registry
print(registry.tables.names(), registry.figures.names())
print({"pandas", "numpy", "scipy", "torch", "jinja2"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    names, imported = done.stdout.splitlines()
    tables, figures = names.split("] [")
    assert (
        tables
        == "['ablation', 'calibration', 'capability', 'components', 'flops', 'judge', 'main', 'mirage', 'multihop', 'parity', "
        "'retention', 'ripple', 'robustness', 'sequence_cost', 'time'"
    )
    assert figures == (
        "'alpha', 'break_even', 'calibration', 'causal_trace', 'components', 'mirage', 'pareto', 'quality_bars', 'retention', "
        "'sequence_cost', 'sweep']"
    )
    assert imported == "set()"
