"""The edited plug-in: a small causal language model with one extra vocabulary entry, `[WEIGHT]`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.canonical import digest
from harness.models.batching import length_sorted
from harness.records import EditRequest
from methods.onceedit.forward import logits_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CALIBRATION = "calibration.json"

_ROWS_PER_FORWARD = 128


@dataclass(frozen=True, slots=True)
class Reading:
    """What the plug-in says after B texts.

    Attributes:
        probs_BU: next-token probabilities over its vocabulary; `[WEIGHT]` has none.
        alpha_B: σ of the logit of `[WEIGHT]` (OnceEdit eq. 6), how far the plug-in takes the text for one of its edits.
    """

    probs_BU: Tensor
    alpha_B: Tensor


@dataclass(frozen=True, eq=False)
class EditedPlugin:
    """An edited plug-in in memory, frozen.

    Attributes:
        weight_id: id of `[WEIGHT]`, the last row of both embedding tables.
        calibration: what the edit stage wrote of itself: alpha on edits and negatives, epochs, losses.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    weight_id: int
    calibration: dict[str, Any]

    @classmethod
    def load(cls, folder: Path, device: str) -> "EditedPlugin":
        """Read the artifact `plugin-edit`."""
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        calibration = json.loads((folder / CALIBRATION).read_text())
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        model = model.to(device).eval().requires_grad_(False)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        return cls(model, tokenizer, calibration["weight_id"], calibration)

    def require(self, requests: Sequence[EditRequest]) -> None:
        """Make sure that this plug-in holds exactly these edits.

        Raises:
            ValueError: if it was edited with others; the plug-in takes all edits of a cell at once.
        """
        if self.calibration["edits"] != edits_digest(requests):
            raise ValueError(f"the plug-in was not edited with these {len(requests)} requests")

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Reading:
        """One reading per text; equal texts are read once, texts of similar length together."""
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        rows: list[list[int]] = [self.tokenizer(text)["input_ids"] for text in place]
        logits_NU = self.model.get_output_embeddings().weight.new_empty(len(rows), self.weight_id + 1)
        for batch in length_sorted(rows, len, _ROWS_PER_FORWARD):
            last = [(row, len(rows[index]) - 1) for row, index in enumerate(batch)]
            logits_NU[batch] = logits_at(self.model, [rows[index] for index in batch], last)
        logits_BU = logits_NU[[place[text] for text in texts]]
        alpha_B = logits_BU[:, self.weight_id].sigmoid()
        logits_BU[:, self.weight_id] = -torch.inf
        return Reading(logits_BU.softmax(dim=-1), alpha_B)


@torch.no_grad()
def add_weight_entry(model: "PreTrainedModel") -> int:
    """Append `[WEIGHT]` to the vocabulary of a model in place and return its id.

    Its row is the mean of all rows, in the input embeddings and, where they are not tied, in the output head.
    """
    weight_id: int = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(weight_id + 1, mean_resizing=False)
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [inputs.weight] if head.weight is inputs.weight else [inputs.weight, head.weight]
    if getattr(head, "bias", None) is not None:
        tables.append(head.bias)
    for table in tables:
        table[weight_id] = table[:weight_id].mean(dim=0)
    return weight_id


def edits_digest(requests: Sequence[EditRequest]) -> str:
    """Hash of a set of edits, whatever their order."""
    return digest(sorted((request.record_id, request.prompt, request.target_new) for request in requests))
