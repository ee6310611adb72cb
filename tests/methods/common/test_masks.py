"""Masks: a window is read only where it holds for all layers; what is not visible weighs nothing, in any precision."""

import pytest
import torch
from transformers import Qwen2Config

from methods.common.masks import additive, sliding_window


def test_one_mask_serves_all_layers_or_the_model_is_refused():
    config = Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert sliding_window(config) == 4
    assert sliding_window(Qwen2Config(num_hidden_layers=2, sliding_window=4)) is None
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="some layers have a sliding window"):
        sliding_window(config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_only_visible_keys_have_weight_and_a_query_that_sees_none_stays_a_number(dtype):
    is_visible_1QK = torch.tensor([[[True, False, True], [False, False, False]]])
    mask_11QK = additive(is_visible_1QK, dtype)
    assert mask_11QK.shape == (1, 1, 2, 3)
    assert mask_11QK.dtype == dtype
    weights_QK = (torch.tensor([[1.0, 5.0, -2.0], [1.0, -3.0, 2.0]], dtype=dtype) + mask_11QK[0, 0]).softmax(-1)
    assert (weights_QK[0] != 0).tolist() == [True, False, True]
    assert weights_QK[1].isfinite().all()
