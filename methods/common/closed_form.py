"""Base class of ROME, MEMIT and similar methods: hyper-parameters, artifacts, and the matrices they edit.

Does not import torch, because planning needs the hyper-parameters and artifacts.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from harness.api import Advance, ArtifactSpec, Choice, Context, EditedModel, Hparams, Method, State
from harness.memory import ANSWER_TOKENS, FP32, FP64, PROMPT_TOKENS, SUFFIX_TOKENS, Footprint, Memory
from harness.models.catalogue import ModelRef
from harness.models.weights import Restorable, widened
from harness.records import DataRef, EditRequest
from methods.common import anchor, moments, prefixes, require_layers, require_masks, require_subjects
from methods.common.layers import Layers, count
from methods.common.moments import MomentHparams
from methods.common.prefixes import WORDS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.models.loaded import LoadedModel
    from methods.common.rewrites import Rewrite
    from methods.common.solves import Factor
    from methods.common.values import Scale

TargetTokens = Literal["joint", "alone"]

Write: TypeAlias = Callable[["ValueMatrices", Sequence["Rewrite"], Advance], Mapping[str, float]]
"""Updates matrices according to the tokenised requests, in order, reports how many are completed, and returns diagnostics."""


class ValueHparams(Hparams):
    """Hyper-parameters for optimising the value vector at the subject's last token (ROME eq. 4).

    Attributes:
        layers: edited blocks, in ascending order, or `traced` (see `methods.common.layers`).
        v_lr: learning rate of Adam.
        v_steps: maximum number of loss evaluations; there is one update fewer.
        v_weight_decay: weight of ‖δ‖ / scale², where scale is the norm of the vector that δ is added to.
        v_clamp: upper bound on ‖δ‖, as a multiple of the scale.
        v_loss_stop: optimisation stops below this loss.
        v_probable_stop: optimisation stops at this many loss evaluations, of any steps, at which every target token was the
            most probable one in every context (most-probable early stopping of ENCORE, Gupta et al. 2025, arXiv 2502.01636);
            None for no such stop.
        kl_weight: weight of the KL term that preserves the predictions after the bare subject.
        prefixes: groups of context prefixes: length in tokens, number per first word (of five).
        target_tokens: whether the target is tokenised jointly with the prompt or alone (see `rewrites.rewrite`).
    """

    layers: Layers
    v_lr: float = Field(gt=0)
    v_steps: int = Field(ge=1)
    v_weight_decay: float = Field(ge=0)
    v_clamp: float = Field(gt=0)
    v_loss_stop: float = Field(ge=0)
    v_probable_stop: int | None = Field(None, ge=1)
    kl_weight: float = Field(ge=0)
    prefixes: tuple[tuple[int, int], ...]
    target_tokens: TargetTokens

    @property
    def n_rows(self) -> int:
        """Rows per edit in the value optimisation: the prompt alone and after each prefix, and the bare subject."""
        return 1 + len(WORDS) * sum(per_word for _, per_word in self.prefixes) + 1

    @property
    def row_tokens(self) -> int:
        """Length of such a row."""
        return PROMPT_TOKENS + prefixes.longest(self.prefixes)

    @property
    def passes_per_edit(self) -> float:
        """All rows once, and at each step of the value optimisation their columns from the subject's last token on."""
        return self.n_rows * (self.row_tokens + 3.0 * self.v_steps * SUFFIX_TOKENS) / PROMPT_TOKENS

    def share_of_blocks(self, n_layers: int) -> float:
        """Those above the first edited one."""
        return self.blocks_above(n_layers) / n_layers

    def blocks_above(self, n_layers: int) -> int:
        """Number of blocks above the first edited one."""
        layers = self.layers
        return n_layers if isinstance(layers, Choice) else n_layers - layers[0]


class ClosedFormHparams(ValueHparams, MomentHparams):
    """Hyper-parameters of value optimisation, and of the key covariance C used to insert the values into a matrix.

    Attributes:
        norm_anchor: number of train records whose values, optimised on the unedited model, decide the norm that the value of
            every edit is rescaled to (Norm-Anchor Scaling, Liu et al. 2026, arXiv 2602.02543); None for no rescaling.
    """

    scale: ClassVar["Scale"] = "value"

    norm_anchor: int | None = Field(None, ge=1)

    @property
    def regularisers(self) -> tuple[str, ...]:
        """Hyper-parameters that switch a regulariser of the value or the update on."""
        return ("v_probable_stop", "norm_anchor")

    def identity(self) -> dict[str, Any]:
        """All values but regularisers that are off."""
        return {name: value for name, value in super().identity().items() if value or name not in self.regularisers}

    def artifacts(self, target: ModelRef, data: DataRef, seed: int) -> dict[str, ArtifactSpec]:
        """Context prefixes; unless C is the identity, covariance statistics of the keys; and with an anchor, its norms.

        Raises:
            UserError: if there are no texts to compute the statistics from, the model has no such layer or no use for an
                anchor, or an edit has no subject.
        """
        require_subjects(data)
        if "layers" not in self.choices():
            require_layers(target, self.layers)
        needed = {"prefixes": prefixes.artifact(target, self.prefixes, seed)}
        if self.moments != "identity":
            needed["moments"] = moments.artifact(target, data, self.layers, self, seed)
        if self.norm_anchor:
            needed[anchor.ROLE] = anchor.artifact(target, data, self, needed["prefixes"], self.norm_anchor, seed)
        return needed

    def value_memory(self, model: Footprint, together: int) -> dict[str, float]:
        """Bytes of the value optimisation of some requests together."""
        tokens, above = together * self.n_rows * self.row_tokens, self.blocks_above(model.n_layers)
        suffix = together * self.n_rows * SUFFIX_TOKENS
        return {
            "masks": tokens * self.row_tokens * FP32,
            "activations": max(model.forward(tokens), model.cache(tokens) + model.backward(suffix, above)),
            "logits": model.logits(together * self.n_rows * ANSWER_TOKENS, 4),
        }


