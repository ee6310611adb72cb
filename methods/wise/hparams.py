"""Hyper-parameters of WISE."""

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api import Hparams
from methods.common import Implementation


class WiseHparams(Hparams):
    """All choices of WISE; the values with their sources are in `methods/hparams/wise/`.

    Attributes:
        layer: block whose second feed-forward matrix W has the side memories W' next to it.
        contexts: context prefixes that an edit is also trained behind, at most ten.
        steps, lr: of plain gradient descent, per edit.
        weight_decay: pulls W' towards zero at each step.
        decay: entries that it pulls: `masked` those that the shard trains; `all`, so that a memory drifts away from W
            where nothing was learned and is taken for an edit there too; `none`.
        norm_constraint: W' stays within this L∞ distance of W; None for no bound.
        mask_ratio: share of the entries that a shard trains, drawn anew for each.
        alpha, beta, gamma: margins of the activation loss: unrelated prompts stay below `alpha`, edits come above
            `beta`, and above unrelated ones by `gamma`.
        stop_change, stop_loss: an edit ends when its last two losses differ by no more and the last is no larger.
        save_freq: edits of a shard, each of which starts from W.
        merge_freq: edits whose shards are merged into one memory.
        density: share of each memory's largest changes that takes part in a merge.
        memory: `retrieve`: merged memories stay side by side, the most active answers. `merge`: all become one.
        act_ratio: a memory answers where its activation is above this share of the smallest that its edits had.
        reads: tokens whose mean activation decides, in training and in use: the `prompt`; the `sequence`, which in teacher
            forcing is the target too and in generation the text so far, as in EasyEdit; the sequence in training and
            teacher forcing, the prompt and then each decoding `step` by itself in generation.
        parallel: shards that are trained side by side; changes time and memory. In exact arithmetic they learn what they
            learn alone; in fp32 the jumps of the margin loss can make a difference in rounding grow until it shows.
        implementation: `corrected`, or `faithful-easyedit`, which trains on rows as EasyEdit lays them out, padding and all,
            whatever `reads` says (see `layout`), keeps W' in the model's precision, leaves the matrix's bias out of it, cuts
            a merge among equal entries, and lets a memory answer only if it is more active than the one in training.
    """

    layer: int = Field(ge=0)
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

    @model_validator(mode="after")
    def _whole_shards(self) -> Self:
        if self.merge_freq % self.save_freq:
            raise ValueError(f"merge_freq {self.merge_freq} is not a multiple of save_freq {self.save_freq}")
        return self

    @model_validator(mode="after")
    def _one_side_memory_at_a_time(self) -> Self:
        if self.implementation == "faithful-easyedit" and self.parallel != 1:
            raise ValueError(
                f"parallel {self.parallel}: padding counts in faithful-easyedit, so shards need batches of their own"
            )
        return self
