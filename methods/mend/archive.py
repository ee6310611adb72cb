"""A trained hypernetwork as files: safetensors for the weights, JSON for what they belong to and how they came about."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from harness.files import write_json
from methods.mend.network import Hypernetwork, Matrix

WEIGHTS = "hypernetwork.safetensors"
TRAINING = "training.json"


def save(hypernetwork: Hypernetwork, report: dict[str, Any], folder: Path) -> None:
    """Write a hypernetwork and the report of its training."""
    save_file({name: value.contiguous() for name, value in hypernetwork.state_dict().items()}, folder / WEIGHTS)
    matrices = [asdict(matrix) for matrix in hypernetwork.matrices]
    write_json(folder / TRAINING, {"matrices": matrices, "rank": hypernetwork.rank, **report})


def load(folder: Path, device: torch.device) -> tuple[Hypernetwork, dict[str, Any]]:
    """Read a hypernetwork, frozen, and the report of its training."""
    report = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    matrices = tuple(Matrix(**matrix) for matrix in report["matrices"])
    with torch.device("meta"):
        hypernetwork = Hypernetwork(matrices, report["rank"], edit_lr=0.0, seed=None)
    hypernetwork.load_state_dict(load_file(folder / WEIGHTS, device=str(device)), assign=True)
    return hypernetwork.requires_grad_(False), report
