"""Whole runs in seconds: two-layer checkpoints, a handful of records in upstream's form, a suite, the command line."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerFast

from harness.data.load import load, resolve
from harness.data.synthetic import upstream_rows
from harness.models.architecture import CatalogueEntry
from harness.models.catalogue import CATALOGUE
from harness.models.random_weights import random_model
from harness.models.tiny import recipe
from harness.models.tiny.corpus import verbalise
from harness.models.tiny.tokenizer import train_tokenizer
from harness.records import DataRef

ROOT = Path(__file__).parents[1]
ARCHITECTURES = ("llama", "mistral", "gptj")
RECORDS = 80
"""Enough for eight edits and their pools, few enough to be read in no time."""


@cache
def small_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """The zoo's own kind of tokenizer at a few hundred ids, so that answers have several tokens."""
    facts = verbalise(load(resolve("counterfact", "synthetic", 8, train=8)))
    size = {"llama": 500, "mistral": 440, "gptj": 520}[architecture]
    return train_tokenizer(recipe.TOKENIZERS[f"tiny/{architecture}"], size, facts, boost=1)


def small_entry(architecture: str, hub_id: str = "") -> CatalogueEntry:
    """Two layers of width 32, as long in positions as the zoo."""
    return dataclasses.replace(
        CATALOGUE[f"tiny/{architecture}"],
        name=f"small-{architecture}",
        hub_id=hub_id,
        n_layers=2,
        hidden=32,
        ffn=48,
        vocab=len(small_tokenizer(architecture)),
        settings={"gptj": {"rotary_dim": 4}}.get(architecture, {}),
    )


def write_checkpoint(folder: Path, architecture: str, seed: int = 0) -> Path:
    """A checkpoint with random weights, written as the real ones are."""
    model = random_model(small_entry(architecture), "float32", torch.device("cpu"), seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)  # the usual initialisation says the same after every prompt
    model.save_pretrained(folder)
    small_tokenizer(architecture).save_pretrained(folder)
    return folder


def write_records(folder: Path, name: str = "counterfact") -> Path:
    """The first records of the built-in world as an upstream file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(upstream_rows(name)[:RECORDS]))
    return folder


def records(folder: Path, edits: int = 8) -> DataRef:
    """Eight edits with small pools out of such a file."""
    return resolve("counterfact", str(folder), edits, split="all", train=8, unrelated=4)


def write_suite(path: Path, **content: Any) -> Path:
    """A suite file; `content` lays keys over one cell of each method on a small Llama and a small GPT-J."""
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


def environment() -> dict[str, str]:
    """One thread, wide lines, no folder of records from outside."""
    kept = {key: value for key, value in os.environ.items() if key != "HARNESS_DATA"}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


def harness(*arguments: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """`python -m harness` with these arguments, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def run_killed(suite: Path, store: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    """`python -m harness run` that kills itself at the given change of the store's files; 0 for never."""
    arguments = ["run", suite, "--store", store, "--no-report"]
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "killing.py", str(kill_at), store, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def results(store: Path) -> dict[str, bytes]:
    """What the cells of a store say, byte for byte, by file; nothing that depends on time."""
    return {
        f"{file.parent.name}/{file.name}": file.read_bytes()
        for name in ("records.parquet", "metrics.json", "cell.json")
        for file in sorted((store / "cells").glob(f"[!.]*/{name}"))
    }
