"""Covariance statistics of feed-forward keys in the unedited model, C = E[k kᵀ] (second moments; ROME eq. 2, MEMIT eq. 14).

They are an artifact, stored as Cholesky factors: computed for all layers in one pass over a corpus, or converted from
published statistics. There is no silent fallback: if no texts are available, planning fails with an error.
"""

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from harness.api import TOKENS_PER_PASS, ArtifactSpec, Hparams
from harness.errors import UserError
from harness.identity import digest
from harness.memory import FP32
from harness.models.catalogue import ModelRef
from harness.models.hashes import content_hash
from harness.records import DataRef
from methods.common import require_train
from methods.common.layers import TracedLayers, count

if TYPE_CHECKING:
    import torch

    from methods.common.solves import Factor

VERSION = 1
FILE = "moments.json"
CORPUS = "HARNESS_CORPUS"
"""Environment variable with the text file for `moments: corpus`, used if `moments_path` is not set."""

SUFFIXES = (".txt", ".jsonl", ".parquet")
BATCH_TOKENS = 8192
"""Tokens per batch, padding included; products over one batch are computed in float32 and summed in float64."""
PROMPTS_PER_RECORD = 10
"""Of a record's own, for estimates of time."""


class MomentHparams(Hparams):
    """Source of the covariance statistics.

    Attributes:
        moments: `corpus`, a text file; `train_prompts`, the unrelated records that the dataset keeps for training;
            `published`, statistics files of ROME, MEMIT or EasyEdit; `identity`, C = I, for methods that allow it.
        moments_path: the text file (one document per line of a `.txt`, or the field `text` of a `.jsonl` or `.parquet`;
            default: the environment variable HARNESS_CORPUS), or the folder of published `.npz` files. What is read there is
            part of the artifact's key.
        moments_tokens: maximum number of tokens. Ten times the width of a key suffices (arXiv 2506.04226).
        moments_ridge: ridge added to the diagonal of C, as a fraction of its mean.
    """

    moments: Literal["corpus", "train_prompts", "published", "identity"]
    moments_path: str | None
    moments_tokens: int = Field(ge=1)
    moments_ridge: float = Field(ge=0)

    def identity(self) -> dict[str, Any]:
        """All values but the place of the files."""
        return {**super().identity(), "moments_path": None}

    @model_validator(mode="after")
    def _path_is_read(self) -> Self:
        if self.moments_path is not None and self.moments not in ("corpus", "published"):
            raise ValueError(f"moments_path is read with moments: corpus or published, not with {self.moments}")
        return self


def artifact(
    target: ModelRef, data: DataRef, layers: Sequence[int] | TracedLayers, hparams: MomentHparams, seed: int
) -> ArtifactSpec:
    """The covariance statistics of some layers of a model.

    Args:
        target: the unedited model.
        data: dataset whose train records are used with `moments: train_prompts`.
        layers: layers whose value matrices' inputs are the keys, or what decides them.
        hparams: the source; not `identity`.
        seed: selects the documents of a corpus.

    Raises:
        UserError: if there is nothing to compute them from.
    """
    identity: dict[str, Any] = {
        "model": target.identity(),
        "layers": layers.written() if isinstance(layers, TracedLayers) else sorted(layers),
        "ridge": hparams.moments_ridge,
        "version": VERSION,
    }
    inputs: dict[str, Any] = {"model": target}
    needs = dict(target.artifacts())
    if isinstance(layers, TracedLayers):
        inputs["layers"], needs["layers"] = layers, layers.artifact(target, data, seed)
    if hparams.moments == "published":
        if isinstance(layers, TracedLayers):
            raise UserError("moments: published needs layers that are given as numbers", fix="moments: train_prompts")
        if hparams.moments_path is None:
            raise UserError("moments: published needs the folder that holds the statistics", fix="moments_path: FOLDER")
        inputs["published"] = home = Path(hparams.moments_path).expanduser()
        files = published_files(target, sorted(layers), home)
        identity["source"] = {"published": {str(layer): _contents(path) for layer, path in files.items()}}
    else:
        identity |= {"tokens": hparams.moments_tokens, "seed": seed}
        if hparams.moments == "train_prompts":
            require_train(data, "covariance statistics are computed from", otherwise=", or moments: corpus")
            inputs["data"] = data
            identity["source"] = {"train_prompts": data.identity()}
        else:
            inputs["corpus"] = corpus = _corpus(hparams.moments_path)
            identity["source"] = {"corpus": content_hash(corpus)}
    return ArtifactSpec(
        name="second-moments",
        kind="setup",
        identity=identity,
        builder="methods.common.moments_build:build",
        inputs=inputs,
        needs=needs,
        passes=_passes(hparams, data),
        memory=_memory(target, layers, hparams),
    )


