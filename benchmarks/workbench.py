"""One model and one dataset in a temporary store, so that methods run as in a cell of a suite.

Methods get the same hyper-parameters, artifacts and clock as in the harness.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from transformers.utils import logging

from benchmarks.random_models import BenchContext, RandomModels
from harness import registry
from harness.api import ArtifactSpec, EditedModel
from harness.data.load import resolve as resolve_records
from harness.data.sources import SYNTHETIC
from harness.errors import UserError
from harness.evaluation import unedited
from harness.evaluation.protocols import OWN
from harness.evaluation.unedited import UneditedOutputs
from harness.models.architecture import DTYPE_BYTES
from harness.models.catalogue import ModelRef, reference
from harness.models.loaded import LoadedModel
from harness.plan.job import job_of
from harness.records import DataRef, Dataset, EditRequest
from harness.run.cost import add_phases
from harness.run.progress import Display
from harness.run.runner import Runner
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store
from harness.suite.hparams import resolve as resolve_hparams


@dataclass(frozen=True)
class Workbench:
    """A model, records and everything that the harness provides to a method.

    Attributes:
        target: the model to edit.
        is_random: whether all models have random weights, so that none is trained or loaded.
        seed: seed of every edit.
    """

    store: Store
    context: BenchContext
    target: ModelRef
    data: DataRef
    is_random: bool
    seed: int

    @classmethod
    @contextlib.contextmanager
    def opened(cls, options: argparse.Namespace, edits: int, console: Console) -> Iterator[Self]:
        """Open the model and records given by the options, with artifacts in a temporary folder.

        Args:
            options: options of `add_options`.
            edits: number of records to edit.
            console: displays the progress.

        Raises:
            UserError: if a name is unknown, or records or weights are missing.
        """
        logging.disable_progress_bar()
        data = resolve_records(
            options.dataset,
            options.data,
            edits,
            train=options.train,
            unrelated=options.unrelated,
            strip_distractor=True,
        )
        corpus = data if options.weights == "trained" else None
        target = reference(options.model, weights=options.weights, dtype=options.dtype, corpus=corpus)
        is_random = options.weights == "random"
        with tempfile.TemporaryDirectory() as folder, Display(console) as bars:
            store = Store(Path(folder))
            cache = ArtifactCache(store)
            context = (
                RandomModels(cache, options.device, bars, data)
                if is_random
                else BenchContext(cache, options.device, bars)
            )
            bench = cls(store, context, target, data, is_random, options.seed)
            bench.build(target.artifacts().values())
            yield bench

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
        """The edit requests of all records."""
        return [record.request() for record in self.records.edits]

    def build(self, roots: Iterable[ArtifactSpec]) -> None:
        """Build these artifacts and everything they need, unless already built."""
        for spec in needed_for(roots):
            if not ArtifactCache(self.store).is_built(spec) and not (spec.kind == "model" and self.is_random):
                self.rebuild(spec)

    def rebuild(self, spec: ArtifactSpec) -> None:
        """Build one artifact, even if it already exists.

        Raises:
            UserError: if the build fails; the message is the reason.
        """
        outcome = Runner(self.store, self.context).run(job_of(spec, self.seed, self.context.device))
        if outcome.reason is not None:
            raise UserError(outcome.reason)

    def seconds(self, spec: ArtifactSpec) -> dict[str, float]:
        """Seconds by phase of an artifact's last build."""
        phases_s: dict[str, float] = self.store.artifact(spec.name, spec.key).read("cost.json")["phases_s"]
        return phases_s

    def unedited(self, eval_batch: int) -> UneditedOutputs:
        """The unedited model's answers to the locality questions."""
        spec = unedited.artifact(self.target, self.data, [protocol.name for protocol in OWN], eval_batch)
        self.build([spec])
        return UneditedOutputs.load(self.context.artifact(spec))


class MethodBench:
    """A method on a workbench.

    Args:
        bench: the model and the records.
        method: name of the method.
        overrides: hyper-parameters that override those of the method's files.
        variant: variant in the method's files.
        backend: backend of the implementation.

    Raises:
        UserError: if the method or an option is unknown, or something that the method needs is missing.
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
        """Make one untimed edit, so that one-time costs of first calls are not measured."""
        bench = self._bench
        # an artifact that contains the edits works only with these edits
        requests = bench.requests if self._shared_edits else [record.request() for record in bench.records.train[:1]]
        if requests:
            self._apply(requests).revert()

    def artifact_seconds(self) -> dict[str, dict[str, float]]:
        """Seconds by phase of each artifact that is not an edit, keyed by name and key; untimed ones are omitted."""
        specs = [spec for spec in needed_for(self._needed.values()) if spec.kind == "setup"]
        found = {f"{spec.name} {spec.key}": self._bench.seconds(spec) for spec in specs}
        return {name: seconds for name, seconds in found.items() if seconds}

    def edit(self) -> tuple[EditedModel, dict[str, float]]:
        """Make all edits, rebuilding those that are artifacts; returns the edited model and seconds by phase."""
        for spec in self._shared_edits:
            self._bench.rebuild(spec)
        edited = self._apply(self._bench.requests)
        shared = [self._bench.seconds(spec) for spec in self._shared_edits]
        return edited, add_phases(self._bench.context.clock.seconds, *shared)

    def attached(self) -> EditedModel:
        """The edited model from edits that are artifacts, as they were built."""
        return self._apply(self._bench.requests)

    def _apply(self, requests: list[EditRequest]) -> EditedModel:
        bench = self._bench
        folders = {role: bench.context.artifact(spec) for role, spec in self._needed.items()}
        model = bench.model
        bench.context.restart(bench.seed)
        return self._editor.edit(model, requests, folders, bench.context)


def needed_for(roots: Iterable[ArtifactSpec]) -> list[ArtifactSpec]:
    """These artifacts and everything they need, without duplicates, dependencies first."""
    return list({need.key: need for root in roots for need in root.closure()}.values())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all benchmarks that use a workbench."""
    add = parser.add_argument
    add("--model", default="tiny/llama", help="catalogue name; default: tiny/llama")
    add("--weights", default="random", choices=["random", "trained", "pretrained"], help="random: all models, including "
        "plug-ins, have random weights, and no checkpoint is needed; trained: tiny models, first trained on the records; "
        "default: random")  # fmt: skip
    add("--dtype", choices=list(DTYPE_BYTES), help="precision of the target model; default: the catalogue's")
    add("--dataset", default="counterfact", help="zsre or counterfact; default: counterfact")
    add("--data", default=SYNTHETIC, metavar="FOLDER", help="upstream files; default: synthetic records")
    add("--train", type=int, default=200, help="unrelated records that methods may learn from; default: 200")
    add("--unrelated", type=int, default=50, help="further records, for locality questions; default: 50")
    add("--eval-batch", type=int, default=64, help="questions per batch; default: 64")
