"""Lines of a table: prompt templates, seeds, models and edit runs."""

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


def test_score_is_the_mean_of_avg_over_models_and_freq_counts_edit_runs(fake):
    fake.write_suite(data=("zsre",))
    found, _, frame = lines(fake)
    cells = frame.cells[frame.cells["protocol"] == "teacher_forced"]
    for row, freq in (("none", 0), ("ft-l", 3), ("onceedit", 1)):
        assert found[row].score.value == pytest.approx(cells[cells["label"] == row]["avg"].mean())
        assert found[row].freq == freq
    assert found["none"].is_reference
    assert not found["ft-l"].is_reference


def test_the_better_template_is_shown_and_the_other_kept(fake):
    for model, none, paper in (("tiny/llama", WEAK, STRONG), ("tiny/mistral", STRONG, WEAK)):
        fake.write_cell("ft-l", model, "zsre", template="none", chances=none)
        fake.write_cell("ft-l", model, "zsre", template="paper", chances=paper)
    line = lines(fake)[0]["ft-l"]
    assert {name: score.template for name, score in line.by_model.items()} == {
        "tiny/llama": "paper",
        "tiny/mistral": "none",
    }
    assert [score.template for score in line.passed_over] == ["none", "paper"]
    assert line.freq == 2


def test_a_shared_edit_gets_one_template_for_all_models(fake):
    """Choosing per model would take two edits where the method makes one."""
    for model, none, paper in (
        ("tiny/llama", WEAK, STRONG),
        ("tiny/mistral", WEAK, STRONG),
        ("tiny/gptj", STRONG, WEAK),
    ):
        fake.write_cell("onceedit", model, "zsre", template="none", chances=none)
        fake.write_cell("onceedit", model, "zsre", template="paper", chances=paper)
    line = lines(fake)[0]["onceedit"]
    assert {score.template for score in line.by_model.values()} == {"paper"}
    assert line.freq == 1


def test_the_unedited_model_has_no_choice_of_template(fake):
    fake.write_cell("none", "tiny/llama", "zsre", template="none", chances=WEAK)
    fake.write_cell("none", "tiny/llama", "zsre", template="paper", chances=STRONG)
    assert lines(fake)[0]["none"].by_model["tiny/llama"].template == "none"


def test_a_template_with_a_missing_axis_does_not_win(fake):
    fake.write_cell("ft-l", "tiny/llama", "zsre", template="none", chances={"reliability": 1.0, "generality": 1.0})
    fake.write_cell("ft-l", "tiny/llama", "zsre", template="paper", chances=WEAK)
    assert lines(fake)[0]["ft-l"].by_model["tiny/llama"].template == "paper"


def test_seeds_are_averaged_and_do_not_add_to_freq(fake):
    fake.write_suite(methods=("ft-l", "onceedit"), data=("zsre",), seeds=(0, 1))
    found, _, frame = lines(fake)
    of_llama = frame.cells[(frame.cells["model"] == "tiny/llama") & (frame.cells["protocol"] == "teacher_forced")]
    score = found["ft-l"].by_model["tiny/llama"]
    assert len(score.cells) == 2
    assert score.axes["rel"].value == pytest.approx(of_llama[of_llama["label"] == "ft-l"]["rel"].mean())
    assert (found["ft-l"].freq, found["onceedit"].freq) == (3, 1)


def test_scores_of_several_seeds_are_indexed_by_seed_and_record(fake):
    fake.write_suite(methods=("ft-l",), data=("zsre",), seeds=(0, 1, 2))
    found, _, frame = lines(fake)
    score = found["ft-l"].by_model["tiny/gptj"]
    assert score.scores_SRC.shape == (3, 50, 3)
    is_cell = (frame.records["cell"] == score.cells[1]) & (frame.records["protocol"] == "teacher_forced")
    of_cell = frame.records[is_cell & (frame.records["axis"] == "gen")].sort_values("record_id")
    np.testing.assert_array_equal(score.scores_SRC[1, :, 1], of_cell["score"])


def test_a_method_whose_seeds_differ_has_a_wider_interval_than_one_whose_seeds_agree(fake):
    for seed, (wild, calm) in enumerate([(0.2, 0.5), (0.5, 0.5), (0.8, 0.5)]):
        for label, chance in (("wild", wild), ("calm", calm)):
            chances = dict.fromkeys(("reliability", "generality", "locality"), chance)
            fake.write_cell("ft-l", "tiny/llama", "zsre", label=label, seed=seed, chances=chances)
    found = lines(fake)[0]
    wild, calm = (found[label].by_model["tiny/llama"].axes["avg"] for label in ("wild", "calm"))
    assert wild.value == pytest.approx(calm.value, abs=0.05)
    assert wild.half_width > 3 * calm.half_width


def test_a_seed_that_failed_on_one_model_is_left_out_there_and_nowhere_else(fake):
    fake.write_suite(methods=("onceedit",), models=("tiny/llama",), data=("zsre",), seeds=(0, 1, 2))
    fake.write_cell("onceedit", "tiny/gptj", "zsre", seed=0)
    fake.write_cell("onceedit", "tiny/gptj", "zsre", seed=2)
    found, _, frame = lines(fake)
    line = found["onceedit"]
    cells = frame.cells[frame.cells["protocol"] == "teacher_forced"]
    of_models = [cells[cells["model"] == model]["avg"].mean() for model in ("tiny/llama", "tiny/gptj")]
    assert np.isnan(line.by_model["tiny/gptj"].scores_SRC).all(axis=(1, 2)).tolist() == [False, True, False]
    assert line.score.value == pytest.approx(np.mean(of_models))
    assert line.score.low < line.score.value < line.score.high


def test_without_one_of_the_models_there_is_no_score_and_no_freq(fake):
    fake.write_suite(methods=("ft-l",), models=("tiny/llama",), data=("zsre",))
    fake.write_cell("onceedit", "tiny/llama", "zsre")
    fake.write_cell("onceedit", "tiny/mistral", "zsre")
    found, board, _ = lines(fake)
    assert np.isnan(found["ft-l"].score.value)
    assert found["ft-l"].freq is None
    assert not np.isnan(found["onceedit"].score.value)
    assert board.lead() is None


def test_a_model_of_which_every_cell_failed_still_counts(fake):
    fake.write_suite(models=("tiny/llama", "tiny/mistral"), data=("zsre",))
    fake.write_failure("ft-l", "tiny/gptj", "zsre", "out of memory")
    found, board, _ = lines(fake)
    assert list(board.models) == ["tiny/llama", "tiny/mistral", "tiny/gptj"]
    assert np.isnan(found["onceedit"].score.value)


def test_the_lead_is_the_difference_of_the_two_best_scores(fake):
    fake.write_suite(data=("zsre",))
    found, board, _ = lines(fake)
    best, second, difference = board.lead()
    assert (best.title, second.title) == ("OnceEdit", "FT-L")
    assert difference.value == pytest.approx(found["onceedit"].score.value - found["ft-l"].score.value)
    assert 0 < difference.low < difference.value < difference.high
