"""One model and one data set with all that the harness lends to a method, in a store of its own: what a cell has, no suite.

Methods run as in a cell: their hyper-parameters, their artifacts, the phases of their clock are the harness's.
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from transformers.utils import logging

from benchmarks.random_models import DrawnModels
from harness import registry
from harness.api import ArtifactSpec, EditedModel
from harness.data.corpus import SYNTHETIC
from harness.data.load import resolve as resolve_records
from harness.errors import UserError
from harness.evaluation import unedited
from harness.evaluation.protocols import OWN
from harness.evaluation.unedited import UneditedOutputs
from harness.models.architecture import DTYPE_BYTES
from harness.models.catalogue import ModelRef, reference
from harness.models.loaded import LoadedModel
from harness.models.tiny import recipe
from harness.records import DataRef, Dataset, EditRequest
from harness.run.context import RunContext
from harness.run.cost import add_phases, device_class
from harness.run.progress import ProgressBars
from harness.store import provenance
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store
from harness.suite.hparams import resolve as resolve_hparams


@dataclass(frozen=True)
class Workbench:
    """What methods work with.

    Attributes:
        target: the model that is edited.
        is_drawn: whether all models are drawn; then none is trained or loaded.
        seed: of every edit.
        seconds: by phase, of each artifact when it was built last, by its key.
    """

    cache: ArtifactCache
    context: RunContext
    target: ModelRef
    data: DataRef
    is_drawn: bool
    seed: int
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, options: argparse.Namespace, edits: int, folder: Path, bars: ProgressBars) -> Self:
        """What `add_options` describes, with artifacts in a folder.

        Raises:
            UserError: for names, records or a device that are not there.
        """
        device = torch.device(options.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device '{options.device}': torch sees no GPU here", fix="--device cpu")
        logging.disable_progress_bar()
        data = resolve_records(
            options.dataset,
            str(options.data or SYNTHETIC),
            edits,
            train=options.train,
            unrelated=options.unrelated,
            strip_distractor=True,
        )
        corpus = data if options.weights == "trained" else None
        target = reference(options.model, weights=options.weights, dtype=options.dtype, corpus=corpus)
        cache, is_drawn = ArtifactCache(Store(folder)), options.weights == "random"
        context = (
            DrawnModels(cache, options.device, bars, data) if is_drawn else RunContext(cache, options.device, bars)
        )
        bench = cls(cache, context, target, data, is_drawn, options.seed)
        if target.weights == "trained":
            bench.build([recipe.artifact(target)])
        return bench

    @property
    def model(self) -> LoadedModel:
        """The target model, unedited."""
        return self.context.load_model(self.target)

    @property
    def records(self) -> Dataset:
        """All records."""
        return self.context.load_data(self.data)

    @property
    def requests(self) -> list[EditRequest]:
        """All edits."""
        return [record.request() for record in self.records.edits]

    def build(self, roots: Iterable[ArtifactSpec]) -> None:
        """Build what is missing of some artifacts and all that they need."""
        for spec in needed_for(roots):
            if not self.cache.is_built(spec) and not (spec.kind == "model" and self.is_drawn):
                self.rebuild(spec)

    def rebuild(self, spec: ArtifactSpec) -> None:
        """Build one artifact, anew if it is there."""
        clock = self.context.restart(self.seed)
        self.cache.build(spec, self.context, clock)
        self.seconds[spec.key] = clock.seconds

    def unedited(self, eval_batch: int) -> UneditedOutputs:
        """What the unedited model says to the locality questions."""
        needs = {"model": recipe.artifact(self.target)} if self.target.weights == "trained" else {}
        spec = unedited.artifact(self.target, self.data, [protocol.name for protocol in OWN], eval_batch, needs)
        self.build([spec])
        return UneditedOutputs.load(self.cache.folder(spec))


class MethodBench:
    """A method on a workbench, with all hyper-parameters.

    Args:
        bench: the model and the records.
        method: its name.
        overrides: hyper-parameters instead of those of its file.
        variant: of its file.
        backend: whose implementation.

    Raises:
        UserError: for an unknown method or option, or where something that it needs cannot be had.
    """

    def __init__(
        self,
        bench: Workbench,
        method: str,
        overrides: Mapping[str, Any],
        variant: str | None = None,
        backend: str = "native",
    ) -> None:
        self._bench = bench
        cls = registry.find_method(method, backend)
        where = dict.fromkeys(overrides, f"--set {method}")
        self.hparams = resolve_hparams(
            method, bench.target.name, overrides, variant=variant, where=where, backend=backend
        ).values
        self._editor = cls(cls.Hparams.model_validate(self.hparams))
        self._needed = self._editor.artifacts(bench.target, bench.data, bench.seed)
        self._shared_edits = [spec for spec in needed_for(self._needed.values()) if spec.kind == "edit"]

    def build(self) -> None:
        """Build all artifacts."""
        self._bench.build(self._needed.values())

    def warm_up(self) -> None:
        """One edit that does not count, so that first calls are not timed."""
        bench = self._bench
        # an artifact that holds the edits fits no others
        requests = bench.requests if self._shared_edits else [record.request() for record in bench.records.train[:1]]
        if requests:
            self._apply(requests).revert()

    def artifact_seconds(self) -> dict[str, dict[str, float]]:
        """Seconds by phase of each artifact that is no edit, by its name and key; what was not timed is left out."""
        specs = [spec for spec in needed_for(self._needed.values()) if spec.kind == "setup"]
        found = {f"{spec.name} {spec.key}": self._bench.seconds[spec.key] for spec in specs}
        return {name: seconds for name, seconds in found.items() if seconds}

    def edit(self) -> tuple[EditedModel, dict[str, float]]:
        """Make all edits, those in artifacts too; the edited model, and seconds by phase."""
        for spec in self._shared_edits:
            self._bench.rebuild(spec)
        edited = self._apply(self._bench.requests)
        shared = [self._bench.seconds[spec.key] for spec in self._shared_edits]
        return edited, add_phases(self._bench.context.clock.seconds, *shared)

    def _apply(self, requests: list[EditRequest]) -> EditedModel:
        bench = self._bench
        folders = {role: bench.cache.folder(spec) for role, spec in self._needed.items()}
        model = bench.model
        bench.context.restart(bench.seed)
        return self._editor.edit(model, requests, folders, bench.context)


def needed_for(roots: Iterable[ArtifactSpec]) -> list[ArtifactSpec]:
    """Artifacts and all that they need, each once, needs first."""
    return list({need.key: need for root in roots for need in root.closure()}.values())


def machine(device: str) -> dict[str, Any]:
    """Where figures come from."""
    return {"device_class": device_class(device), "environment": provenance.environment()}


def chosen(options: argparse.Namespace) -> dict[str, Any]:
    """All options but where the figures go, for the JSON file."""
    values = {key: value for key, value in vars(options).items() if key != "out"}
    return values | {"data": str(options.data or SYNTHETIC)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks of methods let choose."""
    say = parser.add_argument
    say("--model", default="tiny/llama", help="catalogue name; default: tiny/llama")
    say("--weights", default="random", choices=["random", "trained", "pretrained"], help="random: all models are drawn, "
        "plug-ins too, and nothing has to be there; zoo: trained on the records first; default: random")  # fmt: skip
    say("--dtype", choices=list(DTYPE_BYTES), help="precision of the target model; default: the catalogue's")
    say("--device", default="cpu", help="cpu, cuda or cuda:N; default: cpu")
    say("--threads", type=int, help="of torch on the CPU; default: torch's own choice")
    say("--dataset", default="counterfact", help="zsre or counterfact; default: counterfact")
    say("--data", type=Path, metavar="FOLDER", help="upstream files; default: the generated world")
    say("--train", type=int, default=200, help="unrelated records that methods may learn from; default: 200")
    say("--unrelated", type=int, default=50, help="further ones that locality is asked about; default: 50")
    say("--eval-batch", type=int, default=64, help="questions per batch; default: 64")
    say("--seed", type=int, default=0, help="of the edits; default: 0")
    say("--out", type=Path, metavar="FILE", help="write all figures, options and the machine as JSON")
