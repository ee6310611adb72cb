"""Models of any catalogue shape with random weights, and tokenizers that split the records as large models' do.

The usual initialisation makes next-token distributions nearly flat. Then rounding decides an arg-max, and certifying one
(OnceEdit) costs more than on any trained model. So the rows of the head are scaled: logits get the standard deviation of a
trained model's.
"""

import json
from collections.abc import Collection, Sequence

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from harness.models.architecture import CatalogueEntry
from harness.models.catalogue import ModelRef, entry
from harness.models.loaded import LoadedModel
from harness.models.random_weights import random_model
from harness.models.tiny.corpus import Fact, verbalise
from harness.models.tiny.tokenizer import train_tokenizer
from harness.records import DataRef
from harness.run.context import RunContext
from harness.run.progress import Bars
from harness.store.artifacts import ArtifactCache

LOGIT_SPREAD = 4.0
"""Standard deviation of the logits over the vocabulary: the first of 3,000 tokens then has a third of the probability."""

PIECES = 850
"""Tokens that occur in texts. Synthetic CounterFact prompts and targets then have 11.7 and 1.5 ids on average; with Llama-2's
own tokenizer, 11.1 and 1.4. All other ids only fill the vocabulary, so that two models share as many as real ones do."""


class BenchContext(RunContext):
    """A context that keeps every model it has loaded: methods take turns on them."""

    def keep_models(self, refs: Collection[ModelRef]) -> None:
        """Keep all."""


class RandomModels(BenchContext):
    """A context whose models all have random weights, plug-ins too, whatever their references say."""

    def __init__(self, artifacts: ArtifactCache, device: str, bars: Bars, data: DataRef) -> None:
        super().__init__(artifacts, device, bars)
        self._facts = verbalise(self.load_data(data))
        self._made: dict[ModelRef, LoadedModel] = {}

    def load_model(self, ref: ModelRef) -> LoadedModel:
        """A model of the shape that a reference names; the same weights every time."""
        if ref not in self._made:
            self._made[ref] = realistic_model(ref, self._facts, torch.device(self.device))
        return self._made[ref]

    def forget_models(self) -> None:
        """Make every model again from now on."""
        self._made.clear()


def realistic_model(ref: ModelRef, facts: Sequence[Fact], device: torch.device) -> LoadedModel:
    """A frozen model at full size, with a tokenizer that is trained on facts."""
    shape = entry(ref.name)
    model = random_model(shape, ref.dtype, device).eval().requires_grad_(False)
    head_VD = model.get_output_embeddings().weight
    # after the final norm a hidden state has length √D: the logits' deviation is that of the head's entries times √D
    head_VD.mul_(LOGIT_SPREAD / (float(head_VD.float().std()) * shape.hidden**0.5))
    return LoadedModel(ref, model, realistic_tokenizer(shape, facts))


def realistic_tokenizer(shape: CatalogueEntry, facts: Sequence[Fact]) -> PreTrainedTokenizerFast:
    """A tokenizer with as many ids as the model has, of which at most `PIECES` occur in texts."""
    kind = "metaspace" if shape.adds_bos else "bytes"
    trained = train_tokenizer(kind, min(shape.vocab, PIECES), facts, boost=1)
    state = json.loads(trained.backend_tokenizer.to_str())
    state["model"]["vocab"] |= {f"<unused{number}>": number for number in range(len(trained), shape.vocab)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        clean_up_tokenization_spaces=False,
        **trained.special_tokens_map,
    )
