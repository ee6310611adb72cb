"""FT-L by EasyEdit's FT (easyeditor/models/ft)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.models.catalogue import ModelRef
from harness.records import EditRequest
from harness.registry import register
from methods.easyedit.editor import WeightMethod, WholePasses, Without, common_options
from methods.easyedit.inside import Applied, Bench, Inside, as_dicts
from methods.ft_l.editor import FtLHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

LOSS_STOP = 1e-2
"""Hard-coded in ft_main.py:219 and 233."""


class EasyEditFtLHparams(WholePasses, FtLHparams, Without):
    """Hyper-parameters of FT-L. `micro_batch` has no effect: EasyEdit runs each call as one backward pass."""

    @property
    def steps_per_edit(self) -> float:
        """Calls are trained one by one."""
        return self.steps / self.batch


@register("ft-l", title="FT-L", family="weights", version=1, backend="easyedit")
class EasyEditFtL(WeightMethod):
    """One call of FT per `batch` requests, each starting from the weights left by the previous call."""

    Hparams = EasyEditFtLHparams
    inside: ClassVar[str] = "methods.easyedit.ft_l:FtLInside"
    own_workarounds: ClassVar[tuple[str, ...]] = ("trainable-again", "right-padding", "unscored-padding")
    preset: ClassVar[Mapping[str, Any]] = {"implementation": "faithful-easyedit"}

    hparams: EasyEditFtLHparams

    @property
    def as_native(self) -> Any:
        """All rows of a call in one backward pass."""
        return self.hparams.model_copy(update={"micro_batch": self.hparams.batch})

    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit's FT does not support.

        Raises:
            UserError: for a different implementation or stopping loss.
        """
        self.require(implementation="faithful-easyedit", loss_stop=LOSS_STOP)

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/FT/llama-7b.yaml`; FT applies the norm constraint only if it is a float."""
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
        """Call FT the way `BaseEditor.batch_edit` does with `sequential_edit` (editor.py:264)."""
        from easyeditor.models.ft import FTHyperParams, apply_ft_to_model

        loaded, hparams = self.bench.loaded, FTHyperParams(**self.bench.options)
        touched: dict[str, object] = {}
        records = as_dicts(requests)
        for start in range(0, len(records), hparams.batch_size):
            call = records[start : start + hparams.batch_size]
            _, before = apply_ft_to_model(loaded.model, loaded.tokenizer, call, hparams, return_orig_weights=True)
            touched |= before
        return Applied(tuple(touched))
