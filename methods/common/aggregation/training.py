"""Meta-training of the hypernetworks of MALMEN and EMSEdit: first-order gradients through the least-squares problem.

Keys and gradients of the edits count as constants, so that all rounds of a batch see the same gradient of the outer loss with
respect to the final shift (EMSEdit §3).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.api import ArtifactSpec, Context
from harness.errors import UserError
from harness.models.loaded import LoadedModel
from harness.models.submodels import logits_at
from methods.common.aggregation.hparams import ShiftHparams
from methods.common.aggregation.network import CHUNK_ROWS, ShiftNetwork, save
from methods.common.aggregation.rounds import Gathered, Prepared, Rounds, Shifts
from methods.common.factors import label_losses, places_of, row_means
from methods.common.prediction import Example, PredictionRow, examples
from methods.common.solves import ridge_gradients


@dataclass(frozen=True, slots=True)
class Batch:
    """Edits of one update, ready for repeated passes.

    Attributes:
        edits: the edits themselves.
        outer: a rephrase of each, which the loss after the edit is computed on.
        locality: a locality probe of each; empty if it does not count.
    """

    edits: Sequence[Prepared]
    outer: Sequence[Prepared]
    locality: Sequence[Prepared]


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Train the hypernetwork of `spec` and write it to `folder`.

    Raises:
        UserError: if there are too few train records, if training diverges, or if a learned rate changed its sign.
    """
    model = context.load_model(spec.inputs["model"])
    hparams = ShiftHparams.model_validate(spec.identity["hparams"])
    records = context.load_data(spec.inputs["data"]).train
    with context.clock.phase("setup"):
        made = examples(model, records, "corrected")
        if not made:
            raise UserError(
                f"{spec.inputs['method']} learns from train records with a rephrase and a locality probe, but none of "
                f"{len(records)} has both",
                fix="datasets: [{train: ...}] with more records",
            )
        trainer = Trainer(model, hparams, spec.identity["seed"])
        losses = train(trainer, made, spec.identity["seed"], context)
    require_descent(trainer.networks, hparams, len(losses))
    rates = [network.edit_lr_M.tolist() for network in trainer.networks]
    save(trainer.networks, {"records": len(made), "losses": losses, "edit_lr": rates}, folder)


def train(trainer: "Trainer", made: Sequence[Example], seed: int, context: Context) -> list[float]:
    """Train on batches drawn without replacement while enough examples are left; deterministic for a seed.

    Returns:
        The mean loss per edit after the shifts of each optimiser step, before that step.

    Raises:
        UserError: if a loss is not finite.
    """
    hparams, losses = trainer.hparams, []
    batches, _ = hparams.batches(len(made))
    steps = hparams.steps * (batches * hparams.rounds if hparams.mode == "batch" else 1)
    with context.progress("training the hypernetwork", steps) as advance:
        for sequence in _sequences(trainer, made, seed):
            for loss in trainer.learn(sequence):
                losses.append(loss)
                advance()
                if not loss < float("inf"):
                    raise UserError(
                        f"the training of the hypernetwork diverged at step {len(losses)}",
                        fix=f"lr: {hparams.lr / 3:.1g}, edit_lr: {hparams.edit_lr / 3:.1g}",
                    )
    return losses


def require_descent(networks: Sequence[ShiftNetwork], hparams: ShiftHparams, steps: int) -> None:
    """Check that edits still follow the gradient: a negative rate would make the old answer more likely.

    One step of Adam changes a rate by about `lr`, whatever the gradient.

    Args:
        networks: trained.
        hparams: of the training.
        steps: optimiser steps that were taken.

    Raises:
        UserError: if a rate is not positive.
    """
    outweighing = [f"`{name}`" for name in ("norm_weight", "loc_weight") if getattr(hparams, name)]
    smaller = f", or a smaller {' or '.join(outweighing)}" if outweighing else ""
    for network in networks:
        for matrix, rate in zip(network.matrices, network.edit_lr_M.tolist(), strict=True):
            if not rate > 0:
                raise UserError(
                    f"the learned edit rate of {matrix.name} is {rate:.1e}: edits would increase their loss",
                    fix=f"lr: {hparams.edit_lr / steps / 2:.1g}, too small to change its sign in this training{smaller}",
                )


