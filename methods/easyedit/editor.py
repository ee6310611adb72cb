"""Base classes of all adapters: checks at planning time, the worker and its weights, and the edited model."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from harness import registry
from harness.api import ArtifactSpec, Context, EditedModel, Method
from harness.errors import UserError
from harness.memory import Memory
from harness.models import sources
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from harness.tokens import Query
from methods.easyedit import checkout, workarounds
from methods.easyedit.process import Worker

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


FLOAT32 = "float32"
"""Precision of the worker's model."""


class Without(BaseModel):
    """Hyper-parameters that every adapter adds to those of its method.

    Attributes:
        without: names of workarounds that are switched off.
    """

    without: tuple[str, ...] = Field((), description="names of workarounds that are switched off")


class WholePasses:
    """Estimates of time of methods for which EasyEdit runs all blocks in every step, put before the hyper-parameters of our own."""

    def share_of_blocks(self, n_layers: int) -> float:
        """All of them."""
        return 1.0


class EasyEditMethod(Method):
    """A method run by EasyEdit, with the hyper-parameters of our own implementation.

    Class attributes of an adapter, in addition to those of `Method`:
        Hparams: our own class combined with `Without`.
        inside: `module:class` of the worker's half, an `inside.Inside`.
        own_workarounds: names of the workarounds that apply to it.
        extras: optional modules that EasyEdit imports for it.
        wider: what differs from our own implementation on a half-precision model.
    """

    uncounted: ClassVar[str] = "EasyEdit's code runs in a process of its own"
    inside: ClassVar[str]
    own_workarounds: ClassVar[tuple[str, ...]] = ("trainable-again",)
    extras: ClassVar[tuple[str, ...]] = ()
    wider: ClassVar[str]

    def __init__(self, hparams: Any) -> None:
        super().__init__(hparams)
        self._worker: Worker | None = None
        self._loaded: tuple[ModelRef, str] | None = None

    @abstractmethod
    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """EasyEdit's hyper-parameters for a model, under its own names, as in its hyper-parameter files."""

    @abstractmethod
    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit does not support.

        Raises:
            UserError: created with `require` or `refused`.
        """

    def needs(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Artifacts that must be built before `edit`, by role."""
        return {}

    def artifacts(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Return the artifacts, after checking when a run is planned that edits will be possible.

        Raises:
            UserError: for a missing or wrong checkout, a missing module, an unknown workaround or an unsupported option.
        """
        checkout.find()
        checkout.require(self.extras)
        self._active()
        self.check(target)
        return self.needs(target, data, seed)

    @property
    def as_native(self) -> Any:
        """Hyper-parameters with which our own implementation takes the requests together that EasyEdit's does."""
        return self.hparams

    def memory(self, target: ModelRef, data: DataRef, eval_batch: int) -> Memory:
        """What our own implementation needs on a float32 model, in a process of its own, which has such a model."""
        wide = replace(target, dtype=FLOAT32)
        need = registry.find_method(self.spec.name)(self.as_native).memory(wide, data, eval_batch)
        return replace(need, kept={**need.kept, "the worker's model": wide.footprint.weights}, processes=1)

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Edit in the worker.

        Raises:
            UserError, WorkerError: as for `Worker.call`; the caller's model is then unchanged.
        """
        worker = self.worker(model)
        folders = {role: folder.absolute() for role, folder in artifacts.items()}
        worker.call("begin", self.inside, dict(self.options(model)), self._active(), folders, context.seed)
        with context.progress(f"{self.spec.title} in EasyEdit", len(requests)) as advance, context.clock.phase("edit"):
            worker.call("apply", list(requests))
            advance(len(requests))
        return self.result(model, worker, worker.call("diagnostics"))

    @abstractmethod
    def result(self, model: "LoadedModel", worker: Worker, diagnostics: Mapping[str, float]) -> EditedModel:
        """The edited model, after the worker has applied the edits to its own model."""

    def code_identity(self) -> dict[str, str]:
        """The commit, and a hash of local changes."""
        return checkout.find().identity

    def identity_on(self, target: ModelRef) -> dict[str, str]:
        """The precision of the worker's model, where it is not the target's own."""
        return {} if target.dtype == FLOAT32 else {"precision": FLOAT32}

    def differences_on(self, target: ModelRef) -> tuple[str, ...]:
        """Those of the adapter, and the precision, where it is not the target's own."""
        return (*self.differences, *([self.wider] if self.identity_on(target) else []))

    def provenance(self) -> dict[str, Any]:
        """The checkout's location and state, and the active workarounds."""
        found = checkout.find()
        return {
            "easyedit": {
                "folder": str(found.folder),
                "commit": found.commit,
                "clean": not found.changes,
                "workarounds": list(self._active()),
            }
        }

    def require(self, **supported: object) -> None:
        """Check that options have the only value that EasyEdit supports, given by name.

        Raises:
            UserError: for the first one that has another.
        """
        for option, value in supported.items():
            if getattr(self.hparams, option) != value:
                raise self.refused(option, value)

    def refused(self, option: str, instead: object) -> UserError:
        """Error for a value that EasyEdit does not support, with a supported one as the fix."""
        value = getattr(self.hparams, option)
        return UserError(
            f"{self.spec.name}: EasyEdit does not support {option}: {json.dumps(value)}",
            fix=f"{option}: {json.dumps(instead)}",
        )

    def worker(self, model: "LoadedModel") -> Worker:
        """The worker, started if necessary, with a model whose weights equal this one's."""
        wanted = (_absolute(model.ref), str(model.device))
        if self._worker is None or not self._worker.is_alive or self._loaded != wanted:
            self.stop()
            self._worker, self._loaded = started(model), wanted
        _make_equal(self._worker, model)
        return self._worker

    def stop(self) -> None:
        """Stop the worker, if there is one; the next edit starts a new one."""
        if self._worker is not None:
            self._worker.stop()
        self._worker = None

    def _active(self) -> tuple[str, ...]:
        return workarounds.active(self.own_workarounds, self.hparams.without)


class WeightMethod(EasyEditMethod):
    """A method that edits weights: the worker hands them over, and the caller's model is evaluated with them."""

    wider: ClassVar[str] = (
        "EasyEdit edits the model in float32 (editor.py:115); our implementation runs it in its own precision, apart from the "
        "edited matrices"
    )

    def memory(self, target: ModelRef, data: DataRef, eval_batch: int) -> Memory:
        """As for all methods, and what our own implementation keeps on the target model: the weights that are handed over."""
        need = super().memory(target, data, eval_batch)
        here = registry.find_method(self.spec.name)(self.hparams).memory(target, data, eval_batch).kept
        return replace(need, kept={**need.kept, "weights handed over": sum(here.values())})

    def result(self, model: "LoadedModel", worker: Worker, diagnostics: Mapping[str, float]) -> EditedModel:
        """The caller's model with the worker's float32 weights, which it computes with in float32."""
        from safetensors.torch import load_file

        from harness.models.edited import WeightEditedModel
        from harness.models.weights import InstalledWeights

        weights = load_file(worker.call("hand_over"))
        return WeightEditedModel(model, InstalledWeights(model.model, weights).restore, diagnostics)


class WrapperMethod(EasyEditMethod):
    """A method whose edited model is a wrapper around the model; it stays in the worker and is queried there."""

    wider: ClassVar[str] = (
        "EasyEdit's model is edited and answers in float32 (editor.py:115), while locality compares it with the unedited model in "
        "its own precision"
    )

    @property
    def unscored(self) -> str:
        """The worker answers with ids alone."""
        return "EasyEdit's wrapper chooses tokens without giving them probabilities"

    def result(self, model: "LoadedModel", worker: Worker, diagnostics: Mapping[str, float]) -> EditedModel:
        """A proxy for the worker's wrapper."""
        return AskedModel(worker, diagnostics)


class AskedModel(EditedModel):
    """Proxy for an edited model in the worker.

    Args:
        worker: the worker that holds it.
        diagnostics: returned by `diagnostics`.
    """

    def __init__(self, worker: Worker, diagnostics: Mapping[str, float]) -> None:
        self._worker = worker
        self._diagnostics = dict(diagnostics)

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Arg-max id at each target position, one row at a time."""
        answers: list[list[int]] = self._worker.call("teacher_forced", list(queries))
        return answers

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Greedy continuation of each prompt by as many ids as its target has, one row at a time."""
        answers: list[list[int]] = self._worker.call("generate", list(queries))
        return answers

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """Routing score of each prompt, if the method routes by prompt."""
        scopes: list[float] | None = self._worker.call("scope", list(queries))
        return scopes

    def diagnostics(self) -> Mapping[str, float]:
        """The diagnostics given at construction."""
        return dict(self._diagnostics)

    def revert(self) -> None:
        """Remove the wrapper from the worker's model; nothing to do if the worker has ended."""
        if self._worker.is_alive:
            self._worker.call("revert")


def started(model: "LoadedModel") -> Worker:
    """Start a worker that has loaded the same checkpoint; also used by artifact builders.

    Raises:
        UserError: if the checkout has changed since this process first used it, and as for `Worker.call`.
        WorkerError: as for `Worker.call`.
    """
    import torch

    worker = Worker(checkout.confirmed().folder)
    worker.call(
        "load",
        _absolute(model.ref),
        str(model.device),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )
    return worker


def common_options(model: "LoadedModel", algorithm: str) -> dict[str, Any]:
    """EasyEdit's options that name the model and its modules; templates have `{}` for the layer."""
    layout = model.layout
    return {
        "alg_name": algorithm,
        "model_name": model.ref.published or model.ref.name,
        "device": str(model.device),
        "model_parallel": False,
        "rewrite_module_tmp": layout.value_matrix,
        "layer_module_tmp": layout.block,
        "mlp_module_tmp": layout.mlp,
        "attn_module_tmp": layout.attention,
        "ln_f_module": layout.final_norm,
        "lm_head_module": layout.head,
    }


def _make_equal(worker: Worker, model: "LoadedModel") -> None:
    """Copy the weights that differ, after an edit or in a sequence, to the worker's model."""
    from safetensors.torch import save_file

    from harness.models.weights import wide_fingerprint

    wanted = wide_fingerprint(model.model)
    differing = worker.call("differing", wanted)
    if differing:
        file = worker.folder / "given.safetensors"
        weights = {
            f"{path}.{leaf}": parameter.detach().cpu().clone()
            for path in differing
            for leaf, parameter in model.module(path).named_parameters(recurse=False)
        }
        save_file(weights, file)
        worker.call("take", file)
        if left := worker.call("differing", wanted):
            raise RuntimeError(f"the worker's model still differs in {left[:3]}")


def _absolute(ref: ModelRef) -> ModelRef:
    """The same reference with an absolute path, since the worker has a different working directory."""
    folder = sources.local(ref.source) if ref.source else None
    return replace(ref, source=str(folder.absolute())) if folder else ref
