"""Times of several cells, against numbers that follow from those of the fake store by hand."""

import math

import pytest

from harness import registry
from reports.costs import (
    EDITS,
    FROM_SCRATCH,
    NOTHING,
    Cost,
    break_even_edits,
    break_even_models,
    cost_of,
    multiple,
    normalised,
    on_one_device,
    reference_row,
    shown_multiple,
    total_curve,
)
from reports.frame import load_suite
from reports.summary import summarise
from tests.helpers.fake_store import MODELS


def cost(setup=0.0, edit=1.0, attach=0.0, *, edits=10, models=1, is_shared=False, device="cpu", setup_device=None):
    seconds = {"setup": setup, "edit": edit, "attach": attach, "evaluate": 9.0}
    devices = {phase: frozenset({device} if seconds[phase] else ()) for phase in seconds}
    if setup_device:
        devices["setup"] = frozenset({setup_device})
    flops = dict.fromkeys(seconds, 0.0)
    return Cost(edits, models, seconds, flops, devices, is_shared=is_shared, is_citable=True)


@pytest.fixture
def frame(fake):
    """FT-L edits for 4 s and OnceEdit for 2 s; all set up for 1 s and attach for 0.1 s."""
    return load_suite(fake.write_suite(data=("zsre",)).root, "main_table", "mini")


def of(frame, method):
    return frame.cells[frame.cells["method"] == method]


def test_a_shared_edit_counts_once_and_attaching_counts_for_each_model(frame):
    ours, theirs = cost_of(of(frame, "onceedit")), cost_of(of(frame, "ft-l"))
    assert ours.models == theirs.models == len(MODELS) == 3
    assert ours.edit_s == 2.0
    assert ours.seconds["setup"] == 1.0
    assert math.isclose(ours.seconds["attach"], 0.3)
    assert (theirs.edit_s, theirs.seconds["setup"]) == (12.0, 3.0)
    assert multiple(theirs, ours) == 6.0
    assert math.isclose(multiple(theirs, ours, FROM_SCRATCH), 15.3 / 3.3)
    assert (ours.is_shared, theirs.is_shared) == (True, False)


def test_a_seed_without_one_of_the_models_does_not_lower_the_sum(fake):
    for seed, model in [(0, "tiny/llama"), (0, "tiny/gptj"), (1, "tiny/llama")]:
        fake.write_cell("ft-l", model, "zsre", seed=seed)
    fake.write_manifest()
    cells = load_suite(fake.root, "main_table", "mini").cells
    assert cost_of(cells).edit_s == 8.0
    assert cost_of(cells).flops["edit"] == 2 * 10**12
    is_apart = (cells["seed"] == 1) | (cells["model"] == "tiny/gptj")
    assert cost_of(cells[is_apart]) == NOTHING, "no seed has both models"


def test_flops_are_added_up_in_the_same_way(frame):
    assert cost_of(of(frame, "onceedit")).flops["edit"] == 10**12
    assert cost_of(of(frame, "ft-l")).flops["edit"] == 3 * 10**12


def test_each_cell_is_compared_with_onceedit_on_the_same_model(frame):
    found = normalised(frame)
    by_method = {name.split("-tiny")[0]: row for name, row in found.iterrows()}
    assert by_method["onceedit"]["edit_time_vs_onceedit"] == 1.0
    assert by_method["ft-l"]["edit_time_vs_onceedit"] == 2.0
    assert math.isclose(by_method["ft-l"]["time_from_scratch_vs_onceedit"], 5.1 / 3.1)
    assert math.isclose(by_method["ft-l"]["edit_s_per_edit"], 4 / 50)
    assert by_method["none"].isna().all()
    assert len(found) == 9


def test_where_onceedit_is_missing_nothing_takes_its_place(fake):
    """Not another row of OnceEdit, in per-cell results, in the table, or in MLflow."""
    slow = {"phases_s": {"setup": 1.0, "edit": 40.0, "attach": 0.1, "evaluate": 3.0}}
    for model in ("tiny/llama", "tiny/mistral"):
        fake.write_cell("ft-l", model, "zsre")
        if model == "tiny/llama":
            fake.write_failure("onceedit", model, "zsre", "out of memory")
        else:
            fake.write_cell("onceedit", model, "zsre")
        fake.write_cell("onceedit", model, "zsre", label="OnceEdit-ROME", cost=slow)
    fake.write_manifest(["time"])
    frame = load_suite(fake.root, "main_table", "mini")
    assert reference_row(frame) == "onceedit//native"

    found = normalised(frame)["edit_time_vs_onceedit"]
    assert found[found.index.str.contains("llama")].isna().all()
    assert found[found.index.str.contains("mistral")].tolist() == [2.0, 1.0, 20.0]

    (table,), _ = registry.tables.get("time")(frame)
    assert [row.entries[5].text for row in table.sections[0].rows] == ["2.00", "20.00", "1.00"]
    assert {row.entries[column].text for row in table.sections[0].rows for column in (1, 9)} == {"–"}
    assert "×: of several rows of OnceEdit, the first counts, OnceEdit." in table.notes

    methods = summarise(fake.root, frame.manifest).methods
    multiples = [method.metrics.get("edit_time_vs_onceedit", math.nan) for method in methods]
    assert all(map(math.isnan, multiples)), "its total is incomplete"


def test_times_of_two_device_classes_are_not_compared(fake):
    fake.write_cell("onceedit", "tiny/llama", "zsre")
    fake.write_cell("ft-l", "tiny/llama", "zsre", cost={"device_class": "cuda: A100"})
    fake.write_manifest()
    found = normalised(load_suite(fake.root, "main_table", "mini"))
    assert found["edit_time_vs_onceedit"].isna().sum() == 1


