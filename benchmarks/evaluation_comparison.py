"""Ask the same questions in batches and one at a time, and compare times and answers."""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks import command
from benchmarks.evaluation_loops import Loop, PairLoop, PlainLoop
from benchmarks.timing import timed
from harness.api import EditedModel
from harness.evaluation.ask import predict
from harness.evaluation.probes import ProbeQuery
from harness.evaluation.protocol import Protocol
from harness.models.edited import WeightEditedModel
from harness.models.loaded import LoadedModel
from harness.tokens import Query
from methods.onceedit.ensemble import EnsembleModel

WARM_UPS = 3
"""Number of questions that the loop answers before timing starts."""

ASK: dict[str, Callable[[Loop, Query], list[int]]] = {
    "teacher_forced": lambda loop, query: loop.teacher_forced(query),
    "generation": lambda loop, query: loop.generate(query),
}
"""Function that asks a loop a question, by protocol."""


@dataclass(frozen=True)
class TwoWays:
    """A model that can be evaluated in batches and in a loop.

    Attributes:
        batched: the model as the harness evaluates it.
        loop: the same model, one question at a time.
        modules: all modules with weights.
        again: recreates both, without state cached from earlier questions.
    """

    batched: EditedModel
    loop: Loop
    modules: tuple[nn.Module, ...]
    again: Callable[[], "TwoWays"]

    @classmethod
    def plain(cls, model: LoadedModel) -> "TwoWays":
        """A model on its own."""
        return cls(WeightEditedModel(model), PlainLoop(model), (model.model,), lambda: cls.plain(model))

    @classmethod
    def pair(cls, pair: EditedModel) -> "TwoWays":
        """A target model with OnceEdit's edited plug-in."""
        if not isinstance(pair, EnsembleModel):
            raise TypeError(f"a {type(pair).__name__} is not a pair of models")

        def again() -> TwoWays:
            return cls.pair(EnsembleModel(pair.target, pair.plugin, pair.chooser, pair.hparams))

        return cls(pair, PairLoop(pair), (pair.target.model, pair.plugin.model), again)


@dataclass(frozen=True)
class Comparison:
    """Comparison of batched evaluation and loop under one protocol.

    Attributes:
        batched_s, loop_s: seconds per question, one value per round.
        questions: number of questions.
        differ: number of questions with different answers.
        differ_in_float64: number of these that also differ in float64.
    """

    batched_s: list[float]
    loop_s: list[float]
    questions: int
    differ: int
    differ_in_float64: int

    @property
    def ratios(self) -> list[float]:
        """Speed-up of the batched evaluation over the loop, by round."""
        return command.ratios(self.loop_s, self.batched_s)


def compare(
    model: TwoWays,
    questions: Sequence[ProbeQuery],
    protocol: Protocol,
    batch: int,
    rounds: int,
    device: torch.device,
) -> Comparison:
    """Ask all questions in batches and in the loop, in turns, and compare the answers.

    Args:
        model: the model in both forms.
        questions: all of them are asked in batches in each round.
        protocol: how they are asked.
        batch: questions per batch.
        rounds: number of rounds; the loop answers one share of the records in each.
        device: device of the model.
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

    predict(model.batched, questions[:batch], protocol, batch)  # untimed warm-up
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
        with in_float64(model.modules):
            exact = model.again()
            answers = predict(exact.batched, differ, protocol, batch)
            still = sum(ask(exact.loop, asked.query) != ids for asked, ids in zip(differ, answers, strict=True))
    return Comparison(batched_s, loop_s, len(questions), len(differ), still)


def parts(questions: Sequence[ProbeQuery], rounds: int) -> list[list[int]]:
    """Indices of each round's questions; all questions of a record are in one round, and there are at most as many rounds as
    records.
    """
    number = {record: place for place, record in enumerate(dict.fromkeys(asked.record_id for asked in questions))}
    return [
        [index for index, asked in enumerate(questions) if number[asked.record_id] % rounds == turn]
        for turn in range(min(rounds, len(number)))
    ]


@contextlib.contextmanager
def in_float64(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Convert weights and buffers to float64 in place and back, which is lossless and avoids a second copy of the weights."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    dtypes = [tensor.dtype for tensor in tensors]
    try:
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)
