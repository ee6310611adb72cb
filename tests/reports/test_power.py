"""How many edits a difference takes: against the normal distribution, slow deviations, and tables that are drawn."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from benchmarks.winners import simulate
from reports.frame import load_suite
from reports.power import POWER, Contestants, spread_of


def test_two_methods_on_one_model_need_what_the_textbook_says():
    alone = Contestants(methods=2, models=1, datasets=1)
    assert alone.comparisons == 5
    reach = scipy.stats.norm.ppf(1 - 0.05 / 5 / 2) + scipy.stats.norm.ppf(POWER)
    assert alone.edits_to_detect(0.05, 0.3) == math.ceil((reach * 0.3 / 0.05) ** 2)


def test_the_recommended_number_of_edits_shows_the_difference_and_one_less_does_not():
    main_table = Contestants(methods=8, models=3, datasets=2)
    edits = main_table.edits_to_detect(0.05, 0.3)
    assert main_table.detectable(edits, 0.3) <= 0.05 < main_table.detectable(edits - 1, 0.3)


def test_more_rivals_and_more_comparisons_take_more_edits():
    sizes = [Contestants(*given).edits_to_detect(0.05, 0.3) for given in ((2, 1, 1), (3, 1, 1), (3, 3, 1), (3, 3, 2))]
    assert sizes == sorted(set(sizes))


def test_the_spread_is_that_of_all_pairs_of_methods_that_edit(fake):
    for method in ("none", "ft-l", "onceedit"):
        fake.write_cell(method, "tiny/llama", "zsre", records=30)
    fake.write_cell("ft-l", "tiny/llama", "zsre", records=30, label="other")
    fake.write_manifest()
    frame = load_suite(fake.root, "main_table", "mini")
    variances = []
    for protocol in ("teacher_forced", "generation"):
        of_cells = []
        for cell in frame.cells[~frame.cells["is_reference"]]["cell"].unique():
            rows = frame.records[(frame.records["cell"] == cell) & (frame.records["protocol"] == protocol)]
            parts = [rows[rows["axis"] == axis].set_index("record_id")["score"] for axis in ("rel", "gen", "loc")]
            of_cells.append(sum(parts) / 3)
        variances += [np.var(left - right, ddof=1) for left, right in itertools.combinations(of_cells, 2)]
    assert len(variances) == 6
    assert spread_of(frame) == pytest.approx(np.sqrt(np.mean(variances)))


def test_a_planned_difference_is_found_as_often_as_planned_and_none_where_there_is_none():
    found = simulate(tables=8, edits=30, difference=0.2, powered=12)
    assert found.with_winner <= 1 / 8
    assert found.power >= POWER - 0.1
    assert found.power_of_score >= POWER
