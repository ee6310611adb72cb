"""What a plug-in says after texts: probabilities and alpha, alone and together, in every precision."""

import pytest
import torch

from harness.errors import UserError
from methods.onceedit.plugin import EditedPlugin, add_weight_entry
from methods.onceedit.vocabulary import readable
from tests.helpers.tiny_models import ARCHITECTURES, SENTENCES, tiny_model


def with_weight_entry(architecture, dtype):
    loaded = tiny_model(architecture)
    weight_id = add_weight_entry(loaded.model)
    head = loaded.model.get_output_embeddings()
    with torch.no_grad():
        head.weight[weight_id] = torch.linspace(-0.3, 0.4, head.weight.shape[1])
        if getattr(head, "bias", None) is not None:
            head.bias[weight_id] = 0.5
    return EditedPlugin(loaded.model.to(dtype), loaded.tokenizer, weight_id, (), {})


def prefixes(text, rest):
    """A text and all that it grows to, byte by byte; where it ends inside a character, as far as it can be read."""
    raw, start = (text + rest).encode(), len(text.encode())
    return [readable(raw[:n])[0] for n in range(start, len(raw) + 1)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_alpha_is_the_sigmoid_of_the_weight_entry_and_the_others_share_the_probability(architecture):
    plugin = with_weight_entry(architecture, torch.float64)
    for text in SENTENCES:
        reading = plugin.read([text])
        logits_U = plugin.model(input_ids=torch.tensor([plugin.tokenizer(text)["input_ids"]])).logits[0, -1]
        assert torch.allclose(reading.alpha_B[0], logits_U[plugin.weight_id].sigmoid())
        assert torch.allclose(reading.probs_BU[0, : plugin.weight_id], logits_U[: plugin.weight_id].softmax(-1))
        assert reading.probs_BU[0, plugin.weight_id] == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_texts_read_together_say_what_each_says_alone(architecture):
    plugin = with_weight_entry(architecture, torch.float64)
    texts = [
        *prefixes("東京 is the capital of", " 日本"),
        *prefixes("Björk", " was born in Reykjavík"),
        "Paris",
        "Paris",
    ]
    groups = [0] * 8 + [1] * (len(texts) - 10) + [2, 1]
    packed, alone = plugin.read_together(texts, groups), plugin.read(texts)
    assert torch.allclose(packed.reading.hidden_BD, alone.hidden_BD, rtol=0, atol=1e-4)
    assert torch.allclose(packed.reading.alpha_B, alone.alpha_B, rtol=0, atol=1e-4)


def test_what_texts_have_in_common_is_fed_once():
    plugin = with_weight_entry("gptj", torch.float64)
    texts = ["Björk was", "Björk was born", "Björk was born in", "Björk was born in"]
    lengths = [len(plugin.tokenizer(text)["input_ids"]) for text in texts]
    together = plugin.read_together([*texts, *texts], [0, 0, 0, 0, 1, 1, 1, 1])
    assert (together.n_fed, together.n_alone) == (2 * lengths[2], 2 * sum(lengths[:3]))
    apart = plugin.read_together(texts, [0, 1, 2, 3])
    assert (apart.n_fed, apart.n_alone) == (sum(lengths), sum(lengths))


def test_a_plugin_in_bfloat16_still_speaks_in_fp32():
    exact, rough = (with_weight_entry("llama", dtype) for dtype in (torch.float32, torch.bfloat16))
    for reading in (rough.read(SENTENCES), rough.read_together(SENTENCES, range(len(SENTENCES))).reading):
        assert reading.probs_BU.dtype == reading.alpha_B.dtype == torch.float32
        assert torch.allclose(reading.probs_BU.sum(dim=-1), torch.ones(len(SENTENCES)))
        assert reading.hidden_BD.isfinite().all()
        assert (reading.alpha_B - exact.read(SENTENCES).alpha_B).abs().max() < 0.1


def test_a_plugin_is_loaded_in_float32_on_a_cpu_unless_told_otherwise(plugin_folder):
    assert EditedPlugin.load(plugin_folder, "cpu").model.dtype == torch.float32
    assert EditedPlugin.load(plugin_folder, "cpu", "bfloat16").model.dtype == torch.bfloat16


def test_an_empty_text_is_refused_where_no_bos_begins_it():
    with pytest.raises(ValueError, match="nothing to read"):
        with_weight_entry("gptj", torch.float64).read(["Paris", ""])
    assert with_weight_entry("llama", torch.float64).read([""]).alpha_B.shape == (1,)


def test_a_text_beyond_the_plugins_context_is_refused():
    plugin = with_weight_entry("gptj", torch.float32)
    positions = plugin.model.config.max_position_embeddings

    with pytest.raises(UserError, match=f"is longer than the {positions:,} positions of the plug-in"):
        plugin.read(["Paris", "Björk " * positions])
