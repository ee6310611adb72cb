"""ROME by EasyEdit (easyeditor/models/rome)."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

from harness.models.catalogue import ModelRef
from harness.records import EditRequest
from harness.registry import register
from methods.common.layers import count
from methods.common.prefixes import WORDS
from methods.easyedit.closed_form import (
    WORKAROUNDS,
    EasyEditClosedForm,
    WholeRows,
    as_template,
    given_options,
    given_prefixes,
    matrices,
)
from methods.easyedit.editor import Without
from methods.easyedit.inside import Applied, Bench, Inside
from methods.rome import RomeHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class EasyEditRomeHparams(WholeRows, RomeHparams, Without):
    """Hyper-parameters of ROME."""

    @property
    def values_per_edit(self) -> int:
        """One for each layer."""
        return count(self.layers)


@register("rome", title="ROME", family="weights", version=1, backend="easyedit")
class EasyEditRome(EasyEditClosedForm):
    """One call of ROME per request, each starting from the weights left by the previous call."""

    Hparams = EasyEditRomeHparams
    inside: ClassVar[str] = "methods.easyedit.rome:RomeInside"
    own_workarounds: ClassVar[tuple[str, ...]] = (*WORKAROUNDS, "one-by-one")

    hparams: EasyEditRomeHparams

    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit's ROME does not support.

        Raises:
            UserError: also for the same key in both places, which is a separate method in EasyEdit (R-ROME).
        """
        super().check(target)
        self.require(key_mode="rome")

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/ROME/llama-7b.yaml`."""
        lengths = [[length, len(WORDS) * per_word] for length, per_word in self.hparams.prefixes]
        return {**self.value_options(model, "ROME"), "context_template_length_params": lengths}


class RomeInside(Inside):
    """ROME in the worker."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        from easyeditor.models.rome import ROMEHyperParams, compute_u, rome_main

        loaded = bench.loaded
        loaded.tokenizer.padding_side = "right"  # editor.py:184-186
        if "fresh-caches" in bench.workarounds:
            rome_main.CONTEXT_TEMPLATES_CACHE = None
            compute_u.inv_mom2_cache.clear()
        if "given-prefixes" in bench.workarounds:
            rome_main.CONTEXT_TEMPLATES_CACHE = ["{}", *chain.from_iterable(given_prefixes(bench))]
        self._hparams = hparams = ROMEHyperParams(**given_options(bench))
        for layer in hparams.layers if hparams.mom2_adjustment else ():
            name = hparams.rewrite_module_tmp.format(layer)
            given = (hparams.mom2_dataset, hparams.mom2_n_samples, hparams.mom2_dtype, hparams)
            compute_u.get_inv_cov(loaded.model, loaded.tokenizer, name, *given)  # fills its cache

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Call ROME once per request."""
        from easyeditor.models.rome import apply_rome_to_model

        loaded, active = self.bench.loaded, self.bench.workarounds
        records = [as_template(request, "last-mention" in active) for request in requests]
        calls = [[record] for record in records] if "one-by-one" in active else [records]
        for call in calls:
            apply_rome_to_model(loaded.model, loaded.tokenizer, call, self._hparams)
        return Applied(matrices(self.bench))
