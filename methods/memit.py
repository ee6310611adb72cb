"""MEMIT: many facts in one closed-form update of the feed-forward output matrices of several layers (Meng et al. 2023)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.api import Advance
from harness.errors import UserError
from harness.memory import Memory
from harness.records import DataRef
from harness.registry import register
from methods.common import prefixes
from methods.common.closed_form import ClosedFormHparams, ClosedFormMethod, ValueMatrices
from methods.common.layers import ManyLayers

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from methods.common.aligned import Stream
    from methods.common.rewrites import Rewrite
    from methods.common.solves import Factor


class MemitHparams(ClosedFormHparams):
    """Hyper-parameters of MEMIT, in addition to those of the value optimisation and the covariance statistics.

    Attributes:
        moment_weight: λ, the number of keys of the unedited model that weigh as much as one edit.
        batch: edits per closed-form update; successive updates accumulate in the same weights.
        micro_batch: requests per pass; affects only time and memory.
    """

    layers: ManyLayers
    moments: Literal["corpus", "train_prompts", "published"]
    moment_weight: float = Field(gt=0)
    batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)


@register("memit", title="MEMIT", family="weights", version=2)
class Memit(ClosedFormMethod):
    """Optimise a target for the residual stream after the last edited layer, then reach it layer by layer.

    Each layer takes an equal share of the remaining residual. Its update is the least-squares solution that also preserves
    the matrix's outputs for the keys of ordinary text, weighted by λ.

    If the model normalises the output of the matrix before adding it to the stream (Gemma 2 and 3, OLMo 2), the target is
    one that the last layer can reach: its value is optimised in front of the norm, as ROME's is. At each layer, the share of
    the residual is turned into the value whose norm comes nearest to it (see `normed.value_for`), and the least-squares
    solution writes the change of that value. At the last layer this is exact as far as the layers below have not moved it.
    """

    Hparams = MemitHparams
    hparams: MemitHparams

    @property
    def together(self) -> int:
        """Requests of a micro-batch."""
        return self.hparams.micro_batch

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """As for one request at a time, and the streams of all of them, from which the keys of each layer are read."""
        need, hparams = super().memory(target, data, eval_batch), self.hparams
        rows = min(hparams.batch, data.edits) * hparams.n_rows
        streams = target.footprint.streams(rows * hparams.row_tokens)
        return replace(need, edit={**need.edit, "streams": streams})

    def write(
        self,
        model: "LoadedModel",
        matrices: ValueMatrices,
        rewrites: Sequence["Rewrite"],
        factors: Mapping[int, "Factor"],
        advance: Advance,
    ) -> Mapping[str, float]:
        """Apply `batch` requests at a time; the diagnostics are those of the last batch."""
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
        """Write all requests in one closed-form update.

        Returns:
            The mean probability of a target token under the optimised vectors, and the mean distance of the residual stream
            from its target before each layer is edited.
        """
        from methods.common.solves import moment_ridge

        layers = self.hparams.layers
        targets_ND, probability = self._targets(model, rewrites)
        keys = _Keys(model, rewrites, layers, self.hparams)
        diagnostics = {"value_probability": probability}
        for done, layer in enumerate(layers):
            read = keys.read(layer)
            missing_ND = targets_ND - read.stream_ND
            diagnostics[f"missing_before_layer_{layer}"] = missing_ND.norm(dim=-1).mean().item()
            share_ND = missing_ND / (len(layers) - done)
            change_ND = _change_of_value(model, layer, read.values_ND, share_ND)
            shift_KV = moment_ridge(read.keys_NK, change_ND, factors[layer], self.hparams.moment_weight)
            if not bool(shift_KV.isfinite().all()):
                raise UserError(f"memit: the update of layer {layer} is not a number", fix="a larger `moment_weight`")
            matrices.add(layer, shift_KV)
        return diagnostics

    def _targets(self, model: "LoadedModel", rewrites: Sequence["Rewrite"]) -> "tuple[Tensor, float]":
        """Optimise the target of the residual stream after the last edited layer at each subject (z, MEMIT eq. 16), N × D.

        The second return value is the mean probability of a target token under these vectors.
        """
        import torch

        from methods.common.aligned import enter, through
        from methods.common.values import optimise

        last = self.hparams.layers[-1]
        targets: dict[int, Tensor] = {}
        probability = 0.0
        for chosen in _micro_batches(rewrites, self.hparams.micro_batch):
            group = [rewrites[index] for index in chosen]
            rows = [row for made in group for row in made.rows]
            plain = slice(None, None, len(group[0].rows))
            if model.layout.value_norm is None:
                stream = enter(model, rows, last + 1)
                plain_ND = stream.at_pivot_BD[plain]
                value = optimise(model, group, stream, last + 1, plain_ND.norm(dim=-1), self.hparams)
                target_ND = plain_ND + value.delta_ND
            else:
                stream = enter(model, rows, last)
                behind, went = through(model, stream, last)
                values_ND = went.values_BV[plain]
                value = optimise(model, group, stream, last, values_ND.norm(dim=-1), self.hparams, at_value=True)
                moved_ND = model.into_stream(last, values_ND + value.delta_ND) - model.into_stream(last, values_ND)
                target_ND = behind.at_pivot_BD[plain] + moved_ND
            targets |= dict(zip(chosen, target_ND, strict=True))
            probability += value.probability * len(group) / len(rewrites)
        return torch.stack([targets[index] for index in range(len(rewrites))]), probability


def _change_of_value(model: "LoadedModel", layer: int, values_ND: "Tensor", share_ND: "Tensor") -> "Tensor":
    """The change of a layer's values that adds a share to the residual stream, N × D; as near as its norm, if any, allows."""
    if model.layout.value_norm is None:
        return share_ND
    from methods.common.normed import value_for

    wanted_ND = model.into_stream(layer, values_ND).double() + share_ND.double()
    changed_ND = value_for(model.module(model.layout.value_norm, layer), values_ND, wanted_ND) - values_ND.double()
    return changed_ND.to(share_ND.dtype)


