"""The two losses of the edit stage (OnceEdit eq. 5-7) and the training loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from harness.api import Advance
from harness.errors import UserError
from harness.models.loaded import capped
from harness.models.precision import at_least_fp32
from methods.onceedit.packing import packed_hidden_at
from methods.onceedit.rows import TrainingRow, epoch_batches, negatives_per_epoch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.models.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class EpochLosses:
    """Means over an epoch; each batch is measured before its update, so the values are conservative.

    Attributes:
        generation: cross entropy per target token.
        weight: binary cross entropy of `[WEIGHT]`, weighted as in the loss.
        accuracy: fraction of target tokens that are the arg-max.
    """

    generation: float
    weight: float
    accuracy: float

    @classmethod
    def of(cls, sums_5: Tensor) -> "EpochLosses":
        """Compute the means from summed outputs of `losses`; synchronises with the device."""
        generation, right, weight, tokens, weights = sums_5.tolist()
        return cls(generation / tokens, weight / weights, right / tokens)


def fine_tune(
    plugin: "LoadedModel",
    entry: nn.Linear,
    trained: Sequence[nn.Parameter],
    edits: Sequence[Sequence[TrainingRow]],
    negatives: Sequence[TrainingRow],
    hparams: Mapping[str, Any],
    seed: int,
    progress: Callable[[str, int], AbstractContextManager[Advance]],
    earlier: Sequence[Sequence[TrainingRow]] = (),
) -> list[EpochLosses]:
    """Minimise L_gen + λ · L_weight (OnceEdit eq. 7) in place and return the losses per epoch.

    An epoch contains every edit once and `negatives` prompts per edit, drawn without replacement and spread evenly, so a
    ratio of 1:1 gives 16 + 16 in a batch of 32. In a sequence, `replay` earlier edits per edit are drawn likewise and count
    as edits, so that an epoch costs the same however many there are. Training stops after the first epoch that reaches both
    `stop_accuracy` (of target tokens) and `stop_bce`. The host synchronises with the device once per epoch.

    Args:
        plugin: the plug-in in fp32.
        entry: `[WEIGHT]`, always trained.
        trained: the other parameters to train: those of the plug-in, or its low-rank updates.
        edits, negatives: training rows.
        hparams: values of `OnceEditHparams`.
        seed: seed of the order and of the choice of negatives.
        progress: see `Context.progress`.
        earlier: training rows of the edits that the plug-in has learned before.

    Raises:
        UserError: if training diverges.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(
        [*trained, *entry.parameters()], lr=hparams["lr"], weight_decay=hparams["weight_decay"], fused=True
    )
    n_replayed = min(len(earlier), round(len(edits) * hparams["replay"])) if earlier else 0
    n_negatives = negatives_per_epoch(len(edits) + n_replayed, len(negatives), hparams)
    steps = -(-(len(edits) + n_replayed + n_negatives) // hparams["batch"])
    history: list[EpochLosses] = []
    with (
        _checkpointed(plugin, hparams["gradient_checkpointing"]),
        progress("editing the plug-in", hparams["epochs"] * steps) as advance,
    ):
        for epoch in range(hparams["epochs"]):
            sums_5 = torch.zeros(5, dtype=torch.float64, device=plugin.device)
            replayed = _drawn(earlier, n_replayed, generator)
            for rows in epoch_batches([*edits, *replayed], negatives, n_negatives, hparams["batch"], generator):
                loss, figures_5 = losses(plugin.model, entry, rows, hparams)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                sums_5 += figures_5
                advance()
            reached = EpochLosses.of(sums_5)
            if not (reached.generation < float("inf") and reached.weight < float("inf")):
                raise UserError(
                    f"editing the plug-in diverged in epoch {epoch + 1}: {reached}",
                    fix=f"hparams: {{lr: {hparams['lr'] / 3:.1g}}}",
                )
            history.append(reached)
            knows_weight = not hparams["lambda_weight"] or reached.weight < hparams["stop_bce"]
            if reached.accuracy >= hparams["stop_accuracy"] and knows_weight:
                break
    return history


def _drawn(
    earlier: Sequence[Sequence[TrainingRow]], number: int, generator: torch.Generator
) -> list[Sequence[TrainingRow]]:
    """So many earlier edits, without replacement; the generator is left alone if none are wanted."""
    return [earlier[place] for place in torch.randperm(len(earlier), generator=generator)[:number]] if number else []


def losses(
    model: "PreTrainedModel", entry: nn.Linear, rows: Sequence[TrainingRow], hparams: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Loss of a batch, and the sums for `EpochLosses`.

    L_gen is the mean cross entropy of the target tokens over the vocabulary including `[WEIGHT]` (eq. 5). L_weight is the
    mean binary cross entropy of σ(logit of `[WEIGHT]`) against z (eq. 6), where negatives have weight `negative_weight`. With
    `focal_gamma` γ, each prompt is also weighted by (1 - p)^γ, where p is the probability of its label (focal loss, Lin et al.
    2017, arXiv 1708.02002, eq. 4), so that prompts that are hard to tell apart count more.
    With `precision: bf16` the blocks run in bf16; head, logits and losses are always fp32, which costs little because only
    the needed positions pass through the head.

    Returns:
        The scalar loss, and [Σ cross entropy, correct tokens, Σ weighted BCE, target tokens, Σ weights] in fp64, the BCE
        without the focal factor.
    """
    labels = [(row, at) for row, made in enumerate(rows) for at in made.labels]
    weights = [(row, made.weight_at) for row, made in enumerate(rows) if made.weight_at is not None]
    is_edit = [float(rows[row].is_edit) for row, _ in weights]
    share = [1.0 if label else hparams["negative_weight"] for label in is_edit]

    places = [(row, at - 1) for row, at in labels] + weights
    with torch.autocast(model.device.type, torch.bfloat16, enabled=hparams["precision"] == "bf16"):
        hidden_ND = packed_hidden_at(model, [made.ids for made in rows], places)
    hidden_LD, hidden_WD = torch.split(at_least_fp32(hidden_ND), [len(labels), len(weights)])

    # `non_blocking` throughout, because a plain copy would wait for all work queued on the device
    device = model.device
    target_L = torch.tensor([rows[row].ids[at] for row, at in labels], dtype=torch.long).to(device, non_blocking=True)
    logits_LV = capped(model, torch.cat([model.get_output_embeddings()(hidden_LD), entry(hidden_LD)], dim=-1))
    entropy = functional.cross_entropy(logits_LV, target_L, reduction="sum")
    right = (logits_LV.argmax(dim=-1) == target_L).sum()

    is_edit_W, share_W = torch.tensor([is_edit, share]).to(device, non_blocking=True)
    logit_W = entry(hidden_WD).squeeze(-1)
    bce_W = functional.binary_cross_entropy_with_logits(logit_W, is_edit_W, weight=share_W, reduction="none")
    bce = weighed = bce_W.sum()
    if hparams["focal_gamma"]:
        unlikely_W = torch.where(is_edit_W > 0, -logit_W, logit_W).sigmoid()
        weighed = (unlikely_W ** hparams["focal_gamma"] * bce_W).sum()

    loss = entropy / max(len(labels), 1) + hparams["lambda_weight"] * weighed / (sum(share) or 1.0)
    sums_3 = torch.stack([value.detach().double() for value in (entropy, right, bce)])
    counts_2 = torch.tensor([len(labels), sum(share)], dtype=torch.float64).to(device, non_blocking=True)
    return loss, torch.cat([sums_3, counts_2])


@torch.no_grad()
def measured(
    model: "PreTrainedModel",
    entry: nn.Linear,
    edits: Sequence[Sequence[TrainingRow]],
    negatives: Sequence[TrainingRow],
    hparams: Mapping[str, Any],
) -> EpochLosses:
    """Evaluate the losses over all rows without training, in fp32."""
    rows = [*(row for item in edits for row in item), *negatives]
    hparams, batch = {**hparams, "precision": "fp32"}, hparams["batch"]
    chunks = (rows[start : start + batch] for start in range(0, len(rows), batch))
    return EpochLosses.of(torch.stack([losses(model, entry, chunk, hparams)[1] for chunk in chunks]).sum(dim=0))


@contextmanager
def _checkpointed(plugin: "LoadedModel", is_on: bool) -> Iterator[None]:
    """Gradient checkpointing: store only the residual stream between blocks and recompute the blocks in the backward pass."""
    blocks = [plugin.block(layer) for layer in range(plugin.n_layers)] if is_on else []
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
