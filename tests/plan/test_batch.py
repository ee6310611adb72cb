"""Questions per forward pass that follow from memory."""

import pytest

from harness.errors import UserError
from harness.models.catalogue import reference
from harness.plan.batch import MOST, SHARE, device_memory, rows_that_fit
from harness.plan.plan import Plan
from harness.store.store import Store
from harness.suite import load_suite
from tests.helpers.small_suites import write_suite


@pytest.fixture
def plan_of(home, tmp_path):
    def made(elsewhere=None, memory=None, **changes):
        suite = load_suite(write_suite(home / "other.yaml", **changes))
        return Plan(suite, Store(tmp_path / "store"), elsewhere, memory=memory)

    return made


def test_a_batch_is_the_largest_power_of_two_whose_answers_fit_into_a_part_of_what_the_weights_leave():
    model = reference("llama3-8b", weights="random").footprint
    for rows in (1, 4, 32):
        just_enough = model.weights + SHARE * model.answering(rows)
        assert rows_that_fit(model, just_enough) == rows
        assert rows_that_fit(model, just_enough - 1) == max(1, rows // 2)
    assert rows_that_fit(model, 80 * 2**30) == MOST
    assert rows_that_fit(model, 0) == 1


def test_all_methods_on_a_model_share_the_number_which_is_a_part_of_their_identity(plan_of):
    cells = plan_of(eval_batch="auto").runnable
    fixed = plan_of(eval_batch=MOST).runnable
    assert {cell.eval_batch for cell in cells} == {MOST}
    assert [cell.cell_id for cell in cells] == [cell.cell_id for cell in fixed]


def test_elsewhere_the_memory_is_what_the_launch_profile_says(plan_of):
    model = plan_of().runnable[0].model.footprint
    memory = int(model.weights + SHARE * model.answering(2)) + 1
    assert plan_of("cuda", memory, eval_batch="auto", models=["tiny/llama"], methods=["none"]) is not None
    unknown = plan_of("cuda", None)
    with pytest.raises(UserError, match="eval_batch: auto needs the memory of the cuda device"):
        plan_of("cuda", None, eval_batch="auto")
    assert {cell.eval_batch for cell in unknown.runnable} == {16}


def test_the_memory_of_this_machine_is_found_without_torch():
    assert 2**28 < device_memory("cpu") < 2**50


def test_a_machine_without_a_driver_does_not_know_the_memory_of_its_gpu(monkeypatch):
    monkeypatch.setenv("PATH", "")
    device_memory.cache_clear()
    with pytest.raises(UserError, match="which nvidia-smi does not say"):
        device_memory("cuda")
