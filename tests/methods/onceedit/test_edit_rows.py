"""The rows that the edit stage trains on and the batches of an epoch."""

import dataclasses

import pytest
import torch

from methods.onceedit.rows import TrainingRow, edit_rows, epoch_batches, negatives_per_epoch
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import hparams_with


@pytest.mark.parametrize(("ratio", "batch", "edits_per_batch"), [(1, 8, {4}), (4, 5, {1}), (20, 7, {0, 1})])
def test_an_epoch_spreads_the_edits_evenly_and_reads_each_once(ratio, batch, edits_per_batch):
    edits = [[TrainingRow((n,), None, 0, True)] for n in range(8)]
    negatives = [TrainingRow((100 + n,), None, 0, False) for n in range(300)]
    made = list(epoch_batches(edits, negatives, 8 * ratio, batch, torch.Generator().manual_seed(0)))
    rows = [row for rows in made for row in rows]
    assert sorted(row.ids[0] for row in rows if row.is_edit) == list(range(8))
    assert len({row.ids for row in rows}) == 8 * (1 + ratio)
    assert {sum(row.is_edit for row in rows) for rows in made[:-1]} == edits_per_batch


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [({"negatives": 3}, 12), ({"negatives": 0.5}, 2), ({"negatives": 9}, 20), ({"lambda_weight": 0.0}, 0)],
)
def test_an_epoch_draws_negatives_per_edit_as_far_as_there_are_and_none_where_they_do_not_count(changes, drawn):
    assert negatives_per_epoch(4, 20, hparams_with(**changes).model_dump()) == drawn


def test_a_prompt_that_joint_tokenisation_cuts_gets_a_row_of_its_own(requests):
    tokenizer = tiny_model("llama").tokenizer
    whole = edit_rows(tokenizer, requests[0])
    assert [row.weight_at is not None for row in whole] == [True]
    cut = edit_rows(tokenizer, dataclasses.replace(requests[0], prompt=requests[0].prompt + " "))
    assert [(row.label_from is not None, row.weight_at is not None) for row in cut] == [(True, False), (False, True)]
    assert cut[1].ids == tuple(tokenizer(requests[0].prompt + " ")["input_ids"])
