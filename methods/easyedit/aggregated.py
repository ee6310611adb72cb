"""UltraEdit and MALMEN by EasyEdit (easyeditor/models/ultraedit and malmen), which share almost all of their code."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import ArtifactSpec
from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common.aggregation.editor import ROLE
from methods.easyedit.editor import WeightMethod, Without, common_options
from methods.easyedit.inside import Applied, Bench, Inside, as_dicts
from methods.malmen import Malmen, MalmenHparams
from methods.ultraedit import UltraEditHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

KNOWN = ("gpt", "llama", "internlm", "chatglm", "qwen", "mistral")
"""What a model's name must contain: otherwise labels are compared one position too late (ULTRAEDIT.py:60-72, MALMEN.py:47-59)."""
RIDGE = 1.0
"""Hard-coded in ULTRAEDIT.py:168."""
CHUNK_ROWS = 1024
"""`editor_batch_size` of all of EasyEdit's files; affects memory only."""
ARCHIVE = Path("shift_archive")
"""File in which the worker passes a hypernetwork to EasyEdit."""


class EasyEditAggregation(WeightMethod):
    """The caller's half of both adapters: one call per `batch` requests, in micro-batches of `micro_batch`."""

    own_workarounds: ClassVar[tuple[str, ...]] = ("trainable-again", "life-long-statistics", "every-request")
    preset: ClassVar[Mapping[str, Any]] = {"implementation": "faithful-easyedit"}
    differences: ClassVar[tuple[str, ...]] = (
        "statistics and the least-squares problem are computed in float32 (malmen/nets.py:12, ULTRAEDIT.py:170, MALMEN.py:222)",
    )

    hparams: Any

    @classmethod
    def edits_in_sequence(cls) -> bool:
        """No: EasyEdit keeps the statistics of earlier edits in the process, which each edit run starts without."""
        return False

    def check(self, target: ModelRef) -> None:
        """Reject options and models that EasyEdit does not support.

        Raises:
            UserError: for our own implementation, several rounds, or a model that it does not know by name.
        """
        self.require(implementation="faithful-easyedit", rounds=1)
        name = target.published or target.name
        if not any(part in name.lower() for part in KNOWN):
            raise UserError(
                f"{self.spec.name}: EasyEdit would train {name} one position too late; it knows {', '.join(KNOWN)}",
                fix="backend: native",
            )
        self.hparams.require_known(target)

    def shared_options(self, model: "LoadedModel", algorithm: str) -> dict[str, Any]:
        """The options that both have."""
        common = common_options(model, algorithm)
        return {
            **{name: common[name] for name in ("alg_name", "model_name", "device", "model_parallel")},
            "model_class": "AutoModelForCausalLM",
            "tokenizer_class": "AutoTokenizer",
            "tokenizer_name": common["model_name"],
            "inner_params": [name.removesuffix(".weight") for name in self.hparams.modules(model)],
            "dropout": 0.0,
            "no_grad_layers": None,
            "token": "mask",
            "editor_batch_size": CHUNK_ROWS,
            "silent": True,
            "results_dir": "results",
            "half": False,
        }


class EasyEditUltraEditHparams(UltraEditHparams, Without):
    """Hyper-parameters of UltraEdit."""


