"""Models of any catalogue shape with random weights, and tokenizers that split the records like those of large models.

The usual initialisation makes next-token distributions nearly flat, so rounding can decide an arg-max, and certifying it
(OnceEdit) costs more than on any trained model. The output head is therefore rescaled, to give logits the standard deviation
that they have in a trained model.
"""

import json
from collections.abc import Collection, Sequence

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.models.random_weights import random_model
from harness.models.spec import ModelSpec
from harness.models.tiny.corpus import Fact, verbalise
from harness.models.tiny.tokenizer import train_tokenizer
from harness.records import DataRef
from harness.run.context import RunContext
from harness.run.progress import Bars
from harness.store.artifacts import ArtifactCache

LOGIT_SPREAD = 4.0
"""Standard deviation of the logits over the vocabulary; with 3,000 tokens, the top token has a third of the probability."""

PIECES = 850
"""Number of tokens that occur in texts. Synthetic CounterFact prompts and targets then have 11.7 and 1.5 ids on average,
compared with 11.1 and 1.4 for Llama-2's tokenizer. All other ids only fill up the vocabulary, so that two models share as many
tokens as real ones."""


class BenchContext(RunContext):
    """A context that keeps every loaded model, because methods take turns using them."""

    def keep_models(self, refs: Collection[ModelRef]) -> None:
        """Do nothing: all models are kept."""


class RandomModels(BenchContext):
    """A context in which all models, including plug-ins, have random weights, whatever their references specify."""

    def __init__(self, artifacts: ArtifactCache, device: str, bars: Bars, data: DataRef) -> None:
        super().__init__(artifacts, device, bars)
        self._facts = verbalise(self.load_data(data))
        self._made: dict[ModelRef, LoadedModel] = {}

    def load_model(self, ref: ModelRef) -> LoadedModel:
        """A model with the shape of the reference; always the same weights."""
        if ref not in self._made:
            self._made[ref] = realistic_model(ref, self._facts, torch.device(self.device))
        return self._made[ref]

    def model_hashes(self, ref: ModelRef) -> dict[str, str]:
        """None: these models have no files."""
        return {}

    def forget_models(self) -> None:
        """Discard all models; they are created again when next loaded."""
        self._made.clear()


def realistic_model(ref: ModelRef, facts: Sequence[Fact], device: torch.device) -> LoadedModel:
    """A frozen, full-size random model with a tokenizer trained on `facts`."""
    shape = ref.spec
    model = random_model(shape, ref.dtype, device).eval().requires_grad_(False)
    head_VD = model.get_output_embeddings().weight
    # after the final norm, a hidden state has norm √D, so the logits' std is √D times that of the head's entries
    head_VD.mul_(LOGIT_SPREAD / (float(head_VD.float().std()) * shape.hidden**0.5))
    return LoadedModel(ref, model, realistic_tokenizer(shape, facts))


def realistic_tokenizer(shape: ModelSpec, facts: Sequence[Fact]) -> PreTrainedTokenizerFast:
    """A tokenizer with the model's vocabulary size, of which at most `PIECES` ids occur in texts."""
    kind = "metaspace" if shape.adds_bos else "bytes"
    trained = train_tokenizer(kind, min(shape.vocab, PIECES), facts, boost=1)
    state = json.loads(trained.backend_tokenizer.to_str())
    state["model"]["vocab"] |= {f"<unused{number}>": number for number in range(len(trained), shape.vocab)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        clean_up_tokenization_spaces=False,
        **trained.special_tokens_map,
    )
