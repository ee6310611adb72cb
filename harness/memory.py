"""Memory estimates from the shape of a model, before anything is loaded. Does not import torch.

`python -m benchmarks.memory` compares the estimates with measured peaks.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROMPT_TOKENS = 25
"""Length of a prompt with its target, for estimates; the mean is half of that, but the longest fill a separate batch."""
ANSWER_TOKENS = 3
"""Length of a target."""
SUFFIX_TOKENS = 8
"""Columns of a batch of prompts from the subject's last token on, target included."""

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_MEMINFO = Path("/proc/meminfo")

FP32 = 4
FP64 = 8


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated bytes that are needed in addition to a model, by purpose.

    Attributes:
        kept: from the edit until it is reverted.
        edit: at the peak of an edit, on top of what is kept.
        evaluate: while questions are answered, on top of what is kept and of the model's own forward passes.
        processes: further processes that hold libraries of their own.
    """

    kept: Mapping[str, float] = field(default_factory=dict)
    edit: Mapping[str, float] = field(default_factory=dict)
    evaluate: Mapping[str, float] = field(default_factory=dict)
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that a model and passes through it take.

    Attributes:
        parameters: their number; tied matrices count once.
        kv_width: entries of a key, over all heads.
        entry_bytes: of a weight and of an activation.
    """

    n_layers: int
    hidden: int
    ffn: int
    vocab: int
    kv_width: int
    parameters: int
    entry_bytes: int

    @property
    def weights(self) -> float:
        """All parameters."""
        return self.parameters * self.entry_bytes

    @property
    def matrix_fp32(self) -> float:
        """A feed-forward matrix in float32."""
        return self.hidden * self.ffn * FP32

    @property
    def covariance_fp64(self) -> float:
        """A covariance of the keys of one layer, d_ff × d_ff in float64."""
        return self.ffn**2 * FP64

    @property
    def edited_matrix(self) -> float:
        """What `widened` keeps of a feed-forward matrix: a copy, and in a half-precision model the float32 matrix itself."""
        entries = self.hidden * self.ffn
        return entries * (self.entry_bytes + (FP32 if self.entry_bytes < FP32 else 0))

    def streams(self, tokens: float) -> float:
        """Residual streams."""
        return tokens * self.hidden * self.entry_bytes

    def cache(self, tokens: float, layers: int | None = None) -> float:
        """Keys and values of some layers, by default of all."""
        layers = self.n_layers if layers is None else layers
        return 2 * tokens * layers * self.kv_width * self.entry_bytes

    def forward(self, tokens: float) -> float:
        """Working memory of a block without gradients: gate, up and their product; the stream and its norm."""
        return tokens * (3 * self.ffn + 4 * self.hidden) * self.entry_bytes

    def backward(self, tokens: float, layers: int) -> float:
        """Activations kept for the backward pass of some blocks; they take more memory than the pass itself."""
        return layers * tokens * (4 * self.ffn + 10 * self.hidden) * self.entry_bytes + self.forward(tokens)

    def logits(self, positions: float, copies: float = 1) -> float:
        """Logits, at least float32, and values derived from them: about four copies in a loss with its gradient."""
        return positions * self.vocab * max(FP32, self.entry_bytes) * copies

    def answering(self, rows: int) -> float:
        """Answering a batch of questions, by teacher forcing or with a key-value cache."""
        tokens = rows * PROMPT_TOKENS
        return self.forward(tokens) + self.cache(tokens) + self.logits(rows * ANSWER_TOKENS)


def installed_bytes() -> int:
    """Memory that this process may use at most: of the machine, or of its control group."""
    limit = _CGROUP.read_text(encoding="utf-8").strip() if _CGROUP.is_file() else "max"
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(installed, int(limit)) if limit.isdigit() else installed


def available_bytes() -> int:
    """Memory that is free or can be freed on this machine; all of its memory if the kernel does not say."""
    if not _MEMINFO.is_file():
        return installed_bytes()
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="utf-8").splitlines())
    return min(installed_bytes(), int(lines["MemAvailable"].split()[0]) * 1024)
