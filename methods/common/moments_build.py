"""Compute covariance statistics in one pass over texts for all layers, or convert published ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.api import ArtifactSpec, Context
from harness.errors import UserError
from harness.files import write_json
from harness.models.batching import right_padded
from harness.models.precision import at_least_fp32
from harness.models.submodels import streams_of
from harness.records import Dataset
from methods.common.moments import BATCH_TOKENS, FILE, file_name, published_files
from methods.common.solves import Factor

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

DOCUMENT_TOKENS = 4096
"""Documents are truncated to this length or to the model's context: many short documents are more diverse than few long ones."""


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Write the Cholesky factor of each layer of `spec`, and `moments.json`, to `folder`.

    Raises:
        UserError: if there are too few texts, or a published file does not hold the expected statistics.
    """
    model = context.load_model(spec.inputs["model"])
    layers, ridge = spec.identity["layers"], spec.identity["ridge"]
    if "layers" in spec.needs:
        layers = spec.inputs["layers"].value(context.artifact(spec.needs["layers"]))
    if "published" in spec.inputs:
        files = published_files(spec.inputs["model"], layers, spec.inputs["published"])
        counts = []
        for layer, path in files.items():
            count, sum_KK = read_published(path, model.value_matrix(layer)[1].shape[1])
            counts.append(count)
            with context.clock.phase("setup"):
                factor = Factor.of(sum_KK.to(model.device).double() / count, ridge)
            _write(folder, layer, factor)
        count = min(counts)
    else:
        rows = _rows(model, _texts(spec, context), spec.identity["tokens"])
        count = sum(map(len, rows))
        _require_enough(model, layers, count)
        with context.progress("covariance statistics", count) as advance, context.clock.phase("setup"):
            sums = key_moments(model, rows, layers, advance)
        for layer in layers:
            with context.clock.phase("setup"):
                factor = Factor.of(sums.pop(layer) / count, ridge)
            _write(folder, layer, factor)
    write_json(folder / FILE, {"tokens": count, "layers": layers, "source": spec.identity["source"]})


def key_moments(
    model: "LoadedModel", rows: Sequence[Sequence[int]], layers: Sequence[int], advance: Any = lambda steps: None
) -> dict[int, Tensor]:
    """Σ k kᵀ over all tokens of all rows, per layer, d_ff × d_ff in float64.

    A single pass serves all layers and stops after the last of them.

    Args:
        model: the unedited model.
        rows: ids of documents, none longer than the model's context.
        layers: layers whose value matrices' inputs are the keys.
        advance: called with the number of tokens of each batch.
    """
    sums: dict[int, Tensor] = {}
    is_token_BT = torch.ones(0)

    def recording(layer: int) -> Any:
        def record(_: object, arguments: tuple[Tensor, ...]) -> None:
            keys_NK = at_least_fp32(arguments[0][is_token_BT.to(arguments[0].device)])
            product_KK = (keys_NK.T @ keys_NK).double()
            sums[layer] = sums[layer].add_(product_KK) if layer in sums else product_KK

        return record

    handles = [
        model.module(model.layout.value_matrix, layer).register_forward_pre_hook(recording(layer)) for layer in layers
    ]
    try:
        for chosen in _batches(rows):
            batch = right_padded(chosen, model.device)
            is_token_BT = batch.mask_BT.bool()
            streams_of(model, batch, max(layer % model.n_layers for layer in layers) + 1)
            advance(sum(map(len, chosen)))
    finally:
        for handle in handles:
            handle.remove()
    return sums


def documents(path: Path) -> list[str]:
    """The texts of a corpus file: lines of a `.txt`, or the column or field `text` of a `.parquet` or `.jsonl`.

    Raises:
        UserError: if the file has no such field.
    """
    import pandas as pd

    if path.suffix == ".txt":
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        frame = (
            pd.read_parquet(path, columns=["text"])
            if path.suffix == ".parquet"
            else pd.read_json(path, lines=True, dtype=False)[["text"]]
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: no texts under 'text': {error}", fix="write one text per line into a .txt") from None
    return [text for text in frame["text"] if isinstance(text, str) and text.strip()]


def train_texts(data: Dataset) -> list[str]:
    """The unedited facts of the train records, without duplicates: prompts, rephrases and locality probes, with known answers."""
    texts: dict[str, None] = {}
    for record in data.train:
        for prompt in (record.prompt, *record.rephrases):
            texts[f"{prompt} {record.ground_truth}".strip()] = None
        for probe in record.locality:
            texts[f"{probe.prompt} {probe.answer if probe.has_answer else ''}".strip()] = None
    return list(texts)


def _texts(spec: ArtifactSpec, context: Context) -> Iterator[str]:
    """Documents in an order determined by the seed."""
    found = (
        documents(spec.inputs["corpus"])
        if "corpus" in spec.inputs
        else train_texts(context.load_data(spec.inputs["data"]))
    )
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(spec.identity["seed"]))
    return (found[index] for index in order.tolist())


def _rows(model: "LoadedModel", texts: Iterator[str], tokens: int) -> list[list[int]]:
    """Token ids of documents, `tokens` in total if there are enough; the last document is truncated."""
    limit = min(DOCUMENT_TOKENS, model.context)
    rows: list[list[int]] = []
    left = tokens
    while left > 0 and (text := next(texts, None)) is not None:
        ids = model.tokenizer(text)["input_ids"][: min(limit, left)]
        if ids:
            rows.append(ids)
            left -= len(ids)
    return rows


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Rows of similar length, at most `BATCH_TOKENS` per batch including padding."""
    batch: list[Sequence[int]] = []
    for row in sorted(rows, key=len):
        if batch and (len(batch) + 1) * len(row) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _require_enough(model: "LoadedModel", layers: Sequence[int], count: int) -> None:
    width = max(model.value_matrix(layer)[1].shape[1] for layer in layers)
    if count < width:
        raise UserError(
            f"the covariance of keys with {width} entries needs at least as many tokens, but the texts have {count}",
            fix="a longer corpus, more train records, or more moments_tokens",
        )


def read_published(path: Path, width: int) -> tuple[int, Tensor]:
    """Read the number of keys and Σ k kᵀ from a statistics file.

    Raises:
        UserError: if the file holds no such sums, or the keys have a different width.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            count, sum_KK = int(archive["mom2.count"]), torch.from_numpy(archive["mom2.mom2"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: not a statistics file: {error}", fix="download it again") from None
    if sum_KK.shape != (width, width) or count < 1 or not bool(sum_KK.isfinite().all()):
        raise UserError(
            f"{path}: {' × '.join(map(str, sum_KK.shape))} sums of {count} keys, but this model's keys have {width} entries",
            fix="moments_path: the folder of this model's statistics",
        )
    return count, sum_KK


def _write(folder: Path, layer: int, factor: Factor) -> None:
    save_file({"lower": factor.lower_KK.float().cpu().contiguous()}, folder / file_name(layer))
