"""The edited plug-in: a small causal language model with one extra vocabulary entry, `[WEIGHT]`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.errors import UserError
from harness.models.batching import length_sorted
from harness.models.loaded import logits_of
from harness.models.precision import at_least_fp32
from harness.models.rope import make_rowwise
from harness.models.spec import of_config
from harness.records import EditRequest
from methods.onceedit.forward import hidden_at
from methods.onceedit.tree import Tree, hidden_at_ends

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CALIBRATION = "calibration.json"

EDITS_FILE = "edits.json"

_ROWS_PER_FORWARD = 128


@dataclass(frozen=True, eq=False)
class Reading:
    """The plug-in's outputs after B texts, computed lazily.

    Attributes:
        plugin: the plug-in.
        hidden_BD: its final hidden state at the end of each text.
        computed_BU: its logits, if they have been computed already.
    """

    plugin: "EditedPlugin"
    hidden_BD: Tensor
    computed_BU: Tensor | None = None

    def __getitem__(self, texts: Sequence[int] | slice) -> "Reading":
        """The readings of some of the texts."""
        return Reading(self.plugin, self.hidden_BD[texts])

    def split(self) -> "list[Reading]":
        """One reading per text, with its logits."""
        return [
            Reading(self.plugin, self.hidden_BD[row : row + 1], self.logits_BU[row : row + 1])
            for row in range(len(self.hidden_BD))
        ]

    @classmethod
    def joined(cls, readings: "Sequence[Reading]") -> "Reading":
        """The opposite of `split`."""
        hidden_BD = torch.cat([reading.hidden_BD for reading in readings])
        return cls(readings[0].plugin, hidden_BD, torch.cat([reading.logits_BU for reading in readings]))

    @cached_property
    def logits_BU(self) -> Tensor:
        """Logits over the plug-in's vocabulary, at least fp32; -inf for `[WEIGHT]`."""
        if self.computed_BU is not None:
            return self.computed_BU
        logits_BU = at_least_fp32(logits_of(self.plugin.model, self.hidden_BD))
        logits_BU[:, self.plugin.weight_id] = -torch.inf
        return logits_BU

    @cached_property
    def probs_BU(self) -> Tensor:
        """Next-token probabilities over the plug-in's vocabulary, at least fp32; 0 for `[WEIGHT]`."""
        return self.logits_BU.softmax(dim=-1)

    @cached_property
    def alpha_B(self) -> Tensor:
        """Routing score: σ of the `[WEIGHT]` logit (OnceEdit eq. 6), at least fp32; near 1 for the prompts of edits."""
        head, weight_id = self.plugin.model.get_output_embeddings(), self.plugin.weight_id
        logit_B = at_least_fp32(self.hidden_BD) @ at_least_fp32(head.weight[weight_id])
        if getattr(head, "bias", None) is not None:
            logit_B = logit_B + head.bias[weight_id]
        return logit_B.sigmoid()


@dataclass(frozen=True, slots=True)
class PackedReading:
    """Readings of grouped texts, and the number of ids saved by sharing prefixes.

    Attributes:
        reading: one reading per text.
        n_fed: number of ids fed to the plug-in.
        n_alone: number of ids if each distinct text of each group were fed on its own.
    """

    reading: Reading
    n_fed: int
    n_alone: int


@dataclass(frozen=True, eq=False)
class EditedPlugin:
    """An edited plug-in in memory, frozen.

    Attributes:
        weight_id: id of `[WEIGHT]`, the last row of the input embeddings and of the output head.
        requests: all its edits, in the order in which they were made.
        calibration: report of the edit stage: alpha on edits and negatives, epochs, losses.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    weight_id: int
    requests: tuple[EditRequest, ...]
    calibration: dict[str, Any]

    @classmethod
    def load(cls, folder: Path, device: str, dtype: str | None = None) -> "EditedPlugin":
        """Load the artifact `plugin-edit`.

        Args:
            folder: folder of the artifact.
            device: device to run on.
            dtype: precision of the weights; default: that of the plug-in before it was edited, as the edit stage has noted.
        """
        from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

        calibration = json.loads((folder / CALIBRATION).read_text(encoding="utf-8"))
        dtype = dtype or calibration.get("dtype", "float32")
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kernel = of_config(config.to_dict(), adds_bos=False).layout.attention_kernel
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=kernel, local_files_only=True
        )
        make_rowwise(model)
        model = model.to(device).eval().requires_grad_(False)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        edits = json.loads((folder / EDITS_FILE).read_text(encoding="utf-8"))
        return cls(
            model, tokenizer, calibration["weight_id"], tuple(EditRequest(**edit) for edit in edits), calibration
        )

    def save(self, folder: Path) -> None:
        """Write what `load` reads."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for name, content in (
            (CALIBRATION, self.calibration),
            (EDITS_FILE, [asdict(request) for request in self.requests]),
        ):
            (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")

    def require(self, edits: int, last: Sequence[EditRequest]) -> None:
        """Check that this plug-in has this many edits, and that the last ones are these.

        Raises:
            ValueError: if it does not.
        """
        if len(self.requests) != edits or self.requests[edits - len(last) :] != tuple(last):
            raise ValueError(f"the plug-in was not edited with these {edits} requests")

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text.

        Raises:
            UserError: if a text is longer than the plug-in's context.
            ValueError: if a text has none.
        """
        if not texts:
            return []
        rows: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        if not all(rows):
            raise ValueError("the plug-in has nothing to read in an empty text")
        positions = int(self.model.config.max_position_embeddings)
        longest, text = max(zip(map(len, rows), texts, strict=True))
        if longest > positions:
            raise UserError(
                f"a text of {longest:,} tokens ({text[:40]!r}…) is longer than the {positions:,} positions of the plug-in",
                fix="leave its record out, or choose a plug-in with a longer context",
            )
        return rows

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Reading:
        """Read each text on its own; duplicates are read once, and texts of similar length are batched."""
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        rows = self.tokenize(list(place))
        hidden_ND = torch.empty(
            len(rows),
            self.model.get_output_embeddings().weight.shape[1],
            dtype=self.model.dtype,
            device=self.model.device,
        )
        for batch in length_sorted(rows, len, _ROWS_PER_FORWARD):
            last = [(row, len(rows[index]) - 1) for row, index in enumerate(batch)]
            hidden_ND[batch] = hidden_at(self.model, [rows[index] for index in batch], last)
        return Reading(self, hidden_ND)[[place[text] for text in texts]]

    @torch.no_grad()
    def read_together(self, texts: Sequence[str], groups: Sequence[int]) -> PackedReading:
        """Read all texts in one forward pass in which the texts of a group share their common prefixes.

        Args:
            texts: the texts, in any order.
            groups: the group of each text; each group is one row of the batch.
        """
        if not texts:
            return PackedReading(self.read(texts), n_fed=0, n_alone=0)
        keys = list(zip(groups, texts, strict=True))
        place = {key: row for row, key in enumerate(sorted(set(keys)))}
        rows = self.tokenize([text for _, text in place])
        members = groupby(zip(place, rows, strict=True), key=lambda member: member[0][0])
        trees = [Tree.of([row for _, row in group]) for _, group in members]
        reading = Reading(self, hidden_at_ends(self.model, trees))[[place[key] for key in keys]]
        return PackedReading(reading, n_fed=sum(len(tree.ids) for tree in trees), n_alone=sum(map(len, rows)))


@torch.no_grad()
def add_weight_entry(model: "PreTrainedModel") -> int:
    """Append `[WEIGHT]` to a model's vocabulary in place and return its id.

    Its row is the mean of all rows, in the input embeddings and, if untied, in the output head.
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
