"""Base class of MEMIT and AlphaEdit: a target for the residual stream after the last edited layer, reached layer by layer.

The methods differ in how a layer's matrix is updated so that its keys get the change they are asked for: `UpdateRule`.
Does not import torch, because planning needs the hyper-parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from harness.api import Advance
from harness.errors import UserError
from harness.memory import FP64, Memory
from harness.records import DataRef
from methods.common import prefixes
from methods.common.closed_form import ClosedFormHparams, ClosedFormMethod, ValueMatrices
from methods.common.layers import ManyLayers

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from methods.common.aligned import Stream
    from methods.common.rewrites import Rewrite
    from methods.common.values import Scale


class LayerwiseHparams(ClosedFormHparams):
    """Hyper-parameters of methods that spread an edit over several layers, in addition to those of the values.

    Attributes:
        batch: edits per closed-form update; successive updates accumulate in the same weights.
        micro_batch: requests per pass; affects only time and memory.
        keep_largest: share of the entries of an update that are applied, those that change a weight most relative to its
            size (RECT, Gu et al. 2024, arXiv 2401.04700); None for all.
        restrain: whether singular values of the change that an edit makes to a matrix, all its batches together, are
            reduced where they exceed the largest one of the matrix before it (PRUNE, Ma et al. 2024, arXiv 2405.16821). In
            a sequence each block counts as one edit.
    """

    scale: ClassVar["Scale"] = "stream"

    layers: ManyLayers
    moments: Literal["corpus", "train_prompts", "published"]
    batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    keep_largest: float | None = Field(None, gt=0, lt=1)
    restrain: bool = False

    @property
    def regularisers(self) -> tuple[str, ...]:
        """See `ClosedFormHparams.regularisers`."""
        return (*super().regularisers, "keep_largest", "restrain")


class UpdateRule(ABC):
    """How the matrix of a layer is updated.

    Class attributes:
        remembers: whether `written` is to be called, which needs a further pass over the keys.
    """

    remembers: ClassVar[bool] = False

    @abstractmethod
    def shift(self, layer: int, keys_NK: "Tensor", change_NV: "Tensor") -> "Tensor":
        """The update, K × V in float64, that changes each key's output as desired, as far as the rule allows."""

    def written(self, layer: int, keys_NK: "Tensor") -> None:
        """Record the present keys of a batch that has been written into all layers."""
        return


