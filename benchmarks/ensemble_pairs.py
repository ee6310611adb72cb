"""Model pairs for `benchmarks.ensemble`: architectures, numbers of shared anchors, and relative states."""

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from benchmarks.ensemble_data import PairShape, Statistics, Tables, draw_tables
from benchmarks.timing import peak_bytes, timed
from harness.errors import UserError
from harness.models.catalogue import entry
from harness.models.spec import ModelSpec
from methods.onceedit.fusion import Projection
from methods.onceedit.relative import RelativeState, Rule

ANCHOR_SHARE = 0.75
"""Number of anchors relative to the smaller vocabulary, if it is unknown; the share of Mistral-7B and TinyLlama."""

_ANCHORS = {
    ("llama2-7b", "tinyllama-1.1b"): 31999,
    ("mistral-7b-v0.1", "tinyllama-1.1b"): 24184,
    ("gpt-j-6b", "tinyllama-1.1b"): 17830,
}  # OnceEdit, Table 9


def _shape(n_layers: int, hidden: int, vocab: int) -> ModelSpec:
    heads = max(1, hidden // 64)
    return ModelSpec(
        "llama",
        n_layers=n_layers, hidden=hidden, ffn=hidden * 11 // 4, vocab=vocab, n_heads=heads, n_kv_heads=heads,
        max_positions=2048, dtype="float32", adds_bos=True,
    )  # fmt: skip


OWN_PAIRS = {
    "small": (_shape(4, 512, 32000), _shape(2, 256, 32000)),
    "tiny": (_shape(2, 64, 600), _shape(1, 32, 600)),
}


@dataclass(frozen=True, slots=True)
class ModelPair:
    """The architectures of a target model and a plug-in.

    Attributes:
        llm, plugin: their shapes; the plug-in's vocabulary excludes `[WEIGHT]`.
        anchors: number of shared tokens.
    """

    llm: ModelSpec
    plugin: ModelSpec
    anchors: int

    @classmethod
    def named(cls, name: str) -> "ModelPair":
        """A pair by name: `small`, `tiny`, or two catalogue names joined by `+`.

        Raises:
            UserError: if the name is unknown.
        """
        if name in OWN_PAIRS:
            (llm, plugin), key = OWN_PAIRS[name], ("", "")
        else:
            first, plus, second = name.partition("+")
            if not plus:
                raise UserError(f"unknown pair '{name}'", fix=f"--pair {', '.join(OWN_PAIRS)} or MODEL+PLUGIN")
            llm, plugin, key = entry(first).spec, entry(second).spec, (first, second)
        share = round(ANCHOR_SHARE * min(llm.vocab, plugin.vocab))
        return cls(llm, plugin, _ANCHORS.get(key, share))

    def shape(self, statistics: Statistics) -> PairShape:
        """The shape of its embedding tables."""
        return PairShape(
            self.llm.vocab, self.plugin.vocab + 1, self.anchors, self.llm.hidden, self.plugin.hidden, statistics
        )


def plain_shape(tokens: int, widths: tuple[int, int], statistics: Statistics) -> PairShape:
    """The shape of a pair whose vocabularies have the same size."""
    return PairShape(tokens, tokens + 1, round(ANCHOR_SHARE * tokens), *widths, statistics)


@dataclass(frozen=True, eq=False)
class BuiltPair:
    """Embeddings and relative states of a pair, and the cost of building them.

    Attributes:
        shape: shape of the tables.
        tables: the embeddings.
        llm, plugin: projections onto the anchors.
        build_s: seconds to build both states and their bounds; overestimated by a few per cent on the CPU, where memory
            tracking slows it down.
        build_bytes: peak memory while building, excluding the embeddings.
        state_bytes: size of the states and bounds.
    """

    shape: PairShape
    tables: Tables
    llm: Projection
    plugin: Projection
    build_s: float
    build_bytes: int
    state_bytes: int

    def results(self) -> dict[str, Any]:
        """Shape and cost, for the JSON file."""
        return {
            **dataclasses.asdict(self.shape),
            "build_s": self.build_s,
            "build_peak_bytes": self.build_bytes,
            "state_bytes": self.state_bytes,
            "matrix_bytes": self.shape.matrix_bytes,
        }


@cache
def built(shape: PairShape, rule: tuple[Rule, float], dtype: torch.dtype, device: torch.device, seed: int) -> BuiltPair:
    """Draw the embeddings of a pair and build its relative states by a rule and its temperature; cached."""
    tables = draw_tables(shape, dtype, device, seed)

    def build() -> tuple[Projection, Projection]:
        llm = Projection(RelativeState.build(tables.llm_VD, tables.llm_ids, *rule))
        plugin = Projection(RelativeState.build(tables.plugin_UD, tables.plugin_ids, *rule))
        for side in (llm, plugin):
            _ = side.bounds
        return llm, plugin

    (seconds, (llm, plugin)), peak = peak_bytes(lambda: timed(build, device), device)
    state_bytes = sum(side.state.state_bytes + _bytes(side.bounds) for side in (llm, plugin))
    return BuiltPair(shape, tables, llm, plugin, seconds, peak, state_bytes)


def _bytes(holder: object) -> int:
    tensors = [value for value in vars(holder).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
