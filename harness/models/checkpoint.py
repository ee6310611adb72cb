"""Inspect a checkpoint on disk without loading it: its files, their integrity and hashes. Does not import torch."""

import fnmatch
import json
import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.identity import digest
from harness.models.architecture import COMPUTED, TABULATED, biases_of, sizes_of, tensor_shapes
from harness.models.hashes import content_hash

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
"""A checkpoint with none of these has no vocabulary."""
READ_BY_TOKENIZERS = (
    "*token*.json",
    "*token*.model",
    "*vocab*",
    "merges.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*.tokenizer",
    "*.codes",
    "*.jinja",
    "chat_template*",
    "additional_chat_templates/*",
    "tekken.json",
    "byte_maps.json",
    "dict.txt",
    "emoji.json",
    "normalizer.json",
    "word_*.json",
)
"""Files that the tokenizer classes of transformers read. One too many costs a second run, one too few a wrong result."""
WEIGHT_INDEX = "model.safetensors.index.json"
SINGLE_WEIGHTS = "model.safetensors"
PICKLES = "pytorch_model*.bin"
PRECISIONS = ("F64", "F32", "F16", "BF16")

_TIED_UNLESS_SAID = ("gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "opt", "cohere", "falcon")
"""Model types that tie head and embeddings unless the configuration says otherwise."""
_OLD_HEAD = "embed_out.weight"
"""Name of the head in checkpoints of GPT-NeoX."""
_DAMAGES = {
    "header too": "is truncated",
    "invalid header length": "is truncated",
    "file not fully covered": "is damaged",  # longer or shorter than its header says
}
"""Description of the damage, by a part of safetensors' error message."""
_ELSEWHERE = "source: a folder with config.json, a tokenizer and *.safetensors"


class IncompleteError(UserError):
    """Files of a checkpoint are missing; downloading it from the hub may help."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint, whose tensors are those that its configuration describes.

    Attributes:
        folder: its folder.
        config: its configuration.
        weights: the safetensors files that hold its tensors.
        parameters: number of weights, from the headers of these files; a tied head that is stored next to the embeddings does
            not count.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    parameters: int

    @property
    def architecture(self) -> str:
        """`model_type` of its configuration."""
        return str(self.config.get("model_type", "unnamed"))

    @property
    def shape(self) -> tuple[Any, Any]:
        """Number of layers and width, as its configuration says."""
        sizes, _ = sizes_of(self.config) or ({}, set())
        return sizes.get("n_layers"), sizes.get("hidden")

    def hashes(self) -> dict[str, str]:
        """Hashes of everything that loading reads, by part: `config`, `tokenizer` and `weights` (whole files)."""
        index = self.folder / WEIGHT_INDEX
        weight_map = read_json(index)["weight_map"] if index.is_file() else None
        files = {path.name: content_hash(path) for path in self.weights}
        return {
            "config": digest(_without_paths(self.config)),
            "tokenizer": tokenizer_digest(self.folder),
            "weights": digest([files, weight_map]),
        }

    @property
    def sha256(self) -> str:
        """Hash of `hashes`, the same for every copy of the checkpoint."""
        return digest(self.hashes())


def local_folder(source: str) -> Path | None:
    """The folder that `source` names, or None if it is a hub id (`owner/name`).

    Raises:
        UserError: if it is a file, or can only be a path and does not exist.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"{source}: a file where a model folder is expected", fix=f"source: {path.parent}")
    looks_like_path = source.startswith(("/", ".", "~")) or source.count("/") != 1
    if looks_like_path or path.exists():
        raise UserError(f"no model folder at {source}", fix=_ELSEWHERE)
    return None


def inspect(folder: Path) -> Checkpoint:
    """Find and verify the files of a checkpoint: configuration, tokenizer, and the header and length of every weight file.

    Raises:
        IncompleteError: if a file is missing.
        UserError: if a file is unreadable, truncated, quantised or not safetensors, or if the tensors are not those that the
            configuration describes.
    """
    return _inspected(folder, listing(folder))


def tokenizer_digest(folder: Path) -> str:
    """Hash of every file of a folder that tokenizers are read from, and of the configuration entries that concern them.

    Raises:
        IncompleteError: if there is no tokenizer.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise IncompleteError(
            f"no tokenizer in {folder} ({', '.join(TOKENIZER_FILES)})", fix=_fetch_again(folder, "its tokenizer")
        )
    names = [path.relative_to(folder).as_posix() for path in (*folder.iterdir(), *folder.glob("*/*")) if path.is_file()]
    read = (name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in READ_BY_TOKENIZERS))
    files = {name: content_hash(folder / name) for name in read if "/" not in name or name.startswith("additional_")}
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return digest([files, config.get("model_type"), config.get("tokenizer_class")])


def listing(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Name, size and times of every file of a folder: changes whenever one of them does."""
    if not folder.is_dir():
        return ()
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found)


