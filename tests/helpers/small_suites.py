"""Everything a run needs, small enough for seconds: two-layer checkpoints, a few records in upstream's format, a suite."""

import dataclasses
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerFast

from harness.data.load import load, resolve
from harness.data.synthetic import upstream_rows
from harness.models.catalogue import CATALOGUE, CatalogueEntry
from harness.models.random_weights import random_model
from harness.models.spec import ModelSpec
from harness.models.tiny import recipe
from harness.models.tiny.corpus import verbalise
from harness.models.tiny.tokenizer import train_tokenizer
from harness.records import DataRef
from tests.helpers.tiny_models import FAMILIES, tiny_spec

ARCHITECTURES = ("llama", "mistral", "gptj")
RECORDS = 80
"""Enough for eight edits and their pools, few enough to be read at once."""


@cache
def small_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """The tiny models' kind of tokenizer with a few hundred ids, so that answers have several tokens."""
    facts = verbalise(load(resolve("counterfact", "synthetic", 8, train=8)))
    if architecture in FAMILIES:
        return small_tokenizer("llama")
    size = {"llama": 500, "mistral": 440, "gptj": 520}[architecture]
    return train_tokenizer(recipe.TOKENIZERS[f"tiny/{architecture}"], size, facts, boost=1)


def small_entry(architecture: str, hub_id: str = "") -> CatalogueEntry:
    """An entry of the catalogue with `small_spec`."""
    name = f"small-{architecture}"
    return CatalogueEntry(name, name, hub_id, small_spec(architecture))


def small_spec(architecture: str) -> ModelSpec:
    """Two layers of width 32, with as many positions as the tiny models; four if layers differ."""
    if architecture in FAMILIES:
        return dataclasses.replace(
            tiny_spec(architecture),
            n_layers=4,
            vocab=len(small_tokenizer(architecture)) + 8,  # transformers adds ids of its own for some
        )
    return dataclasses.replace(
        CATALOGUE[f"tiny/{architecture}"].spec,
        n_layers=2,
        hidden=32,
        ffn=48,
        vocab=len(small_tokenizer(architecture)),
        settings={"gptj": {"rotary_dim": 4}}.get(architecture, {}),
    )


def write_checkpoint(folder: Path, architecture: str, seed: int = 0) -> Path:
    """A checkpoint with random weights, written as the real ones are."""
    model = random_model(small_spec(architecture), "float32", torch.device("cpu"), seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)  # the usual initialisation says the same after every prompt
    model.save_pretrained(folder)
    small_tokenizer(architecture).save_pretrained(folder)
    return folder


def append_to_texts(folder: Path, *tokens: str) -> Path:
    """Let the tokenizer of a checkpoint append special tokens to every text, as `add_eos_token: true` does when it is saved."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    template = content["post_processor"]
    if template["type"] != "TemplateProcessing":
        template = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}
        template["single"] = [{"Sequence": {"id": "A", "type_id": 0}}]
    vocabulary = {added["content"]: added["id"] for added in content["added_tokens"]}
    for token in tokens:
        template["single"].append({"SpecialToken": {"id": token, "type_id": 0}})
        template["special_tokens"][token] = {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
    path.write_text(json.dumps(content | {"post_processor": template}))
    return folder


def write_records(folder: Path, name: str = "counterfact") -> Path:
    """The first synthetic records as an upstream file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(upstream_rows(name)[:RECORDS]))
    return folder


def records(folder: Path, edits: int = 8) -> DataRef:
    """Eight edits with small pools out of such a file."""
    return resolve("counterfact", str(folder), edits, split="all", train=8, unrelated=4)


def write_suite(path: Path, **content: Any) -> Path:
    """A suite file; `content` replaces keys of a suite of two methods on a small Llama and a small GPT-J."""
    home = path.parent
    suite = {
        "name": "small",
        "models": [
            {"name": f"tiny/{architecture}", "weights": "pretrained", "path": str(home / architecture)}
            for architecture in ("llama", "gptj")
        ],
        "methods": ["none", {"name": "ft-l", "layer": 1, "steps": 3, "batch": 4, "lr": 0.01}],
        "datasets": [
            {"name": "counterfact", "path": str(home / "records"), "edits": 8, "train": 8, "unrelated": 4},
        ],
        "threads": 1,
        "device": "cpu",
        "count_flops": 0,
        **content,
    }
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


def write_home(folder: Path) -> Path:
    """Checkpoints, records and a suite over them, all in one folder.

    Returns:
        The suite file.
    """
    for architecture in ("llama", "gptj"):
        write_checkpoint(folder / architecture, architecture)
    write_records(folder / "records")
    return write_suite(folder / "small.yaml")


def copy_home(home, to):
    """Copy checkpoints and records, and write a suite over the copies, which a test may damage."""
    for name in ("llama", "gptj", "records"):
        shutil.copytree(home / name, to / name)
    write_suite(to / "small.yaml")
    return to
