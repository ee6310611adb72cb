"""DEFER by EasyEdit (easyeditor/models/defer)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from harness.models.catalogue import ModelRef
from harness.registry import register
from methods.defer.editor import DeferHparams
from methods.easyedit.editor import WholePasses, Without
from methods.easyedit.inside import Bench
from methods.easyedit.memories import MemoryInside, MemoryMethod

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class EasyEditDeferHparams(WholePasses, DeferHparams, Without):
    """Hyper-parameters of DEFER."""


@register("defer", title="DEFER", family="memory", version=1, backend="easyedit")
class EasyEditDefer(MemoryMethod):
    """One call of DEFER per request, all training the same gate and value layer."""

    Hparams = EasyEditDeferHparams
    inside: ClassVar[str] = "methods.easyedit.defer:DeferInside"
    own_workarounds: ClassVar[tuple[str, ...]] = ("trainable-again", "one-by-one")
    preset: ClassVar[Mapping[str, Any]] = {"query": "sequence_last"}

    hparams: EasyEditDeferHparams

    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit's DEFER does not support.

        Raises:
            UserError: for a gate that reads the prompt's last token.
        """
        self.require(query="sequence_last")

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/DEFER/llama-7b.yaml`."""
        return {
            **self.memory_options(model, "DEFER"),
            "edit_lr": self.hparams.lr,
            "n_iter": self.hparams.steps,
            "threshold": self.hparams.threshold,
        }


class DeferInside(MemoryInside):
    """DEFER in the worker. The first call initialises the gate right after seeding, as in our own implementation."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        from easyeditor.models.defer import DeferHyperParams

        self.hparams = DeferHyperParams(**bench.options)
        self._losses: list[float] = []

    def call(self, records: list[dict[str, str]]) -> Any:
        """Call DEFER on the records, as described in `MemoryInside.call`."""
        from easyeditor.models.defer import apply_defer_to_model

        wrapper, _ = apply_defer_to_model(self.bench.loaded.model, self.bench.loaded.tokenizer, records, self.hparams)
        self._losses.append(float(wrapper.loss.detach()))
        return wrapper

    def diagnostics(self) -> dict[str, float]:
        """The loss before the last step, averaged over the edits."""
        return {"final_loss": sum(self._losses) / len(self._losses)}
