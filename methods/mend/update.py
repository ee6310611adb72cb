"""Applying edits: transform the gradients of a batch, sum the updates per matrix, and add them in one step (MEND §3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.errors import UserError
from harness.models.batching import length_sorted
from harness.models.linear import weight_of
from harness.models.loaded import LoadedModel
from harness.models.submodels import streams_of
from methods.common.factors import edited_modules, factors_of
from methods.common.prediction import PredictionRow, filled_up, padded
from methods.mend.hparams import MendHparams
from methods.mend.network import Hypernetwork


class Updater:
    """Edits the matrices of a model in place; the caller restores them.

    Args:
        model: the model to edit.
        hypernetwork: trained for the same matrices, frozen.
        hparams: hyper-parameters of the edit.

    Raises:
        ValueError: if the hypernetwork was trained for other matrices.
    """

    def __init__(self, model: LoadedModel, hypernetwork: Hypernetwork, hparams: MendHparams) -> None:
        self._model, self._hypernetwork, self._hparams = model, hypernetwork, hparams
        self._modules = edited_modules(model, hparams.layers, hparams.matrices)
        self._layer = min(layer % model.n_layers for layer in hparams.layers)
        self.names = list(self._modules)
        if self.names != [matrix.name for matrix in hypernetwork.matrices]:
            raise ValueError(f"the hypernetwork was trained for other matrices than {self.names}")

    @torch.no_grad()
    def apply(self, rows: Sequence[PredictionRow]) -> None:
        """Add the update of one batch to the matrices.

        Raises:
            UserError: if the update is not finite; some matrices may already have been changed.
        """
        for name, update_DK in self.update(rows).items():
            weight_DK = weight_of(self._modules[name])
            if not update_DK.isfinite().all():
                raise UserError(f"mend: the update of {name} is not a number", fix="train: a smaller `edit_lr`")
            weight_DK.add_(update_DK.to(weight_DK.device))

    def update(self, rows: Sequence[PredictionRow]) -> dict[str, Tensor]:
        """Compute the update of one batch; all gradients are taken at the current weights.

        Returns:
            The update of each matrix by weight name, D × K, at least fp32.
        """
        is_mean = self._hparams.inner_reduction == "batch_mean"
        if is_mean and self._hparams.implementation == "faithful-easyedit":
            rows = filled_up(rows, self._model.tokenizer.eos_token_id)
        labels_B = torch.tensor([len(row.labels) for row in rows], dtype=torch.float32)
        weights_B = (labels_B / labels_B.sum() if is_mean else torch.ones_like(labels_B)).to(self._model.device)
        total: dict[str, Tensor] = {}
        for chosen in length_sorted(rows, lambda row: len(row.ids), self._hparams.micro_batch):
            part = [rows[index] for index in chosen]
            entering = streams_of(self._model, padded(part, self._model.device), self._layer)
            seen = factors_of(self._model, self._modules, entering, self._layer, part, weights_B[chosen])
            for name, change in self._hypernetwork(seen).items():
                update_DK = change.total()
                total[name] = total[name].add_(update_DK) if name in total else update_DK
        return total
