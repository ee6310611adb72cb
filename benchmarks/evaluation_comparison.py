"""Ask the same questions in batches and one at a time: seconds of both, and whether the answers are the same."""

import copy
import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from benchmarks import command
from benchmarks.evaluation_loops import Loop, PairLoop, PlainLoop
from benchmarks.timing import timed
from harness.api import EditedModel
from harness.evaluation.evaluate import predict
from harness.evaluation.probes import ProbeQuery
from harness.evaluation.protocol import Protocol
from harness.models.edited import WeightEditedModel
from harness.models.loaded import LoadedModel
from harness.records import EditRequest
from harness.tokens import Query
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.plugin import EditedPlugin

Holder = TypeVar("Holder", LoadedModel, EditedPlugin)

WARM_UPS = 3
"""Questions that the loop answers before any is timed."""

ASK: dict[str, Callable[[Loop, Query], list[int]]] = {
    "teacher_forced": lambda loop, query: loop.teacher_forced(query),
    "generation": lambda loop, query: loop.generate(query),
}
"""How a loop is asked, by protocol."""


@dataclass(frozen=True)
class TwoWays:
    """A model that is evaluated in two ways.

    Attributes:
        batched: as the harness evaluates it.
        loop: the same model, one question at a time.
        in_float64: makes the same of a float64 copy.
    """

    batched: EditedModel
    loop: Loop
    in_float64: Callable[[], "TwoWays"]

    @classmethod
    def plain(cls, model: LoadedModel) -> "TwoWays":
        """A model by itself."""
        return cls(WeightEditedModel(model), PlainLoop(model), lambda: cls.plain(_in_float64(model)))

    @classmethod
    def pair(cls, pair: EditedModel, requests: Sequence[EditRequest]) -> "TwoWays":
        """A model that OnceEdit has edited, next to its plug-in."""
        if not isinstance(pair, EnsembleModel):
            raise TypeError(f"a {type(pair).__name__} is not a pair of models")

        def exact() -> TwoWays:
            target, plugin = _in_float64(pair.target), _in_float64(pair.plugin)
            return cls.pair(EnsembleModel(target, plugin, pair.chooser, requests, pair.hparams), requests)

        return cls(pair, PairLoop(pair), exact)


@dataclass(frozen=True)
class Comparison:
    """Both ways compared under one protocol.

    Attributes:
        batched_s, loop_s: seconds per question, one value per round.
        questions: how many there are.
        differ: how many were answered differently.
        differ_in_float64: how many of these are in float64, too.
    """

    batched_s: list[float]
    loop_s: list[float]
    questions: int
    differ: int
    differ_in_float64: int

    @property
    def ratios(self) -> list[float]:
        """How many times as fast the batched side is, by round."""
        return command.ratios(self.loop_s, self.batched_s)


def compare(
    model: TwoWays,
    questions: Sequence[ProbeQuery],
    protocol: Protocol,
    batch: int,
    rounds: int,
    device: torch.device,
) -> Comparison:
    """Ask all questions both ways, in turns, and compare the answers.

    Args:
        model: the model, both ways.
        questions: all of them are asked in batches in each round.
        protocol: how they are asked.
        batch: questions per batch.
        rounds: the loop answers one share of the records in each.
        device: of the model.
    """
    ask = ASK[protocol.name]
    one_by_one: dict[int, list[int]] = {}
    batched: list[list[int]] = []
    batched_s: list[float] = []
    loop_s: list[float] = []

    def run_batched() -> None:
        seconds, answers = timed(lambda: predict(model.batched, questions, protocol, batch), device)
        batched[:] = answers
        batched_s.append(seconds / len(questions))

    def run_loop(part: Sequence[int]) -> None:
        seconds, answers = timed(lambda: [ask(model.loop, questions[index].query) for index in part], device)
        one_by_one.update(zip(part, answers, strict=True))
        loop_s.append(seconds / len(part))

    predict(model.batched, questions[:batch], protocol, batch)  # first calls are not timed
    for asked in questions[:WARM_UPS]:
        ask(model.loop, asked.query)
    order = random.Random(0)
    for part in parts(questions, rounds):
        sides: list[Callable[[], None]] = [run_batched, partial(run_loop, part)]
        for side in order.sample(sides, len(sides)):
            side()
    differ = [asked for index, asked in enumerate(questions) if batched[index] != one_by_one[index]]
    still = 0
    if differ:
        exact = model.in_float64()
        answers = predict(exact.batched, differ, protocol, batch)
        still = sum(ask(exact.loop, asked.query) != ids for asked, ids in zip(differ, answers, strict=True))
    return Comparison(batched_s, loop_s, len(questions), len(differ), still)


def parts(questions: Sequence[ProbeQuery], rounds: int) -> list[list[int]]:
    """Indices of each round's questions, all questions of a record in one round; at most as many rounds as records."""
    number = {record: place for place, record in enumerate(dict.fromkeys(asked.record_id for asked in questions))}
    return [
        [index for index, asked in enumerate(questions) if number[asked.record_id] % rounds == turn]
        for turn in range(min(rounds, len(number)))
    ]


def _in_float64(holder: Holder) -> Holder:
    """A copy of what holds a model, with the model in float64."""
    return dataclasses.replace(holder, model=copy.deepcopy(holder.model).double())
