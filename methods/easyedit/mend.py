"""MEND by EasyEdit (easyeditor/models/mend, easyeditor/trainer/algs/MEND.py)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.api import ArtifactSpec
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.easyedit import mend_training
from methods.easyedit.editor import FLOAT32, WeightMethod, Without
from methods.easyedit.inside import Applied, Bench, Inside, as_dicts
from methods.easyedit.mend_options import edit_options
from methods.mend.editor import ROLE, Mend
from methods.mend.hparams import MendHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

ARCHIVE = Path("archive")
"""File in which the worker passes a hypernetwork to EasyEdit."""


class EasyEditMendHparams(MendHparams, Without):
    """Hyper-parameters of MEND. `micro_batch` has no effect: EasyEdit runs each call as one backward pass.

    Attributes:
        archive: trainer of the hypernetwork: `easyedit` is EasyEdit's own, `native` is ours, whose archive is shared with our
            own MEND for the same hyper-parameters.
    """

    archive: Literal["easyedit", "native"] = "easyedit"


@register("mend", title="MEND", family="hypernetwork", version=1, backend="easyedit")
class EasyEditMend(WeightMethod):
    """One call of MEND per `batch` requests, each starting from the weights left by the previous call."""

    Hparams = EasyEditMendHparams
    inside: ClassVar[str] = "methods.easyedit.mend:MendInside"
    own_workarounds: ClassVar[tuple[str, ...]] = ("trainable-again", "fresh-executor", "leading-space")
    extras: ClassVar[tuple[str, ...]] = ("higher",)
    preset: ClassVar[Mapping[str, Any]] = {"implementation": "faithful-easyedit", "inner_reduction": "batch_mean"}
    differences: ClassVar[tuple[str, ...]] = (
        "with archive: easyedit its trainer keeps the hypernetwork of the last validation instead of the best "
        "(BaseTrainer.py:211-213), and truncates texts to 40 tokens (zsre.py:30)",
    )

    hparams: EasyEditMendHparams

    @property
    def as_native(self) -> Any:
        """All rows of a call in one backward pass."""
        return self.hparams.model_copy(update={"micro_batch": self.hparams.batch})

    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit's MEND does not support.

        Raises:
            UserError: for our own losses, per-edit gradients, or a rank above the size of a pair of factors, to which
                EasyEdit reduces it (local_nn.py:50).
        """
        self.require(implementation="faithful-easyedit", rounds=1)
        if self.hparams.batch > 1:
            self.require(inner_reduction="batch_mean")
        size = target.spec.hidden + target.spec.ffn
        if self.hparams.rank > size:
            raise self.refused("rank", size)

    def needs(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The hypernetwork, trained for this model on the train records.

        Raises:
            UserError: if the dataset has no train records.
        """
        ours = Mend(self.hparams).artifacts(target, data, seed)[ROLE]
        if self.hparams.archive == "native":
            return {ROLE: ours}
        code = {**self.code_identity(), **self.identity_on(target)}
        wide = Mend(self.hparams).artifacts(replace(target, dtype=FLOAT32), data, seed)[ROLE]
        memory = {**wide.memory, "the worker's model": replace(target, dtype=FLOAT32).footprint.weights}
        return {ROLE: mend_training.artifact(ours, code, memory, "leading-space" not in self.hparams.without)}

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/MEND/llama-7b.yaml`."""
        return edit_options(self.hparams, self.hparams.batch, model)


class MendInside(Inside):
    """MEND in the worker."""

    executor: ClassVar[Any] = None
    """Executor of the last edit run, reused if the workaround fresh-executor is off."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        import torch
        from easyeditor.models.mend import MENDHyperParams
        from easyeditor.models.mend.mend_main import MendRewriteExecutor

        from methods.easyedit.mend_archive import state_of
        from methods.mend.network import load

        model, tokenizer = bench.loaded.model, bench.loaded.tokenizer
        self._hparams = MENDHyperParams(**bench.options, archive=str(ARCHIVE))
        if MendInside.executor is not None and "fresh-executor" not in bench.workarounds:
            return
        for handle in vars(model).pop("handles", ()):
            handle.remove()
        hypernetwork, _ = load(bench.artifacts[ROLE], bench.loaded.device)
        torch.save({"model": state_of(hypernetwork, model.config)}, ARCHIVE)
        MendInside.executor = MendRewriteExecutor()
        MendInside.executor.init_model(model, tokenizer, self._hparams)

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Call MEND the way `BaseEditor.batch_edit` does with `sequential_edit` (editor.py:264)."""
        loaded, hparams = self.bench.loaded, self._hparams
        records = as_dicts(requests)
        for start in range(0, len(records), hparams.batch_size):
            call = records[start : start + hparams.batch_size]
            MendInside.executor.apply_to_model(loaded.model, loaded.tokenizer, call, hparams)
        return Applied(tuple(hparams.inner_params))
