"""Compare an unedited model in lm-eval through the harness and through lm-eval's own `hf` model, item by item.

    python -m benchmarks.lm_eval --folder FOLDER [--model smollm2-135m] [--tasks mmlu sst2 gsm8k] [--items 100] [--out FILE]

FOLDER has the tasks' files (docs/capability.md). The `hf` model loads the checkpoint by itself. Both answer the same requests in
batches of the same size; every score of every item is compared, every log-probability, greedy flag and generated text.
"""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from benchmarks import command
from harness.evaluation.capability.scores import item_scores, samples
from harness.evaluation.capability.tasks import FOLDER, FORMS, TaskRef, check_name, reference
from harness.models import catalogue
from harness.models.edited import WeightEditedModel
from harness.models.loading import folder_of, load

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

Side = TypeVar("Side")

TOLERANCE = 1e-3
"""Log-probabilities that differ by more count as different; those of a perplexity are sums over hundreds of ids, in nats."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Answers of both sides to one task.

    Attributes:
        items: number of items.
        requests: log-probabilities and generated texts, over all items.
        differing: items with a different score, greedy flag or text, or a log-probability beyond `TOLERANCE`.
        largest: largest difference of a log-probability in nats; 0 if nothing but texts was compared.
        seconds: of the harness, and of `hf`.
    """

    task: str
    items: int
    requests: int
    differing: tuple[int, ...]
    largest: float
    seconds: tuple[float, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, print the table, write the results.

    Raises:
        SystemExit: if the two sides differ.
    """
    options = _options(arguments)
    tasks = [
        reference(name, path="" if FORMS[name].rows else options.folder, items=options.items, shots=options.shots)
        for name in options.tasks
    ]
    console = command.start(options)
    name, _, source = options.model.partition("=")
    model = load(catalogue.reference(name, source=source, dtype="float32"), options.device)
    found = [_compared(model, task, options, console) for task in tasks]
    made = command.new_table(f"{model.ref.title}, lm-eval's `hf` model and the harness's", ["task"],
        ["items", "requests", "differing items", "largest difference", "harness, s", "hf, s"])  # fmt: skip
    for one in found:
        numbers = (str(one.items), str(one.requests), str(len(one.differing)), f"{one.largest:.1e}")
        made.add_row(one.task, *numbers, *(f"{seconds:.0f}" for seconds in one.seconds))
    console.print(made)
    keys = Compared.__slots__
    command.write_results(options, {"compared": [{key: getattr(one, key) for key in keys} for one in found]})
    if any(one.differing for one in found):
        raise SystemExit("the two sides differ")


def compare(
    task: TaskRef,
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    seconds: tuple[float, float] = (0.0, 0.0),
) -> Compared:
    """Compare lm-eval's samples of the two sides.

    Raises:
        ValueError: if they are not about the same requests.
    """
    mine, their = _answers(ours), _answers(theirs)
    if mine.keys() != their.keys():
        raise ValueError(f"{task.name}: the two sides have answered different requests")
    gaps = {key: abs(mine[key][0] - their[key][0]) for key in mine}
    differing = {key[0] for key, gap in gaps.items() if gap > TOLERANCE or mine[key][1] != their[key][1]}
    for a, b in zip(item_scores(task, ours), item_scores(task, theirs), strict=True):
        if abs(a.value - b.value) > TOLERANCE:
            differing.add(a.item)
    items = {item for item, _ in mine}
    return Compared(task.name, len(items), len(mine), tuple(sorted(differing)), max(gaps.values()), seconds)


def _answers(answered: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], tuple[float, bool | str | None]]:
    """By item and request: the log-probability (0 of a text), and the greedy flag or the text.

    lm-eval has a sample for each filter of a task; their answers are the same.
    """
    found: dict[tuple[int, int], tuple[float, bool | str | None]] = {}
    for sample in answered:
        for place, (answer,) in enumerate(sample["resps"]):
            if isinstance(answer, str):
                found[sample["doc_id"], place] = (0.0, answer)
            elif isinstance(answer, int | float):
                found[sample["doc_id"], place] = (float(answer), None)
            else:
                found[sample["doc_id"], place] = (float(answer[0]), bool(answer[1]))
    return found


def _compared(model: "LoadedModel", task: TaskRef, options: argparse.Namespace, console: Console) -> Compared:
    from lm_eval.models.huggingface import HFLM

    from harness.evaluation.capability.lm import EditedLM

    ours = _limited(EditedLM, options.answer)(WeightEditedModel(model), model, options.batch)
    theirs = _limited(HFLM, options.answer)(
        pretrained=str(folder_of(model.ref)), dtype="float32", device=options.device, batch_size=options.batch
    )
    sides, seconds = [], []
    for title, side in (("harness", ours), ("hf", theirs)):
        started = time.perf_counter()
        sides.append(samples(side, task))
        seconds.append(time.perf_counter() - started)
        console.print(f"{task.name}, {title}: {seconds[-1]:.0f} s")
    return compare(task, sides[0], sides[1], (seconds[0], seconds[1]))


def _limited(kind: "type[Side]", answer: int) -> "type[Side]":
    """The same model of lm-eval with another limit of answers."""
    return type(kind.__name__, (kind,), {"max_gen_toks": answer})


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.new_parser("lm_eval", __doc__, "2 items of each task")
    add = parser.add_argument
    add("--folder", default=os.environ.get(FOLDER, ""), help=f"files of the tasks; default: {FOLDER}")
    add("--model", default="smollm2-135m", metavar="NAME[=SOURCE]", help="as in a suite; default: smollm2-135m")
    add("--tasks", nargs="+", default=list(FORMS), metavar="TASK", help=f"default: {' '.join(FORMS)}")
    add("--items", type=int, default=100, help="of each task, the first ones of its file; default: 100")
    add("--shots", type=int, help="examples in front of each item; default: the task's own number")
    add("--answer", type=int, default=256, help="longest generated answer in tokens; default: 256, as in lm-eval")
    add("--batch", type=int, default=8, help="requests per forward pass on both sides; default: 8")
    options = parser.parse_args(arguments)
    options.items = 2 if options.quick else options.items
    for name in options.tasks:
        check_name(name, "--tasks")
    return options


if __name__ == "__main__":
    command.run(main)
