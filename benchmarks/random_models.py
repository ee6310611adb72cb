"""Models of any catalogue shape that are drawn instead of loaded, with tokenizers that split the records as large models do.

The usual initialisation makes next-token distributions all but flat. Then rounding decides an arg-max, and a proof of one
(OnceEdit's) costs more than on any trained model. So the rows of the head are drawn longer: logits get the standard
deviation of a trained model's.
"""

import json
from collections.abc import Sequence

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
from harness.run.progress import ProgressBars
from harness.store.artifacts import ArtifactCache

LOGIT_SPREAD = 4.0
"""Standard deviation of the logits over the vocabulary: the first of 3,000 tokens then has a third of the probability."""

PIECES = 850
"""Tokens that occur in texts. The world's CounterFact prompts and targets then have 11.7 and 1.5 ids on average; Llama-2's own
tokenizer makes 11.1 and 1.4 of them. All other ids only fill the vocabulary, so that two models share as many as real ones do."""


class DrawnModels(RunContext):
    """A context whose models have random weights, plug-ins too, whatever their references say. The same seed every time."""

    def __init__(self, artifacts: ArtifactCache, device: str, bars: ProgressBars, data: DataRef) -> None:
        super().__init__(artifacts, device, bars)
        self._facts = verbalise(self.load_data(data))
        self._drawn: dict[ModelRef, LoadedModel] = {}

    def load_model(self, ref: ModelRef) -> LoadedModel:
        """A model of the shape that a reference names."""
        if ref not in self._drawn:
            self._drawn[ref] = draw_model(ref, self._facts, torch.device(self.device))
        return self._drawn[ref]

    def forget_models(self) -> None:
        """Draw every model anew from now on."""
        self._drawn.clear()


def draw_model(ref: ModelRef, facts: Sequence[Fact], device: torch.device) -> LoadedModel:
    """A frozen model at full size, and a tokenizer that is trained on facts."""
    shape = entry(ref.name)
    model = random_model(shape, ref.dtype, device).eval().requires_grad_(False)
    head_VD = model.get_output_embeddings().weight
    # behind the final norm a hidden state has length √D, so logits spread as head entries do, times √D
    head_VD.mul_(LOGIT_SPREAD / (float(head_VD.float().std()) * shape.hidden**0.5))
    return LoadedModel(ref, model, draw_tokenizer(shape, facts))


def draw_tokenizer(shape: CatalogueEntry, facts: Sequence[Fact]) -> PreTrainedTokenizerFast:
    """A tokenizer with as many ids as the model has, of which `PIECES` at most occur in texts."""
    kind = "metaspace" if shape.adds_bos else "bytes"
    trained = train_tokenizer(kind, min(shape.vocab, PIECES), facts, boost=1)
    state = json.loads(trained.backend_tokenizer.to_str())
    state["model"]["vocab"] |= {f"<unused{number}>": number for number in range(len(trained), shape.vocab)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        clean_up_tokenization_spaces=False,
        **trained.special_tokens_map,
    )
