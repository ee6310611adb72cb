"""Rotary frequencies that depend on length: those of each text's own, whatever else is or was in a batch."""

import dataclasses

import pytest
import torch

from harness.errors import UserError
from harness.models.batching import left_padded, right_padded
from harness.models.catalogue import ModelRef
from harness.models.edited import WeightEditedModel
from harness.models.loaded import LoadedModel
from harness.models.random_weights import random_model
from harness.models.rope import fixed_context, make_rowwise
from harness.models.submodels import part, streams
from harness.models.weights import weight_hash
from harness.tokens import Query
from methods.common.aligned import PivotRow, Suffix, enter
from tests.helpers.tiny_models import catalogued_families, tiny_spec, tiny_tokenizer

CONTEXT = 16
SHORT, LONG, LONGER = (tuple(range(3, 3 + length)) for length in (9, 24, 30))
ROPES = {
    "llama": {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0},
    "phi3": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [3.0, 5.0, 9.0, 20.0],
    },
}


@pytest.fixture(scope="module", autouse=True)
def _families():
    with catalogued_families():
        yield


def plain(architecture):
    """The model as transformers runs it, in fp64."""
    settings = {"pad_token_id": 0, "original_max_position_embeddings": CONTEXT} if architecture == "phi3" else {}
    entry = dataclasses.replace(
        tiny_spec(architecture),
        max_positions=CONTEXT if architecture == "llama" else 64,
        settings={**settings, "rope_parameters": ROPES[architecture]},
    )
    made = random_model(entry, "float64", torch.device("cpu")).eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.dim() == 2:
            parameter.mul_(8)
    return made


@pytest.fixture(params=ROPES)
def model(request):
    made = plain(request.param)
    make_rowwise(made)
    return LoadedModel(ModelRef(f"tiny/{request.param}", "random"), made, tiny_tokenizer(request.param))


@torch.no_grad()
def hidden(model, rows, pad=right_padded):
    batch = pad(rows)
    ends_BTD = model.base_model(
        input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.positions_BT, use_cache=False
    ).last_hidden_state
    return [ends_TD[mask_T.bool()] for ends_TD, mask_T in zip(ends_BTD, batch.mask_BT, strict=True)]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pad", [right_padded, left_padded])
def test_each_row_of_a_batch_is_what_transformers_gives_for_it_alone_on_a_fresh_model(model, pad):
    architecture = model.model.config.model_type
    batch = hidden(model.model, [SHORT, LONG, SHORT[:4], LONGER], pad)
    for found, row in zip(batch, (SHORT, LONG, SHORT[:4], LONGER), strict=True):
        close(found, hidden(plain(architecture), [row])[0])
    wrong = hidden(plain(architecture), [SHORT, LONG])[0]
    assert (wrong - batch[0]).abs().max() > 1e-3, "transformers alone gives a short row the frequencies of a long one"


def test_a_long_text_leaves_no_trace_in_later_ones_nor_in_the_weights(model):
    before, bits = hidden(model.model, [SHORT])[0], weight_hash(model.model)
    hidden(model.model, [LONGER])
    assert weight_hash(model.model) == bits
    assert torch.equal(hidden(model.model, [SHORT])[0], before)
    exactly = tuple(range(3, 3 + CONTEXT))
    again = hidden(model.model, [exactly])[0]
    close(again, hidden(plain(model.model.config.model_type), [exactly])[0])


def test_answers_of_a_prompt_are_the_same_alone_and_next_to_a_long_one(model):
    queries = [Query("", "", ids, (5, 6, 7)) for ids in (SHORT, LONG, SHORT[:14], tuple(range(20, 34)))]
    edited = WeightEditedModel(model)
    for ask in (edited.teacher_forced, edited.generate):
        assert ask(queries) == [ask([query])[0] for query in queries]


def test_a_generated_text_that_grows_beyond_the_context_is_read_anew(model):
    grown = list(range(20, 34))
    (found,) = WeightEditedModel(model).generate([Query("", "", tuple(grown), (0,) * 5)])
    for _ in range(5):
        end_D = hidden(plain(model.model.config.model_type), [grown])[0][-1]
        grown.append(int(model.logits(end_D).argmax()))
    assert found == grown[14:]


def test_parts_of_the_model_are_the_whole_for_short_and_long_rows(model):
    rows = [SHORT, LONG]
    entering = streams(model, rows, 1)
    ends_BTD = part(model, 1)(entering.residual_BTD, entering.mask_BT, entering.positions_BT)
    for end_TD, expected, row in zip(ends_BTD, hidden(model.model, rows), rows, strict=True):
        assert torch.equal(end_TD[: len(row)], expected)


def test_a_long_text_that_is_not_whole_is_refused(model):
    assert fixed_context(model.model) == model.context == CONTEXT
    stream = enter(model, [PivotRow(LONG, 5, (1,)), PivotRow(SHORT, 4, (1,))], 1)
    with pytest.raises(UserError, match="a text of 24 ids exceeds the 16 ids"):
        Suffix(model, stream, 1).run(torch.zeros(2, 32))
    Suffix(model, enter(model, [PivotRow(SHORT, 4, (1,))], 1), 1).run(torch.zeros(1, 32))


def test_other_models_keep_their_own_module():
    made = random_model(tiny_spec("llama"), "float32", torch.device("cpu"))
    rotary = made.base_model.rotary_emb
    make_rowwise(made)
    assert made.base_model.rotary_emb is rotary
    assert fixed_context(made) is None
