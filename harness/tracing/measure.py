"""Measure causal effects: corrupt a subject with noise and restore clean states one by one to see which recover the answer.

The residual stream before each block is kept from one pass over the clean and the corrupted rows. A restoration at a
layer continues from there, so no block below it runs again, and all tokens and samples of a layer share a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.models.submodels import Streams, logits_at, part, passed_on
from harness.tracing.artifact import ROWS
from harness.tracing.trace import Kind

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Effects:
    """Effects on one fact.

    Attributes:
        clean, corrupted: probability of the answer's first token, without noise and with it (mean over samples).
        restored: by kind, the mean probability when the layers around one are restored at one token, from the first subject
            token on: T × layers.
    """

    clean: float
    corrupted: float
    restored: Mapping[Kind, Tensor]


def embedding_std(model: "LoadedModel", ids: Sequence[int]) -> float:
    """Standard deviation of all entries of the embeddings of some ids (σ in ROME, appendix B.1)."""
    embedded_ND = model.embeddings(torch.tensor([*ids], device=model.device))
    return float(embedded_ND.double().std())


def draw_noise(std: float, samples: int, tokens: int, width: int, seed: int) -> Tensor:
    """Gaussian noise for the tokens of a subject, samples × tokens × width; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(samples, tokens, width, generator=generator)


@torch.no_grad()
def measure(
    model: "LoadedModel",
    ids: Sequence[int],
    first: int,
    noise_SKD: Tensor,
    answer: int,
    windows: Mapping[Kind, int],
) -> Effects:
    """Trace one fact (ROME §2.1).

    The noise is the same in all runs. What is restored is always one token's: the residual stream after a block, or the
    outputs of the feed-forward or attention modules in a window of layers around one, `layer - w // 2` up to but excluding
    `layer + (w + 1) // 2`, as in ROME's code; at the ends of the model the window is cut off.

    Args:
        model: the unedited model.
        ids: the prompt.
        first: index of the subject's first token.
        noise_SKD: what is added to the embeddings of the subject's K tokens in each of S samples.
        answer: the id whose probability after the prompt is measured.
        windows: the number of layers by kind; of `state`, whose window of one layer cuts off all that is below, always 1.
    """
    run = _Run(model, ids, first, noise_SKD, answer)
    restored: dict[Kind, Tensor] = {"state": run.with_states()}
    modules: dict[Kind, str] = {"mlp": model.layout.value_matrix, "attention": model.layout.attention}
    for kind, path in modules.items():
        restored[kind] = run.with_outputs(path, windows[kind])
    clean, *corrupted = run.probabilities_B.tolist()
    return Effects(clean, sum(corrupted) / len(corrupted), restored)


