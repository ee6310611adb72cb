"""Shared parts of the GRACE, DEFER and WISE adapters: a wrapper around one layer's matrix, queried row by row."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import Context, EditedModel
from harness.memory import Memory
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from methods.easyedit.editor import WrapperMethod, common_options
from methods.easyedit.inside import Applied, Bench, Wrapped, as_dicts

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

COMMON = ("alg_name", "model_name", "device", "model_parallel")
"""The `common_options` that EasyEdit's hyper-parameter classes of all three accept; their constructors reject the others."""


class MemoryMethod(WrapperMethod):
    """The caller's half of the three adapters."""

    hparams: Any

    def memory(self, target: ModelRef, data: DataRef, eval_batch: int) -> Memory:
        """As for all methods, and the copy of the wrapped layer from which EasyEdit restores it."""
        need = super().memory(target, data, eval_batch)
        return replace(need, kept={**need.kept, "the original layer": target.footprint.matrix_fp32})

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Edit in the worker.

        Raises:
            UserError: if a request is longer than the model's context, and as for `WrapperMethod.edit`.
        """
        from methods.common.paused import edit_queries

        edit_queries(model, requests)
        return super().edit(model, requests, artifacts, context)

    def memory_options(self, model: "LoadedModel", algorithm: str) -> dict[str, Any]:
        """Options for the model and the wrapped matrix; layer indices are in brackets, since EasyEdit evals the path."""
        common = common_options(model, algorithm)
        matrix = re.sub(r"\.(\d+)", r"[\1]", model.path(model.layout.value_matrix, self.hparams.layer))
        return {**{key: common[key] for key in COMMON}, "inner_params": [f"{matrix}.weight"]}


class MemoryInside(Wrapped):
    """The worker's half of the three adapters: `self.hparams` is EasyEdit's object, `call` its function.

    Only the first wrapper of an edit run holds the original layer, so that one is used to restore it.
    """

    hparams: Any

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._first: Any = None

    @abstractmethod
    def call(self, records: list[dict[str, str]]) -> Any:
        """Apply EasyEdit's function to the records of one call and return its wrapper."""

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Call EasyEdit once per request."""
        records = self.records(requests)
        for call in [[record] for record in records] if "one-by-one" in self.bench.workarounds else [records]:
            self.wrapper = self.call(call)
            self._first = self._first or self.wrapper
        return Applied(diagnostics=self.diagnostics())

    def records(self, requests: Sequence[EditRequest]) -> list[dict[str, str]]:
        """Convert requests to EasyEdit's records."""
        return as_dicts(requests)

    def diagnostics(self) -> dict[str, float]:
        """Diagnostics after the last edit, added to those of the cell."""
        return {}

    @property
    def adapter(self) -> Any:
        """The EasyEdit module that replaces the matrix."""
        path = re.sub(r"\[(\d+)\]", r".\1", self.hparams.inner_params[0]).removesuffix(".weight")
        return self.bench.loaded.model.get_submodule(path)

    def revert(self) -> None:
        """Restore the original layer."""
        if self._first is not None:
            self._first.reset_layer()
        self._first = self.wrapper = None
