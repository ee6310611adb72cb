"""Models that are spread over devices: which module goes where, and what is refused."""

import pytest
import torch

from harness.errors import UserError
from harness.models.catalogue import reference
from harness.models.layouts import layout_of
from harness.models.loading import load
from harness.models.placement import places
from tests.helpers.small_suites import ARCHITECTURES, write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(params=ARCHITECTURES)
def checkpoint(request, tmp_path):
    return write_checkpoint(tmp_path, request.param)


def config_of(folder):
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def whole(folder):
    from transformers import AutoModelForCausalLM

    config = config_of(folder)
    kernel = layout_of(config.to_dict()).attention_kernel
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kernel).eval()


def test_a_spread_model_gives_the_logits_of_a_whole_one(checkpoint):
    ids_BT = torch.tensor([[1, 5, 9, 2], [7, 3, 8, 4]])
    expected = whole(checkpoint)
    layout = layout_of(config_of(checkpoint).to_dict())
    model = load(reference("mine", source=str(checkpoint), device_map=(("", "cpu"),)), "cpu").model
    with torch.no_grad():
        assert torch.equal(model(ids_BT).logits, expected(ids_BT).logits)
        made = (each.generate(ids_BT, max_new_tokens=3, do_sample=False, pad_token_id=0) for each in (model, expected))
        assert torch.equal(*made)
    hooked = [name for name, module in model.named_modules() if hasattr(module, "_hf_hook")]
    assert hooked == [layout.block.format(0), layout.block.format(1), layout.final_norm, layout.head]


def test_auto_fills_one_gpu_after_the_other_and_texts_enter_on_the_first(tmp_path):
    config = config_of(write_checkpoint(tmp_path, "llama"))
    layout = layout_of(config.to_dict())
    table, block = config.vocab_size * 32 * 4, 4 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32)
    first = torch.device("cuda:0")
    found = places(config, layout, torch.float32, "auto", first, {0: 2 * table + block + 1000, 1: 10**6})
    assert found["model.embed_tokens"] == found["model.layers.0"] == first
    assert found["model.layers.1"] == found["model.norm"] == found["lm_head"] == torch.device("cuda:1")


@pytest.mark.parametrize("device_map", ["auto", "balanced"])
def test_weights_that_do_not_fit_on_the_gpus_are_refused_and_never_go_to_the_cpu_or_the_disk(tmp_path, device_map):
    config = config_of(write_checkpoint(tmp_path, "llama"))
    with pytest.raises(UserError, match=r"weights do not fit on 2 GPUs .* copied for every pass"):
        places(
            config, layout_of(config.to_dict()), torch.float32, device_map, torch.device("cuda:0"), {0: 9000, 1: 9000}
        )


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"": 0, "model.layers.1": "cpu"}, r"'model.layers.1' is on 'cpu', but the model runs on cuda"),
        ({"": 0, "model.layers.1": "disk"}, r"'model.layers.1' is on 'disk'"),
        ({"": 0, "model.layers.7": 1}, r"the model has no module 'model.layers.7'"),
        ({"": 0, "model.layers.1.mlp": 1}, r"'model.layers.1.mlp' is a part of a block"),
        ({"model.layers": 0}, r"does not place 'model.norm'"),
        ({"": 0, "model.embed_tokens": 1}, r"'model.embed_tokens' is on cuda:1, but texts enter the model on cuda:0"),
    ],
)
def test_a_map_that_cannot_be_right_is_refused_in_one_line(tmp_path, device_map, message):
    config = config_of(write_checkpoint(tmp_path, "llama"))
    with pytest.raises(UserError, match=message):
        places(config, layout_of(config.to_dict()), torch.float32, device_map, torch.device("cuda:0"))


def test_a_map_may_name_all_blocks_at_once_and_single_ones(tmp_path):
    config = config_of(write_checkpoint(tmp_path, "llama"))
    found = places(
        config,
        layout_of(config.to_dict()),
        torch.float32,
        {"": 0, "model.layers": 1, "model.layers.0": "cuda:2"},
        torch.device("cuda:0"),
    )
    assert (found["model.layers.0"], found["model.layers.1"]) == (torch.device("cuda:2"), torch.device("cuda:1"))
    assert found["lm_head"] == found["model.norm"] == torch.device("cuda:0")
