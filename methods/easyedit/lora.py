"""LoRA by EasyEdit (easyeditor/models/lora), which uses peft."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from harness.memory import Memory
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.easyedit.editor import WeightMethod, Without, common_options
from methods.easyedit.inside import Applied, Bench, Inside, as_dicts
from methods.lora import LoraHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class EasyEditLoraHparams(LoraHparams, Without):
    """Hyper-parameters of LoRA. `micro_batch` has no effect: EasyEdit runs each call as one backward pass."""

    @property
    def steps_per_edit(self) -> float:
        """Calls are trained one by one."""
        return self.steps / self.batch


@register("lora", title="LoRA", family="weights", version=1, backend="easyedit")
class EasyEditLora(WeightMethod):
    """One call of LoRA per `batch` requests, all training the same updates, which are merged at the end of the edit run.

    EasyEdit's files choose AdaLoRA with dropout. Here it trains plain LoRA without dropout, as our own does.
    """

    Hparams = EasyEditLoraHparams
    inside: ClassVar[str] = "methods.easyedit.lora:LoraInside"
    own_workarounds: ClassVar[tuple[str, ...]] = ("trainable-again", "given-updates")
    extras: ClassVar[tuple[str, ...]] = ("peft",)
    preset: ClassVar[Mapping[str, Any]] = {"implementation": "faithful-easyedit", "loss_stop": 0.0}

    hparams: EasyEditLoraHparams

    @property
    def as_native(self) -> Any:
        """All rows of a call in one backward pass."""
        return self.hparams.model_copy(update={"micro_batch": self.hparams.batch})

    def memory(self, target: ModelRef, data: DataRef, eval_batch: int) -> Memory:
        """As for all methods that edit weights, without copies in the worker: peft merges the updates in place."""
        need = super().memory(target, data, eval_batch)
        return replace(need, kept={name: size for name, size in need.kept.items() if name != "edited matrices"})

    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit's LoRA does not support.

        Raises:
            UserError: for our own implementation, a loss that stops the training (lora_main.py:178 is commented out), or a weight
                decay, which its Adam adds to the gradient.
        """
        self.require(implementation="faithful-easyedit", loss_stop=0.0, weight_decay=0.0)

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/LoRA/llama-7b.yaml`, for the matrices and the scale of the hyper-parameters."""
        from methods.common.lora import block_linears

        common = common_options(model, "LoRA")
        names = {part: name for name, part in model.model.named_modules()}
        return {
            **{name: common[name] for name in ("alg_name", "model_name", "device", "model_parallel")},
            "lora_type": "lora",
            "layers": [],
            "num_steps": self.hparams.steps,
            "lr": self.hparams.lr,
            "weight_decay": self.hparams.weight_decay,
            "kl_factor": 0,
            "norm_constraint": False,
            "target_modules": [names[linear] for linear in block_linears(model, self.hparams.matrices)],
            "rank": self.hparams.rank,
            "lora_alpha": self.hparams.scale * self.hparams.rank,
            "lora_dropout": 0.0,
            "batch_size": self.hparams.batch,
        }


class LoraInside(Inside):
    """LoRA in the worker."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        from easyeditor.models.lora import LoRAHyperParams

        self._hparams = LoRAHyperParams(**bench.options)

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Call LoRA the way `BaseEditor.batch_edit` does with `sequential_edit` (editor.py:264), and merge its updates."""
        from easyeditor.models.lora import apply_lora_to_model

        loaded, hparams = self.bench.loaded, self._hparams
        records, uses_cache = as_dicts(requests), loaded.model.config.use_cache
        model: Any = loaded.model
        with _starting_as_ours(self.bench):
            for start in range(0, len(records), hparams.batch_size):
                call = records[start : start + hparams.batch_size]
                model, _ = apply_lora_to_model(model, loaded.tokenizer, call, hparams)
        if records:
            model.merge_and_unload()  # and forgets the updates, with which EasyEdit would go on
        loaded.model.gradient_checkpointing_disable()
        loaded.model.disable_input_require_grads()
        loaded.model.config.use_cache = uses_cache
        return Applied(tuple(f"{name}.weight" for name in hparams.target_modules))


@contextmanager
def _starting_as_ours(bench: Bench) -> Iterator[None]:
    """Start the updates that peft adds inside the body from the same values as in our own implementation."""
    import torch
    from easyeditor.models.lora import lora_main

    from methods.common.lora import Update

    before = lora_main.get_peft_model

    def made(model: Any, config: Any) -> Any:
        generator, drawn = torch.Generator().manual_seed(bench.seed), {}
        for name in bench.options["target_modules"]:
            drawn[name] = Update(model.get_submodule(name), config.r, generator).A_RI
        wrapped = before(model, config)
        with torch.no_grad():
            for name, drawn_RI in drawn.items():
                model.get_submodule(name).lora_A["default"].weight.copy_(drawn_RI)
        return wrapped

    if "given-updates" in bench.workarounds:
        lora_main.get_peft_model = made
    try:
        yield
    finally:
        lora_main.get_peft_model = before
