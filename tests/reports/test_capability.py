"""The table of benchmark tasks against means over items, the perplexity of all words, and the unedited model once."""

import numpy as np
import pytest

from harness import registry
from harness.errors import UserError
from harness.evaluation.capability.scores import FILE
from harness.records import ItemScore
from harness.store.rows import write_items
from reports.frame import load_suite
from reports.layout import amount

BEFORE, AFTER = (1, 1, 0, 1, 0, 1), (1, 0, 0, 1, 0, 0)
WORDS = (10.0, 30.0)


def scores(right, loss):
    found = [ItemScore("mmlu", "acc", place, float(value), 1.0) for place, value in enumerate(right)]
    texts = [
        ItemScore("perplexity", "word_perplexity", place, -loss * words, words) for place, words in enumerate(WORDS)
    ]
    return [*found, *texts]


@pytest.fixture
def frame(fake):
    for method in ("none", "ft-l"):
        folder = fake.write_cell(method, "tiny/llama", "zsre")
        after = scores(BEFORE, 3.0) if method == "none" else scores(AFTER, 3.5)
        write_items({0: scores(BEFORE, 3.0), 4: scores((0,) * 6, 9.0), 50: after}, folder / FILE)
    fake.write_manifest(("capability",))
    return load_suite(fake.root, "main_table", "mini")


def test_scores_after_the_last_edit_stand_next_to_their_change(frame):
    (table,), numbers = registry.tables.get("capability")(frame)
    assert [(column.group, column.title) for column in table.columns] == [
        (task, part) for task in ("MMLU", "Perplexity") for part in ("After", "Change")
    ]
    unedited, edited = table.sections[0].rows
    assert unedited.is_reference
    assert [entry.value for entry in unedited.entries][::2] == pytest.approx([np.mean(BEFORE), np.exp(3.0)])
    assert [entry.text for entry in unedited.entries][1::2] == ["–", "–"]
    wanted = [np.mean(AFTER), np.mean(AFTER) - np.mean(BEFORE), np.exp(3.5), np.exp(3.5) - np.exp(3.0)]
    assert [entry.value for entry in edited.entries] == pytest.approx(wanted)
    assert edited.entries[1].half_width > 0
    assert edited.entries[3].half_width == pytest.approx(0), "every word lost as much"
    before = numbers[(numbers["method"] == "FT-L") & (numbers["part"] == "before")]
    assert before["value"].tolist() == pytest.approx([np.mean(BEFORE), np.exp(3.0)])


def test_a_method_without_scores_on_a_task_has_a_dash(fake):
    for method in ("none", "onceedit"):
        folder = fake.write_cell(method, "tiny/llama", "zsre")
        after = scores(BEFORE, 3.0)
        write_items({0: after, 50: after if method == "none" else after[: len(BEFORE)]}, folder / FILE)
    fake.write_manifest(("capability",))
    (table,), _ = registry.tables.get("capability")(load_suite(fake.root, "main_table", "mini"))
    assert [entry.text for entry in table.sections[0].rows[1].entries] == ["0.67", "0.00", "–", "–"]


def test_a_model_of_which_all_cells_failed_has_rows_of_dashes_and_other_models_no_remark(fake):
    for seed in (0, 1):
        folder = fake.write_cell("ft-l", "tiny/llama", "zsre", seed=seed)
        write_items({0: scores(BEFORE, 3.0), 50: scores(AFTER, 3.5)}, folder / FILE)
    fake.write_failure("ft-l", "tiny/gptj", "zsre", "out of memory")
    fake.write_manifest(("capability",))
    (first, second), _ = registry.tables.get("capability")(load_suite(fake.root, "main_table", "mini"))
    assert first.sections[0].remarks == ()
    assert "confidence interval over seeds and items" in first.caption
    assert [entry.text for entry in second.sections[0].rows[0].entries] == ["–"] * 4
    assert second.sections[0].remarks == ("– ZsRE: FT-L on GPT-J-6B (mini), seed 0: failed: out of memory.",)


def test_of_several_templates_the_first_is_shown_and_named(fake):
    for template in ("none", "paper"):
        folder = fake.write_cell("ft-l", "tiny/llama", "zsre", template=template)
        write_items({0: scores(BEFORE, 3.0), 50: scores(AFTER, 3.5)}, folder / FILE)
    fake.write_manifest(("capability",))
    (table,), numbers = registry.tables.get("capability")(load_suite(fake.root, "main_table", "mini"))
    assert "Prompt template: 'none'." in table.caption
    assert set(numbers["cells"]) == {fake.cells[0]}


def test_a_suite_without_tasks_is_told_how_to_ask_some(fake):
    fake.write_suite(methods=("none",), models=("tiny/llama",), data=("zsre",))
    with pytest.raises(UserError, match=r"needs benchmark tasks → capability: \[mmlu, "):
        registry.tables.get("capability")(load_suite(fake.root, "main_table", "mini"))


@pytest.mark.parametrize(
    ("value", "half_width", "shown"),
    [
        (2.654e15, None, ("2.7e+15", "")),
        (-9.4e14, 1.9e15, ("-9.4e+14", "1.9e+15")),
        (12.344, 0.5, ("12.34", ".50")),
        (0.001, 0.02, ("0.00", ".02")),
        (0.0, None, ("0.00", "")),
        (0.001, None, ("1.0e-03", "")),
    ],
)
def test_numbers_that_decimals_do_not_suit_have_a_power_of_ten(value, half_width, shown):
    entry = amount(value, half_width)
    assert (entry.text, entry.half_width_text) == shown
