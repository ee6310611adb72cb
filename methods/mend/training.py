"""Meta-training: on unrelated facts, the hypernetwork learns updates that generalise to rephrases and preserve locality."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.api import ArtifactSpec, Context
from harness.errors import UserError
from harness.models.linear import weight_of
from harness.models.loaded import LoadedModel
from harness.models.submodels import logits_at
from methods.common.factors import edited_modules, factors_of, label_losses, places_of, row_means
from methods.common.prediction import Example, PredictionRow, examples
from methods.common.transforms import EditedMatrix, save
from methods.mend.hparams import HypernetworkHparams
from methods.mend.lowrank import LowRank, fast_weights
from methods.mend.network import Hypernetwork
from methods.mend.prefix import PrefixCache


@dataclass(frozen=True, slots=True)
class Task:
    """One edit with the rows that its edit loss and its locality loss are computed on."""

    edit: PredictionRow
    outer: PredictionRow
    locality: PredictionRow


@dataclass(frozen=True, slots=True)
class Look:
    """One validation: mean losses per edit over the steps since the last validation and over the held-out records."""

    step: int
    trained: float
    held_out: float
    held_out_edit: float
    held_out_locality: float


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Train the hypernetwork of `spec` and write it to `folder`.

    Raises:
        UserError: if there are too few train records, or if training diverges.
    """
    model = context.load_model(spec.inputs["model"])
    hparams = HypernetworkHparams.model_validate(spec.identity["hparams"])
    records = context.load_data(spec.inputs["data"]).train
    with context.clock.phase("setup"):
        made = examples(model, records, hparams.implementation)
        if len(made) <= hparams.validation:
            raise UserError(
                f"mend learns from train records with a rephrase and a locality probe, but only {len(made)} of {len(records)} "
                f"have both; {hparams.validation} of them are held out",
                fix="datasets: [{train: ...}] with more records, or a smaller `validation`",
            )
        hypernetwork, looks = train(model, made, hparams, spec.identity["seed"], context)
    best = min(looks, key=lambda look: look.held_out)
    report = {
        "records": len(made),
        "best_step": best.step,
        "held_out": best.held_out,
        "edit_lr": hypernetwork.edit_lr_M.tolist(),
        "looks": [asdict(look) for look in looks],
    }
    save(hypernetwork, report, folder)