def test_an_edit_timed_elsewhere_is_compared_by_where_it_was_timed(fake):
    """OnceEdit's edit is an artifact, which another machine may have built."""
    elsewhere = {"edit": ["cuda: A100"], "attach": ["cpu: AMD EPYC × 1 threads"]}
    fake.write_cell("onceedit", "tiny/llama", "zsre", cost={"device_classes": elsewhere})
    fake.write_cell("ft-l", "tiny/llama", "zsre")
    fake.write_cell("ft-l", "tiny/llama", "zsre", label="on A100", cost={"device_class": "cuda: A100"})
    fake.write_manifest()
    found = normalised(load_suite(fake.root, "main_table", "mini"))
    by_label = {name.split("-tiny")[0]: row for name, row in found.iterrows()}
    assert math.isnan(by_label["ft-l"]["edit_time_vs_onceedit"]), "the cells ran on one device, the edits did not"
    assert by_label["on A100"]["edit_time_vs_onceedit"] == 2.0
    assert found[["time_from_scratch_vs_onceedit", "break_even_edits", "break_even_models_until"]].isna().all(axis=None)


def test_setup_from_another_device_leaves_the_edits_comparable():
    ours, theirs = cost(setup=3.0, setup_device="cuda"), cost()
    assert multiple(ours, theirs, EDITS) == 1.0
    assert math.isnan(multiple(ours, theirs, FROM_SCRATCH))


def test_one_axis_shows_times_of_one_device():
    costs = {"a": cost(), "b": cost(device="cuda"), "c": cost(device="cuda"), "d": cost(3.0, setup_device="cuda")}
    shown, others = on_one_device(costs)
    assert (list(shown), others) == (["b", "c"], ["a", "d"])
    assert on_one_device({"d": costs["d"]}) == ({}, ["d"])


def test_without_onceedit_nothing_is_compared(fake):
    fake.write_cell("ft-l", "tiny/llama", "zsre")
    fake.write_manifest()
    found = normalised(load_suite(fake.root, "main_table", "mini"))
    assert found["edit_time_vs_onceedit"].isna().all()
    assert found["edit_s_per_edit"].notna().all()


@pytest.mark.parametrize(
    ("value", "text"), [(2.294, "2.29"), (302.0, "> 100"), (52.0, "52.00"), (0.0015, "< 0.01"), (0.0, "0.00")]
)
def test_a_multiple_is_printed_as_in_the_paper(value, text):
    assert shown_multiple(value) == text
    assert shown_multiple(multiple(cost(), NOTHING)) == ""


def test_a_basis_counts_the_same_phases_on_both_sides():
    trained, once = cost(setup=30.0, edit=0.5), cost(edit=2.0, attach=1.0)
    assert multiple(trained, once) == 0.25
    assert math.isclose(multiple(trained, once, FROM_SCRATCH), 30.5 / 3.0)


def test_the_break_even_is_where_the_curves_cross():
    slow, once = cost(setup=0, edit=10), cost(setup=2, edit=5, attach=1)
    # 1.0 s per edit against 3 s and 0.5 s per edit
    assert break_even_edits(slow, once) == (6, math.inf)
    curve = total_curve({"slow": slow, "once": once}, [5, 6, 7])
    assert (curve["once"] <= curve["slow"]).tolist() == [False, True, True]
    assert break_even_edits(cost(edit=1), once) == (math.inf, 0)
    assert break_even_edits(once, once) == (1, math.inf)
    assert break_even_edits(cost(setup=2, edit=5), once) == (math.inf, 0)
    assert all(math.isnan(number) for number in break_even_edits(cost(device="cuda"), once))


def test_a_method_with_more_setup_and_cheaper_edits_is_overtaken_only_up_to_some_number_of_edits():
    trained, once = cost(setup=9, edit=1), cost(setup=2, edit=5, attach=1)
    # 9 s and 0.1 s per edit against 3 s and 0.5 s per edit
    assert break_even_edits(trained, once) == (1, 15)
    curve = total_curve({"trained": trained, "once": once}, [1, 15, 16])
    assert (curve["once"] <= curve["trained"]).tolist() == [True, True, False]
    assert break_even_edits(once, trained) == (15, math.inf)


@pytest.mark.parametrize("more_s", [-7.0, -1.0, 0.0, 3.0, 8.0])
@pytest.mark.parametrize("saved_s", [-2.0, -1.0, 0.0, 0.5, 4.0])
def test_the_break_even_is_that_of_trying_every_number(more_s, saved_s):
    ours, theirs = cost(setup=10, edit=5, edits=1), cost(setup=10 + more_s, edit=5 - saved_s, edits=1)
    first, last = break_even_edits(ours, theirs)
    found = [n for n in range(1, 100) if n * saved_s >= more_s]
    assert [n for n in range(1, 100) if first <= n <= last] == found
    assert (first, last) == (math.inf, 0) or found


def test_one_edit_for_all_models_pays_off_from_some_number_of_models():
    once = cost(setup=2, edit=5, attach=3, models=3, is_shared=True)
    # 7 s once and 1 s per model, against 4.5 s per model
    assert break_even_models(cost(edit=9, models=2), once) == (2, math.inf)
    assert break_even_models(cost(edit=0.5), once) == (math.inf, 0)
    assert break_even_models(once, once) == (1, math.inf)
    # 10 s once and 1 s per model, of which one was measured, against 4 s per model
    assert break_even_models(cost(edit=4), cost(edit=10, attach=1, is_shared=True)) == (4, math.inf)
    # another shared edit of 30 s also pays its edit once
    assert break_even_models(cost(edit=30, is_shared=True), once) == (1, 23)
