"""GRACE by EasyEdit (easyeditor/models/grace)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.models.catalogue import ModelRef
from harness.records import EditRequest
from harness.registry import register
from harness.tokens import Query
from methods.easyedit.editor import WholePasses, Without
from methods.easyedit.inside import Applied, Bench
from methods.easyedit.memories import MemoryInside, MemoryMethod
from methods.grace.editor import GraceHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class EasyEditGraceHparams(WholePasses, GraceHparams, Without):
    """Hyper-parameters of GRACE. `batch` has no effect: EasyEdit learns one value at a time."""

    @property
    def passes_per_edit(self) -> float:
        """The whole row in each step."""
        return 3.0 * self.steps

    @property
    def steps_per_edit(self) -> float:
        """Values are trained one by one."""
        return self.steps


@register("grace", title="GRACE", family="memory", version=1, backend="easyedit")
class EasyEditGrace(MemoryMethod):
    """One call of GRACE per request, all extending the same codebook."""

    Hparams = EasyEditGraceHparams
    inside: ClassVar[str] = "methods.easyedit.grace:GraceInside"
    own_workarounds: ClassVar[tuple[str, ...]] = ("trainable-again", "one-by-one", "given-values", "prompt-key")
    preset: ClassVar[Mapping[str, Any]] = {"implementation": "faithful-easyedit"}

    hparams: EasyEditGraceHparams

    @property
    def as_native(self) -> Any:
        """One value at a time."""
        return self.hparams.model_copy(update={"batch": 1})

    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit's GRACE does not support.

        Raises:
            UserError: for labels compared id by id, or a different distance (EasyEdit has an option for it but ignores it).
        """
        self.require(implementation="faithful-easyedit", distance="euclidean")

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/GRACE/llama-7b.yaml`; EasyEdit ignores `val_reg`, `reg` and `dropout`."""
        return {
            **self.memory_options(model, "GRACE"),
            "edit_lr": self.hparams.lr,
            "n_iter": self.hparams.steps,
            "eps": self.hparams.radius,
            "dist_fn": "euc",
            "val_init": self.hparams.start,
            "val_train": "sgd",
            "val_reg": "None",
            "reg": "early_stop",
            "replacement": f"replace_{self.hparams.replace}",
            "eps_expand": self.hparams.expand,
            "num_pert": 8,
            "dropout": 0.0,
        }


class GraceInside(MemoryInside):
    """GRACE in the worker."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        from easyeditor.models.grace import GraceHyperParams

        self.hparams = GraceHyperParams(**bench.options)
        self._losses: list[float] = []

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Apply all requests as in `MemoryInside.apply`, with a separate generator for the initial values."""
        import torch

        self._starts = torch.Generator().manual_seed(self.bench.seed)
        return super().apply(requests)

    def call(self, records: list[dict[str, str]]) -> Any:
        """Call GRACE on the records, as described in `MemoryInside.call`."""
        import torch
        from easyeditor.models.grace import apply_grace_to_model

        if "given-values" in self.bench.workarounds:
            torch.set_rng_state(self._starts.get_state())
            torch.rand(self.bench.loaded.model.config.hidden_size, generator=self._starts)
        wrapper, _ = apply_grace_to_model(self.bench.loaded.model, self.bench.loaded.tokenizer, records, self.hparams)
        self._losses.append(float(wrapper.loss.detach()))
        return wrapper

    def diagnostics(self) -> dict[str, float]:
        """Number of keys, and the loss before the last step, averaged over the edits."""
        return {"keys": float(len(self.adapter.keys)), "final_loss": sum(self._losses) / len(self._losses)}

    def before(self, query: Query, is_forced: bool) -> None:
        """Set the key position: -1 in generation, as in GRACE.generate (GRACE.py:74), which means the end of the prompt."""
        if not is_forced:
            self.adapter.key_id = -1
        elif "prompt-key" in self.bench.workarounds:
            self.adapter.key_id = len(query.prompt_ids) - 1
