"""Inspect a checkpoint on disk without loading it: its files, their integrity and a hash. Does not import torch."""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.identity import digest, file_digest

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
WEIGHT_INDEX = "model.safetensors.index.json"
SINGLE_WEIGHTS = "model.safetensors"
SAMPLED_BLOCKS, BLOCK_BYTES = 256, 1 << 16

_DAMAGES = {
    "header too": "is truncated",
    "invalid header length": "is truncated",
    "file not fully covered": "is damaged",  # longer or shorter than its header says
}
"""Description of the damage, by a part of safetensors' error message."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        folder: its folder.
        architecture: `model_type` of its configuration.
        weights: the safetensors files that hold its tensors.
        sha256: hash of the configuration, the tokenizer, every tensor's name, type and shape in file order, and a sample of each
            file's bytes: all of a small file, 256 blocks of a large one. Hashing a 7B model this way takes a tenth of a second,
            and two training runs differ in every block, but a change of a few numbers in a large file can go unnoticed.
    """

    folder: Path
    architecture: str
    weights: tuple[Path, ...]
    sha256: str


def local_folder(source: str) -> Path | None:
    """The folder that `source` names, or None if it is a hub id (`owner/name`).

    Raises:
        UserError: if it can only be a path and does not exist.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    looks_like_path = source.startswith(("/", ".", "~")) or source.count("/") != 1
    if looks_like_path or path.exists():
        raise UserError(
            f"no model folder at {source}", fix="source: a folder with config.json and *.safetensors, or a hub id"
        )
    return None


def hub_digest(hub_id: str) -> str:
    """Hash that identifies weights by their hub id, whether or not they have been downloaded."""
    return digest({"hub": hub_id})


def inspect(folder: Path) -> Checkpoint:
    """Find and verify the files of a checkpoint: configuration, tokenizer, and the full length of every weight file.

    Raises:
        UserError: if a file is missing, unreadable, truncated or not safetensors.
    """
    config = _read_json(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)})", fix=_fetch_again(folder))
    files = _weight_files(folder)
    contents = {path.name: [_tensors(path), _sample_digest(path, path.stat().st_mtime_ns)] for path in files}
    sha256 = digest({"config": _without_paths(config), "tokenizer": tokenizer_digest(folder), "weights": contents})
    return Checkpoint(folder, str(config.get("model_type", "unnamed")), files, sha256)


def tokenizer_digest(folder: Path) -> str:
    """Hash of a folder's tokenizer files.

    Raises:
        UserError: if there are none.
    """
    found = {name: file_digest(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not found:
        raise UserError(f"no tokenizer in {folder}", fix=f"source: a folder with one of {', '.join(TOKENIZER_FILES)}")
    return digest(found)


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / WEIGHT_INDEX
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index} names no weight files", fix=_fetch_again(folder))
        files = tuple(folder / name for name in sorted(set(weight_map.values())))
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of {len(files)} weight files: {', '.join(missing)}",
                fix=_fetch_again(folder),
            )
        return files
    if (folder / SINGLE_WEIGHTS).is_file():
        return (folder / SINGLE_WEIGHTS,)
    pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickled:
        raise UserError(
            f"{folder} holds pickled weights ({pickled[0]}), which are never loaded",
            fix=f"python -m harness.models.convert {folder}",
        )
    raise UserError(f"{folder} has no weights ({SINGLE_WEIGHTS} or {WEIGHT_INDEX})", fix=_fetch_again(folder))


def _tensors(path: Path) -> list[tuple[str, str, list[int]]]:
    """Name, type and shape of the tensors of a safetensors file, in file order; the reader checks that it is complete."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return [(name, found.get_dtype(), found.get_shape()) for name, found in slices.items()]
    except SafetensorError as error:
        said = str(error)
        what = next((what for part, what in _DAMAGES.items() if part in said), "is not a safetensors file")
        found = f"{path.stat().st_size} bytes ({said.rpartition(': ')[2]})"
        raise UserError(f"{path} {what}: {found}", fix=_fetch_again(path.parent)) from None


@cache
def _sample_digest(path: Path, modified_ns: int) -> str:
    """sha256 of `SAMPLED_BLOCKS` blocks spread evenly over a file, or of the whole file if it is smaller.

    Cached until the file is modified, because a plan hashes the same model once per cell.
    """
    size = path.stat().st_size
    step = max(size // SAMPLED_BLOCKS, BLOCK_BYTES)
    made = hashlib.sha256()
    with path.open("rb") as stream:
        for start in range(0, size, step):
            stream.seek(start)
            made.update(stream.read(BLOCK_BYTES))
    return made.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path.parent} has no {path.name}", fix="source: a folder with config.json and *.safetensors, or a hub id"
        )
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", fix=_fetch_again(path.parent)) from None
    if not isinstance(read, dict):
        raise UserError(f"{path} holds no configuration", fix=_fetch_again(path.parent))
    return read


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Configuration without the fields that differ between copies of one model: save path and transformers version."""
    return {key: value for key, value in config.items() if key not in {"_name_or_path", "transformers_version"}}


def _fetch_again(folder: Path) -> str:
    snapshot = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    if snapshot:
        hub_id = folder.parents[1].name.removeprefix("models--").replace("--", "/")
        return f"hf download {hub_id} --force-download"
    return f"copy the checkpoint to {folder}{os.sep} again"
