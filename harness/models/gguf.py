"""The conversion of a GGUF file to a folder that transformers loads in a second.

transformers dequantises a GGUF file while it loads it, which takes a minute even for a small model, and does not save the
result. The conversion does that once, in float32, and keeps the folder in the user's cache under the file's hash.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.files import cache_folder, explained, locked
from harness.models.gguf_header import read_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = 1
"""Version of the conversion; increment when it writes different files."""
NEEDS = "pip install 'editing-harness[small]'"


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


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read_header(file)
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
