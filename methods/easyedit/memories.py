"""What the adapters of GRACE, DEFER and WISE share: one layer with a wrapper around its matrix, asked row by row."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import Context, EditedModel
from harness.records import EditRequest
from methods.easyedit.editor import WrapperMethod, common_options
from methods.easyedit.inside import Applied, Bench, Wrapped, as_dicts

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

COMMON = ("alg_name", "model_name", "device", "model_parallel")
"""Of `common_options`, what EasyEdit's hyper-parameters of all three have; any more, and they refuse to be made."""


class MemoryMethod(WrapperMethod):
    """The caller's half of each."""

    hparams: Any

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Edit in the worker.

        Raises:
            UserError: for a request longer than the model's context, and as `WrapperMethod.edit`.
        """
        from methods.common.paused import edit_queries

        edit_queries(model, requests)
        return super().edit(model, requests, artifacts, context)

    def memory_options(self, model: "LoadedModel", algorithm: str) -> dict[str, Any]:
        """Which model it is, and where the wrapper goes: numbers in brackets, since EasyEdit evaluates it as Python."""
        common = common_options(model, algorithm)
        matrix = re.sub(r"\.(\d+)", r"[\1]", model.path(model.layout.value_matrix, self.hparams.layer))
        return {**{key: common[key] for key in COMMON}, "inner_params": [f"{matrix}.weight"]}


class MemoryInside(Wrapped):
    """The worker's half of each: `self.hparams` is EasyEdit's object, `call` its function.

    Only the first wrapper of an act has kept the layer as it was, so that is the one that is asked to take itself off.
    """

    hparams: Any

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._first: Any = None

    def call(self, records: list[dict[str, str]]) -> Any:
        """Apply EasyEdit's function to the records of one call; the wrapper that it gives."""
        raise NotImplementedError

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Call EasyEdit once per request."""
        records = self.records(requests)
        for call in [[record] for record in records] if "one-by-one" in self.bench.workarounds else [records]:
            self.wrapper = self.call(call)
            self._first = self._first or self.wrapper
        return Applied(diagnostics=self.diagnostics())

    def records(self, requests: Sequence[EditRequest]) -> list[dict[str, str]]:
        """Requests as EasyEdit has them."""
        return as_dicts(requests)

    def diagnostics(self) -> dict[str, float]:
        """For those of the cell, after the last edit."""
        return {}

    @property
    def adapter(self) -> Any:
        """What stands in the matrix's place."""
        path = re.sub(r"\[(\d+)\]", r".\1", self.hparams.inner_params[0]).removesuffix(".weight")
        return self.bench.loaded.model.get_submodule(path)

    def revert(self) -> None:
        """Put the layer back."""
        if self._first is not None:
            self._first.reset_layer()
        self._first = self.wrapper = None
