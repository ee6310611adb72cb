"""MEMIT: many facts in one closed-form change of feed-forward output matrices of several layers (Meng et al. 2023)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.api import Advance
from harness.errors import UserError
from harness.registry import register
from methods.common import prefixes
from methods.common.closed_form import ClosedFormHparams, ClosedFormMethod, ValueMatrices

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loaded import LoadedModel
    from methods.common.aligned import Stream
    from methods.common.rewrites import Rewrite
    from methods.common.solves import Factor


class MemitHparams(ClosedFormHparams):
    """Hyper-parameters of MEMIT, beside those of the value and of the second moments.

    Attributes:
        moment_weight: λ, how many keys of the unedited model weigh as much as one edit.
        batch: edits per closed-form change; changes follow one another on the same weights.
        micro_batch: requests per pass; changes time and memory only.
    """

    moments: Literal["corpus", "train_prompts", "published"]
    moment_weight: float = Field(gt=0)
    batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)


@register("memit", title="MEMIT", family="weights", version=2)
class Memit(ClosedFormMethod):
    """Finds what the residual stream behind the last edited layer should be for each fact, then moves it there layer by layer.

    Each layer takes an equal share of what is still missing, by the least change of its matrix that also keeps, as far as
    λ says, what the matrix answers to the keys of ordinary text.
    """

    Hparams = MemitHparams
    hparams: MemitHparams

    def write(
        self,
        model: "LoadedModel",
        matrices: ValueMatrices,
        rewrites: Sequence["Rewrite"],
        factors: Mapping[int, "Factor"],
        advance: Advance,
    ) -> Mapping[str, float]:
        """`batch` requests at a time; diagnostics are those of the last batch."""
        diagnostics: dict[str, float] = {"moment_tokens": self.factors.tokens}
        for start in range(0, len(rewrites), self.hparams.batch):
            call = rewrites[start : start + self.hparams.batch]
            diagnostics |= self._write_batch(model, matrices, factors, call)
            advance(len(call))
        return diagnostics

    def _write_batch(
        self,
        model: "LoadedModel",
        matrices: ValueMatrices,
        factors: Mapping[int, "Factor"],
        rewrites: Sequence["Rewrite"],
    ) -> dict[str, float]:
        """One closed-form change for all requests.

        Returns:
            The mean probability of a target token with the optimised vectors, and the mean distance between the stream and
            its target before each layer is edited.
        """
        from methods.common.solves import moment_ridge

        layers = self.hparams.layers
        targets_ND, probability = self._targets(model, rewrites)
        keys = _Keys(model, rewrites, layers, self.hparams)
        diagnostics = {"value_probability": probability}
        for done, layer in enumerate(layers):
            keys_NK, stream_ND = keys.read(layer)
            missing_ND = targets_ND - stream_ND
            diagnostics[f"missing_before_layer_{layer}"] = missing_ND.norm(dim=-1).mean().item()
            share_ND = missing_ND / (len(layers) - done)
            shift_KV = moment_ridge(keys_NK, share_ND, factors[layer], self.hparams.moment_weight)
            if not bool(shift_KV.isfinite().all()):
                raise UserError(f"memit: the update of layer {layer} is not a number", fix="a larger `moment_weight`")
            matrices.add(layer, shift_KV)
        return diagnostics

    def _targets(self, model: "LoadedModel", rewrites: Sequence["Rewrite"]) -> "tuple[Tensor, float]":
        """What the stream behind the last edited layer should be at each subject (z, MEMIT eq. 16), N × D.

        The second value is the mean probability of a target token there.
        """
        import torch

        from methods.common.aligned import enter
        from methods.common.values import optimise

        behind = self.hparams.layers[-1] + 1
        targets: dict[int, Tensor] = {}
        probability = 0.0
        for chosen in _micro_batches(rewrites, self.hparams.micro_batch):
            group = [rewrites[index] for index in chosen]
            stream = enter(model, [row for made in group for row in made.rows], behind)
            plain_ND = stream.at_pivot_BD[:: len(group[0].rows)]
            value = optimise(model, group, stream, behind, plain_ND.norm(dim=-1), self.hparams)
            targets |= dict(zip(chosen, plain_ND + value.delta_ND, strict=True))
            probability += value.probability * len(group) / len(rewrites)
        return torch.stack([targets[index] for index in range(len(rewrites))]), probability


class _Keys:
    """The rows of all requests, cut behind their subjects, on their way through the edited layers.

    Each block runs twice, once to be read and once with its new weights; nothing below it runs again.
    """

    def __init__(
        self, model: "LoadedModel", rewrites: Sequence["Rewrite"], layers: Sequence[int], hparams: MemitHparams
    ) -> None:
        from methods.common.aligned import PivotRow, enter

        self._model, self._at, self._behind, self._requests = model, layers[0], layers[-1] + 1, len(rewrites)
        self._groups: list[tuple[list[int], Stream]] = []
        for chosen in _micro_batches(rewrites, hparams.micro_batch):
            contexts = [row for index in chosen for row in rewrites[index].contexts]
            rows = [PivotRow(row.ids[: row.pivot + 1], row.pivot) for row in contexts]
            self._groups.append((chosen, enter(model, rows, layers[0])))
        # mean within a group of contexts, then over groups, of which the plain prompt is one
        sizes = [1, *(len(prefixes.WORDS) * per_word for _, per_word in hparams.prefixes)]
        self._weights_C = [1 / (size * len(sizes)) for size in sizes for _ in range(size)]

    def read(self, layer: int) -> "tuple[Tensor, Tensor]":
        """With the weights of now: the mean key of each request at a layer, N × K, and the stream behind the last layer
        at the plain prompt's subject, N × D. Layers must be read in ascending order.
        """
        import torch

        from methods.common.aligned import advance, capturing

        keys: dict[int, Tensor] = {}
        behind: dict[int, Tensor] = {}
        for number, (chosen, stream) in enumerate(self._groups):
            stream = advance(self._model, stream, self._at, layer)
            self._groups[number] = (chosen, stream)
            with capturing(self._model, layer, stream.pivot) as passes:
                plain = advance(self._model, stream, layer, layer + 1).rows(slice(None, None, len(self._weights_C)))
            keys_BK = passes[0].keys_BK
            keys_NCK = keys_BK.reshape(len(chosen), -1, keys_BK.shape[-1])
            weights_C = torch.tensor(self._weights_C, dtype=keys_NCK.dtype, device=keys_NCK.device)
            keys |= dict(zip(chosen, torch.einsum("c,nck->nk", weights_C, keys_NCK), strict=True))
            plain = advance(self._model, plain, layer + 1, self._behind)
            behind |= dict(zip(chosen, plain.at_pivot_BD, strict=True))
        self._at = layer
        order = range(self._requests)
        return torch.stack([keys[index] for index in order]), torch.stack([behind[index] for index in order])


def _micro_batches(rewrites: Sequence["Rewrite"], size: int) -> list[list[int]]:
    """Indices of requests whose rows are of like length."""
    from harness.models.batching import length_sorted

    return list(length_sorted(rewrites, lambda made: max(len(row.ids) for row in made.contexts), size))
