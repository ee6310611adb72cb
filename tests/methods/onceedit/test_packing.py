"""Packed sequences know nothing of each other."""

import pytest
import torch

from methods.onceedit import packing
from methods.onceedit.packing import packed, packed_hidden_at
from tests.helpers.tiny_models import tiny_model

LENGTHS = (7, 1, 12, 3, 3, 9, 2, 5)


@pytest.fixture
def sequences():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 120, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.mark.parametrize("row_tokens", [1, 16, 64])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gptj"])
def test_every_hidden_state_is_the_one_that_its_sequence_has_alone(architecture, row_tokens, sequences, monkeypatch):
    monkeypatch.setattr(packing, "ROW_TOKENS", row_tokens)
    model = tiny_model(architecture).model
    at = [(row, index) for row, length in enumerate(LENGTHS) for index in range(length)]
    hidden_ND = packed_hidden_at(model, sequences, at)
    alone_ND = torch.cat([model.base_model(input_ids=torch.tensor([ids]))[0][0] for ids in sequences])
    assert torch.allclose(hidden_ND, alone_ND, atol=1e-5)


def test_rows_are_filled_evenly(sequences, monkeypatch):
    monkeypatch.setattr(packing, "ROW_TOKENS", 10)
    batch = packed(sequences, torch.device("cpu"))
    assert batch.ids_BT.shape == (3, 15)
    assert batch.ids_BT.numel() - sum(LENGTHS) == 3
    for (row, start), ids in zip(batch.starts, sequences, strict=True):
        assert batch.ids_BT[row, start : start + len(ids)].tolist() == ids
        assert batch.positions_BT[row, start : start + len(ids)].tolist() == list(range(len(ids)))


def test_a_gradient_reaches_the_sequence_that_is_read_and_no_other(sequences):
    model = tiny_model("llama").model
    embeddings = model.get_input_embeddings().requires_grad_(True)
    own, *others = [[10, 11, 12], [20, 21], [30, 31, 32, 33]]
    packed_hidden_at(model, [own, *others], [(0, 1)]).sum().backward()
    assert embeddings.weight.grad.abs().sum(dim=1).nonzero().squeeze(-1).tolist() == own[:2]