class Trainer:
    """The networks of all rounds and their optimiser. The model and its weights are not changed.

    Args:
        model: the model to edit.
        hparams: hyper-parameters of the training.
        seed: seed of the initial weights.
    """

    def __init__(self, model: LoadedModel, hparams: ShiftHparams, seed: int) -> None:
        self.hparams, self.rounds = hparams, Rounds(model, hparams)
        self.networks = [
            ShiftNetwork(self.rounds.matrices, rank, hparams.blocks_of_network, hparams.edit_lr, seed + number).to(
                model.device
            )
            for number, rank in enumerate(hparams.ranks)
        ]
        self._parameters = [parameter for network in self.networks for parameter in network.parameters()]
        self._adam = torch.optim.Adam(self._parameters, lr=hparams.lr)

    def learn(self, sequence: Sequence[Batch]) -> Iterator[float]:
        """Take all optimiser steps of one pass over the batches; yield the loss of each."""
        return self._independently(sequence) if self.hparams.mode == "batch" else self._in_sequence(sequence)

    def _independently(self, batches: Sequence[Batch]) -> Iterator[float]:
        """Each round starts from the unedited weights and ends with a step (EMSEdit, batch mode)."""
        (network,) = self.networks
        for batch in batches:
            for _ in range(self.hparams.rounds):
                gathered = self.rounds.gather(batch.edits, network)
                shifts = _rounded(self.rounds.shifts(gathered, network), gathered)
                loss, outer = self.outer(batch, shifts)
                self.backward(network, gathered, outer)
                nn.utils.clip_grad_norm_(self._parameters, self.hparams.clip)
                self._step()
                yield loss

    def _in_sequence(self, batches: Sequence[Batch]) -> Iterator[float]:
        """Shifts of all rounds and batches add up, and so do the gradients for one step (EMSEdit, sequential mode)."""
        total: dict[str, Tensor] = {}
        losses = []
        for batch in batches:
            rounds = []
            for network in self.networks:
                with self.rounds.shifted(total):
                    gathered = self.rounds.gather(batch.edits, network)
                shifts = _rounded(self.rounds.shifts(gathered, network), gathered)
                total = {name: total[name] + shift if total else shift for name, shift in shifts.items()}
                rounds.append((network, gathered))
            loss, outer = self.outer(batch, total)
            losses.append(loss)
            for network, gathered in rounds:
                self.backward(network, gathered, outer)
                nn.utils.clip_grad_norm_(self._parameters, self.hparams.clip)
        self._step()
        yield sum(losses) / len(losses)

    def outer(self, batch: Batch, shifts: Shifts) -> tuple[float, dict[str, Tensor]]:
        """The loss after an edit, and its gradient with respect to the shift of each matrix, K × D.

        The loss sums over edits -log p of the target in a rephrase, mean over its tokens, and `loc_weight` · KL(unedited ‖
        edited) in a locality probe; and adds `norm_weight` · ‖shifts‖².

        Returns:
            The loss divided by the number of edits, and the gradients.
        """
        hparams, leaves = self.hparams, {name: shift.clone().requires_grad_() for name, shift in shifts.items()}
        loss = torch.zeros((), device=self.rounds.model.device)
        gradients = {name: torch.zeros_like(shift) for name, shift in shifts.items()}
        for part, loss_of in self._parts(batch):
            with self.rounds.shifted(leaves), torch.enable_grad():
                value = loss_of(part)
            parts = torch.autograd.grad(value, list(leaves.values()))
            for gradient, more in zip(gradients.values(), parts, strict=True):
                gradient.add_(more)
            loss = loss + value.detach()
        for name, shift in shifts.items():
            loss = loss + hparams.norm_weight * shift.square().sum()
            gradients[name].add_(shift, alpha=2 * hparams.norm_weight)
        edits = sum(len(part.rows) for part in batch.edits)
        return float(loss) / edits, gradients

    def backward(self, network: ShiftNetwork, gathered: Mapping[str, Gathered], outer: Mapping[str, Tensor]) -> None:
        """Add the gradient of the outer loss to the network's parameters, through the least-squares problem.

        Args:
            network: the one that proposed the changes.
            gathered: keys and gradients that they were proposed for.
            outer: gradient of the loss with respect to each shift.
        """
        for index, matrix in enumerate(self.rounds.matrices):
            seen = gathered[matrix.name]
            with torch.no_grad():
                wanted_ND = network.changes(index, seen.keys_NK, seen.gradients_ND)
                weight = network.ridge(index)
                pull_ND, pull = ridge_gradients(seen.keys_NK, wanted_ND, weight, outer[matrix.name])
            surrogate = pull.to(wanted_ND) * network.log_ridge_M[index].exp()
            surrogate.backward()  # type: ignore[no-untyped-call]
            for start in range(0, len(pull_ND), CHUNK_ROWS):
                rows = slice(start, start + CHUNK_ROWS)
                proposed_ND = network.changes(index, seen.keys_NK[rows], seen.gradients_ND[rows])
                wanted = (proposed_ND * pull_ND[rows].to(proposed_ND)).sum()
                wanted.backward()  # type: ignore[no-untyped-call]

    def _step(self) -> None:
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)

    def _parts(self, batch: Batch) -> Iterator[tuple[Prepared, Callable[[Prepared], Tensor]]]:
        """Micro-batches of the outer loss, each with the function that computes its part of it."""
        for part in batch.outer:
            yield part, self._right
        for part in batch.locality:
            yield part, self._kept(part)

    def _right(self, part: Prepared) -> Tensor:
        return label_losses(self._logits(part), part.rows).sum()

    def _kept(self, part: Prepared) -> Callable[[Prepared], Tensor]:
        with torch.no_grad():
            before_NV = self._logits(part).log_softmax(-1)

        def divergence(part: Prepared) -> Tensor:
            after_NV = self._logits(part).log_softmax(-1)
            each_N = nn.functional.kl_div(after_NV, before_NV, reduction="none", log_target=True).sum(-1)
            return self.hparams.loc_weight * row_means(each_N, part.rows).sum()

        return divergence

    def _logits(self, part: Prepared) -> Tensor:
        return logits_at(self.rounds.model, part.entering, self.rounds.layer, places_of(part.rows))


