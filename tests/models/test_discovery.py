"""Models of types that the harness has never heard of: named modules, or found ones, that are proved by running them."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from harness.errors import UserError
from harness.models import discovery, spec
from harness.models.catalogue import reference
from harness.models.layouts import LAYOUTS
from harness.models.loading import load
from harness.models.random_weights import shell
from tests.helpers.small_suites import small_spec, small_tokenizer
from tests.helpers.tiny_models import ARCHITECTURES, FAMILIES


class OddConfig(PreTrainedConfig):
    model_type = "odd-model"

    def __init__(self, hidden_size=32, intermediate_size=48, num_hidden_layers=3, vocab_size=64, **more):
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.num_hidden_layers, self.vocab_size = num_hidden_layers, vocab_size
        self.num_attention_heads, self.max_position_embeddings = 2, 128
        super().__init__(**{"tie_word_embeddings": False, **more})


class OddAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, stream_BTD, mask_BTT):
        query, key, value = self.qkv(stream_BTD).chunk(3, dim=-1)
        scores = query @ key.mT / query.shape[-1] ** 0.5
        return self.out(scores.masked_fill(~mask_BTT, float("-inf")).softmax(-1) @ value)


class OddMlp(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, stream):
        return self.narrow(self.widen(stream).relu())


class OddBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.mixer_attn = OddAttention(config.hidden_size)
        self.thinker = OddMlp(config.hidden_size, config.intermediate_size)

    def forward(self, stream, mask):
        stream = stream + self.mixer_attn(self.first_norm(stream), mask)
        return stream + self.thinker(self.second_norm(stream))


class OddBase(PreTrainedModel):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.floors = nn.ModuleList(OddBlock(config) for _ in range(config.num_hidden_layers))
        self.roof = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids=None, inputs_embeds=None, attention_mask=None, position_ids=None, **_):
        stream = self.words(input_ids) if inputs_embeds is None else inputs_embeds
        length = stream.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=stream.device).tril()[None]
        if attention_mask is not None and attention_mask.dim() == 2:
            mask = mask & (attention_mask[:, None, :].bool() | torch.eye(length, dtype=torch.bool)[None])
        for floor in self.floors:
            stream = floor(stream, mask)
        return BaseModelOutput(last_hidden_state=self.roof(stream))


class OddModel(PreTrainedModel, GenerationMixin):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.house = OddBase(config)
        self.mouth = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.house.words

    def get_output_embeddings(self):
        return self.mouth

    def forward(self, input_ids=None, attention_mask=None, **more):
        hidden = self.house(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        return CausalLMOutputWithPast(logits=self.mouth(hidden))


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A checkpoint of a type whose modules have names of their own."""
    AutoConfig.register("odd-model", OddConfig, exist_ok=True)
    AutoModelForCausalLM.register(OddConfig, OddModel, exist_ok=True)
    folder = tmp_path_factory.mktemp("odd")
    tokenizer = small_tokenizer("llama")
    OddModel(OddConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_modules_of_an_unknown_type_are_found(odd):
    layout = spec.of_folder(odd).layout
    assert layout.block == "house.floors.{}"
    assert layout.attention == "house.floors.{}.mixer_attn"
    assert (layout.mlp, layout.matrices) == ("house.floors.{}.thinker", ("widen", "narrow"))
    assert layout.value_matrix == "house.floors.{}.thinker.narrow"
    assert (layout.final_norm, layout.head, layout.embeddings) == ("house.roof", "mouth", "house.words")


def test_a_found_layout_is_proved_when_the_model_is_loaded(odd, monkeypatch):
    assert load(reference("mine", source=str(odd)), "cpu").layout.final_norm == "house.roof"
    wrong = spec.of_folder(odd).layout
    for change, reason in (
        ({"final_norm": "house.floors.0.first_norm"}, "gives other logits than as a whole"),
        ({"value_matrix": "house.floors.{}.thinker.widen"}, "is not right"),
        ({"block": "house.cellars.{}"}, "has no attribute"),
    ):
        stated = dataclasses.replace(wrong, **change)
        with pytest.raises(UserError, match=reason) as caught:
            load(reference("mine", source=str(odd), layout=stated), "cpu")
        assert "layout:" in caught.value.fix


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *FAMILIES])
def test_discovery_finds_what_the_table_says_of_known_types(architecture):
    made = small_spec(architecture)
    known = made.layout
    if known.mlp == known.block or known.project_out:
        pytest.skip("OPT's blocks hold their feed-forward matrices themselves, with those of no other module")
    found = discovery.discovered(made)
    for name in ("block", "attention", "mlp", "value_matrix", "final_norm", "head", "embeddings"):
        assert getattr(found, name) == getattr(known, name), name
    assert set(found.matrices) == set(known.matrices)


def test_a_type_whose_modules_cannot_be_told_apart_is_refused_with_the_way_out():
    odd = small_spec("llama")
    with pytest.raises(UserError, match=r"model type 'llama' is unknown, and it has no list of 7 blocks") as caught:
        discovery._discovered(shell(odd), "llama", 7, odd.hidden)
    assert "layout:" in caught.value.fix
    assert "llama" in LAYOUTS
