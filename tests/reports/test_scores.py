"""Lines of a table: templates, seeds, models, acts of editing."""

import numpy as np
import pytest

from reports.frame import load_suite
from reports.scores import boards

WEAK = {"reliability": 0.3, "generality": 0.2, "locality": 0.3}
STRONG = {"reliability": 0.9, "generality": 0.8, "locality": 0.9}


def lines(fake, protocol="teacher_forced"):
    fake.write_manifest()
    frame = load_suite(fake.root, "main_table", "mini")
    board = next(board for board in boards(frame) if board.protocol == protocol)
    return {line.row.partition("/")[0]: line for line in board.lines}, board, frame


def test_score_is_the_mean_of_avg_over_models_and_freq_counts_acts(fake):
    fake.write_suite(data=("zsre",))
    found, _, frame = lines(fake)
    cells = frame.cells[frame.cells["protocol"] == "teacher_forced"]
    for row, freq in (("none", 0), ("ft-l", 3), ("onceedit", 1)):
        assert found[row].score.value == pytest.approx(cells[cells["label"] == row]["avg"].mean())
        assert found[row].freq == freq
    assert found["none"].is_reference
    assert not found["ft-l"].is_reference


def test_the_better_template_is_shown_and_the_other_kept(fake):
    for model, none, paper in (("zoo/llama", WEAK, STRONG), ("zoo/mistral", STRONG, WEAK)):
        fake.write_cell("ft-l", model, "zsre", template="none", chances=none)
        fake.write_cell("ft-l", model, "zsre", template="paper", chances=paper)
    line = lines(fake)[0]["ft-l"]
    assert {name: score.template for name, score in line.by_model.items()} == {
        "zoo/llama": "paper",
        "zoo/mistral": "none",
    }
    assert [score.template for score in line.passed_over] == ["none", "paper"]
    assert line.freq == 2


def test_a_shared_edit_gets_one_template_for_all_models(fake):
    """Choosing per model would take two edits where the method makes one."""
    for model, none, paper in (("zoo/llama", WEAK, STRONG), ("zoo/mistral", WEAK, STRONG), ("zoo/gptj", STRONG, WEAK)):
        fake.write_cell("onceedit", model, "zsre", template="none", chances=none)
        fake.write_cell("onceedit", model, "zsre", template="paper", chances=paper)
    line = lines(fake)[0]["onceedit"]
    assert {score.template for score in line.by_model.values()} == {"paper"}
    assert line.freq == 1


def test_the_unedited_model_has_no_choice_of_template(fake):
    fake.write_cell("none", "zoo/llama", "zsre", template="none", chances=WEAK)
    fake.write_cell("none", "zoo/llama", "zsre", template="paper", chances=STRONG)
    assert lines(fake)[0]["none"].by_model["zoo/llama"].template == "none"


def test_a_template_with_a_missing_axis_does_not_win(fake):
    fake.write_cell("ft-l", "zoo/llama", "zsre", template="none", chances={"reliability": 1.0, "generality": 1.0})
    fake.write_cell("ft-l", "zoo/llama", "zsre", template="paper", chances=WEAK)
    assert lines(fake)[0]["ft-l"].by_model["zoo/llama"].template == "paper"


def test_seeds_are_averaged_and_count_as_one_act_each(fake):
    fake.write_suite(methods=("ft-l", "onceedit"), data=("zsre",), seeds=(0, 1))
    found, _, frame = lines(fake)
    of_llama = frame.cells[(frame.cells["model"] == "zoo/llama") & (frame.cells["protocol"] == "teacher_forced")]
    score = found["ft-l"].by_model["zoo/llama"]
    assert len(score.cells) == 2
    assert score.axes["rel"].value == pytest.approx(of_llama[of_llama["label"] == "ft-l"]["rel"].mean())
    assert (found["ft-l"].freq, found["onceedit"].freq) == (3, 1)


def test_a_missing_model_leaves_score_and_freq_open(fake):
    fake.write_suite(methods=("ft-l",), models=("zoo/llama",), data=("zsre",))
    fake.write_cell("onceedit", "zoo/llama", "zsre")
    fake.write_cell("onceedit", "zoo/mistral", "zsre")
    found, board, _ = lines(fake)
    assert np.isnan(found["ft-l"].score.value)
    assert found["ft-l"].freq is None
    assert not np.isnan(found["onceedit"].score.value)
    assert board.lead() is None


def test_a_model_of_which_every_cell_failed_still_counts(fake):
    fake.write_suite(models=("zoo/llama", "zoo/mistral"), data=("zsre",))
    fake.write_failure("ft-l", "zoo/gptj", "zsre", "out of memory")
    found, board, _ = lines(fake)
    assert list(board.models) == ["zoo/llama", "zoo/mistral", "zoo/gptj"]
    assert np.isnan(found["onceedit"].score.value)


def test_the_lead_is_the_difference_of_the_two_best_scores(fake):
    fake.write_suite(data=("zsre",))
    found, board, _ = lines(fake)
    best, second, difference = board.lead()
    assert (best.title, second.title) == ("OnceEdit", "FT-L")
    assert difference.value == pytest.approx(found["onceedit"].score.value - found["ft-l"].score.value)
    assert 0 < difference.low < difference.value < difference.high
