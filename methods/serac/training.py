"""Training of both networks on unrelated facts, whose rephrases are in their scope and whose locality probes are not."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.api import ArtifactSpec, Context
from harness.errors import UserError
from harness.files import write_json
from harness.models.batching import right_padded
from harness.models.loaded import LoadedModel
from harness.models.submodels import at_places
from harness.records import EditRecord
from harness.tokens import Query, joint_queries
from methods.serac.memory import stated
from methods.serac.networks import ScopeClassifier, save, squared_distances

if TYPE_CHECKING:
    from collections.abc import Mapping

_LEAST_DISTANCE = 1e-6
"""Squared distances below this count as this: log(1 - exp(-0)) has no gradient."""


@dataclass(frozen=True, slots=True)
class Example:
    """A train record as an edit.

    Attributes:
        prompt, target: the edit.
        inside: questions in its scope: the prompt and its rephrases.
        outside: locality probes, which are not.
    """

    prompt: str
    target: str
    inside: tuple[str, ...]
    outside: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """An edit with one question in its scope and one outside."""

    prompt: str
    target: str
    inside: str
    outside: str


@dataclass(frozen=True, slots=True)
class Look:
    """One validation.

    Attributes:
        step: number of optimiser steps.
        scope, answer: held-out losses of the two networks.
        in_scope, out_of_scope: share of held-out questions that the classifier puts on the right side of one half.
    """

    step: int
    scope: float
    answer: float
    in_scope: float
    out_of_scope: float


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Train the networks of `spec` and write them to `folder`.

    Raises:
        UserError: if there are too few train records, or if training diverges.
    """
    hparams, seed = spec.identity["hparams"], spec.identity["seed"]
    loaded = context.load_model(spec.inputs["model"])
    records = context.load_data(spec.inputs["data"]).train
    with context.clock.phase("setup"):
        made = examples(records)
        if len(made) <= hparams["validation"] + 1:
            raise UserError(
                f"serac learns from train records with a locality probe, but only {len(made)} of {len(records)} have one; "
                f"{hparams['validation']} of them are held out",
                fix="datasets: [{train: ...}] with more records, or a smaller `validation`",
            )
        trainer = Trainer(loaded, hparams, seed)
        looks = trainer.train(made, context)
    save(trainer.encoder, trainer.classifier.head, trainer.counterfactual, folder)
    write_json(folder / "training.json", {"records": len(made), "looks": [asdict(look) for look in looks]})


def examples(records: Sequence[EditRecord]) -> list[Example]:
    """The train records with a locality probe."""
    return [
        Example(
            record.prompt,
            record.target_new,
            tuple(dict.fromkeys([record.prompt, *record.rephrases])),
            tuple(probe.prompt for probe in record.locality),
        )
        for record in records
        if record.locality
    ]


