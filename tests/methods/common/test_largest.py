"""The largest entries of each row, against `topk`."""

import pytest
import torch

from methods.common.largest import largest_of_rows


@pytest.mark.parametrize(("columns", "kept"), [(2000, 1), (2000, 33), (2007, 33), (1999, 124), (500, 33), (40, 40)])
def test_they_are_those_of_topk(columns: int, kept: int) -> None:
    torch.manual_seed(columns)
    values_TA = torch.stack([torch.randperm(columns) for _ in range(20)]).double()
    top_TK, at_TK = largest_of_rows(values_TA, kept)
    reference = values_TA.topk(kept, dim=-1)
    assert top_TK.equal(reference.values)
    assert at_TK.equal(reference.indices)


def test_tied_entries_are_each_listed_once() -> None:
    torch.manual_seed(0)
    values_TA = torch.randint(0, 5, (50, 3001)).float()
    top_TK, at_TK = largest_of_rows(values_TA, 40)
    assert top_TK.equal(values_TA.topk(40, dim=-1).values)
    assert top_TK.equal(values_TA.gather(1, at_TK))
    assert all(len(set(row.tolist())) == 40 for row in at_TK)


def test_the_last_columns_beyond_whole_groups_are_compared() -> None:
    values_TA = torch.zeros(3, 1605)
    values_TA[:, -1] = 1.0
    assert largest_of_rows(values_TA, 2)[1][:, 0].tolist() == [1604] * 3
