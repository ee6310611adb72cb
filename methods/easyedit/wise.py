"""WISE by EasyEdit (easyeditor/models/wise)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from harness.api import ArtifactSpec
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common import prefixes
from methods.easyedit.editor import WholePasses, Without
from methods.easyedit.inside import Applied, Bench
from methods.easyedit.memories import MemoryInside, MemoryMethod
from methods.wise import loc_prompts
from methods.wise.editor import Wise
from methods.wise.hparams import WiseHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

FIXED = {
    "implementation": "faithful-easyedit",
    "decay": "all",
    "weight_decay": 1e-5,
    "stop_change": 1e-4,
    "stop_loss": 2e-2,
    "reads": "sequence",
}
"""Hard-coded in EasyEdit: row layout and merging, WISE.py:160, wise/utils.py:401, WISE.py:45."""
CONTEXTS = 10
"""Number of prefixes that `get_context_templates` generates by itself (wise_main.py:20)."""


class EasyEditWiseHparams(WholePasses, WiseHparams, Without):
    """Hyper-parameters of WISE."""

    @model_validator(mode="after")
    def _memories_apart(self) -> Self:
        """EasyEdit's own code routes between a merged memory and the one in training too."""
        return self


@register("wise", title="WISE", family="memory", version=1, backend="easyedit")
class EasyEditWise(MemoryMethod):
    """One call of WISE per request, all using the same side memories."""

    Hparams = EasyEditWiseHparams
    inside: ClassVar[str] = "methods.easyedit.wise:WiseInside"
    own_workarounds: ClassVar[tuple[str, ...]] = (
        "trainable-again",
        "one-by-one",
        "sequential-edit",
        "fresh-caches",
        "given-prefixes",
        "given-masks",
    )
    preset: ClassVar[Mapping[str, Any]] = {
        **{key: FIXED[key] for key in ("implementation", "decay", "reads")},
        "parallel": 1,  # has no effect here, but our own faithful variant requires it
    }

    hparams: EasyEditWiseHparams

    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit's WISE does not support.

        Raises:
            UserError: for a different value of an option that EasyEdit hard-codes.
        """
        self.require(**FIXED)
        if "given-prefixes" in self.hparams.without:
            self.require(contexts=CONTEXTS)

    def needs(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The artifacts of our own implementation, so that both use the same prefixes and unrelated prompts."""
        needed = dict(Wise(self.hparams).artifacts(target, data, seed))
        if "given-prefixes" in self.hparams.without:
            del needed["prefixes"]
        return needed

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/WISE/llama-7b.yaml`, plus the number of prefixes; the norm constraint must be a float."""
        hparams, bound = self.hparams, self.hparams.norm_constraint
        return {
            **self.memory_options(model, "WISE"),
            "edit_lr": hparams.lr,
            "n_iter": hparams.steps,
            "objective_optimization": "only_label",
            "mask_ratio": hparams.mask_ratio,
            "alpha": hparams.alpha,
            "beta": hparams.beta,
            "gamma": hparams.gamma,
            "act_ratio": hparams.act_ratio,
            "merge_freq": hparams.merge_freq,
            "retrieve": hparams.memory == "retrieve",
            "replay": False,
            "save_freq": hparams.save_freq,
            "merge_alg": "ties",
            "norm_constraint": None if bound is None else float(bound),
            "weights": 1.0,
            "densities": hparams.density,
            "contexts": hparams.contexts,
        }


class WiseInside(MemoryInside):
    """WISE in the worker."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        from easyeditor.models.wise import WISE, WISEHyperParams, utils

        options = dict(bench.options)
        contexts = options.pop("contexts")
        self.hparams = WISEHyperParams(**options)
        self._spared = loc_prompts.load(bench.artifacts["loc_prompts"])
        if "sequential-edit" in bench.workarounds:
            self.hparams.sequential_edit = True
        if "fresh-caches" in bench.workarounds:
            WISE.edit_history, WISE.merge_group_edit_history = [], []
            utils.CONTEXT_TEMPLATES_CACHE = None
        if "given-prefixes" in bench.workarounds:
            given = prefixes.load(bench.artifacts["prefixes"]) if contexts else ()
            utils.CONTEXT_TEMPLATES_CACHE = ["{}", *(f"{prefix}{{}}" for prefix in given[:contexts])]

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Apply all requests as in `MemoryInside.apply`, with our masks if given-masks is on."""
        if "given-masks" not in self.bench.workarounds:
            return super().apply(requests)
        with _drawn_as_ours(self.bench.seed):
            return super().apply(requests)

    def call(self, records: list[dict[str, str]]) -> Any:
        """Call WISE on the records, as described in `MemoryInside.call`."""
        from easyeditor.models.wise import apply_wise_to_model

        loaded = self.bench.loaded
        wrapper, _ = apply_wise_to_model(loaded.model, loaded.tokenizer, records, self.hparams)
        return wrapper

    def records(self, requests: Sequence[EditRequest]) -> list[dict[str, str]]:
        """Convert requests to EasyEdit's records, each with its unrelated prompt, and the answer if that is known."""
        spared = loc_prompts.taken(self._spared, len(requests))
        texts = [
            f"{probe.prompt.rstrip()} {probe.answer.strip()}" if probe.has_answer else probe.prompt for probe in spared
        ]
        return [{**record, "loc_prompt": text} for record, text in zip(super().records(requests), texts, strict=True)]

    def diagnostics(self) -> dict[str, float]:
        """The same diagnostics as in our own implementation."""
        memories = [*self.adapter.memory_mean_act, self.adapter.editing_mean_act]
        active = [
            memory.min_act() for memory in memories if memory.min_act() < 1e9
        ]  # initial value, if no edit used the memory
        return {"memories": float(len(active)), "threshold": min(active)}


@contextmanager
def _drawn_as_ours(seed: int) -> Iterator[None]:
    """Draw each shard's mask as `methods.wise.training.learn` does, inside the body."""
    import torch
    from easyeditor.models.wise.WISE import WISEAdapter

    generator = torch.Generator().manual_seed(seed)

    def draw(adapter: Any, mask_ratio: float) -> None:
        mask_DK = torch.rand(adapter.new_weight.shape, generator=generator) < mask_ratio
        adapter.weight_mask = mask_DK.flatten().long().to(adapter.new_weight.device)

    before = WISEAdapter.generate_activation_mask
    WISEAdapter.generate_activation_mask = draw
    try:
        yield
    finally:
        WISEAdapter.generate_activation_mask = before
