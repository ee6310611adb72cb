"""Masks: each kind of layer has its own window; what is not visible weighs nothing, in any precision."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import Qwen2Config

from harness.errors import UserError
from harness.models.catalogue import ModelRef, entry
from methods.common import require_masks
from methods.common.masks import LayerMasks, additive, windows


def test_layers_of_one_kind_share_a_mask_and_others_have_one_by_their_type():
    config = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=2, max_window_layers=0)
    is_visible_1QK = torch.ones(1, 3, 3).tril().bool()
    back_QK = torch.arange(3)[:, None] - torch.arange(3)
    windowed = [[1, 0, 0], [1, 1, 0], [0, 1, 1]]

    def seen(mask_11QK):
        return (mask_11QK[0, 0] == 0).int().tolist()

    assert seen(LayerMasks.of(config, is_visible_1QK, back_QK, torch.float32).argument) == windowed
    config.layer_types = ["full_attention", "sliding_attention"]
    mixed = LayerMasks.of(config, is_visible_1QK, back_QK, torch.float32)
    assert {kind: seen(mask) for kind, mask in mixed.argument.items()} == {
        "full_attention": [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
        "sliding_attention": windowed,
    }
    assert mixed[:, :, 1:].argument["sliding_attention"].shape == (1, 1, 2, 3)


def test_layers_with_another_attention_are_refused():
    config = Qwen2Config(num_hidden_layers=2)
    config.layer_types = ["full_attention", "chunked_attention"]
    with pytest.raises(ValueError, match="no mask for layers of type chunked_attention"):
        windows(config)


def test_layers_with_another_attention_are_refused_when_planned():
    model = entry("tiny/llama")
    for kind, found in (("sliding_attention", nullcontext()), ("chunked_attention", pytest.raises(UserError))):
        settings = {**model.spec.settings, "layer_types": ["full_attention", kind]}
        ref = ModelRef("m", "pretrained", known=replace(model.spec, settings=settings))
        with found:
            require_masks(ref, "rome")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_only_visible_keys_have_weight_and_a_query_that_sees_none_stays_a_number(dtype):
    is_visible_1QK = torch.tensor([[[True, False, True], [False, False, False]]])
    mask_11QK = additive(is_visible_1QK, dtype)
    assert mask_11QK.shape == (1, 1, 2, 3)
    assert mask_11QK.dtype == dtype
    weights_QK = (torch.tensor([[1.0, 5.0, -2.0], [1.0, -3.0, 2.0]], dtype=dtype) + mask_11QK[0, 0]).softmax(-1)
    assert (weights_QK[0] != 0).tolist() == [True, False, True]
    assert weights_QK[1].isfinite().all()
