"""IKE as EasyEdit computes it (easyeditor/models/ike, evaluate.py:237): demonstrations depend on the edit, not on the question.

EasyEdit compares texts with a sentence encoder, all-MiniLM-L6-v2. Here their mean input embeddings are compared.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn import functional

from harness.api import ArtifactSpec, Context
from harness.errors import UserError
from harness.files import write_json
from harness.records import EditRecord, EditRequest
from harness.tokens import Query, token_ids
from methods.common.similarity import Embeddings, embeddings_of
from methods.retrieval.demonstrations import usable
from methods.retrieval.editor import IkeHparams
from methods.retrieval.prompted import Facts, Prompted

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

FILE = "records.json"


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Write the train records that have a rephrase and a locality probe, with EasyEdit's keys.

    Raises:
        UserError: if there are none.
    """
    write_json(folder / FILE, [_row(record) for record in usable(context.load_data(spec.inputs["data"]).train)])


def _row(record: EditRecord) -> dict[str, str]:
    """Convert a record; without the keys of a fact that stays if no locality probe has an answer."""
    row = {"prompt": record.prompt, "target_new": record.target_new, "rephrase_prompt": record.rephrases[0]}
    if known := record.known_locality:
        row |= {"locality_prompt": known.prompt, "locality_ground_truth": known.answer}
    return {key: text.strip() for key, text in row.items()}


def texts_of(record: dict[str, str]) -> list[str]:
    """A record's demonstrations: of the fact itself, of a rephrase, and of a fact that stays if it has one (ike/util.py:13-23)."""
    fact = f"{record['prompt']} {record['target_new']}"
    asked = [fact, f"{record['rephrase_prompt']} {record['target_new']}"]
    if "locality_prompt" in record:
        asked.append(f"{record['locality_prompt']} {record['locality_ground_truth']}")
    return [f"New Fact: {fact}\nPrompt: {text}\n\n" for text in asked]


def load_records(folder: Path, model: "LoadedModel", most: int) -> list[dict[str, str]]:
    """Read an artifact, without the records whose demonstrations have more than `most` tokens.

    Raises:
        UserError: if none is left.
    """
    records: list[dict[str, str]] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    kept = [
        record
        for record in records
        if max(map(len, token_ids(model.tokenizer, texts_of(record), add_special_tokens=False))) <= most
    ]
    if not kept:
        raise UserError(f"ike: every demonstration has more than {most} tokens", fix="a larger `demonstration_tokens`")
    return kept


def sentence_vectors(embeddings: Embeddings, texts: Sequence[str]) -> Tensor:
    """The mean centred embedding of each text's tokens, N × D."""
    return torch.stack([embeddings.centred(embeddings.read(text)[0]).mean(dim=0) for text in texts])


class Examples:
    """Demonstrations that can be searched by the text of a new fact.

    Args:
        embeddings: what texts are compared by.
        texts: the demonstrations.
    """

    def __init__(self, embeddings: Embeddings, texts: Sequence[str]) -> None:
        self._embeddings, self._texts = embeddings, tuple(texts)
        self._vectors_ND = functional.normalize(sentence_vectors(embeddings, texts), dim=-1)

    @classmethod
    def load(cls, folder: Path, model: "LoadedModel", most: int) -> Self:
        """Read an artifact for a model; see `load_records`."""
        texts = [text for record in load_records(folder, model, most) for text in texts_of(record)]
        return cls(embeddings_of(model), texts)

    def before(self, request: EditRequest, count: int) -> str:
        """The text before a question about an edit: the most similar demonstrations, best first, and the new fact."""
        prompt = request.prompt.strip()
        fact = f"New Fact: {prompt} {request.target_new.strip()}\nPrompt: "
        query_D = functional.normalize(sentence_vectors(self._embeddings, [f"{fact}{prompt}\n\n"]), dim=-1)[0]
        nearest = (self._vectors_ND @ query_D).topk(min(count, len(self._texts))).indices.tolist()
        return "".join([*(self._texts[place] for place in nearest), fact])


class PromptedAsEasyEdit(Prompted):
    """A model that reads a question about an edit as one text with the demonstrations of this edit.

    Args:
        model: unedited; it stays so.
        requests: the edits.
        hparams: when a question is about one of them.
        examples: what is shown.
    """

    def __init__(
        self, model: "LoadedModel", requests: Sequence[EditRequest], hparams: IkeHparams, examples: Examples
    ) -> None:
        super().__init__(model, Facts.of(model, {}, requests, hparams), hparams)
        self._tokenizer = model.tokenizer
        self._fronts = [examples.before(request, hparams.demonstrations) for request in requests]

    def _preceded(self, query: Query, chosen: Sequence[int]) -> Query:
        ids = self._tokenizer(f"{self._fronts[chosen[0]]}{query.prompt}")["input_ids"]
        return replace(query, prompt_ids=tuple(ids))
