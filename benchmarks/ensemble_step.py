"""A complete decoding step of a pair with random weights: both models, fusion and decoding."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.ensemble_fusion import draws_of
from benchmarks.ensemble_pairs import BuiltPair, ModelPair
from benchmarks.timing import Candidate, taking_turns
from harness.models.precision import at_least_fp32
from harness.models.random_weights import byte_tokenizer, random_model
from methods.onceedit.choose import AnchorChooser, Choice
from methods.onceedit.decoders import ColumnDecoder, OwnerDecoder
from methods.onceedit.plugin import EditedPlugin, Reading, add_weight_entry
from methods.onceedit.slots import Slots

LLM, PLUGIN = "LLM step", "plug-in step"
WHOLE = "whole step, owner"


class RunningPair:
    """Two models in the middle of a batch of texts, run as in OnceEdit's ensemble, with one more id per step.

    The texts are random ids, so no tokenizer is used.
    """

    def __init__(self, models: tuple[Any, EditedPlugin], batch: int, context: int, seed: int) -> None:
        self._llm, self._plugin = models
        self._generator = torch.Generator().manual_seed(seed)
        self._batch = batch
        self._mask_BT = torch.ones(batch, context, dtype=torch.long, device=self._llm.device)
        self._cache = self._llm.base_model(
            input_ids=self._ids(context).to(self._llm.device), attention_mask=self._mask_BT, use_cache=True
        ).past_key_values
        self._rows = self._ids(context).tolist()
        self._slots = Slots(self._plugin.model, batch)
        self._slots.hold(self._rows)

    def llm_step(self) -> Tensor:
        """The target model's logits after one more id, B × V."""
        ids_B1 = self._ids(1).to(self._llm.device)
        positions_B1 = torch.full_like(ids_B1, self._mask_BT.shape[1])
        self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(ids_B1)], dim=-1)
        hidden_B1D = self._llm.base_model(
            input_ids=ids_B1,
            attention_mask=self._mask_BT,
            position_ids=positions_B1,
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return at_least_fp32(self._llm.get_output_embeddings()(hidden_B1D[:, -1]))

    def plugin_step(self) -> Tensor:
        """The plug-in's probabilities after one more id, B × U."""
        self._rows = [row + new for row, new in zip(self._rows, self._ids(1).tolist(), strict=True)]
        return Reading(self._plugin, self._slots.hold(self._rows)).probs_BU

    def _ids(self, length: int) -> Tensor:
        return torch.randint(256, (self._batch, length), generator=self._generator)


def random_models(
    pair: ModelPair, tables: BuiltPair, dtype: str, device: torch.device, seed: int
) -> tuple[Any, EditedPlugin]:
    """Both models with random weights and the input embeddings of `tables`."""
    llm = random_model(pair.llm, dtype, device, seed).eval()
    plugin = random_model(pair.plugin, dtype, device, seed).eval()
    weight_id = add_weight_entry(plugin)
    with torch.no_grad():
        llm.get_input_embeddings().weight.copy_(tables.tables.llm_VD)
        plugin.get_input_embeddings().weight.copy_(tables.tables.plugin_UD)
    return llm, EditedPlugin(plugin, byte_tokenizer(pair.plugin), weight_id, (), {})


def measure(
    built: BuiltPair, models: tuple[Any, EditedPlugin], batch: int, context: int, repeats: int, seed: int
) -> dict[str, Any]:
    """Time both models alone, fusion and decoding alone, and the whole step.

    Random weights give nearly flat logits, so random distributions are fused instead of the models' own.
    """
    running = RunningPair(models, batch, context, seed)
    draws = draws_of(built, batch, repeats, seed)
    choosers = {
        name: AnchorChooser(built.llm, built.plugin, decoder)
        for name, decoder in (("owner", OwnerDecoder()), ("column", ColumnDecoder()))
    }

    def choose(name: str, turn: int) -> Choice:
        draw = draws[turn]
        return choosers[name].choose(draw.logits_l_BV, draw.probs_s_BU, draw.alpha_B)

    def forwards(*steps: Callable[[], Tensor]) -> None:
        """Run steps and discard their large outputs."""
        for step in steps:
            step()

    def whole(turn: int) -> Choice:
        forwards(running.llm_step, running.plugin_step)
        return choose("owner", turn)

    candidates = [
        Candidate(LLM, lambda _: forwards(running.llm_step)),
        Candidate(PLUGIN, lambda _: forwards(running.plugin_step)),
        Candidate("owner", lambda turn: choose("owner", turn)),
        Candidate("column", lambda turn: choose("column", turn)),
        Candidate(WHOLE, whole),
    ]
    found = taking_turns(candidates, repeats, built.tables.llm_VD.device, tracks_memory=False)
    forwards_median = found[LLM].median + found[PLUGIN].median
    forwards_mean = found[LLM].mean + found[PLUGIN].mean
    return {
        "candidates": {
            name: {**measured.summary(), "of_forwards": measured.median / forwards_median}
            for name, measured in found.items()
        },
        "ratio": {"median": found[WHOLE].median / forwards_median, "mean": found[WHOLE].mean / forwards_mean},
        "tally": dict(choosers["owner"].tally.diagnostics()),
    }
