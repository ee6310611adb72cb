"""Causal traces as artifacts: the facts that a model knows, traces of a few facts at a time, and the whole trace.

A trace is built in parts, so that an interrupted run continues with the next few facts and several processes share the work.
"""

from math import ceil
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from harness.api import TOKENS_PER_PASS, ArtifactSpec
from harness.memory import FP64
from harness.models.catalogue import ModelRef
from harness.records import DataRef

VERSION = 1
NAME = "causal-trace"
PART_FACTS = 5
"""Facts that are traced in one artifact."""

_PROMPT_TOKENS, _RESTORED_TOKENS = 10, 7
"""Typical number of tokens of a prompt, and of those from its subject on, for time estimates."""
ROWS = 128
"""Rows per batch of a trace; more samples of a fact than this still share a batch."""
ASKED_TOGETHER = 32
"""Facts per forward pass when a model is asked what it knows."""
KINDS = 3
"""States, feed-forward outputs, attention outputs."""


class TraceOptions(BaseModel):
    """What is traced, and with which precision. ROME: 1,000 facts, 10 samples, noise of 3 σ and windows of 10 of 48 layers.

    Attributes:
        facts: maximum number of facts; only those that the model answers correctly are traced.
        samples: draws of the noise per fact.
        noise: standard deviation of the noise, as a multiple of that of the embeddings of subjects.
        mlp_window, attention_window: layers whose feed-forward or attention outputs are restored together, as a share of the
            model's depth, at least one layer. A single output of many has little effect by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    facts: int = Field(100, ge=1)
    samples: int = Field(10, ge=1)
    noise: float = Field(3.0, gt=0)
    mlp_window: float = Field(10 / 48, ge=0, le=1)
    attention_window: float = Field(10 / 48, ge=0, le=1)


def artifact(target: ModelRef, data: DataRef, options: TraceOptions, seed: int) -> ArtifactSpec:
    """A causal trace of a model on the records that a dataset keeps for training, which no cell edits or scores.

    Args:
        target: the unedited model.
        data: its train records are the candidates, in their order.
        options: what is traced.
        seed: of the noise.
    """
    n_layers = target.spec.n_layers
    inputs = {"model": target, "data": data}
    known = ArtifactSpec(
        name="known-facts",
        kind="setup",
        identity={"model": target.identity(), "data": data.identity(), "facts": options.facts, "version": VERSION},
        builder="harness.tracing.build:build_known",
        inputs=inputs,
        needs=target.artifacts(),
        passes=data.train,
        memory={"answers": target.footprint.answering(ASKED_TOGETHER)},
    )
    windows = {
        "state": 1,
        "mlp": layers_in(options.mlp_window, n_layers),
        "attention": layers_in(options.attention_window, n_layers),
    }
    common: dict[str, Any] = {
        "samples": options.samples,
        "noise": options.noise,
        "windows": windows,
        "seed": seed,
        "version": VERSION,
    }
    count = min(options.facts, data.train)
    parts = {
        f"facts {start + 1} to {min(start + PART_FACTS, count)}": ArtifactSpec(
            name=f"{NAME}-part",
            kind="setup",
            identity={**common, "start": start, "stop": min(start + PART_FACTS, count)},
            builder="harness.tracing.build:build_part",
            inputs=inputs,
            needs={"known": known, **target.artifacts()},
            passes=_passes(min(PART_FACTS, count - start), options.samples, n_layers),
            memory=_memory(target, options.samples),
        )
        for start in range(0, count, PART_FACTS)
    }
    return ArtifactSpec(
        name=NAME,
        kind="setup",
        identity=common,
        builder="harness.tracing.build:build",
        needs=parts,
        passes=0,
    )


def layers_in(share: float, n_layers: int) -> int:
    """Number of layers in a window that takes a share of the depth."""
    return max(1, round(share * n_layers))


def _memory(target: ModelRef, samples: int) -> dict[str, float]:
    """Outputs of all modules for the clean and the corrupted rows; a batch of restored rows, and its probabilities in float64."""
    model, rows = target.footprint, max(ROWS, samples)
    return {
        "recorded outputs": KINDS * model.n_layers * model.streams((1 + samples) * _PROMPT_TOKENS),
        "activations": model.forward(rows * _PROMPT_TOKENS) + 4 * model.streams(rows * _PROMPT_TOKENS),
        "probabilities": model.logits(rows) + rows * model.vocab * 2.0 * FP64,
    }


def _passes(facts: int, samples: int, n_layers: int) -> float:
    """A row per kind, layer, token and sample, which on average passes the upper half of the blocks."""
    rows = KINDS * n_layers * _RESTORED_TOKENS * samples
    return ceil(facts * rows / 2 * _PROMPT_TOKENS / TOKENS_PER_PASS)
