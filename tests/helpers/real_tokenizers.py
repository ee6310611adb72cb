"""The tokenizers of Llama-2, Mistral and GPT-2 (GPT-J's), in the files of their checkpoints."""

import json
import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

NAMES = ("llama2", "mistral-v1", "gpt2")

_SENTENCEPIECE = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
_BYTES = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}


def write_tokenizer(name: str, shared: Path, folder: Path) -> None:
    """Put a tokenizer into a folder as the published checkpoint has it."""
    source = shared / "tokenizers" / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == "gpt2":
        shutil.copyfile(source / "encoder.json", folder / "vocab.json")
        shutil.copyfile(source / "vocab.bpe", folder / "merges.txt")
    else:
        shutil.copyfile(next(source.glob("tokenizer.model*")), folder / "tokenizer.model")
    config = _BYTES if name == "gpt2" else _SENTENCEPIECE
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def real_tokenizer(name: str, shared: Path, folder: Path) -> PreTrainedTokenizerBase:
    """Write and load a tokenizer."""
    write_tokenizer(name, shared, folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer
