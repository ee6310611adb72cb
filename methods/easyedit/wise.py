"""WISE by EasyEdit (easyeditor/models/wise)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import ArtifactSpec
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common import prefixes
from methods.easyedit.editor import Without
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
"""What is no option there: how it lays out rows and merges, WISE.py:160, wise/utils.py:401, WISE.py:45."""
CONTEXTS = 10
"""What `get_context_templates` makes if it is left to it (wise_main.py:20)."""


class EasyEditWiseHparams(WiseHparams, Without):
    """Those of WISE."""


@register("wise", title="WISE", family="memory", version=1, backend="easyedit")
class EasyEditWise(MemoryMethod):
    """One call of WISE per request, all on one row of side memories."""

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
        "parallel": 1,  # read by none, but our own faithful variant has no other
    }

    hparams: EasyEditWiseHparams

    def check(self, target: ModelRef) -> None:
        """Refuse what WISE there lacks.

        Raises:
            UserError: for another value of what it has no option for.
        """
        for option, value in FIXED.items():
            if getattr(self.hparams, option) != value:
                raise self.refused(option, value)
        if "given-prefixes" in self.hparams.without and self.hparams.contexts != CONTEXTS:
            raise self.refused("contexts", CONTEXTS)

    def needs(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Those of our own implementation, so that both read the same prefixes and unrelated prompts."""
        needed = dict(Wise(self.hparams).artifacts(target, data, seed))
        if "given-prefixes" in self.hparams.without:
            del needed["prefixes"]
        return needed

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """As `hparams/WISE/llama-7b.yaml` has them, with the number of prefixes; a bound counts only if it is a float."""
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
        """As `MemoryInside.apply`."""
        if "given-masks" not in self.bench.workarounds:
            return super().apply(requests)
        with _drawn_as_ours(self.bench.seed):
            return super().apply(requests)

    def call(self, records: list[dict[str, str]]) -> Any:
        """As `MemoryInside.call`."""
        from easyeditor.models.wise import apply_wise_to_model

        loaded = self.bench.loaded
        wrapper, _ = apply_wise_to_model(loaded.model, loaded.tokenizer, records, self.hparams)
        return wrapper

    def records(self, requests: Sequence[EditRequest]) -> list[dict[str, str]]:
        """Each with its unrelated prompt and answer."""
        spared = loc_prompts.taken(self._spared, len(requests))
        return [
            {**record, "loc_prompt": f"{probe.prompt.rstrip()} {probe.answer.strip()}"}
            for record, probe in zip(super().records(requests), spared, strict=True)
        ]

    def diagnostics(self) -> dict[str, float]:
        """As our own implementation has them."""
        memories = [*self.adapter.memory_mean_act, self.adapter.editing_mean_act]
        active = [memory.min_act() for memory in memories if memory.min_act() < 1e9]  # EditingMeanAct of no edit
        return {"memories": float(len(active)), "threshold": min(active)}


@contextmanager
def _drawn_as_ours(seed: int) -> Iterator[None]:
    """Inside the body each shard's mask is what `methods.wise.training.learn` draws."""
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
