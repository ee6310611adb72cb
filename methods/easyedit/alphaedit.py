"""AlphaEdit by EasyEdit (easyeditor/models/alphaedit)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from harness.api import ArtifactSpec
from harness.errors import UserError
from harness.memory import Memory
from harness.models.catalogue import ModelRef
from harness.records import DataRef
from harness.registry import register
from methods.alphaedit.editor import ROLE, AlphaEdit, AlphaEditHparams
from methods.common.layers import count
from methods.easyedit.closed_form import WholeRows, given_prefixes
from methods.easyedit.editor import Without
from methods.easyedit.inside import Bench
from methods.easyedit.layerwise import EasyEditLayerwise, LayerwiseInside

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class EasyEditAlphaEditHparams(WholeRows, AlphaEditHparams, Without):
    """Hyper-parameters of AlphaEdit. `micro_batch` has no effect: EasyEdit optimises one request at a time."""


@register("alphaedit", title="AlphaEdit", family="weights", version=1, backend="easyedit")
class EasyEditAlphaEdit(EasyEditLayerwise):
    """One call of AlphaEdit per `batch` requests, each protecting the keys of the calls before it."""

    Hparams = EasyEditAlphaEditHparams
    inside: ClassVar[str] = "methods.easyedit.alphaedit:AlphaEditInside"
    own_workarounds: ClassVar[tuple[str, ...]] = (
        "trainable-again",
        "fresh-caches",
        "given-prefixes",
        "given-null-space",
        "last-mention",
    )
    differences: ClassVar[tuple[str, ...]] = (
        *EasyEditLayerwise.differences,
        "the unsymmetric system is solved in float32 (AlphaEdit_main.py:234)",
    )

    hparams: EasyEditAlphaEditHparams

    @classmethod
    def edits_in_sequence(cls) -> bool:
        """No: EasyEdit keeps the keys of earlier edits in the process (`cache_c`), which each edit run starts without."""
        return False

    def memory(self, target: ModelRef, data: DataRef, eval_batch: int) -> Memory:
        """With the projection and the earlier keys of each layer as float32 matrices, and those of one layer in float64."""
        need, one = super().memory(target, data, eval_batch), target.footprint.covariance_fp64
        kept = {name: size for name, size in need.kept.items() if name != "earlier keys"}
        matrices = {"projections and earlier keys": count(self.hparams.layers) * one}
        return replace(need, kept=kept | matrices, edit={**need.edit, "null spaces": 4 * one})

    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit's AlphaEdit does not support.

        Raises:
            UserError: also without the given null space, for which EasyEdit would download Wikipedia.
        """
        super().check(target)
        if "given-null-space" in self.hparams.without:
            raise UserError(
                "alphaedit: without given-null-space EasyEdit would download Wikipedia in the middle of an edit",
                fix="without: []",
            )

    def needs(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The artifacts of our own implementation, so that both use the same prefixes and null spaces."""
        needed = dict(AlphaEdit(self.hparams).artifacts(target, data, seed))
        if "given-prefixes" in self.hparams.without:
            del needed["prefixes"]
        return needed

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/AlphaEdit/llama3-8b.yaml`."""
        return {
            **self.layerwise_options(model, "AlphaEdit"),
            "mom2_update_weight": 0,  # read by nothing
            "nullspace_threshold": self.hparams.null_threshold,
            "L2": self.hparams.norm_weight,
        }


class AlphaEditInside(LayerwiseInside):
    """AlphaEdit in the worker."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        import torch
        from easyeditor.models.alphaedit import AlphaEdit_main, AlphaEditHyperParams

        from methods.alphaedit.null_space import NullSpace

        loaded = bench.loaded
        loaded.tokenizer.padding_side = "right"  # editor.py:184-186
        if "fresh-caches" in bench.workarounds:
            AlphaEdit_main.CONTEXT_TEMPLATES_CACHE = None
        if "given-prefixes" in bench.workarounds:
            AlphaEdit_main.CONTEXT_TEMPLATES_CACHE = [["{}"], *given_prefixes(bench)]
        layers = bench.options["layers"]
        unit_KK = torch.eye(loaded.value_matrix(layers[0])[1].shape[1], dtype=torch.float64, device=loaded.device)
        folder = bench.artifacts[ROLE]  # one layer after the other: in float64 a matrix of Llama3-8B has 1.6 GB
        projections = [NullSpace.load(folder, at, loaded.device).project(unit_KK).float().cpu() for at in layers]
        AlphaEdit_main.P = torch.stack(projections)
        AlphaEdit_main.P_loaded = True
        if "fresh-caches" in bench.workarounds or not AlphaEdit_main.cache_c_new:
            AlphaEdit_main.cache_c = torch.zeros_like(AlphaEdit_main.P)
            AlphaEdit_main.cache_c_new = True
        place = Path("null_space_project.pt").absolute()
        place.touch()  # AlphaEdit_main.py:60: P is computed again unless there is such a file
        self.hparams = AlphaEditHyperParams(**bench.options, P_loc=str(place))

    def call(self, records: list[dict[str, str]]) -> None:
        """Call AlphaEdit."""
        from easyeditor.models.alphaedit import apply_AlphaEdit_to_model

        given = [{**record, "prompt": _Template(record["prompt"])} for record in records]
        apply_AlphaEdit_to_model(self.bench.loaded.model, self.bench.loaded.tokenizer, given, self.hparams)


class _Template(str):
    """A template with one `{}`; other mentions of the subject are not replaced too, as AlphaEdit_main.py:133 would."""

    __slots__ = ()

    def replace(self, *_unused: Any) -> Self:
        return self