@dataclass(frozen=True, slots=True)
class _Read:
    """What a layer holds at the subjects of all requests.

    Attributes:
        keys_NK: mean key over the contexts of each request.
        values_ND: output of the value matrix for the plain prompt.
        stream_ND: the residual stream after the last edited layer, for the plain prompt.
    """

    keys_NK: "Tensor"
    values_ND: "Tensor"
    stream_ND: "Tensor"


class _Keys:
    """Keys of all requests at each edited layer, from rows truncated after the subject.

    Each block runs twice, once to read its keys and once with its new weights; the blocks below it never run again.
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
        # mean within each group of contexts, then over the groups; the plain prompt is a group of its own
        sizes = [1, *(len(prefixes.WORDS) * per_word for _, per_word in hparams.prefixes)]
        self._weights_C = [1 / (size * len(sizes)) for size in sizes for _ in range(size)]

    def read(self, layer: int) -> "_Read":
        """Read keys, values and residual stream with the current weights. Layers must be read in ascending order."""
        import torch

        from methods.common.aligned import advance, through

        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        behind: dict[int, Tensor] = {}
        for number, (chosen, stream) in enumerate(self._groups):
            stream = advance(self._model, stream, self._at, layer)
            self._groups[number] = (chosen, stream)
            every = slice(None, None, len(self._weights_C))
            after, went = through(self._model, stream, layer)
            plain, keys_BK = after.rows(every), went.keys_BK
            keys_NCK = keys_BK.reshape(len(chosen), -1, keys_BK.shape[-1])
            weights_C = torch.tensor(self._weights_C, dtype=keys_NCK.dtype, device=keys_NCK.device)
            keys |= dict(zip(chosen, torch.einsum("c,nck->nk", weights_C, keys_NCK), strict=True))
            values |= dict(zip(chosen, went.values_BV[every], strict=True))
            plain = advance(self._model, plain, layer + 1, self._behind)
            behind |= dict(zip(chosen, plain.at_pivot_BD, strict=True))
        self._at = layer
        return _Read(
            *(torch.stack([found[index] for index in range(self._requests)]) for found in (keys, values, behind))
        )


def _micro_batches(rewrites: Sequence["Rewrite"], size: int) -> list[list[int]]:
    """Batches of request indices, grouped by similar row length."""
    from harness.models.batching import length_sorted

    return list(length_sorted(rewrites, lambda made: max(len(row.ids) for row in made.contexts), size))
