"""Properties of a model that are known without loading it: shape, layout, precision, BOS.

It is read from `config.json`, from the header of a GGUF file, and from the tokenizer's files. Does not import torch, except to
count the parameters of an architecture whose tensors are not tabulated, or to discover the layout of an unknown one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from harness.errors import UserError
from harness.models import checkpoint
from harness.models.architecture import (
    DTYPE_BYTES,
    OWN_HEAD_SIZE,
    TABULATED,
    Dtype,
    biases_of,
    parameter_count,
    sizes_of,
)
from harness.models.gguf_header import Header, read_header
from harness.models.layouts import Layout, layout_of

_SIZE_KEYS = ("tie_word_embeddings", "dtype", "torch_dtype", "model_type")
_GGUF_TYPES = {
    "gemma3": "gemma3_text",
    "gptneox": "gpt_neox",
    "phi2": "phi",
    "command-r": "cohere",
}
"""Model types by llama.cpp's name of the architecture, where it is another."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Facts about a model that are known without loading it.

    Attributes:
        architecture: `model_type` of its Hugging Face configuration.
        n_layers, hidden, ffn, vocab, n_heads, n_kv_heads: its shape; `vocab` is the number of rows of the embeddings. Of a tiny
            model it is an upper bound, and the tokenizer trained with it determines the actual size.
        max_positions: longest sequence that it was trained on.
        dtype: precision that it is loaded in unless a suite says otherwise.
        adds_bos: whether its tokenizer starts every text with a beginning-of-sequence id.
        tied: whether head and embeddings share one matrix.
        settings: further fields of its configuration.
        counted: number of parameters, where it was read from the headers of the weight files.
        given_layout: module paths that a suite states; None for those of the architecture.
    """

    architecture: str
    n_layers: int
    hidden: int
    ffn: int
    vocab: int
    n_heads: int
    n_kv_heads: int
    max_positions: int
    dtype: Dtype
    adds_bos: bool
    tied: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    counted: int | None = None
    given_layout: Layout | None = None

    @property
    def layout(self) -> Layout:
        """Module paths: given, from the table by architecture, or discovered.

        Raises:
            UserError: if the architecture is unknown and its modules cannot be told apart.
        """
        if self.given_layout is not None:
            return self.given_layout
        named = layout_of({"model_type": self.architecture, "hidden_size": self.hidden, **self.settings})
        if named is not None:
            return named
        from harness.models.discovery import discovered

        return discovered(self)

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return int(self.settings.get("head_dim") or self.hidden // self.n_heads)

    @property
    def parameters(self) -> int:
        """Exact parameter count; tied matrices count once."""
        if self.counted is not None:
            return self.counted
        if self.architecture in TABULATED:
            sizes = {name: getattr(self, name) for name in _SIZES}
            return parameter_count(self.architecture, **sizes, **biases_of(self.architecture, self.settings))
        from harness.models.random_weights import parameters_of

        return parameters_of(self)

    def memory_bytes(self, dtype: str | None = None) -> int:
        """Size of its weights in bytes in `dtype` (default: its own), without activations and caches."""
        return self.parameters * DTYPE_BYTES[dtype or self.dtype]


_SIZES = (
    "n_layers",
    "hidden",
    "ffn",
    "vocab",
    "n_heads",
    "n_kv_heads",
    "head_size",
    "max_positions",
    "tied",
)


def of_config(config: Mapping[str, Any], *, adds_bos: bool, counted: int | None = None, where: str = "") -> ModelSpec:
    """Read a model's facts from its configuration.

    Args:
        config: content of `config.json`.
        adds_bos, counted: see `ModelSpec`.
        where: the file, for messages.

    Raises:
        UserError: if it does not describe a causal language model that transformers knows.
    """
    config = {**config, **config.get("text_config", {})}
    architecture = str(config.get("model_type", ""))
    found = sizes_of(config) or sizes_of(_completed(config, where))
    if found is None:
        raise UserError(
            f"{where or 'config.json'} does not describe a causal language model: layers, width, heads or vocabulary "
            f"are missing (model_type {architecture or 'missing'})",
            fix="source: a folder or hub id of a causal language model",
        )
    sizes, used = found
    head = sizes.pop("head_size")
    has_own = head * sizes["n_heads"] != sizes["hidden"] or architecture in OWN_HEAD_SIZE
    stated = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return ModelSpec(
        architecture,
        **cast(dict[str, Any], sizes),
        dtype=cast(Dtype, stated if stated in DTYPE_BYTES else "float32"),
        adds_bos=adds_bos,
        tied=checkpoint.is_tied(config),
        settings={key: value for key, value in config.items() if key not in {*_SIZE_KEYS, *used}}
        | ({"head_dim": head} if has_own else {}),
        counted=counted,
    )


def of_folder(folder: Path, *, is_complete: bool = True) -> ModelSpec:
    """Read a model's facts from the files of a checkpoint.

    Args:
        folder: with `config.json` and a tokenizer.
        is_complete: whether its weights must be there too; their headers are then verified and counted.

    Raises:
        UserError: if files are missing, damaged, or of no model that can be edited.
    """
    return _of_folder(folder.resolve(), is_complete, checkpoint.listing(folder))


@lru_cache(maxsize=64)
def _of_folder(folder: Path, is_complete: bool, listing: object) -> ModelSpec:
    config = checkpoint.read_json(folder / "config.json")
    counted = checkpoint.inspect(folder).parameters if is_complete else None
    return of_config(config, adds_bos=adds_bos(folder), counted=counted, where=str(folder / "config.json"))


def of_gguf(file: Path) -> ModelSpec:
    """Read a model's facts from the header of a GGUF file, in a tenth of a second.

    Raises:
        UserError: if the file is damaged, or lacks a size of the model.
    """
    header = read_header(file)
    values, name = header.values, header.architecture

    def size(key: str, default: int | None = None) -> int:
        value = values.get(f"{name}.{key}", default)
        if not isinstance(value, int) or value <= 0:
            raise UserError(f"{file} does not say {name}.{key}", fix="use the model's safetensors instead")
        return value

    hidden, n_heads = size("embedding_length"), size("attention.head_count")
    head = size("attention.key_length", hidden // n_heads)
    vocab = _rows(header, "token_embd.weight") or header.vocab
    return ModelSpec(
        architecture=_GGUF_TYPES.get(name, name),
        n_layers=size("block_count"),
        hidden=hidden,
        ffn=size("feed_forward_length"),
        vocab=vocab,
        n_heads=n_heads,
        n_kv_heads=size("attention.head_count_kv", n_heads),
        max_positions=size("context_length"),
        dtype="float32",
        adds_bos=bool(values.get("tokenizer.ggml.add_bos_token", values.get("tokenizer.ggml.model") == "llama")),
        tied="output.weight" not in header.tensors,
        settings={"head_dim": head} if head * n_heads != hidden else {},
        counted=header.parameters,
    )


def _rows(header: Header, tensor: str) -> int:
    found = header.tensors.get(tensor)
    return found.sizes[-1] if found else 0


def adds_bos(folder: Path) -> bool:
    """Whether the tokenizer of a folder starts every text with its beginning-of-sequence token.

    Raises:
        UserError: if there is no tokenizer, or it cannot be read.
    """
    return _adds_bos(folder.resolve(), checkpoint.tokenizer_digest(folder))


@lru_cache(maxsize=64)
def _adds_bos(folder: Path, digest: str) -> bool:
    whole = folder / "tokenizer.json"
    if not whole.is_file():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    said = (
        checkpoint.read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    )
    bos = said.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    return bos is not None and _first_of(checkpoint.read_json(whole).get("post_processor")) == bos


def _first_of(processor: Any) -> str | None:
    """The special token that a post-processor of the tokenizers library puts before a text."""
    if not isinstance(processor, dict):
        return None
    if processor.get("type") == "Sequence":
        found = (_first_of(each) for each in processor.get("processors", []))
        return next((token for token in found if token), None)
    if processor.get("type") in ("BertProcessing", "RobertaProcessing"):
        return str(processor["cls"][0])
    first = (processor.get("single") or [{}])[0]
    return str(first["SpecialToken"]["id"]) if "SpecialToken" in first else None


def _completed(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A configuration with the defaults of its class in transformers, under the usual names."""
    from transformers import AutoConfig

    names = {
        "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings",
        "num_key_value_heads", "head_dim", "intermediate_size",
    }  # fmt: skip
    given = {key: value for key, value in config.items() if key != "model_type"}
    try:
        made = AutoConfig.for_model(str(config.get("model_type", "")), **given)
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{where or 'config.json'}: transformers cannot read it: {reason}",
            fix="source: a model whose type this version of transformers knows",
        ) from None
    return {**made.to_dict(), **{name: value for name in names if (value := getattr(made, name, None)) is not None}}


def with_layout(spec: ModelSpec, layout: Layout | None) -> ModelSpec:
    """The same model with the module paths given in a suite, if any."""
    return spec if layout is None else replace(spec, given_layout=layout)
