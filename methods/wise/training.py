"""WISE's training: edits of a shard train one side memory sequentially; shards are trained in parallel (WISE §2.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.api import Advance, State
from harness.errors import UserError
from harness.models.loaded import LoadedModel
from harness.models.precision import at_least_fp32
from methods.wise.hparams import WiseHparams
from methods.wise.layout import Lesson, LessonLayout, PausedRows
from methods.wise.memory import Activation, SideMemory, activation_of, lost_bias, scores


@dataclass(frozen=True, slots=True)
class Learned:
    """Results of lessons that S shards learned in parallel.

    Attributes:
        activation_S: mean activation of the edit's rows in the last forward pass.
        losses_S: total loss in the last forward pass.
        steps_S: number of updates.
    """

    activation_S: Tensor
    losses_S: Tensor
    steps_S: Tensor


@dataclass(frozen=True, slots=True)
class Shards:
    """All shards after some edits.

    Attributes:
        sides: the side memory of each shard that is not merged yet, in order; the last one may be unfinished.
        loss, steps: mean final loss and mean number of updates over the latest lessons.
        edits: total number of edits.
        mask_DK: mask of the last shard, for further edits to it.
        generator: state of the generator that draws masks.
        merged: what the earlier shards were merged into (see `merging.settled`).
    """

    sides: tuple[SideMemory, ...]
    loss: float
    steps: float
    edits: int
    mask_DK: Tensor
    generator: Tensor
    merged: tuple[SideMemory, ...] = ()

    def state(self) -> State:
        """Convert to tensors."""
        memories = (*self.merged, *self.sides)
        return {
            "changes_SDK": torch.stack([side.change_DK for side in memories]),
            "thresholds_S": torch.tensor([side.threshold for side in memories], dtype=torch.float64),
            "merged": torch.tensor(len(self.merged)),
            "diagnostics": torch.tensor([self.loss, self.steps], dtype=torch.float64),
            "edits": torch.tensor(self.edits),
            "mask_DK": self.mask_DK,
            "generator": self.generator,
        }

    @classmethod
    def of(cls, state: State) -> "Shards":
        """Rebuild from the tensors returned by `state`; edits exported before there was `merged` have all shards."""
        thresholds: list[float] = state["thresholds_S"].tolist()
        memories = tuple(
            SideMemory(change, threshold) for change, threshold in zip(state["changes_SDK"], thresholds, strict=True)
        )
        merged, (loss, steps) = int(state.get("merged", 0)), state["diagnostics"].tolist()
        edits, generator = int(state["edits"]), state["generator"].cpu()
        return cls(memories[merged:], loss, steps, edits, state["mask_DK"], generator, memories[:merged])


@dataclass(frozen=True, slots=True)
class _Group:
    """Shards trained in parallel, with the lessons of each."""

    changes_SDK: Tensor
    thresholds_S: Tensor
    masks_SDK: Tensor
    lessons: Sequence[Sequence[Lesson]]


def learn(
    model: LoadedModel,
    lessons: Sequence[Lesson],
    hparams: WiseHparams,
    seed: int,
    advance: Advance,
    before: Shards | None = None,
) -> Shards:
    """Train side memories on consecutive shards of `save_freq` lessons each; the last shard may be shorter.

    Every shard starts from W with its own mask and is independent of the others, so `parallel` shards are trained in one
    batch, each with the same result as on its own.

    Args:
        model: frozen.
        lessons: in order, at least one.
        hparams: hyper-parameters of WISE.
        seed: seed of the masks.
        advance: called with the number of lessons done.
        before: shards after earlier lessons; the last one is filled up first.

    Raises:
        UserError: if a loss is not finite.
    """
    _, parameter = model.value_matrix(hparams.layer)
    weight_DK = at_least_fp32(parameter.detach().to(model.device))
    generator = torch.Generator().manual_seed(seed)
    edits, sides, ends = 0, [], []
    mask_DK = torch.empty(0)
    if before is not None:
        generator.set_state(before.generator)
        edits, sides, mask_DK = before.edits, list(before.sides), before.mask_DK

    def learn_group(group: _Group) -> None:
        for turn in range(len(group.lessons[0])):
            # only the last shard can be shorter, so the shards that still have a lesson come first
            now = [shard[turn] for shard in group.lessons if turn < len(shard)]
            active = slice(len(now))
            learned = learn_lessons(model, now, group.changes_SDK[active], group.masks_SDK[active], weight_DK, hparams)
            group.thresholds_S[active] = torch.minimum(group.thresholds_S[active], learned.activation_S)
            ends.append(torch.stack([learned.losses_S, learned.steps_S], dim=1))
            _check(now, learned.losses_S.isfinite().tolist())
            advance(len(now))
        sides.extend(
            SideMemory(change, float(threshold))
            for change, threshold in zip(group.changes_SDK, group.thresholds_S, strict=True)
        )

    missing = -edits % hparams.save_freq
    if missing:
        last, rest = sides.pop(), lessons[:missing]
        threshold_1 = torch.tensor([last.threshold], dtype=torch.float32, device=weight_DK.device)
        learn_group(_Group(last.change_DK.clone()[None], threshold_1, mask_DK[None].to(weight_DK.device), [rest]))
    fresh = lessons[missing:]
    shards = [fresh[start : start + hparams.save_freq] for start in range(0, len(fresh), hparams.save_freq)]
    for start in range(0, len(shards), hparams.parallel):
        group = shards[start : start + hparams.parallel]
        # drawn on the CPU, shard by shard: independent of the device and of `parallel`
        masks_SDK = torch.stack([torch.rand(weight_DK.shape, generator=generator) < hparams.mask_ratio for _ in group])
        masks_SDK = masks_SDK.to(weight_DK.device)
        changes_SDK = torch.zeros(masks_SDK.shape, dtype=weight_DK.dtype, device=weight_DK.device)
        thresholds_S = torch.full((len(group),), torch.inf, device=weight_DK.device)
        learn_group(_Group(changes_SDK, thresholds_S, masks_SDK, group))
        mask_DK = masks_SDK[-1]
    loss, steps = torch.cat(ends).mean(0).tolist()
    merged = before.merged if before else ()
    return Shards(tuple(sides), loss, steps, edits + len(lessons), mask_DK, generator.get_state(), merged)


def _check(lessons: Sequence[Lesson], is_finite: Sequence[bool]) -> None:
    for lesson, is_sound in zip(lessons, is_finite, strict=True):
        if not is_sound:
            prompt = lesson.edits[0].prompt
            raise UserError(f"wise: the loss of the edit {prompt!r} is not a number", fix="choose a smaller `lr`")


def learn_lessons(
    model: LoadedModel,
    lessons: Sequence[Lesson],
    changes_SDK: Tensor,
    masks_SDK: Tensor,
    weight_DK: Tensor,
    hparams: WiseHparams,
) -> Learned:
    """Learn one lesson per shard: gradient descent on the target loss and the margins, over the masked entries.

    Everything below the matrix runs once; each step runs the matrix, the blocks above it, and the head at target positions.

    Args:
        model: frozen.
        lessons: one per shard, S.
        changes_SDK: W' - W of each shard, updated in place.
        masks_SDK: True for the entries that a shard trains.
        weight_DK: W, in the precision of the changes.
        hparams: hyper-parameters of WISE.
    """
    objective = Objective(model, LessonLayout.of(model, lessons, hparams), hparams)
    # EasyEdit stores W' itself (WISE.py:404), so changes below its precision are lost from W' - W when memories are merged
    kept_as = model.model.dtype if hparams.implementation == "faithful-easyedit" else None
    shards = len(lessons)
    is_active_S = torch.ones(shards, dtype=torch.bool, device=changes_SDK.device)
    learned = Learned(*torch.zeros(3, shards, device=changes_SDK.device).unbind())
    recorded: list[Tensor] = []
    for _ in range(hparams.steps):
        trained_SDK = changes_SDK.detach().requires_grad_()
        losses_S, activation_S = objective(trained_SDK)
        learned.activation_S[is_active_S] = activation_S.detach().to(learned.activation_S.dtype)[is_active_S]
        learned.losses_S[is_active_S] = losses_S.detach().to(learned.losses_S.dtype)[is_active_S]
        if len(recorded) > 1:
            change_S = (recorded[-1] - recorded[-2]).abs()
            is_active_S = is_active_S & ~((change_S <= hparams.stop_change) & (recorded[-1] <= hparams.stop_loss))
        if not is_active_S.any():
            break
        recorded.append(losses_S.detach())
        (gradient_SDK,) = torch.autograd.grad(losses_S.sum(), trained_SDK)
        _descend(changes_SDK, gradient_SDK, masks_SDK, weight_DK, is_active_S, hparams, kept_as)
        learned.steps_S.add_(is_active_S)
    return learned


@torch.no_grad()
def _descend(
    changes_SDK: Tensor,
    gradient_SDK: Tensor,
    masks_SDK: Tensor,
    weight_DK: Tensor,
    is_active_S: Tensor,
    hparams: WiseHparams,
    kept_as: torch.dtype | None,
) -> None:
    """Take one step for the active shards, in place; if `kept_as` is given, round W' to that precision."""
    gradient_SDK *= masks_SDK
    if hparams.decay != "none":
        pull_SDK = hparams.weight_decay * (weight_DK + changes_SDK)
        gradient_SDK += pull_SDK if hparams.decay == "all" else pull_SDK * masks_SDK
    # torch.where, not multiplication by zero: NaN gradients of a stopped shard must not leak in
    changes_SDK -= torch.where(is_active_S[:, None, None], hparams.lr * gradient_SDK, 0.0)
    if hparams.norm_constraint is not None:
        changes_SDK.clamp_(-hparams.norm_constraint, hparams.norm_constraint)
    if kept_as is not None:
        changes_SDK.copy_((weight_DK + changes_SDK).to(kept_as) - weight_DK)


