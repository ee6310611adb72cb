"""Hyper-parameters of WISE."""

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api import Hparams
from methods.common import Implementation
from methods.common.layers import Layer, blocks_above


class WiseHparams(Hparams):
    """Hyper-parameters of WISE; values and their sources are in `methods/hparams/wise/`.

    Attributes:
        layer: block whose second feed-forward matrix W gets the side memories W'.
        contexts: number of context prefixes that each edit is also trained with, at most ten.
        steps, lr: of plain gradient descent, per edit.
        weight_decay: decay of W' towards zero at each step.
        decay: entries that decay: `masked`, those that the shard trains; `all`, under which a memory drifts away from W even
            where nothing was learned, which raises its activation on unrelated prompts; `none`.
        norm_constraint: W' stays within this L∞ distance of W; None for no bound.
        mask_ratio: fraction of the entries that a shard trains, drawn independently for each shard.
        alpha, beta, gamma: margins of the activation loss: unrelated prompts stay below `alpha`, edits rise above
            `beta`, and above unrelated prompts by `gamma`.
        stop_change, stop_loss: an edit stops when its last two losses differ by at most `stop_change` and the last is at
            most `stop_loss`.
        save_freq: edits per shard; each shard starts from W.
        merge_freq: number of edits whose shards are merged into one memory.
        density: fraction of each memory's entries, the largest changes, that takes part in a merge.
        memory: `retrieve`: keep the merged memories separate, and the most active one answers. `merge`: merge all into one.
        act_ratio: a memory answers if its activation exceeds this fraction of the smallest activation among its edits.
        reads: tokens whose mean activation decides the routing, in training and at inference. `prompt`: the prompt.
            `sequence`: as in EasyEdit, the target too in teacher forcing, and the text so far in generation. `step`: the
            sequence in training and teacher forcing; in generation the prompt, then each decoding step by itself.
        parallel: shards trained together; affects time and memory. Results are the same in exact arithmetic; in fp32 the
            discontinuities of the margin loss can amplify rounding differences.
        implementation: `corrected`, or `faithful-easyedit`, which trains on rows laid out as in EasyEdit, padding included,
            regardless of `reads` (see `layout`), stores W' in the model's precision, omits the matrix's bias, breaks ties
            in a merge arbitrarily, and lets a memory answer only if it is more active than the one in training.
    """

    layer: Layer
    contexts: int = Field(ge=0, le=10)
    steps: int = Field(ge=1)
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    decay: Literal["masked", "all", "none"]
    norm_constraint: float | None = Field(gt=0)
    mask_ratio: float = Field(gt=0, le=1)
    alpha: float
    beta: float
    gamma: float
    stop_change: float = Field(ge=0)
    stop_loss: float
    save_freq: int = Field(ge=1)
    merge_freq: int = Field(ge=1)
    density: float = Field(gt=0, le=1)
    memory: Literal["retrieve", "merge"]
    act_ratio: float = Field(gt=0)
    reads: Literal["prompt", "sequence", "step"]
    parallel: int = Field(ge=1)
    implementation: Implementation

    @property
    def passes_per_edit(self) -> float:
        """The edit with each context prefix and an unrelated prompt, in each step."""
        return 3.0 * self.steps * (1 + self.contexts + 1)

    def share_of_blocks(self, n_layers: int) -> float:
        """From the edited block on."""
        return blocks_above(self.layer, n_layers, including=True) / n_layers

    @property
    def steps_per_edit(self) -> float:
        """Edits of a shard are trained one by one, shards together."""
        return self.steps / self.parallel

    @model_validator(mode="after")
    def _whole_shards(self) -> Self:
        if self.merge_freq % self.save_freq:
            raise ValueError(f"merge_freq {self.merge_freq} is not a multiple of save_freq {self.save_freq}")
        return self

    @model_validator(mode="after")
    def _one_side_memory_at_a_time(self) -> Self:
        if self.implementation == "faithful-easyedit" and self.parallel != 1:
            raise ValueError(
                f"parallel {self.parallel}: faithful-easyedit depends on the padding, so shards cannot share a batch"
            )
        return self

    @model_validator(mode="after")
    def _memories_apart(self) -> Self:
        if self.implementation == "faithful-easyedit" and self.memory == "merge":
            raise ValueError(
                "memory merge: faithful-easyedit has EasyEdit's routing for separate memories only (memory: retrieve); "
                "backend: easyedit merges them"
            )
        return self