@register("ultraedit", title="UltraEdit", family="weights", version=1, backend="easyedit")
class EasyEditUltraEdit(EasyEditAggregation):
    """UltraEdit, with statistics that carry over between the calls of an edit run."""

    Hparams = EasyEditUltraEditHparams
    inside: ClassVar[str] = "methods.easyedit.aggregated:UltraEditInside"

    hparams: EasyEditUltraEditHparams

    def check(self, target: ModelRef) -> None:
        """Reject what EasyEdit does not support.

        Raises:
            UserError: also for a different ridge.
        """
        super().check(target)
        self.require(ridge=RIDGE)

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/UltraEdit/llama3-8b-instruct.yaml`."""
        return {
            **self.shared_options(model, "ULTRAEDIT"),
            "lr": self.hparams.edit_lr,
            "batch_size": self.hparams.batch,
            "batch_size_once": self.hparams.micro_batch,
        }


class EasyEditMalmenHparams(MalmenHparams, Without):
    """Hyper-parameters of MALMEN."""


@register("malmen", title="MALMEN", family="hypernetwork", version=1, backend="easyedit")
class EasyEditMalmen(EasyEditAggregation):
    """MALMEN with our own hypernetwork: EasyEdit's trainer for it expects records and hyper-parameters of its own."""

    Hparams = EasyEditMalmenHparams
    inside: ClassVar[str] = "methods.easyedit.aggregated:MalmenInside"

    hparams: EasyEditMalmenHparams

    def needs(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The hypernetwork of our own implementation.

        Raises:
            UserError: if the dataset has no train records.
        """
        return Malmen(self.hparams).artifacts(target, data, seed)

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/MALMEN/gpt2-xl.yaml`, without the archive; those of its training have no effect."""
        hparams = self.hparams
        return {
            **self.shared_options(model, "MALMEN"),
            "rank": hparams.rank,
            "n_blocks": hparams.blocks_of_network,
            "lr": hparams.edit_lr,
            "n_edits": hparams.batch,
            "batch_size": hparams.micro_batch,
            "meta_lr": hparams.lr,
            "loc_coef": hparams.loc_weight,
            "max_grad_norm": hparams.clip,
            "debug": False,
            "train_base": False,
            "log_interval": 100,
            "eval_log_interval": 100,
            "final_eval": False,
            "val_interval": 100,
            "early_stop_patience": 1000,
            "early_stop_key": "ES_val",
            "eval_only": True,
            "save": False,
            "val_batch_size": 1,
            "val_steps": 0,
        }


class AggregationInside(Inside):
    """The worker's half of both adapters.

    Attributes:
        edits, rows: EasyEdit's names for the number of edits of a call, and of a micro-batch.
        executor, hparams: EasyEdit's objects.
    """

    edits: ClassVar[str]
    rows: ClassVar[str]
    executor: Any
    hparams: Any

    def start(self, executor: Any, hparams: Any) -> None:
        """Initialise EasyEdit's executor, which does so again in every call unless the workaround is on."""
        loaded = self.bench.loaded
        self.executor, self.hparams = executor, hparams
        executor.init_model(loaded.model, loaded.tokenizer, hparams)
        if "life-long-statistics" in self.bench.workarounds:
            executor.is_init = True

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Call EasyEdit the way `BaseEditor.batch_edit` does with `sequential_edit` (editor.py:264)."""
        from methods.common.aggregation.as_easyedit import even_size

        loaded, records = self.bench.loaded, as_dicts(requests)
        edits, rows = (self.bench.options[name] for name in (self.edits, self.rows))
        for start in range(0, len(records), edits):
            call = records[start : start + edits]
            if "every-request" in self.bench.workarounds:
                setattr(self.hparams, self.edits, len(call))
                setattr(self.hparams, self.rows, even_size(len(call), rows))
            self.executor.apply_to_model(loaded.model, loaded.tokenizer, call, self.hparams)
        return Applied(tuple(f"{name}.weight" for name in self.hparams.inner_params))


class UltraEditInside(AggregationInside):
    """UltraEdit in the worker."""

    edits: ClassVar[str] = "batch_size"
    rows: ClassVar[str] = "batch_size_once"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        from easyeditor.models.ultraedit import UltraEditHyperParams, UltraEditRewriteExecutor

        self.start(UltraEditRewriteExecutor(), UltraEditHyperParams(**bench.options))


class MalmenInside(AggregationInside):
    """MALMEN in the worker."""

    edits: ClassVar[str] = "n_edits"
    rows: ClassVar[str] = "batch_size"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        import torch
        from easyeditor.models.malmen.malmen_hparams import MALMENHyperParams
        from easyeditor.models.malmen.malmen_main import MalmenRewriteExecutor

        from methods.common.aggregation.network import load
        from methods.easyedit.malmen_archive import state_of

        (network,), _ = load(bench.artifacts[ROLE], bench.options["n_blocks"], bench.loaded.device)
        torch.save({"model": state_of(network)}, ARCHIVE)
        self.start(MalmenRewriteExecutor(), MALMENHyperParams(**bench.options, archive=str(ARCHIVE)))
