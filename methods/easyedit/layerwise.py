"""Shared parts of the MEMIT and AlphaEdit adapters: edits of several layers, in batches."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.models.catalogue import ModelRef
from harness.records import EditRequest
from methods.easyedit.closed_form import EasyEditClosedForm, as_template, matrices
from methods.easyedit.inside import Applied, Inside

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

OWN_PREFIXES = ((10, 1),)
"""The prefix groups that EasyEdit samples itself (memit_main.py:323): length in tokens, number per first word."""


class EasyEditLayerwise(EasyEditClosedForm):
    """The caller's half of both adapters."""

    @property
    def as_native(self) -> Any:
        """The values are optimised one after the other."""
        return self.hparams.model_copy(update={"micro_batch": 1})

    def check(self, target: ModelRef) -> None:
        """Reject options that neither method supports.

        Raises:
            UserError: also for prefix groups other than EasyEdit's own if it samples the prefixes itself.
        """
        super().check(target)
        if "given-prefixes" in self.hparams.without:
            self.require(prefixes=OWN_PREFIXES)

    def layerwise_options(self, model: "LoadedModel", algorithm: str) -> dict[str, Any]:
        """The options shared by `hparams/MEMIT/llama-7b.yaml` and `hparams/AlphaEdit/llama3-8b.yaml`."""
        return {
            **self.value_options(model, algorithm),
            "layer_selection": "all",
            "batch_size": self.hparams.batch,
        }


class LayerwiseInside(Inside):
    """The worker's half of both adapters. The constructor sets `hparams`, EasyEdit's object."""

    hparams: Any

    @abstractmethod
    def call(self, records: list[dict[str, str]]) -> None:
        """Edit the worker's model with one batch."""

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Call EasyEdit the way `BaseEditor.batch_edit` does (editor.py:264)."""
        records = [as_template(request, "last-mention" in self.bench.workarounds) for request in requests]
        for start in range(0, len(records), self.hparams.batch_size):
            self.call(records[start : start + self.hparams.batch_size])
        return Applied(matrices(self.bench))