class LayerwiseMethod(ClosedFormMethod):
    """Optimise a target for the residual stream after the last edited layer, then reach it layer by layer.

    Each layer takes an equal share of the remaining residual.

    If the model normalises the output of the matrix before adding it to the stream (Gemma 2 and 3, OLMo 2), the target is
    one that the last layer can reach: its value is optimised before the norm, as ROME's is. At each layer, the share of
    the residual is turned into the value whose norm comes nearest to it (see `normed.value_for`), and the update writes the
    change of that value. At the last layer this is exact as far as the layers below have not moved it.
    """

    hparams: LayerwiseHparams

    @property
    def together(self) -> int:
        """Requests of a micro-batch."""
        return self.hparams.micro_batch

    @property
    def edits_together(self) -> bool:
        """Singular values are restrained once per edit run."""
        return self.hparams.restrain

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """As for one request at a time, and the streams of all of them, from which the keys of each layer are read."""
        need, hparams, model = super().memory(target, data, eval_batch), self.hparams, target.footprint
        rows = min(hparams.batch, data.edits) * hparams.n_rows
        more = {"streams": model.streams(rows * hparams.row_tokens)}
        if hparams.restrain:
            more["singular vectors"] = 2 * model.hidden * (model.hidden + model.ffn) * FP64
        return replace(need, edit={**need.edit, **more})

    def write_layers(
        self,
        model: "LoadedModel",
        matrices: ValueMatrices,
        rewrites: Sequence["Rewrite"],
        rule: UpdateRule,
        anchors: Mapping[int, float],
        advance: Advance,
    ) -> dict[str, float]:
        """Apply `batch` requests at a time.

        Args:
            model: what the matrices belong to.
            matrices: changed in place.
            rewrites: the requests.
            rule: updates a matrix.
            anchors: norm of the last layer's values (see `ClosedFormMethod.anchors`).
            advance: called with the number of requests of each batch.

        Returns:
            Of the last batch, the mean probability of a target token under the optimised vectors, and the mean distance of
            the residual stream from its target before each layer is edited.
        """
        diagnostics: dict[str, float] = {}
        before = matrices.copies() if self.hparams.restrain else {}
        for start in range(0, len(rewrites), self.hparams.batch):
            call = rewrites[start : start + self.hparams.batch]
            diagnostics |= self._write_batch(model, matrices, rule, anchors, call)
            advance(len(call))
        for layer, weight_VK in before.items():
            matrices.set(layer, _restrained(weight_VK, matrices[layer]))
        return diagnostics

    def _write_batch(
        self,
        model: "LoadedModel",
        matrices: ValueMatrices,
        rule: UpdateRule,
        anchors: Mapping[int, float],
        rewrites: Sequence["Rewrite"],
    ) -> dict[str, float]:
        """Write all requests in one closed-form update per layer."""
        layers = self.hparams.layers
        targets_ND, probability = self._targets(model, rewrites, anchors)
        diagnostics = {"value_probability": probability}
        for done, read in enumerate(_reads(model, rewrites, layers, self.hparams)):
            layer = layers[done]
            missing_ND = targets_ND - read.stream_ND
            diagnostics[f"missing_before_layer_{layer}"] = missing_ND.norm(dim=-1).mean().item()
            share_ND = missing_ND / (len(layers) - done)
            shift_KV = rule.shift(layer, read.keys_NK, _change_of_value(model, layer, read.values_ND, share_ND))
            if not bool(shift_KV.isfinite().all()):
                raise UserError(f"{self.spec.name}: the update of layer {layer} is not a number", fix=self.stiffer)
            if self.hparams.keep_largest is not None:
                shift_KV = _largest(shift_KV, matrices[layer], self.hparams.keep_largest)
            matrices.add(layer, shift_KV)
        if rule.remembers:
            for layer, read in zip(layers, _reads(model, rewrites, layers, self.hparams), strict=True):
                rule.written(layer, read.keys_NK)
        return diagnostics

    @property
    @abstractmethod
    def stiffer(self) -> str:
        """The setting to change if an update is not finite."""

    def _targets(
        self, model: "LoadedModel", rewrites: Sequence["Rewrite"], anchors: Mapping[int, float]
    ) -> "tuple[Tensor, float]":
        """Optimise the target of the residual stream after the last edited layer at each subject (z, MEMIT eq. 16), N × D.

        The second return value is the mean probability of a target token under the optimised vectors, before any rescaling.
        """
        import torch

        from methods.common.aligned import enter
        from methods.common.values import rescaled, solve

        last = self.hparams.layers[-1]
        targets: dict[int, Tensor] = {}
        probability = 0.0
        for chosen in _micro_batches(rewrites, self.hparams.micro_batch):
            group = [rewrites[index] for index in chosen]
            rows = [row for made in group for row in made.rows]
            plain = slice(None, None, len(group[0].rows))
            behind, went, value = solve(model, group, enter(model, rows, last), last, self.hparams, self.hparams.scale)
            values_ND, moved_ND = went.values_BV[plain], value.delta_ND
            if anchors:
                pairs = zip(values_ND, moved_ND, strict=True)
                moved_ND = torch.stack([rescaled(*pair, anchors[last]) for pair in pairs]).to(moved_ND)
            elif model.layout.value_norm is not None:
                moved_ND = model.into_stream(last, values_ND + moved_ND) - model.into_stream(last, values_ND)
            targets |= dict(zip(chosen, behind.at_pivot_BD[plain] + moved_ND, strict=True))
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


