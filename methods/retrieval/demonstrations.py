"""Demonstrations of IKE: train records that show what a new fact changes and what it leaves alone (Zheng et al. 2023, §3)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from harness.api import ArtifactSpec, Context
from harness.errors import UserError
from harness.files import write_json
from harness.records import EditRecord, EditRequest
from harness.tokens import token_ids
from methods.common.similarity import Embeddings, PromptMemory

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

FILE = "demonstrations.json"

KINDS = ("copy", "update", "update", "update", "retain", "retain", "retain", "retain")
"""The prompt is that of the fact, a rephrase, or a locality probe, as 1 : 3 : 4 (Zheng et al. 2023, §3.2).

A record whose locality probes have no answer shows a rephrase instead.
"""


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Write the demonstrations of the train records that have a rephrase and a locality probe.

    Raises:
        UserError: if there are none.
    """
    write_json(folder / FILE, list(_written(usable(context.load_data(spec.inputs["data"]).train))))


def usable(records: Sequence[EditRecord]) -> list[EditRecord]:
    """The records that have a rephrase and a locality probe.

    Raises:
        UserError: if there are none.
    """
    found = [record for record in records if record.is_example]
    if not found:
        raise UserError(
            "ike: no train record has a rephrase and a locality probe", fix="datasets: [{train: ...}] with more records"
        )
    return found


def _written(records: Sequence[EditRecord]) -> Iterator[dict[str, str]]:
    for index, record in enumerate(records):
        update, known = (record.rephrases[0], record.target_new), record.known_locality
        asked = {
            "copy": (record.prompt, record.target_new),
            "update": update,
            "retain": (known.prompt, known.answer) if known else update,
        }[KINDS[index % len(KINDS)]]
        fact = f"{record.prompt.strip()} {record.target_new.strip()}"
        text = f"New Fact: {fact}\nPrompt: {asked[0].strip()} {asked[1].strip()}\n\n"
        yield {"prompt": record.prompt, "subject": record.subject, "text": text}


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Demonstrations that can be searched by the prompts of their facts.

    Attributes:
        prompts: the memory of these prompts.
        statements: ids of each demonstration, without special tokens in front.
    """

    prompts: PromptMemory
    statements: tuple[tuple[int, ...], ...]

    @classmethod
    def load(cls, folder: Path, model: "LoadedModel", embeddings: Embeddings, share: float, tokens: int) -> Self:
        """Read an artifact for a model, without the demonstrations that have more than `tokens` tokens."""
        written = json.loads((folder / FILE).read_text(encoding="utf-8"))
        rows = token_ids(model.tokenizer, [each["text"] for each in written], add_special_tokens=False)
        kept = [(each, tuple(row)) for each, row in zip(written, rows, strict=True) if len(row) <= tokens]
        if not kept:
            raise UserError(
                f"ike: every demonstration has more than {tokens} tokens", fix="a larger `demonstration_tokens`"
            )
        requests = [EditRequest(str(n), each["prompt"], each["subject"], "", "") for n, (each, _) in enumerate(kept)]
        return cls(PromptMemory.of(embeddings, requests, share), tuple(row for _, row in kept))

    def nearest(self, prompt: str, count: int) -> list[int]:
        """Ids of the demonstrations whose facts are most similar to a prompt, the most similar one last."""
        found = self.prompts.similarities(prompt).cpu().topk(min(count, len(self.statements))).indices.tolist()
        return [token for place in reversed(found) for token in self.statements[place]]
