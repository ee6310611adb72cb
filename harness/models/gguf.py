"""GGUF files: what their header says, and their conversion to a folder that transformers loads in a second.

transformers dequantises a GGUF file while it loads it, which takes a minute even for a small model, and does not save the
result. The conversion does that once, in float32, and keeps the folder in the user's cache under the file's hash.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.files import cache_folder, explained, locked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 1
"""Of the conversion; increased whenever it writes other files."""
NEEDS = "pip install 'editing-harness[small]'"


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a GGUF file says about its model.

    Attributes:
        architecture: llama.cpp's name of it.
        values: scalar metadata by key, without the tokenizer's lists.
        vocab: number of tokens.
        quantisation: number of tensors by type, such as `Q4_1`.
        parameters: number of weights; tied matrices count once.
    """

    architecture: str
    values: dict[str, Any]
    vocab: int
    quantisation: dict[str, int]
    parameters: int


def read_header(file: Path) -> Header:
    """Read the header of a GGUF file, without its tensors.

    Raises:
        UserError: if the file is missing, truncated or not GGUF, or if the package `gguf` is not installed.
    """
    reader = _reader(file)
    values = {}
    for key, field in reader.fields.items():
        if len(field.data) == 1 and field.types[:1] != [9]:  # 9: an array
            value = field.contents()
            values[key] = value.item() if hasattr(value, "item") else value
    types: dict[str, int] = {}
    for tensor in reader.tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    return Header(
        str(values.get("general.architecture", "unnamed")),
        values,
        len(tokens.data) if tokens else 0,
        types,
        sum(int(tensor.n_elements) for tensor in reader.tensors),
    )


def converted(file: Path, sha256: str) -> Path:
    """The folder with a GGUF file's model and tokenizer in transformers' format, made now if it does not exist.

    Args:
        file: the GGUF file.
        sha256: hash of its bytes.

    Raises:
        UserError: if the file cannot be read, its architecture is unknown to transformers, or a package is missing.
    """
    folder = cached(sha256)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with explained(folder), locked(folder.parent / f".{folder.name}.lock", f"{file} is being converted", "wait for it"):
        if not folder.is_dir():
            scratch = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir()
            _convert(file, scratch)
            scratch.rename(folder)
    return folder


def cached(sha256: str) -> Path:
    """Where the conversion of the file with this hash is kept, whether it exists or not."""
    return cache_folder() / "gguf" / f"{sha256[:16]}-v{VERSION}"


def _reader(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"{file}: GGUF files need the packages gguf and accelerate", fix=NEEDS) from None
    if not file.is_file():
        raise UserError(f"{file}: no such file", fix=f"ls {file.parent}")
    try:
        return GGUFReader(file)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"{file} is truncated or not a GGUF file: {error}", fix="download it again") from None


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _reader(file)
    try:
        with _quiet():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except ImportError as error:
        raise UserError(f"{file}: {str(error).strip().splitlines()[0]}", fix=NEEDS) from None
    except ValueError as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}", fix="use the model's safetensors instead") from None
    model.is_quantized, model.hf_quantizer = False, None  # else transformers refuses to save the dequantised weights
    del model.config.quantization_config
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    origin = {"file": file.name, "converted_by": VERSION}
    (folder / "gguf.json").write_text(json.dumps(origin) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and its advice about quantised weights."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
