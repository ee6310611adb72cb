"""An editing method: it turns a loaded model and requests into an edited model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api.artifact import ArtifactSpec
from harness.api.context import Context
from harness.api.edited_model import EditedModel, State
from harness.api.hparams import Hparams
from harness.memory import PROMPT_TOKENS, Memory
from harness.records import DataRef, EditRequest
from harness.registry import MethodSpec

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel

TOKENS_PER_PASS = PROMPT_TOKENS
"""Length of the prompt in which estimates of time count passes through a model."""


class Method(ABC):
    """An editing method with its hyper-parameters. Register subclasses with `harness.registry.register`.

    Class attributes:
        spec: set by `register`.
        Hparams: class of the hyper-parameters.
        preset: hyper-parameter values that override the method's files; variants and suites override them in turn.
        differences: known differences from the other implementation of the same method, one sentence each; printed in the
            parity table. `differences_on` adds those on a model.
        uncounted: why FLOPs of this implementation cannot be counted here, one clause; empty if they can.
    """

    spec: ClassVar[MethodSpec]
    Hparams: ClassVar[type[Hparams]] = Hparams
    preset: ClassVar[Mapping[str, Any]] = {}
    differences: ClassVar[tuple[str, ...]] = ()
    uncounted: ClassVar[str] = ""

    def __init__(self, hparams: Any) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Declare the artifacts that `edit` needs, by role. Must not import torch or read files.

        Those that decide hyper-parameters (`Choice`) are added by the harness, under the name of the hyper-parameter.

        Raises:
            UserError: if this combination cannot be run here, with the reason.
        """
        return {}

    @abstractmethod
    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Apply all requests to an unedited model, timing the phases with `context.clock`.

        Args:
            model: the unedited model; the result's `revert` must undo all changes.
            requests: the edits to apply.
            artifacts: folders of the artifacts by role, as declared by `artifacts`.
            context: device, seed, clock and progress of this cell.
        """

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Apply further requests on top of earlier ones; by default, call `edit` on the current model.

        Methods that keep state outside the weights override this. Other methods can edit sequentially without further
        code, but only the first edit's `revert` is called at the end, so it must restore everything that later edits may
        change.

        Args:
            model: the model with the weights left by earlier edits; unedited for memory-based methods.
            state: the last edit's `EditedModel.state`, on the model's device. Must not be modified in place.
            requests: the further requests; if empty, restore the model as it was when `state` was taken.
            artifacts, context: as for `edit`. The seed is the same for every call, so a method that draws random numbers
                must keep the generator's state in `state`.
        """
        return self.edit(model, requests, artifacts, context)

    def artifacts_in_sequence(
        self, target: "ModelRef", data: DataRef, seed: int, ends: Sequence[int]
    ) -> Mapping[str, ArtifactSpec]:
        """Declare what a sequence of edits needs; by default the same as for all edits at once.

        Args:
            target, data, seed: as for `artifacts`.
            ends: number of edits after each block, ascending; the last is the number of all edits.

        Returns:
            Specs by role. The role of what a single block needs ends in `/` and the number of edits after that block, to which
            reports charge its cost.
        """
        return self.artifacts(target, data, seed)

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """Estimate what a cell needs in addition to the loaded target model. Must not import torch or read files.

        Launchers ask for that much memory, so a method overrides this where it knows more. The default is that of a method
        that trains one feed-forward matrix with Adam on 32 prompts at a time.

        Args:
            target: the target model.
            data: the edits.
            eval_batch: questions per forward pass.
        """
        model = target.footprint
        tokens = min(32, data.edits) * PROMPT_TOKENS
        return Memory(
            kept={"edited matrix": model.edited_matrix},
            edit={
                "gradient and Adam": 3 * model.matrix_fp32,
                "activations": model.backward(tokens, model.n_layers),
                "logits": model.logits(tokens, 4),
            },
        )

    def code_identity(self) -> Mapping[str, str]:
        """Identify the version of third-party code; part of the cell's identity."""
        return {}

    def identity_on(self, target: "ModelRef") -> Mapping[str, Any]:
        """What decides results on this model in addition to version, hyper-parameters, code and artifacts."""
        return {}

    def differences_on(self, target: "ModelRef") -> Sequence[str]:
        """The known differences from the other implementation on this model."""
        return self.differences

    def notes_on(self, target: "ModelRef") -> Sequence[str]:
        """What users should know before the method runs on this model, one clause each; plans print them."""
        return ()

    def provenance(self) -> Mapping[str, Any]:
        """Describe third-party code for the cell's provenance."""
        return {}

    def prompt_overhead(self) -> int:
        """Maximum number of tokens that the method puts before an edit's prompt, so that plans can refuse edits that do not fit."""
        return 0

    @property
    def edits_together(self) -> bool:
        """Whether what an edit costs depends on the others that are made with it, so that FLOPs are counted on all of them."""
        return False

    @property
    def unscored(self) -> str:
        """Why its edited models have no `score`, one clause; empty if they have. Plans say so before anything is computed."""
        return ""

    @classmethod
    def edits_in_sequence(cls) -> bool:
        """Whether the method supports sequential edits: it changes weights only, or it overrides `extend`."""
        return cls.spec.is_in_weights or cls.extend is not Method.extend