def _passes(hparams: MomentHparams, data: DataRef) -> float:
    """Of as many tokens as are wanted, or as there are."""
    if hparams.moments == "published":
        return 0
    wanted = hparams.moments_tokens / TOKENS_PER_PASS
    return min(wanted, PROMPTS_PER_RECORD * data.train) if hparams.moments == "train_prompts" else wanted


def _memory(target: ModelRef, layers: Sequence[int] | TracedLayers, hparams: MomentHparams) -> dict[str, float]:
    """The sums of all layers, the product of a batch, the factor of one of them; a batch of texts through a block."""
    model, published = target.footprint, hparams.moments == "published"
    return {
        "sums, product and factor": ((0 if published else count(layers)) + 2.5) * model.covariance_fp64,
        "activations": 0.0 if published else model.forward(BATCH_TOKENS) + BATCH_TOKENS * model.ffn * FP32,
    }


class FactorCache:
    """Cholesky factors of an artifact, read once and reused: a sequential run edits with the same ones for every block.

    Attributes:
        tokens: number of keys that the statistics average over.
    """

    def __init__(self) -> None:
        self._of: tuple[Path, str, float] | None = None
        self._factors: dict[int, Factor] = {}
        self.tokens = 0

    def of(
        self, folder: Path, layers: Sequence[int], device: "torch.device", diagonal: float = 0.0
    ) -> "Mapping[int, Factor]":
        """The Cholesky factor of each layer's C + diagonal · I, float64, on `device`."""
        if self._of != (folder, str(device), diagonal):
            loaded = {layer: load(folder, layer, device) for layer in layers}
            if diagonal:
                loaded = {layer: factor.plus_diagonal(diagonal) for layer, factor in loaded.items()}
            self._of, self._factors, self.tokens = (folder, str(device), diagonal), loaded, tokens(folder)
        return self._factors


def load(folder: Path, layer: int, device: "torch.device | str" = "cpu") -> "Factor":
    """Read the Cholesky factor of a layer's C, ridge included, from an artifact."""
    from safetensors.torch import load_file

    from methods.common.solves import Factor

    return Factor(load_file(folder / file_name(layer))["lower"].to(device).double())


def tokens(folder: Path) -> int:
    """Number of keys that an artifact averages over."""
    return int(json.loads((folder / FILE).read_text(encoding="utf-8"))["tokens"])


def layers(folder: Path) -> list[int]:
    """The layers of an artifact."""
    return [int(layer) for layer in json.loads((folder / FILE).read_text(encoding="utf-8"))["layers"]]


def file_name(layer: int) -> str:
    """File of a layer's Cholesky factor L, stored as `lower` in float32; C = LLᵀ."""
    return f"layer-{layer}.safetensors"


def published_files(target: ModelRef, layers: Sequence[int], folder: Path) -> dict[int, Path]:
    """The statistics file of each layer, by the naming scheme of ROME, MEMIT and EasyEdit.

    Raises:
        UserError: if a folder or file is missing, or several files match.
    """
    files = {}
    for layer in layers:
        pattern = f"{target.spec.layout.value_matrix.format(layer)}_*mom2*.npz"
        found = sorted(folder.rglob(pattern))
        if len(found) != 1:
            what = "no" if not found else f"{len(found)} files"
            raise UserError(
                f"{folder}: {what} {pattern} for {target.name}",
                fix="moments_path: the folder of this model's statistics",
            )
        files[layer] = found[0]
    return files


def _corpus(path: str | None) -> Path:
    named = path or os.environ.get(CORPUS)
    if not named:
        raise UserError(
            "covariance statistics of the keys are needed, but no text file to compute them from is given",
            fix=f"{CORPUS}=FILE ({', '.join(SUFFIXES)}), or per method moments_path: FILE, or moments: train_prompts",
        )
    file = Path(named).expanduser()
    if not file.is_file() or file.suffix not in SUFFIXES:
        raise UserError(f"{file}: not a text file ({', '.join(SUFFIXES)})", fix=f"{CORPUS}=FILE, or moments_path: FILE")
    return file


def _contents(path: Path) -> str:
    """Hash of an archive's directory, which lists the size and checksum of every member, to avoid reading gigabytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return digest([(item.filename, item.file_size, item.CRC) for item in archive.infolist()])
    except zipfile.BadZipFile:
        raise UserError(f"{path}: not a statistics file", fix="download it again") from None
