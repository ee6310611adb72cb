"""MEND's view of a gradient: factors against autograd on the weights, the rows it reads, the traces it must not leave."""

import pytest
import torch

from harness.errors import UserError
from harness.models.submodels import streams
from harness.records import Probe
from methods.common.factors import edited_modules, factors_of, row_means
from methods.common.paused import edit_queries
from methods.common.prediction import PredictionRow, edit_row, examples, filled_up, locality_row, padded
from tests.helpers.tiny_mend import MATRICES, REQUESTS, TRAIN, double
from tests.helpers.tiny_models import ARCHITECTURES, rounding, tiny_model


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    torch.set_num_threads(1)
    return double(tiny_model(request.param))


@pytest.fixture
def modules(model):
    return edited_modules(model, (0, 1), MATRICES[model.spec.architecture])


@pytest.fixture
def rows(model):
    return [edit_row(model, query, "corrected") for query in edit_queries(model, REQUESTS)]


def factors(model, modules, rows, weights):
    return factors_of(model, modules, streams(model, [row.ids for row in rows], 0), 0, rows, torch.tensor(weights))


def dense(seen):
    return seen.gradients_ND.T @ seen.inputs_NK


def slow_loss(model, row):
    """One row, whole logits, the definition written out."""
    log_probs = model.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
    return -sum(log_probs[place, label] for place, label in zip(row.places, row.labels, strict=True)) / len(row.labels)


def test_the_factors_multiply_to_the_gradients_of_the_weights(model, modules, rows):
    assert len({len(row.ids) for row in rows}) > 1, "padding must matter"
    assert len({len(row.labels) for row in rows}) > 1
    weights = [1.0, 0.5, 2.0, 0.25]
    for module in modules.values():
        module.weight.requires_grad_(True)
    loss = sum(weight * slow_loss(model, row) for weight, row in zip(weights, rows, strict=True))
    expected = torch.autograd.grad(loss, [module.weight for module in modules.values()])
    for module in modules.values():
        module.weight.requires_grad_(False)
    found = factors(model, modules, rows, weights)
    error = max(
        ((dense(found[name]) - slow).abs().max() / slow.abs().max()).item()
        for name, slow in zip(modules, expected, strict=True)
    )
    print(f"{model.ref.name}: factors against autograd, relative {error:.1e}")
    assert error < rounding(model.spec.architecture, 1e-12)


def test_each_row_has_the_factors_that_it_has_alone(model, modules, rows):
    together = factors(model, modules, rows, [1.0] * len(rows))
    atol = rounding(model.spec.architecture, 1e-12)
    for index, row in enumerate(rows):
        alone = factors(model, modules, [row], [1.0])
        for name in modules:
            mine = together[name].rows_N == index
            assert together[name].columns_N[mine].tolist() == alone[name].columns_N.tolist()
            torch.testing.assert_close(together[name].inputs_NK[mine], alone[name].inputs_NK, rtol=1e-7, atol=atol)
            torch.testing.assert_close(
                together[name].gradients_ND[mine], alone[name].gradients_ND, rtol=1e-6, atol=atol
            )


def test_tokens_that_no_label_depends_on_are_left_out(model, modules, rows):
    """Behind the last matrix of the last block only the places themselves matter; no padding anywhere."""
    found = factors(model, modules, rows, [1.0] * len(rows))
    last = list(found.values())[-1]
    places = [(index, place) for index, row in enumerate(rows) for place in row.places]
    assert list(zip(last.rows_N.tolist(), last.columns_N.tolist(), strict=True)) == places
    lengths = torch.tensor([len(row.ids) for row in rows])
    assert all(bool((seen.columns_N < lengths[seen.rows_N]).all()) for seen in found.values())
    assert len(next(iter(found.values())).rows_N) > len(places)


