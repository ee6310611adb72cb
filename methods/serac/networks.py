"""The scope classifier and the counterfactual model: two copies of a small language model, trained separately."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.errors import UserError
from harness.models.batching import length_sorted, right_padded
from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.models.rope import make_rowwise
from harness.models.spec import of_config
from harness.tokens import token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUNTERFACTUAL, ENCODER = "counterfactual", "encoder"
HEAD = "head.safetensors"

_ROWS_PER_FORWARD = 64


class ScopeClassifier(nn.Module):
    """Whether a question is in the scope of an edit: with probability exp(-‖f(edit) - f(question)‖²) (Mitchell et al. 2022).

    f is the mean of the final hidden states over a text's tokens, through a linear map.

    Args:
        encoder: the small model; its head is not used.
        width: dimensions of f.
        generator: of the initial map; None if it is loaded afterwards.
    """

    def __init__(self, encoder: LoadedModel, width: int, generator: torch.Generator | None) -> None:
        super().__init__()
        hidden = encoder.config.hidden_size
        self.head = nn.Linear(hidden, width, bias=False)
        if generator is not None:
            with torch.no_grad():
                self.head.weight.copy_(torch.randn(width, hidden, generator=generator) / hidden**0.5)
        self.head.to(encoder.device)
        self._encoder = encoder

    def embed(self, texts: Sequence[str]) -> Tensor:
        """F of N texts, N × width, with gradients if they are enabled; texts of similar length are read together."""
        rows = token_ids(self._encoder.tokenizer, texts)
        _require_context(self._encoder, rows, texts)
        order, parts = [], []
        for chosen in length_sorted(rows, len, _ROWS_PER_FORWARD):
            batch = right_padded([rows[place] for place in chosen], self._encoder.device)
            hidden_BTD = self._encoder.backbone(
                input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.positions_BT, use_cache=False
            ).last_hidden_state
            mask_BT1 = batch.mask_BT[:, :, None].to(hidden_BTD)
            parts.append(self.head((hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)))
            order += chosen
        places_N = torch.tensor(order, device=self._encoder.device).argsort()
        return torch.cat(parts)[places_N]


def squared_distances(left_QW: Tensor, right_EW: Tensor) -> Tensor:
    """‖l - r‖² of each pair, Q × E: differences first, so that equal vectors have a distance of exactly 0."""
    return (left_QW[:, None] - right_EW[None]).square().sum(-1)


@dataclass(frozen=True, eq=False)
class Networks:
    """Both networks, frozen, on one device.

    Attributes:
        classifier: the scope classifier.
        counterfactual: the counterfactual model, which answers a question after the edit that it has to follow.
    """

    classifier: ScopeClassifier
    counterfactual: LoadedModel

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """Read what `save` has written."""
        head = load_file(folder / HEAD)
        classifier = ScopeClassifier(_load(folder / ENCODER, device), len(head["weight"]), None)
        classifier.head.load_state_dict(head)
        return cls(classifier.requires_grad_(False), _load(folder / COUNTERFACTUAL, device))

    @torch.no_grad()
    def keys(self, texts: Sequence[str]) -> Tensor:
        """F of N texts, N × width."""
        return self.classifier.embed(texts)

    def texts_of(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Ids of the counterfactual model as text."""
        return spelled(self.counterfactual.tokenizer, ids)


def save(encoder: LoadedModel, head: nn.Linear, counterfactual: LoadedModel, folder: Path) -> None:
    """Write both networks, each with its tokenizer."""
    for name, network in ((ENCODER, encoder), (COUNTERFACTUAL, counterfactual)):
        network.model.save_pretrained(folder / name)
        network.tokenizer.save_pretrained(folder / name)
    save_file({"weight": head.weight.detach().cpu().contiguous()}, folder / HEAD)


def spelled(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[Sequence[int]]) -> list[str]:
    """Texts of several rows of ids, without special tokens and as they are."""
    return [
        str(tokenizer.decode(list(row), skip_special_tokens=True, clean_up_tokenization_spaces=False)) for row in ids
    ]


def _load(folder: Path, device: torch.device) -> LoadedModel:
    """A small model in float32, for evaluation."""
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    known = of_config(AutoConfig.from_pretrained(folder, local_files_only=True).to_dict(), adds_bos=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=known.layout.attention_kernel, local_files_only=True
    )
    make_rowwise(model)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    model = model.to(device).eval().requires_grad_(False)
    return LoadedModel(ModelRef(folder.name, "pretrained", known=known), model, tokenizer)


def _require_context(model: LoadedModel, rows: Sequence[Sequence[int]], texts: Sequence[str]) -> None:
    for row, text in zip(rows, texts, strict=True):
        if len(row) > model.context:
            raise UserError(
                f"serac: a text of {len(row):,} tokens ({text[:40]!r}…) is longer than the {model.context:,} that its small "
                "model reads",
                fix="counterfactual: a model with a longer context",
            )
