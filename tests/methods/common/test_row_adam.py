"""Adam by rows against torch's own Adam, run for each row by itself."""

import pytest
import torch

from methods.common.row_adam import RowAdam

ROWS, STEPS = 5, 40
SHAPES = [(ROWS, 7), (ROWS, 3, 4), (ROWS,)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def problem(shape, dtype):
    """A start and, for each row, a loss of its own that is not quadratic."""
    generator = torch.Generator().manual_seed(3)
    start, goal, scale = (torch.randn(shape, dtype=dtype, generator=generator) for _ in range(3))
    return (
        start,
        lambda rows, index: ((rows - goal[index]) * scale[index]).pow(4).sum() + (rows * scale[index]).sin().sum(),
    )


def one_by_one(start, loss, steps_of_rows, **options):
    """torch.optim.Adam per row; each row takes as many steps as it is told."""
    ends = []
    for index, steps in enumerate(steps_of_rows):
        row = start[index].clone().requires_grad_(True)
        adam = torch.optim.Adam([row], **options)
        for _ in range(steps):
            adam.zero_grad()
            loss(row, index).backward()
            adam.step()
        ends.append(row.detach())
    return torch.stack(ends)


def together(start, loss, active_at, **options):
    """All rows in one tensor, the loss summed over all rows, also over those that are frozen."""
    rows = start.clone().requires_grad_(True)
    adam = RowAdam(rows, **options)
    for step in range(STEPS):
        total = sum(loss(rows[index], index) for index in range(ROWS))
        (gradient,) = torch.autograd.grad(total, rows)
        adam.step(gradient, active_at(step))
    return rows.detach()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_rows_go_the_way_each_goes_alone(shape, dtype, tolerance):
    start, loss = problem(shape, dtype)
    expected = one_by_one(start, loss, [STEPS] * ROWS, lr=0.05)
    found = together(start, loss, lambda step: None, lr=0.05)
    assert (expected - start).abs().min() > 1e-3
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_other_constants_are_torchs_too():
    start, loss = problem((ROWS, 7), torch.float64)
    options = {"lr": 0.3, "betas": (0.7, 0.95), "eps": 1e-3}
    found = together(start, loss, lambda step: None, **options)
    expected = one_by_one(start, loss, [STEPS] * ROWS, **options)
    assert (found - expected).abs().max() <= 1e-14 * expected.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_frozen_row_stays_where_it_stopped_and_the_others_go_on(shape):
    start, loss = problem(shape, torch.float64)
    ends = torch.tensor([3, 40, 0, 17, 40])
    found = together(start, loss, lambda step: step < ends, lr=0.05)
    expected = one_by_one(start, loss, ends.tolist(), lr=0.05)
    assert (found - expected).abs().max() <= 1e-14 * expected.abs().max()
    assert torch.equal(found[2], start[2]), "a row that was never active keeps its bits"


def test_a_row_that_pauses_goes_on_as_if_it_had_not():
    """Each row has a clock of its own: odd rows work in every second step only."""
    start, loss = problem((ROWS, 7), torch.float64)
    odd = torch.arange(ROWS) % 2 == 1
    found = together(start, loss, lambda step: ~odd if step % 2 else torch.ones(ROWS, dtype=torch.bool), lr=0.05)
    expected = one_by_one(start, loss, [STEPS // 2 if is_odd else STEPS for is_odd in odd], lr=0.05)
    assert (found - expected).abs().max() <= 1e-14 * expected.abs().max()


def test_a_gradient_that_is_no_number_does_not_reach_a_frozen_row_or_a_neighbour():
    rows = torch.ones(3, 2)
    adam = RowAdam(rows, lr=0.1)
    gradient = torch.tensor([[1.0, 1.0], [float("nan")] * 2, [1.0, 1.0]])
    adam.step(gradient, torch.tensor([True, False, False]))
    assert rows.isfinite().all()
    assert torch.equal(rows[1:], torch.ones(2, 2))
    adam.step(torch.ones(3, 2))
    assert rows.isfinite().all(), "its running means are clean as well"


def test_the_gradient_that_is_handed_in_is_left_alone():
    gradient = torch.ones(2, 3)
    RowAdam(torch.zeros(2, 3), lr=0.1).step(gradient)
    assert torch.equal(gradient, torch.ones(2, 3))
