"""Figures say what tables say: how many panels and lines, and which methods are on the Pareto front."""

import pandas as pd
import pytest

from harness import registry
from reports.drawing import COLUMN, PAGE, drawing, legend_above, series_style, spread_axis
from reports.figures.alpha import reliability
from reports.figures.pareto import front
from reports.frame import load_suite
from reports.places import swept

PANELS = {"quality_bars": 4, "components": 4, "alpha": 2, "calibration": 2, "pareto": 4, "break_even": 4}
"""Axes of each figure for two datasets, one model and two protocols."""


@pytest.fixture(scope="module")
def frame(tmp_path_factory):
    from tests.helpers.fake_store import FakeStore

    fake = FakeStore(tmp_path_factory.mktemp("figures") / "results").write_suite(models=("tiny/llama",))
    return load_suite(fake.root, "main_table", "mini")


@pytest.mark.parametrize("name", PANELS)
def test_a_figure_has_a_panel_for_everything_that_it_compares(frame, name):
    figure = registry.figures.get(name)(frame)
    assert len(figure.axes) == PANELS[name]
    assert figure.get_size_inches()[0] in (3.35, 6.9), "the width of one or both columns of a paper"
    sizes = {text.get_fontsize() for axes in figure.axes for text in (*axes.get_xticklabels(), axes.title)}
    assert min(sizes) >= 6


@pytest.mark.parametrize("name", ["sweep", "retention", "sequence_cost", "causal_trace"])
def test_a_figure_without_anything_to_show_says_why(frame, name):
    figure = registry.figures.get(name)(frame)
    assert not figure.axes
    assert figure.texts[0].get_text().endswith(".")


def test_a_sweep_is_a_curve_over_its_values(fake):
    for value in (0.1, 0.4, 0.8):
        fake.write_cell("onceedit", "tiny/llama", "zsre", label=f"onceedit.lambda_weight={value}", hparams={"x": value})
    fake.write_manifest()
    figure = registry.figures.get("sweep")(load_suite(fake.root, "main_table", "mini"))
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["Rel", "Gen", "Loc", "Avg"]
    assert list(lines[0].get_xdata()) == [0.1, 0.4, 0.8]


def test_settings_of_a_sweep_are_read_from_its_label():
    assert swept("onceedit.init=llm.search_lr=0.05") == {"init": "llm", "search_lr": "0.05"}
    assert swept("DeePEn+DW") == {}


def test_the_front_has_whatever_nothing_beats_in_time_and_quality():
    assert front([(1, 0.5), (2, 0.9), (3, 0.8), (1, 0.4), (2, 0.9)]) == [0, 1, 4]


def test_a_method_without_any_mistake_is_drawn(fake):
    """The mean of its draws may differ from its score in the last bit."""
    for model in ("tiny/llama", "tiny/mistral", "tiny/gptj"):
        perfect = dict.fromkeys(("reliability", "generality", "locality"), 1.0)
        fake.write_cell("onceedit", model, "zsre", records=5, chances=perfect)
    fake.write_manifest()
    figure = registry.figures.get("pareto")(load_suite(fake.root, "main_table", "mini"))
    assert len(figure.axes[0].containers) == 1


def test_what_was_timed_on_another_device_is_not_drawn_and_named(fake):
    for label in ("first", "second", "elsewhere"):
        elsewhere = {"device_class": "cuda: A100"} if label == "elsewhere" else None
        fake.write_cell("ft-l", "tiny/llama", "zsre", label=label, cost=elsewhere)
    fake.write_manifest()
    frame = load_suite(fake.root, "main_table", "mini")
    for name, measured in (("pareto", {5.1}), ("break_even", {5.1})):
        axes = registry.figures.get(name)(frame).axes[0]
        assert axes.get_xlabel().endswith("\nnot shown, timed on other devices: elsewhere")
        points = {y if name == "break_even" else x for x, y in _single_points(axes)}
        assert {round(value, 6) for value in points} == measured


def _single_points(axes):
    """Coordinates of what is drawn as one point."""
    return [(*line.get_xdata(), *line.get_ydata()) for line in axes.get_lines() if len(line.get_xdata()) == 1]


def test_a_shared_edit_is_drawn_as_shared_also_with_one_model(fake):
    """As many models as `break_even_models` says are where its line crosses another."""
    for method in ("ft-l", "onceedit"):
        seconds = {"edit": 10.0, "attach": 1.0} if method == "onceedit" else {"edit": 4.0}
        fake.write_cell(method, "tiny/llama", "zsre", cost={"phases_s": seconds})
    fake.write_manifest()
    axes = registry.figures.get("break_even")(load_suite(fake.root, "main_table", "mini")).axes[1]
    fine, once = (line.get_ydata() for line in axes.get_lines())
    assert list(once[:4]) == [11.0, 12.0, 13.0, 14.0]
    assert [a <= b for a, b in zip(once, fine, strict=True)].index(True) + 1 == 4


def test_the_calibration_curve_weights_both_sides_to_one_half_and_ignores_questions_of_neither():
    asked = [
        *[("reliability", 0.95), ("generality", 0.15), ("locality", 0.12), ("locality_unrelated", 0.96)],
        *[("locality", 0.05)] * 6,
        *[("portability", 0.15), ("robustness", 0.95), ("single_hop", 0.5)] * 9,
    ]
    scopes = pd.DataFrame(asked, columns=["axis", "scope"])
    scores, shares = reliability(scopes)

    inside, outside = 1 / 2, 1 / 8  # weights of two and of eight questions that add up to one
    assert shares.tolist() == pytest.approx([0, inside / (inside + outside), inside / (inside + outside)])
    assert scores.iloc[1] == pytest.approx((inside * 0.15 + outside * 0.12) / (inside + outside))
    assert list(shares.index) == [0, 1, 9]
    one_side = reliability(scopes[scopes["axis"] != "reliability"].query("axis != 'generality'"))
    assert [len(each) for each in one_side] == [0, 0]


def test_no_two_of_many_methods_look_alike():
    looks = {tuple(series_style(number).values()) for number in range(40)}
    assert len(looks) == 40


@pytest.mark.parametrize(("width", "columns"), [(COLUMN, 3), (PAGE, 5)])
def test_a_legend_is_no_wider_than_its_figure(width, columns):
    with drawing(width, 2.0) as figure:
        axes = figure.subplots()
        for number in range(12):
            axes.plot([0, 1], label=f"Method {number}", **series_style(number))
        legend_above(figure, axes, 5)
    legend = figure.legends[0]
    assert legend._ncols == columns
    assert legend.get_window_extent().x0 >= 0


@pytest.mark.parametrize(
    ("points", "scale"), [([10, 100, 1000], "log"), ([10, 20, 100], "linear"), ([0, 1000], "linear")]
)
def test_an_axis_over_orders_of_magnitude_is_logarithmic(points, scale):
    with drawing(COLUMN, 1.0) as figure:
        axes = figure.subplots()
        axes.plot(points, points)
        spread_axis(axes, points, 50)
    assert axes.get_xscale() == scale
    if scale == "log":
        assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "100", "1,000"]