def _rounded(shifts: Mapping[str, Tensor], gathered: Mapping[str, Gathered]) -> dict[str, Tensor]:
    """Shifts in the precision in which the model's matrices are edited."""
    return {name: shift.to(gathered[name].keys_NK.dtype) for name, shift in shifts.items()}


def _sequences(trainer: Trainer, made: Sequence[Example], seed: int) -> Iterator[list[Batch]]:
    """The batches of each of the `steps` passes, with a random rephrase and locality probe of each example."""
    hparams, rounds = trainer.hparams, trainer.rounds
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows: Sequence[PredictionRow]) -> PredictionRow:
        return rows[int(torch.randint(len(rows), (), generator=generator))]

    order: list[int] = []
    number, size = hparams.batches(len(made))
    for _ in range(hparams.steps):
        batches = []
        for _ in range(number):
            if len(order) < size:
                order = torch.randperm(len(made), generator=generator).tolist()
            chosen, order = [made[index] for index in order[:size]], order[size:]
            locality = [drawn(example.locality) for example in chosen] if hparams.loc_weight else []
            batches.append(
                Batch(
                    rounds.prepare([example.edit for example in chosen]),
                    rounds.prepare([drawn(example.outer) for example in chosen]),
                    rounds.prepare(locality),
                )
            )
        yield batches