class Trainer:
    """Both networks and their optimisers.

    Args:
        loaded: the small model that both start from; not changed.
        hparams: values of `SeracHparams`.
        seed: of the classifier's map, and of the order of training.
    """

    def __init__(self, loaded: LoadedModel, hparams: "Mapping[str, Any]", seed: int) -> None:
        self._hparams = hparams
        self._generator = torch.Generator().manual_seed(seed)
        self.encoder, self.counterfactual = _copy(loaded), _copy(loaded)
        self.classifier = ScopeClassifier(self.encoder, hparams["width"], self._generator)
        scope = [*self.encoder.backbone.parameters(), *self.classifier.parameters()]
        self._parts = [scope, list(self.counterfactual.model.parameters())]
        for parameter in (*scope, *self._parts[1]):
            parameter.requires_grad_(True)
        self._adams = [torch.optim.Adam(part, lr=hparams["lr"]) for part in self._parts]

    def train(self, made: Sequence[Example], context: Context) -> list[Look]:
        """Train on all but `validation` randomly chosen examples, and leave each network as it was best on these.

        Raises:
            UserError: if a loss is not finite.
        """
        hparams = self._hparams
        order = torch.randperm(len(made), generator=self._generator).tolist()
        learned = [made[place] for place in order[: -hparams["validation"]]]
        held_out = [_first(made[place]) for place in order[-hparams["validation"] :]]
        looks = [self._look(0, held_out)]
        best = [looks[0].scope, looks[0].answer]
        kept, since = [_values(part) for part in self._parts], 0
        batches = self._batches(learned)
        with context.progress("training the networks of SERAC", hparams["steps"]) as advance:
            for step in range(1, hparams["steps"] + 1):
                self._step(next(batches))
                advance()
                if step % hparams["validate_every"] and step < hparams["steps"]:
                    continue
                look = self._look(step, held_out)
                if not look.scope + look.answer < math.inf:
                    raise UserError(
                        f"the training of serac's networks diverged by step {step}: {look}",
                        fix=f"lr: {hparams['lr'] / 3:.1g}",
                    )
                looks.append(look)
                for place, loss in enumerate((look.scope, look.answer)):
                    if loss < best[place]:
                        best[place], kept[place], since = loss, _values(self._parts[place]), step
                if step - since >= hparams["patience"]:
                    break
        with torch.no_grad():
            for part, values in zip(self._parts, kept, strict=True):
                for parameter, value in zip(part, values, strict=True):
                    parameter.copy_(value)
        return looks

    def _step(self, tasks: Sequence[Task]) -> None:
        for loss, part, adam in zip(
            (self.scope_loss(tasks)[0], self.answer_loss(tasks)), self._parts, self._adams, strict=True
        ):
            adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(part, self._hparams["clip"])
            adam.step()

    def scope_loss(self, tasks: Sequence[Task]) -> tuple[Tensor, float, float]:
        """Binary cross entropy of the scope classifier, over each of E edits with all questions of the batch.

        A question is in the scope of its own edit and of no other. Both kinds of pairs have half of the weight.

        Returns:
            The loss, and the share of pairs in scope and out of scope on the right side of one half.
        """
        edits = [task.prompt for task in tasks]
        questions = [*(task.inside for task in tasks), *(task.outside for task in tasks)]
        embedded = self.classifier.embed([*edits, *questions])
        distance_QE = squared_distances(embedded[len(edits) :], embedded[: len(edits)]).clamp_min(_LEAST_DISTANCE)
        inside_QE = torch.zeros_like(distance_QE, dtype=torch.bool)
        inside_QE[: len(edits)] = torch.eye(len(edits), dtype=torch.bool)
        near, far = distance_QE[inside_QE], distance_QE[~inside_QE]
        loss = near.mean() / 2 - torch.log(-torch.expm1(-far)).mean() / 2
        half = math.log(2)
        return loss, float((near <= half).float().mean()), float((far > half).float().mean())

    def answer_loss(self, tasks: Sequence[Task]) -> Tensor:
        """-log p of the edit's target after the edit and a question in its scope; mean over target tokens, then over edits."""
        model = self.counterfactual
        pairs = [(stated(task.prompt, task.target) + task.inside.strip(), task.target) for task in tasks]
        queries = joint_queries(model.tokenizer, pairs)
        batch = right_padded([query.prompt_ids + query.target_ids[:-1] for query in queries], model.device)
        hidden_BTD = model.backbone(
            input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.positions_BT, use_cache=False
        ).last_hidden_state
        logits_NV = model.logits(at_places(hidden_BTD, _places(queries)))
        targets_N = torch.tensor([id_ for query in queries for id_ in query.target_ids], device=model.device)
        shares_N = torch.tensor(
            [1 / len(query.target_ids) for query in queries for _ in query.target_ids], device=model.device
        )
        return (functional.cross_entropy(logits_NV, targets_N, reduction="none") * shares_N).sum() / len(tasks)

    @torch.no_grad()
    def _look(self, step: int, tasks: Sequence[Task]) -> Look:
        scope, inside, outside = self.scope_loss(tasks)
        size = self._hparams["batch"]
        answers = [
            float(self.answer_loss(tasks[start : start + size])) * len(tasks[start : start + size])
            for start in range(0, len(tasks), size)
        ]
        return Look(step, float(scope), sum(answers) / len(tasks), inside, outside)

    def _batches(self, learned: Sequence[Example]) -> Iterator[list[Task]]:
        """Endless batches: each epoch visits every example once, in a new order, with random questions.

        Some have the target of another example (`exchanged`).
        """

        def drawn(texts: Sequence[str]) -> str:
            return texts[int(torch.randint(len(texts), (), generator=self._generator))]

        size = min(self._hparams["batch"], len(learned))
        batch: list[Task] = []
        while True:
            for place in torch.randperm(len(learned), generator=self._generator).tolist():
                example = learned[place]
                is_exchanged = float(torch.rand((), generator=self._generator)) < self._hparams["exchanged"]
                target = drawn([other.target for other in learned]) if is_exchanged else example.target
                batch.append(Task(example.prompt, target, drawn(example.inside), drawn(example.outside)))
                if len(batch) == size:
                    yield batch
                    batch = []


def _copy(loaded: LoadedModel) -> LoadedModel:
    return LoadedModel(loaded.ref, copy.deepcopy(loaded.model).float().eval(), loaded.tokenizer)


def _first(example: Example) -> Task:
    """The last question in scope, a rephrase if there is one, and the first outside: the same at every validation."""
    return Task(example.prompt, example.target, example.inside[-1], example.outside[0])


def _values(part: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in part]


def _places(queries: Sequence[Query]) -> list[tuple[int, int]]:
    """Row and column of the position that predicts each target id."""
    return [
        (row, len(query.prompt_ids) - 1 + step)
        for row, query in enumerate(queries)
        for step in range(len(query.target_ids))
    ]
