"""The evaluation protocols once more, one question at a time, no batch, no padding, no cache, whole logits."""

import torch

from harness.models.loaded import LoadedModel
from harness.tokens import Query


@torch.no_grad()
def teacher_forced(model: LoadedModel, query: Query) -> list[int]:
    """One forward over prompt and target; the arg-max before each target id."""
    ids = torch.tensor([query.prompt_ids + query.target_ids])
    logits = model.model(input_ids=ids).logits[0]
    return [int(logits[len(query.prompt_ids) + step - 1].argmax()) for step in range(len(query.target_ids))]


@torch.no_grad()
def generate(model: LoadedModel, query: Query) -> list[int]:
    """One forward over everything so far for each new id."""
    ids = list(query.prompt_ids)
    for _ in query.target_ids:
        ids.append(int(model.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(query.prompt_ids) :]