class ClosedFormMethod(Method):
    """Inserts facts into feed-forward output matrices by closed-form updates; subclasses define `edit` with `inserted`."""

    hparams: ClosedFormHparams

    def __init__(self, hparams: ClosedFormHparams) -> None:
        super().__init__(hparams)
        self.factors = moments.FactorCache()

    def artifacts(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """See `ClosedFormHparams.artifacts`.

        Raises:
            UserError: also if the model cannot take attention masks.
        """
        require_masks(target, self.spec.name)
        return self.hparams.artifacts(target, data, seed)

    @property
    def together(self) -> int:
        """Requests whose values are optimised together."""
        return 1

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """The edited matrices and the factors of C; the value optimisation of some requests, and an update in float64."""
        hparams, model, layers = self.hparams, target.footprint, count(self.hparams.layers)
        factors = layers * model.covariance_fp64 if hparams.moments != "identity" else 0.0
        return Memory(
            kept={"edited matrices": layers * model.edited_matrix},
            edit={
                "covariance factors": factors,
                "updates": 3 * model.hidden * model.ffn * FP64 + 3 * data.edits * model.ffn * FP64,
                **hparams.value_memory(model, min(self.together, data.edits)),
            },
        )

    def prompt_overhead(self) -> int:
        """The longest context prefix."""
        return prefixes.longest(self.hparams.prefixes)

    def covariances(
        self, artifacts: Mapping[str, Path], device: "torch.device", diagonal: float = 0.0
    ) -> "Mapping[int, Factor]":
        """Cholesky factors of C + diagonal · I by layer; empty if C is the identity. Read once and kept."""
        if "moments" not in artifacts:
            return {}
        return self.factors.of(artifacts["moments"], self.hparams.layers, device, diagonal)

    def anchors(self, artifacts: Mapping[str, Path]) -> Mapping[int, float]:
        """The norm that values are rescaled to, by layer; empty without an anchor."""
        return anchor.load(artifacts[anchor.ROLE]) if anchor.ROLE in artifacts else {}

    def inserted(
        self,
        model: "LoadedModel",
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
        write: Write,
        state: Callable[[], State] = dict,
    ) -> EditedModel:
        """Turn the requests into token rows and let `write` update the matrices with them, timed as the edit.

        Args:
            model, requests, artifacts, context: as for `edit`.
            write: updates the matrices so that the model states all facts.
            state: called after `write`: what the method keeps in addition to the weights.

        Raises:
            UserError: if a record cannot be edited; the message names it, and the model is unchanged.
        """
        from harness.models.edited import WeightEditedModel
        from methods.common.rewrites import rewrite

        front = prefixes.load(artifacts["prefixes"])
        matrices = ValueMatrices(model, self.hparams.layers)
        with (
            matrices.restored_on_error(),
            context.progress(self.spec.title, len(requests)) as advance,
            context.clock.phase("edit"),
        ):
            rewrites = [rewrite(model, request, front, self.hparams.target_tokens) for request in requests]
            diagnostics = write(matrices, rewrites, advance)
            kept = state()
        return WeightEditedModel(model, matrices.restore, diagnostics, kept)


class ValueMatrices(Restorable):
    """The value matrices of some layers, open for in-place updates.

    In a half-precision model they are float32 until `restore` (see `widened`).

    Args:
        model: changed in place.
        layers: layers of the matrices.
    """

    def __init__(self, model: "LoadedModel", layers: Sequence[int]) -> None:
        self._installed = widened(model.model, [model.path(model.layout.value_matrix, layer) for layer in layers])
        self._weights = {layer: model.value_matrix(layer)[1] for layer in layers}

    def __getitem__(self, layer: int) -> "Tensor":
        """The matrix of a layer as it is now, d_model × d_ff; not a copy."""
        return self._weights[layer].detach()

    def copies(self) -> "dict[int, Tensor]":
        """Copies of all matrices by layer."""
        return {layer: weight_VK.detach().clone() for layer, weight_VK in self._weights.items()}

    def set(self, layer: int, weight_VK: "Tensor") -> None:
        """Replace the values of the matrix of a layer."""
        self[layer].copy_(weight_VK)

    def add(self, layer: int, shift_KV: "Tensor") -> None:
        """Add an update, d_ff × d_model, to the matrix of a layer, which is stored transposed."""
        import torch

        weight_VK = self._weights[layer]
        with torch.no_grad():
            weight_VK.add_(shift_KV.T.to(weight_VK))

    def restore(self) -> None:
        """Restore every matrix: the same tensor object, bit for bit, without a cast. May be called repeatedly."""
        self._installed.restore()
