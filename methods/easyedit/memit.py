"""MEMIT by EasyEdit (easyeditor/models/memit)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from harness.memory import Memory
from harness.models.catalogue import ModelRef
from harness.records import DataRef
from harness.registry import register
from methods.common.layers import count
from methods.easyedit.closed_form import WholeRows, given_options, given_prefixes
from methods.easyedit.editor import Without
from methods.easyedit.inside import Bench
from methods.easyedit.layerwise import EasyEditLayerwise, LayerwiseInside
from methods.memit import MemitHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class EasyEditMemitHparams(WholeRows, MemitHparams, Without):
    """Hyper-parameters of MEMIT. `micro_batch` has no effect: EasyEdit optimises one request at a time."""


@register("memit", title="MEMIT", family="weights", version=1, backend="easyedit")
class EasyEditMemit(EasyEditLayerwise):
    """One call of MEMIT per `batch` requests, each starting from the weights left by the previous call."""

    Hparams = EasyEditMemitHparams
    inside: ClassVar[str] = "methods.easyedit.memit:MemitInside"
    differences: ClassVar[tuple[str, ...]] = (
        *EasyEditLayerwise.differences,
        "covariance statistics are rounded to float32 (memit_main.py:285)",
    )

    hparams: EasyEditMemitHparams

    def memory(self, target: ModelRef, data: DataRef, eval_batch: int) -> Memory:
        """With the statistics in float32, and the system of one layer in float64 (memit_main.py:212)."""
        need, one = super().memory(target, data, eval_batch), target.footprint.covariance_fp64
        return replace(need, edit={**need.edit, "covariance factors": (count(self.hparams.layers) / 2 + 5) * one})

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/MEMIT/llama-7b.yaml`."""
        return {**self.layerwise_options(model, "MEMIT"), "mom2_update_weight": self.hparams.moment_weight}


class MemitInside(LayerwiseInside):
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
        self.hparams = hparams = MEMITHyperParams(**given_options(bench))
        for layer in hparams.layers:
            name = hparams.rewrite_module_tmp.format(layer)
            given = (hparams.mom2_dataset, hparams.mom2_n_samples, hparams.mom2_dtype)
            memit_main.get_cov(loaded.model, loaded.tokenizer, name, *given, hparams=hparams)  # fills its cache

    def call(self, records: list[dict[str, str]]) -> None:
        """Call MEMIT."""
        from easyeditor.models.memit import apply_memit_to_model

        apply_memit_to_model(self.bench.loaded.model, self.bench.loaded.tokenizer, records, self.hparams)
