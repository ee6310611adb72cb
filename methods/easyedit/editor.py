"""What all adapters share: checks before anything runs, the worker with the right weights in it, and what comes of an edit."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from harness.api import ArtifactSpec, Context, EditedModel, Method
from harness.errors import UserError
from harness.models import checkpoint
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from harness.tokens import Query
from methods.easyedit import checkout, workarounds
from methods.easyedit.process import Worker

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class Without(BaseModel):
    """What every adapter adds to the hyper-parameters of its method.

    Attributes:
        without: names of workarounds that are switched off.
    """

    without: tuple[str, ...] = Field((), description="names of workarounds that are switched off")


class EasyEditMethod(Method):
    """A method as EasyEdit computes it, with the hyper-parameters of our own implementation.

    Class attributes of an adapter, in addition to those of `Method`:
        Hparams: our own class with `Without` next to it.
        inside: `module:class` of its half in the worker, an `inside.Inside`.
        own_workarounds: names of those that it has.
        extras: modules that EasyEdit imports for it and that are not always installed.
    """

    inside: ClassVar[str]
    own_workarounds: ClassVar[tuple[str, ...]] = ("trainable-again",)
    extras: ClassVar[tuple[str, ...]] = ()
    memory_copies: ClassVar[int] = 2  # the worker process holds a copy of its own

    def __init__(self, hparams: Any) -> None:
        super().__init__(hparams)
        self._worker: Worker | None = None
        self._loaded: tuple[ModelRef, str] | None = None

    @abstractmethod
    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """EasyEdit's hyper-parameters for a model, by its names, as its own hyper-parameter files have them."""

    @abstractmethod
    def check(self, target: ModelRef) -> None:
        """Refuse options that EasyEdit has no word for.

        Raises:
            UserError: best made by `refused`.
        """

    def needs(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """What must be built before `edit`, by role."""
        return {}

    def artifacts(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """As `Method.artifacts`; whatever prevents an edit is said here, when a run is planned.

        Raises:
            UserError: no checkout, a wrong one, a missing module, an unknown workaround, an option that EasyEdit lacks.
        """
        checkout.find()
        checkout.require(self.extras)
        self._active()
        self.check(target)
        return self.needs(target, data, seed)

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Edit in the worker.

        Raises:
            UserError, WorkerError: as `Worker.call`; the model here is as it was.
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
        """The edited model, once the worker has edited its own."""

    def code_identity(self) -> dict[str, str]:
        """The commit, and a hash of what was changed in it."""
        return checkout.find().identity

    def provenance(self) -> dict[str, Any]:
        """Where the checkout is, and which workarounds are on."""
        found = checkout.find()
        return {
            "easyedit": {
                "folder": str(found.folder),
                "commit": found.commit,
                "clean": not found.changes,
                "workarounds": list(self._active()),
            }
        }

    def refused(self, option: str, instead: object) -> UserError:
        """That EasyEdit cannot do what an option says, and the value with which it can."""
        value = getattr(self.hparams, option)
        return UserError(
            f"{self.spec.name}: EasyEdit has nothing like {option}: {json.dumps(value)}",
            fix=f"{option}: {json.dumps(instead)}",
        )

    def worker(self, model: "LoadedModel") -> Worker:
        """The worker with a model in it that equals this one."""
        wanted = (_absolute(model.ref), str(model.device))
        if self._worker is None or not self._worker.is_alive or self._loaded != wanted:
            self.stop()
            self._worker, self._loaded = started(model), wanted
        _make_equal(self._worker, model)
        return self._worker

    def stop(self) -> None:
        """End the worker, if there is one; the next edit starts another."""
        if self._worker is not None:
            self._worker.stop()
        self._worker = None

    def _active(self) -> tuple[str, ...]:
        return workarounds.active(self.own_workarounds, self.hparams.without)


class WeightMethod(EasyEditMethod):
    """A method whose edit is in the weights: they are handed over, and the model here is evaluated with them."""

    def result(self, model: "LoadedModel", worker: Worker, diagnostics: Mapping[str, float]) -> EditedModel:
        """The model here with the worker's weights."""
        from safetensors.torch import load_file

        from harness.models.edited import WeightEditedModel
        from harness.models.weights import InstalledWeights

        weights = load_file(worker.call("hand_over"), device=str(model.device))
        return WeightEditedModel(model, InstalledWeights(model.model, weights).restore, diagnostics)


class WrapperMethod(EasyEditMethod):
    """A method whose edited model is a wrapper around the model, which stays in the worker and is asked there."""

    def result(self, model: "LoadedModel", worker: Worker, diagnostics: Mapping[str, float]) -> EditedModel:
        """The worker's wrapper."""
        return AskedModel(worker, diagnostics)


class AskedModel(EditedModel):
    """An `EditedModel` in the worker.

    Args:
        worker: which holds it.
        diagnostics: what `diagnostics` returns.
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
        """How far each prompt is taken for an edit, where the method decides by prompt."""
        scopes: list[float] | None = self._worker.call("scope", list(queries))
        return scopes

    def diagnostics(self) -> Mapping[str, float]:
        """The numbers given at construction."""
        return dict(self._diagnostics)

    def revert(self) -> None:
        """Take the wrapper off the worker's model; a worker that is gone has taken it along."""
        if self._worker.is_alive:
            self._worker.call("revert")


def started(model: "LoadedModel") -> Worker:
    """A worker that has loaded the same checkpoint, also for builders of artifacts.

    Raises:
        UserError: if the checkout is not the one that this process began with, and as `Worker.call`.
        WorkerError: as `Worker.call`.
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
    """EasyEdit's hyper-parameters that say which model it is and where its parts are; templates have `{}` for the layer."""
    layout = model.layout
    return {
        "alg_name": algorithm,
        "model_name": model.entry.hub_id or model.ref.name,
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
    """Give the worker's model the weights of this one: those that differ, after an edit or in a sequence."""
    from safetensors.torch import save_file

    from harness.models.weights import fingerprint

    wanted = fingerprint(model.model)
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
            raise RuntimeError(f"the worker's model stays different in {left[:3]}")


def _absolute(ref: ModelRef) -> ModelRef:
    """The same reference from whatever working directory."""
    folder = checkpoint.local_folder(ref.source) if ref.source else None
    return replace(ref, source=str(folder.absolute())) if folder else ref
