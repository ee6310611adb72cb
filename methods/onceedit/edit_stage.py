"""The edit stage: one full fine-tuning of the plug-in on all edits, shared by every target model (OnceEdit eq. 5-7)."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.errors import UserError
from harness.records import DataSet, EditRequest
from harness.tokens import joint_query
from methods.base import ArtifactSpec, Context
from methods.onceedit.forward import hidden_at
from methods.onceedit.plugin import CALIBRATION, EditedPlugin, add_weight_entry, edits_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.models.loaded import LoadedModel

_BINS = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One training sequence.

    Attributes:
        ids: token ids.
        label_from: index of the first id that is a label of the generation loss; None if there is none.
        weight_at: index where the logit of `[WEIGHT]` is read, the last position of the prompt; None if it is not.
        is_edit: the label z of eq. 6.
    """

    ids: tuple[int, ...]
    label_from: int | None
    weight_at: int | None
    is_edit: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """Sums over the batches of an epoch, each measured before its update: never too favourable."""

    generation: float
    weight: float
    accuracy: float


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Edit the plug-in of `spec` and write it to `folder`: fp32 model, tokenizer, `calibration.json`.

    The unedited plug-in is not touched. Deterministic for a seed: order and negatives come from a generator of its own.

    Raises:
        UserError: if the training diverges.
    """
    loaded = context.load_model(spec.inputs["plugin"])
    data = context.load_data(spec.inputs["data"])
    hparams: Mapping[str, Any] = spec.identity["hparams"]
    requests = [record.request() for record in data.edits]
    negatives = [_prompt_row(loaded.tokenizer, prompt, is_edit=False) for prompt in negative_prompts(data)]
    _warm_up(loaded, negatives)
    with context.clock.phase("edit"):
        model = copy.deepcopy(loaded.model).float().eval().requires_grad_(True)
        weight_id = add_weight_entry(model)
        edits = [_edit_rows(loaded.tokenizer, request) for request in requests]
        epochs = fine_tune(model, weight_id, edits, negatives, hparams, spec.identity["seed"], context)
    model.requires_grad_(False)
    plugin = EditedPlugin(model, loaded.tokenizer, weight_id, {})
    calibration = {
        "weight_id": weight_id,
        "edits": edits_digest(requests),
        "epochs": len(epochs),
        "generation_loss": [epoch.generation for epoch in epochs],
        "weight_loss": [epoch.weight for epoch in epochs],
        "accuracy": [epoch.accuracy for epoch in epochs],
        "alpha": {
            "edits": _alpha_summary(plugin, [request.prompt for request in requests]),
            "negatives": _alpha_summary(plugin, negative_prompts(data)),
        },
    }
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    (folder / CALIBRATION).write_text(json.dumps(calibration, indent=1))
    _verify_tokenizer(loaded.tokenizer, folder, [request.prompt for request in requests])


def negative_prompts(data: DataSet) -> list[str]:
    """Prompts with label z = 0: unrelated records of the train split and their neighbours, each once.

    Neither the probes of a scored record nor the records of `data.unrelated` are among them. A prompt that is also
    edited is left out.
    """
    edited = {record.prompt for record in data.edits}
    prompts: dict[str, None] = {}
    for record in data.train:
        prompts.update(dict.fromkeys([record.prompt, *(probe.prompt for probe in record.locality)]))
    return [prompt for prompt in prompts if prompt not in edited]


def fine_tune(
    model: "PreTrainedModel",
    weight_id: int,
    edits: Sequence[Sequence[Row]],
    negatives: Sequence[Row],
    hparams: Mapping[str, Any],
    seed: int,
    context: Context,
) -> list[Progress]:
    """Minimise L_gen + λ · L_weight over all weights of `model` in place (eq. 7); one entry per epoch.

    An epoch holds every edit once and `negatives` prompts per edit, drawn without replacement and spread evenly, so
    that a ratio of 1:1 gives 16 + 16 in a batch of 32. Training stops after an epoch that reaches both
    `stop_accuracy` (of target tokens) and `stop_bce`.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=hparams["lr"], weight_decay=hparams["weight_decay"], fused=True
    )
    n_negatives = min(len(negatives), len(edits) * hparams["negatives"]) if hparams["lambda_weight"] else 0
    steps = -(-(len(edits) + n_negatives) // hparams["batch"])
    history: list[Progress] = []
    with context.progress("editing the plug-in", hparams["epochs"] * steps) as advance:
        for epoch in range(hparams["epochs"]):
            sums = torch.zeros(5, dtype=torch.float64, device=model.device)
            for rows in _batches(edits, negatives, n_negatives, hparams["batch"], generator):
                loss, figures = losses(model, weight_id, rows, hparams["lambda_weight"], hparams["negative_weight"])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                sums += figures
                advance()
            generation, tokens, right, weight, weights = sums.tolist()
            progress = Progress(generation / tokens, weight / weights, right / tokens)
            if not (progress.generation < float("inf") and progress.weight < float("inf")):
                raise UserError(
                    f"editing the plug-in diverged in epoch {epoch + 1}: {progress}",
                    fix=f"hparams: {{lr: {hparams['lr'] / 3:.1g}}}",
                )
            history.append(progress)
            knows_weight = not hparams["lambda_weight"] or progress.weight < hparams["stop_bce"]
            if progress.accuracy >= hparams["stop_accuracy"] and knows_weight:
                break
    return history


def losses(
    model: "PreTrainedModel", weight_id: int, rows: Sequence[Row], lambda_weight: float, negative_weight: float
) -> tuple[Tensor, Tensor]:
    """Loss of a batch, and its figures for the epoch.

    L_gen is the mean cross entropy of the batch's target tokens (eq. 5), L_weight the mean binary cross entropy of
    σ(logit of `[WEIGHT]`) against z (eq. 6), negatives counting `negative_weight` each.

    Returns:
        The loss, a scalar, and [Σ cross entropy, target tokens, right ones, Σ weighted BCE, Σ weights] in fp64.
    """
    labels = [
        (row, at) for row, made in enumerate(rows) for at in range(made.label_from or len(made.ids), len(made.ids))
    ]
    weights = [(row, made.weight_at) for row, made in enumerate(rows) if made.weight_at is not None]
    hidden_ND = hidden_at(model, [made.ids for made in rows], [(row, at - 1) for row, at in labels] + weights)
    hidden_LD, hidden_WD = hidden_ND[: len(labels)], hidden_ND[len(labels) :]
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    target_L = torch.tensor([rows[row].ids[at] for row, at in labels], dtype=torch.long, device=hidden_ND.device)
    logits_LV = head(hidden_LD)
    entropy = functional.cross_entropy(logits_LV, target_L, reduction="sum")

    weight_bias = None if bias is None else bias[weight_id : weight_id + 1]
    logit_W = functional.linear(hidden_WD, head.weight[weight_id : weight_id + 1], weight_bias).squeeze(-1)
    is_edit_W = torch.tensor([float(rows[row].is_edit) for row, _ in weights], device=hidden_ND.device)
    share_W = is_edit_W + negative_weight * (1 - is_edit_W)
    bce = functional.binary_cross_entropy_with_logits(logit_W, is_edit_W, weight=share_W, reduction="sum")

    loss = entropy / max(len(labels), 1) + lambda_weight * bce / share_W.sum().clamp_min(1e-12)
    right = (logits_LV.argmax(dim=-1) == target_L).sum()
    counts = [entropy, torch.tensor(len(labels)), right, bce, share_W.sum()]
    return loss, torch.stack([value.detach().to(hidden_ND.device, torch.float64) for value in counts])


def _warm_up(loaded: "LoadedModel", rows: Sequence[Row]) -> None:
    """One discarded forward and backward pass, so that the first edit does not pay for loading kernels."""
    if rows:
        model = copy.deepcopy(loaded.model).float().requires_grad_(True)
        loss, _ = losses(model, 0, rows[:1], lambda_weight=1.0, negative_weight=1.0)
        loss.backward()  # type: ignore[no-untyped-call]


def _edit_rows(tokenizer: "PreTrainedTokenizerBase", request: EditRequest) -> list[Row]:
    """The joint sequence of an edit; where joint tokenisation cuts its prompt short, the prompt is a row of its own."""
    query = joint_query(tokenizer, request.prompt, request.target_new)
    joint, cut = query.prompt_ids + query.target_ids, len(query.prompt_ids)
    alone = _prompt_row(tokenizer, request.prompt, is_edit=True)
    if alone.ids == query.prompt_ids:
        return [Row(joint, cut, cut - 1, is_edit=True)]
    return [Row(joint, cut, None, is_edit=True), alone]


def _prompt_row(tokenizer: "PreTrainedTokenizerBase", prompt: str, *, is_edit: bool) -> Row:
    ids = tuple(tokenizer(prompt)["input_ids"])
    return Row(ids, None, len(ids) - 1, is_edit)


def _batches(
    edits: Sequence[Sequence[Row]], negatives: Sequence[Row], n_negatives: int, batch: int, generator: torch.Generator
) -> Iterator[list[Row]]:
    """One epoch: all edits and a fresh draw of negatives, the rarer kind spread evenly among the other."""
    edit_order = iter(torch.randperm(len(edits), generator=generator).tolist())
    negative_order = iter(torch.randperm(len(negatives), generator=generator)[:n_negatives].tolist())
    total = len(edits) + n_negatives
    items: list[Sequence[Row]] = []
    for place in range(total):
        is_edit = (place + 1) * len(edits) // total > place * len(edits) // total
        items.append(edits[next(edit_order)] if is_edit else [negatives[next(negative_order)]])
    for start in range(0, total, batch):
        yield [row for item in items[start : start + batch] for row in item]


def _alpha_summary(plugin: EditedPlugin, prompts: Sequence[str]) -> dict[str, Any]:
    """Number, mean and histogram (ten bins over [0, 1]) of alpha."""
    if not prompts:
        return {"n": 0}
    alpha_N = plugin.read(prompts).alpha_B.double().cpu()
    histogram = torch.histc(alpha_N, bins=_BINS, min=0.0, max=1.0).int().tolist()
    return {"n": len(prompts), "mean": float(alpha_N.mean()), "histogram": histogram}


def _verify_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path, prompts: Sequence[str]) -> None:
    """What is read back must tokenise as what was trained with.

    Raises:
        ValueError: if it does not.
    """
    from transformers import PreTrainedTokenizerFast

    again = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    for prompt in prompts:
        if tokenizer(prompt)["input_ids"] != again(prompt)["input_ids"]:
            raise ValueError(f"the tokenizer in {folder} splits {prompt!r} differently from the one trained with")
