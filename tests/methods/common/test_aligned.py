"""Rows aligned at their subjects: the same numbers as the whole model gives row by row, without padding, without a cache."""

import pytest
import torch

from harness.models.routed import matrix, output_replaced
from methods.common.aligned import PivotRow, Suffix, advance, capturing, enter
from methods.common.rewrites import rewrite
from tests.helpers.tiny_models import ARCHITECTURES, FAMILIES, catalogued_families, precise, rounding, tiny_model
from tests.helpers.tiny_rome import PREFIXES, able_model, adding, requests, watch


@pytest.fixture(scope="module", autouse=True)
def _families():
    with catalogued_families():
        yield


@pytest.fixture(params=[name for name in (*ARCHITECTURES, *FAMILIES) if name != "falcon-rw"])  # it takes no masks
def model(request):
    torch.set_num_threads(1)
    return able_model(request.param)


def rows_of(model):
    """Rows whose lengths and pivots all differ, prefixes of several kinds before them."""
    rows = [row for request in requests() for row in rewrite(model, request, PREFIXES[:2], "joint").rows]
    assert len({row.pivot for row in rows}) > 3
    assert len({len(row.ids) - row.pivot for row in rows}) > 3
    return rows


def deltas(model, n):
    return 0.3 * torch.randn(n, model.model.config.hidden_size, generator=torch.Generator().manual_seed(1)).to(
        precise(model.spec.architecture)
    )


def assert_close(model, fast, slow):
    architecture = model.spec.architecture
    rtol, atol = rounding(architecture, fp64=1e-9), rounding(architecture, fp64=1e-9, fp32=1e-5)
    torch.testing.assert_close(fast, slow, rtol=rtol, atol=atol)


def logits(model, hidden_D):
    return model.logits(model.final_norm(hidden_D))


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_suffix_says_what_the_whole_model_says_of_each_row_alone(model, layer):
    rows = rows_of(model)
    delta_BD = deltas(model, len(rows)) * (layer > 0)
    hidden_BSD = Suffix(model, enter(model, rows, layer), layer).run(delta_BD)
    for index, row in enumerate(rows):
        with torch.no_grad(), adding(model, max(layer - 1, 0), row.pivot, delta_BD[index]):
            slow_TV = model.model(input_ids=torch.tensor([row.ids])).logits[0]
        for place in range(row.pivot, len(row.ids)):
            assert_close(model, logits(model, hidden_BSD[index, place - row.pivot]), slow_TV[place])


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_vector_may_be_added_to_the_output_of_the_value_matrix(model, layer):
    """Where the block normalises that output, this is not the same as adding it to the stream."""
    rows = rows_of(model)
    delta_BD = deltas(model, len(rows))
    hidden_BSD = Suffix(model, enter(model, rows, layer), layer, at_value=True).run(delta_BD)
    for index, row in enumerate(rows):

        def add(_, outputs_1TD, row=row, delta_D=delta_BD[index]):
            moved_1TD = outputs_1TD.clone()
            moved_1TD[0, row.pivot] += delta_D
            return moved_1TD

        with torch.no_grad(), output_replaced(matrix(model, layer), add):
            slow_TV = model.model(input_ids=torch.tensor([row.ids])).logits[0]
        for place in range(row.pivot, len(row.ids)):
            assert_close(model, logits(model, hidden_BSD[index, place - row.pivot]), slow_TV[place])


