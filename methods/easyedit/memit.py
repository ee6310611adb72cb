"""MEMIT by EasyEdit (easyeditor/models/memit)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.models.catalogue import ModelRef
from harness.records import EditRequest
from harness.registry import register
from methods.easyedit.closed_form import EasyEditClosedForm, as_template, given_options, given_prefixes, matrices
from methods.easyedit.editor import Without
from methods.easyedit.inside import Applied, Bench, Inside
from methods.memit import MemitHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

OWN_PREFIXES = ((10, 1),)
"""The prefix groups that EasyEdit samples itself (memit_main.py:323): length in tokens, number per first word."""


class EasyEditMemitHparams(MemitHparams, Without):
    """Hyper-parameters of MEMIT. `micro_batch` has no effect: EasyEdit optimises one request at a time."""


@register("memit", title="MEMIT", family="weights", version=1, backend="easyedit")
class EasyEditMemit(EasyEditClosedForm):
    """One call of MEMIT per `batch` requests, each starting from the weights left by the previous call."""

    Hparams = EasyEditMemitHparams
    inside: ClassVar[str] = "methods.easyedit.memit:MemitInside"
    differences: ClassVar[tuple[str, ...]] = (
        *EasyEditClosedForm.differences,
        "covariance statistics are rounded to float32 (memit_main.py:285)",
    )

    hparams: EasyEditMemitHparams

    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit's MEMIT does not support.

        Raises:
            UserError: as for ROME, for regularisers of the update, and for prefix groups other than EasyEdit's own if it
                samples the prefixes itself.
        """
        super().check(target)
        for name in self.hparams.regularisers:
            if getattr(self.hparams, name) != (off := MemitHparams.model_fields[name].default):
                raise self.refused(name, off)
        if "given-prefixes" in self.hparams.without and self.hparams.prefixes != OWN_PREFIXES:
            raise self.refused("prefixes", OWN_PREFIXES)

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/MEMIT/llama-7b.yaml`."""
        return {
            **self.value_options(model, "MEMIT"),
            "layer_selection": "all",
            "mom2_update_weight": self.hparams.moment_weight,
            "batch_size": self.hparams.batch,
        }


class MemitInside(Inside):
    """MEMIT in the worker."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        from easyeditor.models.memit import MEMITHyperParams, memit_main

        loaded = bench.loaded
        loaded.tokenizer.padding_side = "right"  # editor.py:184-186
        if "fresh-caches" in bench.workarounds:
            memit_main.CONTEXT_TEMPLATES_CACHE = None
            memit_main.COV_CACHE.clear()
        if "given-prefixes" in bench.workarounds:
            memit_main.CONTEXT_TEMPLATES_CACHE = [["{}"], *given_prefixes(bench)]
        self._hparams = hparams = MEMITHyperParams(**given_options(bench))
        for layer in hparams.layers:
            name = hparams.rewrite_module_tmp.format(layer)
            given = (hparams.mom2_dataset, hparams.mom2_n_samples, hparams.mom2_dtype)
            memit_main.get_cov(loaded.model, loaded.tokenizer, name, *given, hparams=hparams)  # fills its cache

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Call MEMIT the way `BaseEditor.batch_edit` does (editor.py:264)."""
        from easyeditor.models.memit import apply_memit_to_model

        loaded, hparams = self.bench.loaded, self._hparams
        records = [as_template(request, "last-mention" in self.bench.workarounds) for request in requests]
        for start in range(0, len(records), hparams.batch_size):
            call = records[start : start + hparams.batch_size]
            apply_memit_to_model(loaded.model, loaded.tokenizer, call, hparams)
        return Applied(matrices(self.bench))