def _largest(shift_KV: "Tensor", weight_VK: "Tensor", share: float) -> "Tensor":
    """Keep the share of an update's entries that are largest relative to the weights they change, and drop the others (RECT)."""
    from methods.common.largest import smallest_of_largest

    relative_KV = (shift_KV / weight_VK.T.to(shift_KV)).abs()
    kept = max(1, round(share * shift_KV.numel()))
    return shift_KV.where(relative_KV >= smallest_of_largest(relative_KV, kept), 0.0)


def _restrained(before_VK: "Tensor", after_VK: "Tensor") -> "Tensor":
    """The matrix after an edit, with a change whose singular values σ > m become m + log(σ / m) (PRUNE eq. 8).

    m is the largest singular value before the edit.
    """
    import torch

    before_VK, after_VK = before_VK.double(), after_VK.double()
    left_VR, values_R, right_RK = torch.linalg.svd(after_VK - before_VK, full_matrices=False)
    most = torch.linalg.matrix_norm(before_VK, 2)
    reduced_R = torch.where(values_R > most, most + (values_R / most).clamp(min=1).log(), values_R)
    restrained_VK: Tensor = before_VK + (left_VR * reduced_R) @ right_RK
    return restrained_VK


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


def _reads(
    model: "LoadedModel", rewrites: Sequence["Rewrite"], layers: Sequence[int], hparams: LayerwiseHparams
) -> Iterator[_Read]:
    """Read keys, values and residual stream layer after layer, each with the weights of that moment.

    Rows are truncated after the subject. Each block runs twice, once to read its keys and once with its new weights; the
    blocks below it never run again.
    """
    import torch

    from methods.common.aligned import PivotRow, advance, enter, through

    groups: list[tuple[list[int], Stream]] = []
    for chosen in _micro_batches(rewrites, hparams.micro_batch):
        contexts = [row for index in chosen for row in rewrites[index].contexts]
        rows = [PivotRow(row.ids[: row.pivot + 1], row.pivot) for row in contexts]
        groups.append((chosen, enter(model, rows, layers[0])))
    # mean within each group of contexts, then over the groups; the plain prompt is a group of its own
    sizes = [1, *(len(prefixes.WORDS) * per_word for _, per_word in hparams.prefixes)]
    shares_C = [1 / (size * len(sizes)) for size in sizes for _ in range(size)]
    every, at, behind = slice(None, None, len(shares_C)), layers[0], layers[-1] + 1
    for layer in layers:
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        streams: dict[int, Tensor] = {}
        for number, (chosen, stream) in enumerate(groups):
            stream = advance(model, stream, at, layer)
            groups[number] = (chosen, stream)
            after, went = through(model, stream, layer)
            plain, keys_BK = after.rows(every), went.keys_BK
            keys_NCK = keys_BK.reshape(len(chosen), -1, keys_BK.shape[-1])
            weights_C = torch.tensor(shares_C, dtype=keys_NCK.dtype, device=keys_NCK.device)
            keys |= dict(zip(chosen, torch.einsum("c,nck->nk", weights_C, keys_NCK), strict=True))
            values |= dict(zip(chosen, went.values_BV[every], strict=True))
            plain = advance(model, plain, layer + 1, behind)
            streams |= dict(zip(chosen, plain.at_pivot_BD, strict=True))
        at = layer
        yield _Read(
            *(torch.stack([found[index] for index in range(len(rewrites))]) for found in (keys, values, streams))
        )


def _micro_batches(rewrites: Sequence["Rewrite"], size: int) -> list[list[int]]:
    """Batches of request indices, grouped by similar row length."""
    from harness.models.batching import length_sorted

    return list(length_sorted(rewrites, lambda made: max(len(row.ids) for row in made.contexts), size))