def train(
    model: LoadedModel, made: Sequence[Example], hparams: HypernetworkHparams, seed: int, context: Context
) -> tuple[Hypernetwork, list[Look]]:
    """Train on all but `validation` randomly chosen examples and return the hypernetwork that is best on these.

    Deterministic for a given seed. The model is not changed.

    Raises:
        UserError: if a loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    trainer = Trainer(model, hparams, seed)
    order = torch.randperm(len(made), generator=generator).tolist()
    learned = [made[index] for index in order[: -hparams.validation]]
    held_out = [_first(made[index]) for index in order[-hparams.validation :]]
    batches = list(islice(_batches(learned, hparams.train_batch, generator), hparams.steps))
    trainer.read_ahead([*held_out, *chain.from_iterable(batches)])  # so that all steps cost the same
    looks: list[Look] = []
    best, kept, since = math.inf, {}, 0
    with context.progress("training the hypernetwork of MEND", hparams.steps) as advance:
        losses: list[Tensor] = []
        for step, batch in enumerate(batches, start=1):
            losses.append(trainer.step(batch))
            advance()
            if step % hparams.validate_every:
                continue
            look = Look(step, float(torch.stack(losses).mean()), *trainer.held_out(held_out))
            if not (look.trained + look.held_out < math.inf):
                raise UserError(
                    f"the training of mend's hypernetwork diverged by step {step}: {look}",
                    fix=f"lr: {hparams.lr / 3:.1g}, lr_of_edit_lr: {hparams.lr_of_edit_lr / 3:.1g}",
                )
            looks.append(look)
            losses = []
            if look.held_out < best:
                best, since = look.held_out, step
                kept = {name: value.clone() for name, value in trainer.hypernetwork.state_dict().items()}
            elif step - since >= hparams.patience:
                break
    trainer.hypernetwork.load_state_dict(kept)
    return trainer.hypernetwork, looks


class Trainer:
    """A hypernetwork and its optimiser.

    Args:
        model: the model to edit, frozen throughout.
        hparams: training hyper-parameters.
        seed: seed of the initial weights.
    """

    def __init__(self, model: LoadedModel, hparams: HypernetworkHparams, seed: int) -> None:
        self._model, self._hparams = model, hparams
        self._modules = edited_modules(model, hparams.layers, hparams.matrices)
        self._layer = min(layer % model.n_layers for layer in hparams.layers)
        self._prefixes = PrefixCache(model, self._layer)
        matrices = tuple(
            EditedMatrix(name, *reversed(weight_of(module).shape)) for name, module in self._modules.items()
        )
        self.hypernetwork = Hypernetwork(matrices, hparams.rank, hparams.edit_lr, seed).to(model.device)
        self._adam = torch.optim.Adam(
            [
                {"params": list(self.hypernetwork.transforms.parameters()), "lr": hparams.lr},
                {"params": [self.hypernetwork.edit_lr_M], "lr": hparams.lr_of_edit_lr},
            ],
            fused=True,
        )

    def read_ahead(self, tasks: Sequence[Task]) -> None:
        """Run the rows of all tasks through the blocks below the edited ones, which do not change."""
        rows = (row.ids for task in tasks for row in (task.edit, task.outer, task.locality))
        self._prefixes.fill(rows, self._hparams.train_batch)

    def step(self, tasks: Sequence[Task]) -> Tensor:
        """Take one optimiser step on a batch of independent edits.

        Returns:
            Mean loss per edit before the step, detached and still on the device.
        """
        edit_B, locality_B = self.losses(tasks, observes=True)
        loss = (self._hparams.c_edit * edit_B + self._hparams.c_loc * locality_B).sum()
        self._adam.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.hypernetwork.parameters(), self._hparams.clip)
        self._adam.step()
        return loss.detach() / len(tasks)

    @torch.no_grad()
    def held_out(self, tasks: Sequence[Task]) -> tuple[float, float, float]:
        """Mean total loss, edit loss and locality loss over held-out edits."""
        size = self._hparams.train_batch
        parts = [self.losses(tasks[start : start + size], observes=False) for start in range(0, len(tasks), size)]
        edit = float(torch.cat([edit_B for edit_B, _ in parts]).mean())
        locality = float(torch.cat([locality_B for _, locality_B in parts]).mean())
        return self._hparams.c_edit * edit + self._hparams.c_loc * locality, edit, locality

    def losses(self, tasks: Sequence[Task], observes: bool) -> tuple[Tensor, Tensor]:
        """Edit loss and locality loss after each of B independent edits (MEND eq. 4a and 4b).

        Args:
            tasks: the edits.
            observes: update the running statistics with their gradients first.

        Returns:
            -log p of the target in the outer row, mean over its ids, and KL(unedited ‖ edited) in the locality row, mean
            over its positions; B each, differentiable with respect to the hypernetwork.
        """
        model, layer = self._model, self._layer
        edits = [task.edit for task in tasks]
        outer, locality = [task.outer for task in tasks], [task.locality for task in tasks]
        entering = self._prefixes.streams([row.ids for row in edits])
        alone_B = torch.ones(len(tasks), device=model.device)
        seen = factors_of(model, self._modules, entering, layer, edits, alone_B)
        if observes:
            self.hypernetwork.observe(seen)
        updates = self.hypernetwork(seen)

        with torch.no_grad():
            spared = self._prefixes.streams([row.ids for row in locality])
            unedited_NV = logits_at(model, spared, layer, places_of(locality)).log_softmax(-1)
        judged = [*outer, *locality]
        changes: dict[nn.Module, LowRank] = {
            module: updates[name].repeated(2) for name, module in self._modules.items()
        }
        with fast_weights(changes):
            entering = self._prefixes.streams([row.ids for row in judged])
            logits_NV = logits_at(model, entering, layer, places_of(judged))
        split = len(places_of(outer))
        edited_NV = logits_NV[split:].log_softmax(-1)
        divergence_N = nn.functional.kl_div(edited_NV, unedited_NV, reduction="none", log_target=True).sum(-1)
        return label_losses(logits_NV[:split], outer), row_means(divergence_N, locality)


def _first(example: Example) -> Task:
    """The first outer row and locality row, so that every validation asks the same questions."""
    return Task(example.edit, example.outer[0], example.locality[0])


def _batches(learned: Sequence[Example], size: int, generator: torch.Generator) -> Iterator[list[Task]]:
    """Endless batches: each epoch visits every example once, in a new order, with a random rephrase and locality probe."""

    def drawn(rows: Sequence[PredictionRow]) -> PredictionRow:
        return rows[int(torch.randint(len(rows), (), generator=generator))]

    batch: list[Task] = []
    while True:
        for index in torch.randperm(len(learned), generator=generator).tolist():
            example = learned[index]
            batch.append(Task(example.edit, drawn(example.outer), drawn(example.locality)))
            if len(batch) == size:
                yield batch
                batch = []