@lru_cache(maxsize=64)
def _inspected(folder: Path, listing: object) -> Checkpoint:
    config = read_json(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise IncompleteError(
            f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)})", fix=_fetch_again(folder, "its tokenizer")
        )
    if quantized := config.get("quantization_config"):
        how = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise UserError(
            f"{folder} holds quantised weights ({how or 'quantization_config'}), which cannot be edited",
            fix="source: a checkpoint of the model in bfloat16, float16 or float32",
        )
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter, which would change the model as it is loaded",
            fix="merge it into the weights (in PEFT: merge_and_unload), save the model, and name that folder as source",
        )
    weights = _weight_files(folder)
    tensors = {name: tensor for path in weights for name, tensor in _tensors(path).items()}
    _verify_tensors(folder, config, dict(tensors))
    uncounted = {"lm_head.weight", _OLD_HEAD} if is_tied(config) else set()
    sizes = {name: math.prod(shape) for name, (_, shape) in tensors.items() if not name.endswith(COMPUTED)}
    return Checkpoint(folder, config, weights, sum(size for name, size in sizes.items() if name not in uncounted))


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index, single = folder / WEIGHT_INDEX, folder / SINGLE_WEIGHTS
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not (isinstance(weight_map, dict) and weight_map and all(isinstance(x, str) for x in weight_map.values())):
            raise UserError(f"{index} names no weight files", fix=_fetch_again(folder))
        files = tuple(folder / name for name in sorted(set(weight_map.values())))
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise IncompleteError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing)}",
                fix=_fetch_again(folder),
            )
        if single.is_file() and single not in files:
            raise UserError(
                f"{folder} holds two sets of weights, {SINGLE_WEIGHTS} and those of {WEIGHT_INDEX}",
                fix=f"rm {single}, or rm {index}",
            )
        return files
    if single.is_file():
        return (single,)
    pickled = sorted(path.name for path in folder.glob(PICKLES))
    if pickled:
        raise UserError(
            f"{folder} holds pickled weights ({pickled[0]}), which are never loaded",
            fix=f"python -m harness.models.convert {shlex.quote(str(folder))}",
        )
    raise IncompleteError(f"{folder} has no weights ({SINGLE_WEIGHTS} or {WEIGHT_INDEX})", fix=_fetch_again(folder))


def _verify_tensors(folder: Path, config: Mapping[str, Any], tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Compare type and shape of the tensors with what the configuration describes, if it describes a known architecture.

    Tensors with old names get their present ones.
    """
    wanted = described(config)
    if wanted is None:
        return
    if _OLD_HEAD in tensors and _OLD_HEAD not in wanted:
        tensors["lm_head.weight"] = tensors.pop(_OLD_HEAD)
    base = next(iter(wanted)).partition(".")[0]  # which a checkpoint of the model without its head leaves out
    tensors |= {f"{base}.{name}": tensors.pop(name) for name in list(tensors) if f"{base}.{name}" in wanted}
    fix = "source: a complete checkpoint of the model, with its own config.json"
    if missing := [name for name in wanted if name not in tensors]:
        raise UserError(f"{folder} lacks {len(missing)} tensors of its model, {missing[0]} first", fix=fix)
    optional = {"lm_head.weight"} if is_tied(config) else set()
    if extra := [
        name for name in tensors if name not in wanted and name not in optional and not name.endswith(COMPUTED)
    ]:
        raise UserError(f"{folder} has {len(extra)} tensors that its model does not use, {extra[0]} first", fix=fix)
    if other := [name for name, shape in wanted.items() if tensors[name][1] != shape]:
        shape, expected = (" × ".join(map(str, each)) for each in (tensors[other[0]][1], wanted[other[0]]))
        raise UserError(
            f"{folder} has {len(other)} tensors of other shapes than its config.json says, "
            f"{other[0]} first ({shape}, not {expected})",
            fix=fix,
        )
    if coded := [name for name in wanted if tensors[name][0] not in PRECISIONS]:
        raise UserError(
            f"{folder} holds quantised weights ({coded[0]} is {tensors[coded[0]][0]}), which cannot be edited",
            fix="source: a checkpoint of the model in bfloat16, float16 or float32",
        )


def described(config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]] | None:
    """Names and shapes of the tensors that a configuration describes; None if its architecture is unknown or it is incomplete."""
    architecture = config.get("model_type")
    if architecture not in TABULATED:
        return None
    found = sizes_of(config)
    if found is None:
        return None
    sizes, _ = found
    return tensor_shapes(architecture, **sizes, tied=is_tied(config), **biases_of(architecture, config))


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether a configuration says that head and embeddings share one matrix; some types do unless it says otherwise."""
    return bool(config.get("tie_word_embeddings", config.get("model_type") in _TIED_UNLESS_SAID))


def _tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of the tensors of a safetensors file by name; the reader checks that the file is complete."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return {name: (found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}
    except SafetensorError as error:
        said = str(error)
        what = next((what for part, what in _DAMAGES.items() if part in said), "is not a safetensors file")
        found = f"{path.stat().st_size} bytes ({said.rpartition(': ')[2]})"
        raise UserError(f"{path} {what}: {found}", fix=_fetch_again(path.parent)) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a checkpoint.

    Raises:
        IncompleteError: if it is missing.
        UserError: if it is no JSON, or no mapping.
    """
    if not path.is_file():
        raise IncompleteError(f"{path.parent} has no {path.name}", fix=_ELSEWHERE)
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", fix=_fetch_again(path.parent)) from None
    if not isinstance(read, dict):
        raise UserError(f"{path} holds no configuration", fix=_fetch_again(path.parent))
    return read


def _without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration without the fields that differ between copies of one model: save path and transformers version."""
    return {key: value for key, value in config.items() if key not in {"_name_or_path", "transformers_version"}}


def _fetch_again(folder: Path, what: str = "the checkpoint") -> str:
    snapshot = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    if snapshot:
        hub_id = folder.parents[1].name.removeprefix("models--").replace("--", "/")
        return f"hf download {hub_id} --revision {folder.name} --force-download"
    return f"copy {what} to {folder}{os.sep} again"
