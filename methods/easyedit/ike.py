"""IKE by EasyEdit (easyeditor/models/ike): its demonstrations, before the questions for which our memory finds an edit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from harness.api import ArtifactSpec
from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.records import DataRef, EditRequest
from harness.registry import register
from harness.tokens import Query
from methods.easyedit.editor import Without, WrapperMethod, common_options
from methods.easyedit.inside import Applied, Bench, Wrapped, as_dicts
from methods.retrieval import Ike, IkeHparams
from methods.retrieval.editor import ROLE

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from harness.models.loaded import LoadedModel

FIXED = {"implementation": "faithful-easyedit", "nearest": 1, "form": "new_fact"}
"""EasyEdit states one fact, as `New Fact: …` (evaluate.py:267)."""
OURS = ("threshold", "similarity_subject", "demonstration_tokens")
"""Options that EasyEdit has no word for: which edit a question is about, and which demonstrations are short enough."""


class EasyEditIkeHparams(IkeHparams, Without):
    """Hyper-parameters of IKE."""


@register("ike", title="IKE", family="memory", version=2, backend="easyedit")
class EasyEditIke(WrapperMethod):
    """One call of IKE per request; a question is read after what the call for its edit returned."""

    Hparams = EasyEditIkeHparams
    inside: ClassVar[str] = "methods.easyedit.ike:IkeInside"
    own_workarounds: ClassVar[tuple[str, ...]] = ("given-encoder", "found-edit")
    preset: ClassVar[Mapping[str, Any]] = FIXED

    hparams: EasyEditIkeHparams

    def check(self, target: ModelRef) -> None:
        """Reject options that EasyEdit's IKE does not support.

        Raises:
            UserError: for other values than `FIXED`, or for a workaround that is switched off.
        """
        self.require(**FIXED)
        if self.hparams.without:
            raise UserError(
                "ike: EasyEdit would download a sentence encoder, and needs to be told which edit a question is about",
                fix="without: []",
            )

    def needs(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The train records of our own implementation.

        Raises:
            UserError: if the dataset has none.
        """
        return Ike(self.hparams).artifacts(target, data, seed)

    def options(self, model: "LoadedModel") -> Mapping[str, Any]:
        """The options of `hparams/IKE/llama-7b.yaml`, and `OURS`."""
        common = common_options(model, "IKE")
        return {
            **{name: common[name] for name in ("alg_name", "model_name", "device", "model_parallel")},
            "sentence_model_name": "given-encoder",
            "k": self.hparams.demonstrations,
            "results_dir": "results",
            **{name: getattr(self.hparams, name) for name in OURS},
        }


class IkeInside(Wrapped):
    """IKE in the worker. `apply` encodes the demonstrations, which the time of our own implementation includes too."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        from easyeditor.models.ike import IKEHyperParams

        options = dict(bench.options)
        self._ours = {name: options.pop(name) for name in OURS}
        self._hparams = IKEHyperParams(**options)

    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Call IKE once per request, as `BaseEditor.edit` does (editor.py:348)."""
        from easyeditor.models.ike import apply_ike_to_model, encode_ike_facts, ike_main

        from methods.common import threshold
        from methods.common.similarity import PromptMemory, embeddings_of
        from methods.retrieval.as_easyedit import load_records

        self.wrapper = (loaded := self.bench.loaded).model
        encoder = _Encoder(embeddings := embeddings_of(loaded))
        ike_main.SentenceTransformer, ike_main.util = lambda _name: encoder, SEARCH
        examples = load_records(self.bench.artifacts[ROLE], loaded, self._ours["demonstration_tokens"])
        encode_ike_facts(encoder, examples, self._hparams)
        self._memory = PromptMemory.of(embeddings, requests, self._ours["similarity_subject"])
        self._fronts = []
        if threshold.ROLE in self.bench.artifacts:
            self._ours["threshold"] = threshold.load(self.bench.artifacts[threshold.ROLE])
        for record in as_dicts(requests):
            shown = apply_ike_to_model(loaded.model, loaded.tokenizer, [record], self._hparams, train_ds=examples)
            fact = f"New Fact: {record['prompt']} {record['target_new']}\nPrompt: "  # evaluate.py:267
            self._fronts.append("".join([*shown, fact]))
        return Applied(diagnostics={"facts": float(len(requests))})

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Query the model after the demonstrations (evaluate.py:390)."""
        return super().teacher_forced([self._read(query) for query in queries])

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Query the model after the demonstrations."""
        return super().generate([self._read(query) for query in queries])

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """Similarity to the nearest edit, as in our own implementation."""
        return [max(0.0, min(1.0, self._memory.similarity(query.prompt))) for query in queries]

    def revert(self) -> None:
        """Nothing was changed."""
        self.wrapper = None

    def _read(self, query: Query) -> Query:
        nearest = self._memory.similarities(query.prompt).max(dim=0)
        if float(nearest.values) < self._ours["threshold"]:
            return query
        ids = self.bench.loaded.tokenizer(f"{self._fronts[int(nearest.indices)]}{query.prompt}")["input_ids"]
        return replace(query, prompt_ids=tuple(ids))


class _Encoder:
    """What EasyEdit uses of a `SentenceTransformer`."""

    def __init__(self, embeddings: Any) -> None:
        self._embeddings = embeddings

    def to(self, _device: Any) -> Self:
        return self

    def encode(self, texts: str | Sequence[str], **_unused: Any) -> "np.ndarray[Any, Any]":
        from methods.retrieval.as_easyedit import sentence_vectors

        vectors_ND = sentence_vectors(self._embeddings, [texts] if isinstance(texts, str) else texts).float().cpu()
        array: np.ndarray[Any, Any] = (vectors_ND[0] if isinstance(texts, str) else vectors_ND).numpy()
        return array


def _normalised(vectors_ND: "Tensor") -> "Tensor":
    from torch.nn import functional

    return functional.normalize(vectors_ND, dim=-1)


def _dot(queries_QD: "Tensor", vectors_ND: "Tensor") -> "Tensor":
    return queries_QD @ vectors_ND.T


def _search(queries_QD: "Tensor", vectors_ND: "Tensor", score_function: Any, top_k: int) -> list[list[dict[str, Any]]]:
    best = score_function(queries_QD, vectors_ND).topk(min(top_k, len(vectors_ND)))
    return [
        [{"corpus_id": place, "score": score} for place, score in zip(places, scores, strict=True)]
        for places, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


SEARCH = SimpleNamespace(normalize_embeddings=_normalised, dot_score=_dot, semantic_search=_search)
"""What EasyEdit uses of `sentence_transformers.util`."""
