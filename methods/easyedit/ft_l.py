"""FT-L by EasyEdit's FT (easyeditor/models/ft)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.models.catalogue import ModelRef
from harness.records import EditRequest
from harness.registry import register
from methods.easyedit.editor import WeightMethod, Without, common_options
from methods.easyedit.inside import Applied, Bench, Inside, as_dicts
from methods.ft_l.editor import FtLHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

LOSS_STOP = 1e-2
"""ft_main.py:219 and 233: it is no option there."""


class EasyEditFtLHparams(FtLHparams, Without):
    """Those of FT-L. `micro_batch` is not read: a call is one backward pass in EasyEdit."""


@register("ft-l", title="FT-L", family="weights", version=1, backend="easyedit")
class EasyEditFtL(WeightMethod):
    """One call of FT per `batch` requests, each on the weights that the one before has left."""

    Hparams = EasyEditFtLHparams
    inside: ClassVar[str] = "methods.easyedit.ft_l:FtLInside"
    own_workarounds: ClassVar[tuple[str, ...]] = ("trainable-again", "right-padding", "unscored-padding")
    preset: ClassVar[Mapping[str, Any]] = {"implementation": "faithful-easyedit"}

    hparams: EasyEditFtLHparams

    def check(self, target: ModelRef) -> None:
        """Refuse what FT lacks.

        Raises:
            UserError: for another implementation, or another loss to stop at.
        """
        if self.hparams.implementation != "faithful-easyedit":
            raise self.refused("implementation", "faithful-easyedit")
        if self.hparams.loss_stop != LOSS_STOP:
            raise self.refused("loss_stop", LOSS_STOP)

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """As `hparams/FT/llama-7b.yaml` has them; FT bounds a change only if the bound is a float."""
        bound = self.hparams.norm_constraint
        return {
            **common_options(model, "FT"),
            "layers": [self.hparams.layer],
            "num_steps": self.hparams.steps,
            "lr": self.hparams.lr,
            "weight_decay": self.hparams.weight_decay,
            "kl_factor": 0,
            "norm_constraint": False if bound is None else float(bound),
            "objective_optimization": self.hparams.objective,
            "batch_size": self.hparams.batch,
        }


class FtLInside(Inside):
    """FT in the worker."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        tokenizer = bench.loaded.tokenizer
        if "right-padding" in bench.workarounds:
            tokenizer.padding_side = "right"
        if "unscored-padding" in bench.workarounds and tokenizer.unk_token_id is not None:
            tokenizer.pad_token_id = tokenizer.unk_token_id

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Call FT as `BaseEditor.batch_edit` does with `sequential_edit` (editor.py:264)."""
        from easyeditor.models.ft import FTHyperParams, apply_ft_to_model

        loaded, hparams = self.bench.loaded, FTHyperParams(**self.bench.options)
        touched: dict[str, object] = {}
        records = as_dicts(requests)
        for start in range(0, len(records), hparams.batch_size):
            call = records[start : start + hparams.batch_size]
            _, before = apply_ft_to_model(loaded.model, loaded.tokenizer, call, hparams, return_orig_weights=True)
            touched |= before
        return Applied(tuple(touched))
