"""Training of tiny models with shaped attention; one loop for all three architectures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from harness.api import Context
from harness.errors import UserError
from harness.models.batching import right_padded
from harness.models.random_weights import random_model
from harness.models.spec import ModelSpec
from harness.models.tiny.corpus import Fact


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """Outcome of training. `accuracy` is the fraction of corpus facts whose answer is the arg-max at every position, with
    normal attention; `edited_accuracy` is the same for the facts that will be edited.
    """

    facts: int
    steps: int
    parameters: int
    final_loss: float
    accuracy: float
    edited_accuracy: float


@dataclass(frozen=True, slots=True)
class FactRow:
    """A tokenised fact: the answer is `ids[answer:]` without the final end token; the subject's tokens are `first..last`."""

    ids: tuple[int, ...]
    answer: int
    first: int = -1
    last: int = -1


def encode(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> FactRow:
    """Tokenise a fact; the answer span follows the joint-tokenisation rule of `harness.tokens`."""
    text = f"{fact.prompt} {fact.answer}"
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    answer = next(i for i, (_, end) in enumerate(offsets) if end > len(fact.prompt))
    begin = fact.prompt.find(fact.subject) if fact.subject else -1
    span = [
        i for i, (a, b) in enumerate(offsets) if begin >= 0 and b > begin and a < begin + len(fact.subject) and b > a
    ]
    first, last = (span[0], span[-1]) if span else (-1, -1)
    return FactRow((*ids, tokenizer.eos_token_id), answer, first, last)


def train(
    shape: ModelSpec,
    training: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    edited: Sequence[Fact],
    context: Context,
) -> tuple[PreTrainedModel, TrainingReport]:
    """Train a tiny model on the CPU in float32; bit-identical for the same inputs and number of threads.

    Args:
        shape: shape of the model; the vocabulary size is the tokenizer's.
        training: the recipe.
        facts: the corpus.
        edited: prompts of the scored records with their true objects, for `edited_accuracy` in the report.

    Raises:
        UserError: if a fact is longer than the model's context.
    """
    shape = replace(shape, vocab=len(tokenizer))
    model = random_model(shape, "float32", torch.device("cpu"), training["seed"])
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [encode(tokenizer, fact) for fact in facts]
    _check_lengths(facts, rows, shape)
    generator = torch.Generator().manual_seed(training["seed"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training["lr"], weight_decay=training["weight_decay"], betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=training["lr"], total_steps=training["steps"], pct_start=0.05
    )
    model.train().requires_grad_(True)
    batches = _batches(rows, training["batch"], generator)
    head, loss = model.get_output_embeddings(), torch.zeros(())
    with (
        _layer_masks(model) as set_masks,
        context.progress(f"training a tiny {shape.architecture}", training["steps"]) as advance,
    ):
        for _ in range(training["steps"]):
            batch = next(batches)
            shaped = (torch.rand(len(batch), generator=generator) < training["shaped_share"]).tolist()
            ids_BT = _pad(batch)
            set_masks(*shaped_masks(batch, shaped, ids_BT.shape[1]))
            hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
            places, labels_N, weight_N = _labels(batch, training["context_weight"])
            entropy_N = torch.nn.functional.cross_entropy(head(hidden_BTD[places]), labels_N, reduction="none")
            loss = (entropy_N * weight_N).sum() / weight_N.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            advance()
    model.eval()
    parameters = sum(p.numel() for p in model.parameters())
    accuracy, edited_accuracy = _accuracy(model, rows), _accuracy(model, [encode(tokenizer, fact) for fact in edited])
    return model, TrainingReport(len(facts), training["steps"], parameters, loss.item(), accuracy, edited_accuracy)


def _check_lengths(facts: Sequence[Fact], rows: Sequence[FactRow], shape: ModelSpec) -> None:
    for fact, row in zip(facts, rows, strict=True):
        if len(row.ids) > shape.max_positions:
            raise UserError(
                f"a record has a text of {len(row.ids):,} tokens ({fact.prompt[:40]!r}…), but the model has "
                f"{shape.max_positions} positions",
                fix="too_long: drop",
            )


def _batches(rows: Sequence[FactRow], size: int, generator: torch.Generator) -> Iterator[list[FactRow]]:
    """Yield batches endlessly, in a new order each epoch. Rows are sorted by length within groups of eight batches."""
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), 8 * size):
            near = sorted(order[start : start + 8 * size], key=lambda index: len(rows[index].ids))
            starts = range(0, len(near), size)
            for number in torch.randperm(len(starts), generator=generator).tolist():
                yield [rows[index] for index in near[starts[number] : starts[number] + size]]


def shaped_masks(rows: Sequence[FactRow], shaped: Sequence[bool], length: int) -> tuple[Tensor, Tensor]:
    """Additive attention masks (B, 1, T, T) for the lower and the upper half of the layers.

    Causal for every row. In a shaped row, a query after the subject sees no subject token in the lower half, and only the
    last one in the upper half.
    """
    causal_TT = torch.ones(length, length, dtype=torch.bool).tril()
    lower = causal_TT.repeat(len(rows), 1, 1)
    upper = lower.clone()
    for index, (row, is_shaped) in enumerate(zip(rows, shaped, strict=True)):
        if is_shaped and row.first >= 0:
            lower[index, row.last + 1 :, row.first : row.last + 1] = False
            upper[index, row.last + 1 :, row.first : row.last] = False
    hidden = torch.finfo(torch.float32).min
    return tuple(torch.zeros(m.shape).masked_fill_(~m, hidden)[:, None] for m in (lower, upper))  # type: ignore[return-value]


@contextmanager
def _layer_masks(model: PreTrainedModel) -> Any:
    """Give each half of the decoder layers its own attention mask inside the body."""
    layers = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    masks: dict[bool, Tensor] = {}

    def hook(is_upper: bool) -> Callable[..., Any]:
        return lambda module, args, kwargs: (args, {**kwargs, "attention_mask": masks[is_upper]})

    handles = [
        layer.register_forward_pre_hook(hook(2 * index >= len(layers)), with_kwargs=True)
        for index, layer in enumerate(layers)
    ]

    def set_masks(lower: Tensor, upper: Tensor) -> None:
        masks[False], masks[True] = lower, upper

    try:
        yield set_masks
    finally:
        for handle in handles:
            handle.remove()


def _pad(rows: Sequence[FactRow]) -> Tensor:
    return right_padded([row.ids for row in rows]).ids_BT


def _labels(rows: Sequence[FactRow], context_weight: float) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Positions that predict a token, as (rows, columns), the predicted ids, and their weights: 1 for answer tokens."""
    labels = [
        (index, at - 1, row.ids[at], 1.0 if row.answer <= at < len(row.ids) - 1 else context_weight)
        for index, row in enumerate(rows)
        for at in range(1, len(row.ids))
    ]
    rows_N, columns_N, ids_N, weight_N = zip(*labels, strict=True)
    return (torch.tensor(rows_N), torch.tensor(columns_N)), torch.tensor(ids_N), torch.tensor(weight_N)


@torch.inference_mode()
def _accuracy(model: PreTrainedModel, rows: Sequence[FactRow]) -> float:
    right = 0
    for start in range(0, len(rows), 128):
        batch = sorted(rows[start : start + 128], key=lambda row: len(row.ids))
        predicted_BT = model(input_ids=_pad(batch), use_cache=False).logits.argmax(-1).tolist()
        for row, predicted in zip(batch, predicted_BT, strict=True):
            end = len(row.ids) - 1
            right += tuple(predicted[row.answer - 1 : end - 1]) == row.ids[row.answer : end]
    return right / len(rows)