class _Run:
    """One pass over a clean row and S corrupted ones, and what continues from it."""

    def __init__(self, model: "LoadedModel", ids: Sequence[int], first: int, noise_SKD: Tensor, answer: int) -> None:
        self._model, self._answer, self._width = model, answer, len(ids)
        self._samples = len(noise_SKD)
        self._restored = range(first, len(ids))
        ids_1T = torch.tensor([[*ids]], device=model.device)
        first_1TD = model.first_stream(ids_1T, self._positions(1))
        stream_BTD = first_1TD.repeat(1 + self._samples, 1, 1)
        stream_BTD[1:, first : first + noise_SKD.shape[1]] += noise_SKD.to(stream_BTD)
        paths = (model.layout.block, model.layout.value_matrix, model.layout.attention)
        with _recording(model, paths, len(stream_BTD)) as seen:
            streams = self._streams(stream_BTD)
            part(model, 0, model.n_layers)(streams.residual_BTD, streams.mask_BT, streams.positions_BT)
        self._outputs = seen
        self._stream = [stream_BTD, *seen[model.layout.block]]
        self.probabilities_B = self._probabilities(self._stream[-1], model.n_layers)

    def with_states(self) -> Tensor:
        """Mean probability for each restored token and block."""
        columns = []
        for layer in range(self._model.n_layers):
            found = []
            for tokens in self._batches():
                rows, at = self._rows(tokens)
                after_BTD = self._stream[layer + 1][1:].repeat(len(tokens), 1, 1)
                after_BTD[rows, at] = self._stream[layer + 1][0, at]
                found.append(self._by_token(self._probabilities(after_BTD, layer + 1)))
            columns.append(torch.cat(found))
        return torch.stack(columns, dim=1)

    def with_outputs(self, path: str, window: int) -> Tensor:
        """Mean probability for each restored token and layer whose window of modules at `path` is restored."""
        columns = []
        for layer in range(self._model.n_layers):
            start, stop = max(0, layer - window // 2), min(self._model.n_layers, layer + (window + 1) // 2)
            found = []
            for tokens in self._batches():
                rows, at = self._rows(tokens)
                clean = {each: self._outputs[path][each][0, at] for each in range(start, stop)}
                before_BTD = self._stream[start][1:].repeat(len(tokens), 1, 1)
                with _restoring(self._model, path, clean, rows, at):
                    found.append(self._by_token(self._probabilities(before_BTD, start)))
            columns.append(torch.cat(found))
        return torch.stack(columns, dim=1)

    def _batches(self) -> Iterator[Sequence[int]]:
        size = max(1, ROWS // self._samples)
        for start in range(0, len(self._restored), size):
            yield self._restored[start : start + size]

    def _rows(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Indices of all rows of a batch, and the token that each of them restores."""
        at_B = torch.tensor(tokens, device=self._model.device).repeat_interleave(self._samples)
        return torch.arange(len(at_B), device=at_B.device), at_B

    def _by_token(self, probabilities_B: Tensor) -> Tensor:
        return probabilities_B.reshape(-1, self._samples).mean(dim=1)

    def _probabilities(self, stream_BTD: Tensor, layer: int) -> Tensor:
        """Probability of the answer for rows at the input of a block, in float64 on the CPU."""
        places = [(row, self._width - 1) for row in range(len(stream_BTD))]
        logits_BV = logits_at(self._model, self._streams(stream_BTD), layer, places)
        return logits_BV.double().softmax(dim=-1)[:, self._answer].cpu()

    def _streams(self, stream_BTD: Tensor) -> Streams:
        positions_BT = self._positions(len(stream_BTD))
        return Streams(stream_BTD, torch.ones_like(positions_BT), positions_BT)

    def _positions(self, rows: int) -> Tensor:
        return torch.arange(self._width, device=self._model.device).repeat(rows, 1)


@contextmanager
def _recording(model: "LoadedModel", paths: Sequence[str], rows: int) -> Iterator[dict[str, list[Tensor]]]:
    """Record copies of the outputs of the modules of all layers, each rows × T × D; Falcon's blocks add to them in place."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}

    def recorder(path: str) -> Any:
        def record(module: object, arguments: object, output: Any) -> None:
            found = passed_on(output).to(model.device, copy=True)
            seen[path].append(found.reshape(rows, -1, found.shape[-1]))

        return record

    handles = [
        model.module(path, layer).register_forward_hook(recorder(path))
        for path in paths
        for layer in range(model.n_layers)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _restoring(
    model: "LoadedModel", path: str, clean: Mapping[int, Tensor], rows_B: Tensor, at_B: Tensor
) -> Iterator[None]:
    """Replace the output of some layers' modules at one token per row, given as B × D for each layer."""

    def replacer(clean_BD: Tensor) -> Any:
        def replace(module: object, arguments: object, output: Any) -> Any:
            found = passed_on(output)
            changed = found.clone()
            rows, at = rows_B.to(found.device), at_B.to(found.device)
            changed.view(len(rows_B), -1, found.shape[-1])[rows, at] = clean_BD.to(found.device)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return replace

    handles = [model.module(path, layer).register_forward_hook(replacer(clean_BD)) for layer, clean_BD in clean.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
