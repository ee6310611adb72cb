"""Ask benchmark tasks through lm-eval and keep a score per item; for the unedited model once, as an artifact."""

import contextlib
import io
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import ArtifactSpec
from harness.errors import UserError
from harness.evaluation.capability.tasks import FORMS, TaskRef
from harness.models.catalogue import ModelRef
from harness.records import ItemScore

if TYPE_CHECKING:
    from lm_eval.api.model import LM

    from harness.api import Context, EditedModel
    from harness.models.loaded import LoadedModel

FILE = "capability.parquet"
PASSES_PER_ITEM = 8
"""For time estimates: four choices of about twice the length of an edit's prompt."""

UNKNOWN_ITEMS = 1000
"""For time estimates: assumed number of items of lm-eval's own tasks, which is known only when they run."""


def ask(edited: "EditedModel", model: "LoadedModel", task: TaskRef, batch_size: int) -> list[ItemScore]:
    """Score every item of a task.

    Args:
        edited: what answers.
        model: the loaded model under it.
        task: the task.
        batch_size: rows per call.

    Raises:
        UserError: if the model chooses tokens without giving them probabilities and the task compares these, if lm-eval does not
            know the task or has no data for it, or if it has no score per item.
    """
    from harness.evaluation.capability.lm import EditedLM

    return item_scores(task, samples(EditedLM(edited, model, batch_size), task))


def samples(lm: "LM", task: TaskRef) -> list[Mapping[str, Any]]:
    """Answers of an lm-eval model to every item of a task, with lm-eval's scores.

    Raises:
        UserError: if lm-eval does not know the task or has no data for it.
    """
    from lm_eval.evaluator import evaluate

    with _quiet():
        limit = task.items if task.source == "lm-eval" else None
        found = evaluate(lm, _loaded(task), limit=limit, bootstrap_iters=0)
    return [sample for of_task in found["samples"].values() for sample in of_task]


def item_scores(task: TaskRef, answered: Sequence[Mapping[str, Any]]) -> list[ItemScore]:
    """The scores of lm-eval's samples; metrics that are not means over items are left out.

    Raises:
        UserError: if no score is left.
    """
    scores = list(_scores(task.name, answered))
    if not scores:
        raise UserError(f"capability task '{task.name}' has no score per item", fix="leave it out of `capability`")
    return scores


def means(scores: Sequence[ItemScore]) -> dict[str, dict[str, float]]:
    """For each task, the mean of every metric over its items, and their number `n`."""
    groups: dict[tuple[str, str], list[ItemScore]] = defaultdict(list)
    for one in scores:
        groups[one.task, one.metric].append(one)
    found: dict[str, dict[str, float]] = {}
    for (task, metric), same in groups.items():
        found.setdefault(task, {})[metric] = mean(metric, [(one.value, one.weight) for one in same])
        found[task]["n"] = float(len(same))
    return found


def mean(metric: str, values: Sequence[tuple[float, float]]) -> float:
    """The metric over items, given their values and weights.

    Of a perplexity, values are log-probabilities of texts and weights their numbers of words; otherwise every weight is 1.
    """
    ratio = math.fsum(value for value, _ in values) / math.fsum(weight for _, weight in values)
    return math.exp(-ratio) if is_perplexity(metric) else ratio


def is_perplexity(metric: str) -> bool:
    """Whether the metric is a perplexity: lower is better, and items have log-probabilities."""
    return metric.endswith("perplexity")


def artifact(model: ModelRef, task: TaskRef, batch_size: int) -> ArtifactSpec:
    """Describe the unedited model's scores on a task; shared by all methods, datasets and suites."""
    return ArtifactSpec(
        name="unedited-capability",
        kind="setup",
        identity={"model": model.identity(), "task": task.identity(), "batch_size": batch_size},
        builder="harness.evaluation.capability.scores:build",
        inputs={"model": model, "task": task},
        needs=model.artifacts(),
        passes=PASSES_PER_ITEM * (task.items or UNKNOWN_ITEMS),
        memory={"answers": model.footprint.answering(batch_size)},
    )


def build(spec: ArtifactSpec, context: "Context", folder: Path) -> None:
    """Build `artifact`."""
    from harness.models.edited import WeightEditedModel
    from harness.store.rows import write_items

    model, task = context.load_model(spec.inputs["model"]), spec.inputs["task"]
    with context.progress(f"{task.title} of {model.ref.name}", 1) as advance, context.clock.phase("evaluate"):
        write_items({0: ask(WeightEditedModel(model), model, task, spec.identity["batch_size"])}, folder / FILE)
        advance()


def read(folder: Path) -> list[ItemScore]:
    """The scores that `build` has written."""
    from harness.store.rows import read_items

    return read_items(folder / FILE)[0]


def _loaded(task: TaskRef) -> Mapping[str, Any]:
    """The task as lm-eval runs it, by name; several for a group of its own tasks."""
    from lm_eval.api.task import ConfigurableTask

    if task.source == "lm-eval":
        return _own(task)
    from datasets import Dataset

    shots, asked = task.rows()
    splits = {"test": Dataset.from_list(list(map(dict, asked)))}
    examples: dict[str, Any] = {"num_fewshot": len(shots)}
    if shots:
        splits["shots"] = Dataset.from_list(list(map(dict, shots)))
        examples |= {"fewshot_split": "shots", "fewshot_config": {"sampler": "first_n"}}
    config = {"task": task.name, "test_split": "test", "custom_dataset": lambda **_: splits, **examples}
    return {task.name: ConfigurableTask(config={**FORMS[task.name].config, **config})}


def _own(task: TaskRef) -> Mapping[str, Any]:
    from lm_eval.tasks import TaskManager, get_task_dict

    manager = TaskManager()
    if task.name not in manager.all_tasks:
        raise UserError(f"lm-eval has no task '{task.name}'", fix="lm-eval ls tasks")
    try:
        found: Mapping[str, Any] = get_task_dict([task.name], manager)
    except (OSError, ValueError) as error:  # what loading data raises where there is no network
        raise UserError(
            f"lm-eval has no data for its task '{task.name}': {error}", fix="fill its cache on a machine with a network"
        ) from error
    if task.shots is not None:
        for each in found.values():
            each.set_config(key="num_fewshot", value=task.shots)
    return found


def _scores(task: str, samples: Sequence[Mapping[str, Any]]) -> Iterator[ItemScore]:
    number: dict[str, int] = defaultdict(int)
    for sample in samples:
        for name in sample["metrics"]:
            metric = name if sample["filter"] == "none" else f"{name},{sample['filter']}"
            value, weight = sample[name] if is_perplexity(name) else (sample[name], 1.0)
            if isinstance(value, bool | int | float):
                yield ItemScore(task, metric, number[metric], float(value), float(weight))
                number[metric] += 1


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's progress bars and advice out of logs; its errors are exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
