"""Which entries are marked: against slow tests, and on tables without any difference."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from reports.layout import Column, Mark, Section, Table, TableEntry, TableRow
from reports.significance import OPEN_NOTE, Contest, holm, judged, permutation_p_values

COLUMNS = 3


def table_of(values_MCK):
    """A table with a row per method, and its contests, from what each cluster adds to each entry."""
    rows = tuple(
        TableRow(f"m{number}", tuple(TableEntry(float(of_column.sum())) for of_column in of_method))
        for number, of_method in enumerate(values_MCK)
    )
    columns = tuple(Column(f"c{number}") for number in range(values_MCK.shape[1]))
    contests = [
        Contest(0, column, {row: values_MCK[row, column] for row in range(len(rows))}) for column in range(len(columns))
    ]
    return Table("t", "T", "C", columns, (Section("S", rows),)), contests


def marks(table, column=0):
    return [row.entries[column].mark for row in table.sections[0].rows]


def scores(rng, chances, clusters):
    """Scores of several methods on records of different difficulty, as shares of the mean."""
    ease_K = rng.beta(2, 2, clusters)
    of_method = [rng.binomial(2, np.clip(ease_K + shift, 0, 1), (COLUMNS, clusters)) / 2 for shift in chances]
    return np.stack(of_method) / clusters


def test_p_values_of_few_clusters_are_those_of_all_signs():
    differences_KM = np.random.default_rng(0).normal(0.3, 1, (8, 3))
    signs = np.array(list(itertools.product((1, -1), repeat=8)))
    slow = (np.abs(signs @ differences_KM) >= np.abs(differences_KM.sum(axis=0)) - 1e-12).mean(axis=0)
    np.testing.assert_allclose(permutation_p_values(differences_KM), slow)


def test_p_values_of_many_clusters_are_near_those_of_scipy():
    difference_K = np.random.default_rng(1).normal(0.25, 1, 60)
    theirs = scipy.stats.permutation_test(
        (difference_K,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(2)
    )
    assert permutation_p_values(difference_K[:, None])[0] == pytest.approx(theirs.pvalue, abs=0.01)


def test_holm_multiplies_by_the_number_of_claims_that_are_left():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.9]) == [1.0, 1.0]


def test_a_clear_order_is_marked_and_a_doubtful_one_is_not():
    clear = judged(*table_of(scores(np.random.default_rng(0), (0.45, 0.1, -0.3), 100)))
    assert marks(clear) == [Mark.BEST, Mark.SECOND, Mark.NONE]
    assert "Holm over 6 comparisons" in clear.notes[0]
    doubtful = judged(*table_of(scores(np.random.default_rng(0), (0.02, 0.0, 0.0), 30)))
    assert Mark.BEST not in marks(doubtful)
    assert [row.entries[0].note for row in doubtful.sections[0].rows].count(OPEN_NOTE) == 1


def test_entries_that_print_alike_share_the_open_note():
    values_MCK = np.full((3, 1, 10), 0.1)
    values_MCK[2] = 0.0
    notes = [row.entries[0].note for row in judged(*table_of(values_MCK)).sections[0].rows]
    assert notes == [OPEN_NOTE, OPEN_NOTE, ""]


def test_the_best_of_two_must_also_be_better_where_seeds_and_templates_vary():
    table, contests = table_of(scores(np.random.default_rng(0), (0.4, -0.4), 100))
    strict = [Contest(each.section, each.column, each.values_K, lambda left, right: 0.2) for each in contests]
    assert Mark.BEST in marks(judged(table, contests))
    assert Mark.BEST not in marks(judged(table, strict))


@pytest.mark.slow
def test_of_tables_without_any_difference_at_most_one_in_twenty_has_a_winner():
    rng, tables = np.random.default_rng(0), 2000
    winners = sum(
        any(Mark.BEST in marks(found, column) for column in range(COLUMNS))
        for found in (judged(*table_of(scores(rng, (0.0, 0.0, 0.0), 40))) for _ in range(tables))
    )
    assert 0 < winners <= 0.05 * tables


def test_a_dash_neither_competes_nor_counts_as_a_comparison():
    """A dataset without rephrases has no generality: its column is all dashes."""
    table, contests = table_of(scores(np.random.default_rng(0), (0.45, 0.1, -0.3), 100))
    section = table.sections[0]
    rows = [replace(row, entries=(*row.entries[:-1], TableEntry())) for row in section.rows]
    rows[2] = replace(rows[2], entries=(TableEntry(), *rows[2].entries[1:]))
    found = judged(replace(table, sections=(replace(section, rows=tuple(rows)),)), contests)
    assert marks(found) == [Mark.BEST, Mark.NONE, Mark.NONE], "of two rows, the second has none below it"
    assert [row.entries[-1].note for row in found.sections[0].rows] == [""] * 3
    assert "Holm over 3 comparisons" in found.notes[0]