def test_the_gradient_of_the_added_vector_is_that_of_the_whole_model(model):
    if model.spec.architecture == "cohere":
        pytest.skip("the last token of its tiny model does not attend to the subject, so that all gradients are 0")
    rows = rows_of(model)[:4]
    delta_BD = deltas(model, len(rows)).requires_grad_()
    hidden_BSD = Suffix(model, enter(model, rows, 1), 1).run(delta_BD)
    ends = [hidden_BSD[index, len(row.ids) - 1 - row.pivot] for index, row in enumerate(rows)]
    (fast_BD,) = torch.autograd.grad(sum(logits(model, end).logsumexp(-1) for end in ends), delta_BD)
    for index, row in enumerate(rows):
        delta_D = delta_BD[index].detach().requires_grad_()
        with adding(model, 0, row.pivot, delta_D):
            end_V = model.model(input_ids=torch.tensor([row.ids])).logits[0, -1]
        (slow_D,) = torch.autograd.grad(end_V.logsumexp(-1), delta_D)
        assert slow_D.abs().max() > 1e-4
        assert_close(model, fast_BD[index], slow_D)


def test_rows_that_are_dropped_leave_the_others_as_they_were(model):
    rows = rows_of(model)
    delta_BD = deltas(model, len(rows))
    suffix = Suffix(model, enter(model, rows, 1), 1)
    before_BSD = suffix.run(delta_BD)
    kept = torch.tensor([0, 3, 4])
    suffix.keep(kept)
    assert_close(model, suffix.run(delta_BD[kept]), before_BSD[kept])


def test_a_batch_whose_subjects_come_first_has_nothing_to_keep(model):
    rows = [PivotRow(ids, 0) for ids in ((5, 6, 7), (8, 9))]
    hidden_BSD = Suffix(model, enter(model, rows, 1), 1).run(deltas(model, 2) * 0)
    for index, row in enumerate(rows):
        with torch.no_grad():
            slow_TV = model.model(input_ids=torch.tensor([row.ids])).logits[0]
        assert_close(model, logits(model, hidden_BSD[index, : len(row.ids)]), slow_TV)


@pytest.mark.parametrize("layer", [0, 1])
def test_keys_values_and_streams_at_the_pivots_are_those_of_each_row_alone(model, layer):
    rows = rows_of(model)
    stream = enter(model, rows, layer)
    with capturing(model, layer, stream.pivot) as passes:
        behind = advance(model, stream, layer, layer + 1)
    (went,) = passes
    for index, row in enumerate(rows):
        key_K, value_V, stream_D = watch(model, layer, row.ids, row.pivot)
        assert_close(model, went.keys_BK[index], key_K)
        assert_close(model, went.values_BV[index], value_V)
        assert_close(model, behind.at_pivot_BD[index], stream_D)


def test_nothing_behind_the_pivots_matters_there(model):
    rows = rows_of(model)
    whole = enter(model, rows, 2)
    cut = enter(model, [PivotRow(row.ids[: row.pivot + 1], row.pivot) for row in rows], 2)
    assert cut.residual_BTD.shape[1] == cut.pivot + 1
    assert_close(model, cut.at_pivot_BD, whole.at_pivot_BD)
    assert_close(model, advance(model, enter(model, rows, 0).until(whole.pivot + 1), 0, 2).at_pivot_BD, cut.at_pivot_BD)


def test_step_by_step_is_in_one_go(model):
    rows = rows_of(model)
    stream = advance(model, advance(model, enter(model, rows, 0), 0, 1), 1, 2)
    assert torch.equal(stream.residual_BTD, enter(model, rows, 2).residual_BTD)


def test_a_failure_while_recording_leaves_no_hook(model):
    with pytest.raises(RuntimeError), capturing(model, 0, 0):
        raise RuntimeError
    assert not any(module._forward_hooks for module in model.model.modules())


def test_half_precision_has_numbers_everywhere():
    """A padded query sees itself: a softmax over nothing would be no number, and no number times zero is none either."""
    model = tiny_model("llama")
    model.model.bfloat16()
    rows = rows_of(model)
    stream = enter(model, rows, 1)
    hidden_BSD = Suffix(model, stream, 1).run(torch.zeros(len(rows), model.model.config.hidden_size))
    assert hidden_BSD.dtype == torch.bfloat16
    assert stream.residual_BTD.isfinite().all()
    assert hidden_BSD.isfinite().all()