class Objective:
    """Training objective (WISE eq. 7 and 8): target loss plus margins that separate edits from unrelated prompts."""

    def __init__(self, model: LoadedModel, layout: LessonLayout, hparams: WiseHparams) -> None:
        self._layout, self._hparams = layout, hparams
        self._activation: Activation = activation_of(model, hparams.layer)
        self._lost_D = lost_bias(model, hparams)

    def __call__(self, changes_SDK: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss and the mean activation of the edit's rows, both S."""
        hparams, edits = self._hparams, self._layout.edits
        added_BTD = self._added(edits, changes_SDK)
        losses_SR = self._by_lesson(edits.paused.losses(edits.paused.outputs_BTD + added_BTD) * self._layout.share_B)
        inside_SR = self._by_lesson(self._scores(edits, added_BTD))
        outside_S1 = self._by_lesson(self._scores(self._layout.spared, self._added(self._layout.spared, changes_SDK)))
        margins_S = (
            _mean_of_positive(outside_S1 - inside_SR + hparams.gamma)
            + _mean_of_positive(outside_S1 - hparams.alpha)
            + _mean_of_positive(hparams.beta - inside_SR)
        )
        return losses_SR.mean(1) + margins_S, inside_SR.mean(1)

    def _by_lesson(self, values_B: Tensor) -> Tensor:
        return values_B.reshape(len(self._layout.spared.read_BT), -1)

    def _scores(self, rows: PausedRows, added_BTD: Tensor) -> Tensor:
        return scores(self._activation, rows.paused.outputs_BTD, added_BTD, rows.read_BT)

    def _added(self, rows: PausedRows, changes_SDK: Tensor) -> Tensor:
        """Output change of the side memories at each token, B × T × D; rows are grouped by lesson."""
        inputs_BTK = rows.paused.inputs_BTK.to(changes_SDK.dtype)
        shards, width = len(changes_SDK), inputs_BTK.shape[1]
        added_SND = inputs_BTK.reshape(shards, -1, inputs_BTK.shape[2]) @ changes_SDK.mT
        return added_SND.reshape(len(inputs_BTK), width, -1) - self._lost_D


def _mean_of_positive(values_SR: Tensor) -> Tensor:
    """Row-wise mean over positive entries; zero if a row has none."""
    return values_SR.clamp(min=0).sum(1) / (values_SR > 0).sum(1).clamp(min=1)