def test_the_model_keeps_no_trace(model, modules, rows):
    factors(model, modules, rows, [1.0] * len(rows))
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert not any(len(module._forward_hooks) for module in model.model.modules())
    longer = streams(model, [row.ids for row in rows], 0).residual_BTD
    assert not longer.requires_grad


def test_values_are_averaged_within_their_rows():
    rows = [PredictionRow((1, 2, 3), (0, 1, 2)), PredictionRow((1,), (0,)), PredictionRow((1, 2), (0, 1))]
    assert row_means(torch.tensor([1.0, 2.0, 6.0, 5.0, 0.0, 1.0]), rows).tolist() == [3.0, 5.0, 0.5]


def test_an_unknown_matrix_is_refused_with_those_that_there_are(model):
    with pytest.raises(UserError, match="no feed-forward matrix 'fc9'") as caught:
        edited_modules(model, (1,), ["fc9"])
    assert all(name in str(caught.value) for name in MATRICES[model.spec.architecture])


def test_labels_are_predicted_by_what_stands_before_them(model):
    query = edit_queries(model, REQUESTS)[2]
    row = edit_row(model, query, "corrected")
    text = query.prompt_ids + query.target_ids
    assert row.ids == text[:-1]
    assert [text[place + 1] for place in row.places] == list(row.labels) == list(query.target_ids)
    spared = locality_row(model, Probe(query.prompt, query.target), "corrected")
    assert (spared.ids, spared.places) == (row.ids, row.places)


@pytest.mark.parametrize("implementation", ["corrected", "faithful-easyedit"])
def test_what_is_no_answer_is_in_no_context_of_a_locality_row(model, implementation):
    query = edit_queries(model, REQUESTS)[2]
    row = locality_row(model, Probe(query.prompt, query.target, has_answer=False), implementation)
    assert (row.ids, row.places) == (query.prompt_ids, (len(query.prompt_ids) - 1,))


def test_the_faithful_rows_expect_a_bos_inside_the_prompt_and_read_locality_one_place_late(model):
    query = edit_queries(model, REQUESTS)[2]
    start, end = len(query.prompt_ids), len(query.prompt_ids + query.target_ids)
    row = edit_row(model, query, "faithful-easyedit")
    spared = locality_row(model, Probe(query.prompt, query.target), "faithful-easyedit")
    has_bos = model.spec.architecture != "gptj"
    assert row.labels == ((1, *query.target_ids) if has_bos else query.target_ids)
    assert row.places == tuple(range(start - 1 - has_bos, end - 1))
    assert spared.places == tuple(range(start - has_bos, end))
    assert spared.ids == query.prompt_ids + query.target_ids


def test_examples_judge_an_edit_by_its_rephrases_and_faithful_ones_by_the_edit_itself(model):
    (corrected, *_), (faithful, *_) = (examples(model, TRAIN, kind) for kind in ("corrected", "faithful-easyedit"))
    assert len(corrected.outer) == len(corrected.locality) == len(faithful.locality) == 2
    assert corrected.edit not in corrected.outer
    assert {row.labels for row in corrected.outer} == {corrected.edit.labels}
    assert faithful.outer == (faithful.edit,)


def test_a_faithful_batch_expects_the_end_of_the_text_in_front_of_shorter_targets_and_rows(model):
    rows = [edit_row(model, query, "faithful-easyedit") for query in edit_queries(model, REQUESTS)]
    longest, width = max(len(row.labels) for row in rows), max(len(row.ids) for row in rows)
    assert min(len(row.ids) for row in rows) < width
    for row, filled in zip(rows, filled_up(rows, padding=2), strict=True):
        assert filled.padding == width - len(row.ids)
        assert filled.ids == (2,) * filled.padding + row.ids
        assert filled.labels == (2,) * (longest - len(row.labels)) + row.labels
        assert filled.places == tuple(range(width - 1 - longest, width - 1))
    assert padded(filled_up(rows, padding=2), "cpu").mask_BT.sum(1).tolist() == [len(row.ids) for row in rows]
