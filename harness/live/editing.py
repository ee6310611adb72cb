"""Edit and evaluate from a program, with the same methods, checks and scores as in a suite."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from harness import registry
from harness.commands import harness_command
from harness.data.sources import SYNTHETIC
from harness.errors import UserError
from harness.evaluation.ask import predict
from harness.evaluation.classic import classic_metrics, duels
from harness.evaluation.evaluate import evaluate as score
from harness.evaluation.metrics import AxisMetrics, aggregate
from harness.evaluation.probes import LOCALITY_AXES, probe_queries
from harness.evaluation.unedited import UneditedOutputs
from harness.files import write_bytes
from harness.live.facts import EDITS, Facts, as_records, unrelated_to, write_facts
from harness.live.model import LiveModel
from harness.live.opening import device_of, open_cell
from harness.plan.plan import Plan
from harness.records import DataRef, Dataset
from harness.run.progress import Display
from harness.store.rows import frame
from harness.store.store import Store
from harness.suite.load import load_suite
from harness.yaml_source import generated, without_places

if TYPE_CHECKING:
    import pandas as pd

TRAIN = 500
"""Number of unrelated records for methods that learn from them, as in most scales."""


def edit(
    model: str | Mapping[str, Any],
    facts: Facts,
    method: str | Mapping[str, Any] = "rome",
    *,
    data: str | Path | None = None,
    dataset: str = "counterfact",
    device: str = "auto",
    seed: int = 0,
    store: str | Path = "results",
    is_quiet: bool = True,
    **hparams: Any,
) -> LiveModel:
    """Edit facts into a model.

    Args:
        model: a name or a source as in a suite, or a mapping with `name`, `source`, `dtype`, ….
        facts: mappings with `prompt`, `target_new` and, for methods that need it, `subject` as it occurs in the prompt; or
            records. `rephrases`, `locality` and `portability` are for `evaluate` alone.
        method: a name, or a mapping as in a suite.
        data: folder of upstream files, or `synthetic`: where unrelated records come from, for methods that learn from some;
            default: HARNESS_DATA, or none.
        dataset: which dataset these are of.
        device: `cpu`, `cuda` or `auto`.
        seed: all randomness follows from it.
        store: results folder; what is costly and can be shared, such as covariance statistics, is kept there.
        is_quiet: show no progress.
        hparams: hyper-parameters of the method, as in a suite.

    Returns:
        The edited model; the unedited one is its attribute `unedited`.

    Raises:
        UserError: for any mistake, and for a combination that cannot run here.
    """
    asked, device, home = as_records(facts), device_of(device), Store(Path(store))
    source = str(data or os.environ.get("HARNESS_DATA", ""))
    others = unrelated_to(asked, dataset, source) if source else []
    folder = write_facts(asked, others, home.root / "facts")
    entry = {"name": method, **hparams} if isinstance(method, str) else {**method, **hparams}
    suite = {
        "name": "python",
        "models": [model if isinstance(model, str) else dict(model)],
        "methods": [entry],
        "datasets": [
            {
                **{"name": "facts", "path": str(folder), "file": EDITS, "edits": len(asked), "split": "all"},
                **{"train": min(TRAIN, len(others)), "unrelated": 0},
            }
        ],
        "seeds": [seed],
        "device": device,
    }
    file = folder / "suite.yaml"
    write_bytes(file, yaml.safe_dump(suite, sort_keys=False, allow_unicode=True).encode())
    with generated(file):
        plan = Plan(load_suite(file), home).with_models_here()
    (planned,) = plan.cells
    if planned.cell is None or planned.missing:
        reason, _, fix = without_places(planned.missing[0], file).partition(" → ")
        if "unrelated records" in reason:
            fix = f"data='{SYNTHETIC}', or data='data' after: {harness_command('data', 'fetch', dataset, to='data')}"
        raise UserError(reason, fix=fix or None)
    with Display(Console(stderr=True, quiet=is_quiet)) as display:
        return open_cell(planned.cell, home, device, display)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores of an edited model.

    Attributes:
        metrics: by protocol and axis, as in a cell's metrics.json.
        answers: one row per question, as in a cell's records.parquet.
        classic: ES, PS and NS by probability, if they were wanted.
    """

    metrics: Mapping[str, Mapping[str, AxisMetrics]]
    answers: "pd.DataFrame"
    classic: Mapping[str, float]


def evaluate(
    edited: LiveModel,
    dataset: Facts,
    protocols: Sequence[str] = ("teacher_forced", "generation"),
    *,
    batch: int = 16,
    classic: bool = False,
) -> Evaluation:
    """Score an edited model on facts: those that were edited, with their rephrases, locality and portability.

    Args:
        edited: from `edit` or `load_edited`.
        dataset: facts as for `edit`, or those of `harness.load_records`.
        protocols: names, as in a suite.
        batch: questions per forward pass.
        classic: also compare the probabilities of new and original targets (see `harness.evaluation.classic`).

    Raises:
        UserError: for an unknown protocol, for facts that are none, or for locality of a model whose unedited one is not here.
    """
    asked = as_records(dataset)
    data = Dataset(DataRef("facts", "", len(asked)), asked, (), ())
    forms = [registry.protocols.get(name).of(edited.origin.method) for name in protocols]
    unedited = _unedited(edited, data, forms, batch)
    rows = score(edited.edited, data, edited.model.tokenizer, forms, batch, unedited, positions=edited.model.positions)
    by_probability = classic_metrics(duels(edited.edited, data, edited.model.tokenizer, batch)) if classic else {}
    return Evaluation(aggregate(rows), frame(rows), by_probability)


def _unedited(edited: LiveModel, data: Dataset, forms: Sequence[Any], batch: int) -> UneditedOutputs:
    """What the unedited model answers to the locality questions."""
    if not any(record.locality for record in data.edits):
        return UneditedOutputs({})
    if edited.unedited is None:
        raise UserError(
            "locality is measured against the unedited model, which a checkpoint does not contain",
            fix="facts without locality, or the model from harness.edit",
        )
    questions = [probe_queries(data, edited.model.tokenizer, LOCALITY_AXES, form.queries) for form in forms]
    answers = [predict(edited.unedited, asked, form, batch) for form, asked in zip(forms, questions, strict=True)]
    return UneditedOutputs.of(zip(forms, questions, answers, strict=True))
