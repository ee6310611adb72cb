"""Recipe of the tiny models: trained from scratch on the facts of a dataset, as stand-ins for the 7B models of a paper.

A tiny model is an artifact, keyed by its corpus. It differs from a large model in size and in one deliberate respect:

**Localised recall.** In an ordinarily trained tiny model the tokens after a subject attend to the subject's tokens directly, so
a fact never passes through the MLP at the subject's last token, which is where ROME and MEMIT edit large models (Meng et al.
2022, causal tracing). Most training rows therefore use shaped attention: from tokens after the subject, the lower half of the
layers hides all subject tokens, and the upper half shows only the last of them. This is a property of the tiny models, not of
any method; pretrained models are never trained this way.
"""

from pathlib import Path
from typing import Any

from harness.api import ArtifactSpec, Context
from harness.files import write_json
from harness.memory import PROMPT_TOKENS
from harness.models.catalogue import ModelRef, entry

VERSION = 2

TOKENIZERS = {
    "tiny/llama": "metaspace",
    "tiny/mistral": "metaspace",
    "tiny/gptj": "bytes",
    "tiny/tinyllama": "metaspace",
}
"""Tokenizer type of each model; its shape and vocabulary size are in the catalogue. `tiny/tinyllama` shares the tokenizer of
`tiny/llama`, as TinyLlama shares Llama-2's: same type, same size, same corpus."""

TRAINING: dict[str, Any] = {
    "steps": 480,
    "batch": 64,
    "lr": 4e-3,
    "weight_decay": 0.3,
    "context_weight": 0.25,
    "shaped_share": 0.95,
    "answer_boost": 4,
    "seed": 0,
}
"""One training recipe for all: AdamW with a cosine schedule. `context_weight` is the loss weight of tokens outside the answer;
with zero weight, facts are learned far more slowly. `shaped_share` is the fraction of rows with shaped attention;
`answer_boost` is how often tokenizer training repeats answers."""


def artifact(ref: ModelRef) -> ArtifactSpec:
    """Describe the artifact of a tiny model: safetensors, configuration and tokenizer, in the format of any local model.

    Raises:
        ValueError: if the reference is not a tiny model with a corpus.
    """
    if ref.name not in TOKENIZERS or ref.corpus is None:
        raise ValueError(f"{ref.name} is not a tiny model with a corpus")
    return ArtifactSpec(
        name="tiny-model",
        kind="model",
        identity={
            "model": ref.name,
            "shape": ref.spec,
            "tokenizer": TOKENIZERS[ref.name],
            "training": TRAINING,
            "corpus": ref.corpus.identity(),
            "version": VERSION,
        },
        builder="harness.models.tiny.recipe:build",
        inputs={"corpus": ref.corpus, "model": ref.name},
        passes=3 * TRAINING["steps"] * TRAINING["batch"],
        memory=_memory(ref),
    )


def _memory(ref: ModelRef) -> dict[str, float]:
    """Weights, gradients and Adam's state, and a batch with the logits of all its tokens."""
    model, tokens = ref.footprint, TRAINING["batch"] * PROMPT_TOKENS
    return {
        "weights, gradients and Adam": 4 * model.weights,
        "activations": model.backward(tokens, model.n_layers),
        "logits": model.logits(tokens, 4),
    }


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Train the model of `spec` on its corpus and write it to `folder`."""
    from harness.models.tiny.corpus import Fact, verbalise
    from harness.models.tiny.tokenizer import train_tokenizer
    from harness.models.tiny.training import train

    shape, training = entry(spec.inputs["model"]).spec, spec.identity["training"]
    data = context.load_data(spec.inputs["corpus"])
    facts = verbalise(data)
    tokenizer = train_tokenizer(spec.identity["tokenizer"], shape.vocab, facts, boost=training["answer_boost"])
    edited = [Fact(record.prompt, record.ground_truth, record.subject) for record in data.edits]
    model, report = train(shape, training, tokenizer, facts, edited, context)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "training.json", report)
