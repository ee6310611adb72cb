"""Random embeddings and next-token distributions that resemble those of trained models.

The cost of a certified arg-max depends on how widely the rows of R spread over the anchors and on the lead of the most
probable anchor. Isotropic embeddings and the flat logits of random weights would be realistic in neither respect.

**Embeddings.** A unit row is √c · common direction + √.25 · centre of its cluster + √(.75 - c) · an individual direction, so
the mean cosine is c over all pairs and c + .25 within a cluster. Clusters have 60 tokens on average, with sizes proportional
to 1 / rank; norms are log-normal (σ = .25). An anchor belongs to the same cluster in both models. c is an option: larger
values make the rows of R flatter and the arg-max harder to certify. Directions are isotropic.

With the statistics of a pretrained table (`LIKE`), c, the share of the clusters and σ are those of the table, and directions
are drawn with the spectrum of its covariance: some dimensions vary forty times as much as the average one.

**Next-token distributions.** Half of the rows are sharp (the top token's probability is uniform in .6 … .99), half are flat
(.15 … .4). The remaining mass is distributed over the vocabulary as 1 / (rank + 2.7)^1.5 (Zipf-Mandelbrot) in random order;
the mean entropy is about 2.6 nats. In half of the rows, the plug-in's top token is that of the target model; its sharpness is
drawn independently. Alpha is near 0 or 1, as after training: uniform in 0 … .2 or in .8 … 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CLUSTER_SIZE = 60
_TAIL_OFFSET, _TAIL_EXPONENT = 2.7, 1.5


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of an embedding table.

    Attributes:
        common: share of the squared length that all embeddings have in common.
        cluster: share that the embeddings of a cluster have in common beyond that; in a real table, by how much the cosine
            with the 32nd nearest token exceeds the mean cosine (medians).
        length_spread: standard deviation of the logarithm of the norms.
        width: dimensions of the table.
        spectrum: eigenvalues of its covariance, relative to their mean, at ranks 0, 1, 2, 4, 8, … and the last.
    """

    common: float = 0.05
    cluster: float = 0.25
    length_spread: float = 0.25
    width: int = 2
    spectrum: tuple[float, ...] = (1.0, 1.0)


LIKE = {
    "smollm2-135m": Statistics(
        0.448, 0.19, 0.175, 576, (63.0, 15.3, 6.78, 4.71, 2.37, 1.82, 1.56, 1.37, 1.13, 0.846, 0.396, 0.0234)
    ),
    "gemma-3-270m": Statistics(
        0.205, 0.26, 0.0005, 640, (42.7, 25.9, 16.4, 6.18, 3.70, 2.18, 1.59, 1.28, 1.10, 0.887, 0.509, 0.0128)
    ),
}
"""Measured on the input embeddings of these models."""


@dataclass(frozen=True, slots=True)
class PairShape:
    """Sizes of a pair in anchor space.

    Attributes:
        tokens_llm, tokens_plugin: rows of the embedding tables, including `[WEIGHT]`.
        anchors: number of shared tokens.
        width_llm, width_plugin: widths of the embeddings.
        statistics: of both tables.
    """

    tokens_llm: int
    tokens_plugin: int
    anchors: int
    width_llm: int
    width_plugin: int
    statistics: Statistics

    @property
    def matrix_bytes(self) -> int:
        """Size of both relative transfer matrices in fp32."""
        return 4 * self.anchors * (self.tokens_llm + self.tokens_plugin)


@dataclass(frozen=True, eq=False)
class Tables:
    """Input embeddings of both models and the ids of their anchors, in anchor order."""

    llm_VD: Tensor
    plugin_UD: Tensor
    llm_ids: list[int]
    plugin_ids: list[int]


@dataclass(frozen=True, eq=False)
class Draw:
    """Next-token distributions of a batch: fp32 logits of the target model, probabilities of the plug-in, alpha."""

    logits_l_BV: Tensor
    probs_s_BU: Tensor
    alpha_B: Tensor


def draw_tables(shape: PairShape, dtype: torch.dtype, device: torch.device, seed: int) -> Tables:
    """Draw the embeddings of a pair."""
    generator = torch.Generator().manual_seed(seed)
    ids_A2 = [
        torch.randperm(tokens, generator=generator)[: shape.anchors]
        for tokens in (shape.tokens_llm, shape.tokens_plugin)
    ]
    centres = max(1, shape.anchors // _CLUSTER_SIZE)
    sizes_C = 1 / torch.arange(1, centres + 1)
    cluster_V = torch.multinomial(sizes_C, shape.tokens_llm, replacement=True, generator=generator)
    cluster_U = torch.multinomial(sizes_C, shape.tokens_plugin, replacement=True, generator=generator)
    cluster_U[ids_A2[1]] = cluster_V[ids_A2[0]]
    llm_VD = _embeddings(cluster_V, centres, shape.width_llm, shape.statistics, generator)
    plugin_UD = _embeddings(cluster_U, centres, shape.width_plugin, shape.statistics, generator)
    return Tables(llm_VD.to(device, dtype), plugin_UD.to(device, dtype), ids_A2[0].tolist(), ids_A2[1].tolist())


def draw_steps(tables: Tables, rows: int, generator: torch.Generator) -> Draw:
    """Draw the inputs of one decoding step for a batch."""
    device = tables.llm_VD.device
    anchor_B = torch.randint(len(tables.llm_ids), (rows,), generator=generator)
    first_l_B = torch.tensor(tables.llm_ids)[anchor_B]
    first_s_B = torch.tensor(tables.plugin_ids)[anchor_B]
    tokens_plugin = len(tables.plugin_UD)
    differs_B = torch.rand(rows, generator=generator) < 0.5
    first_s_B = torch.where(differs_B, torch.randint(tokens_plugin, (rows,), generator=generator), first_s_B)
    probs_l_BV = _distributions(first_l_B, len(tables.llm_VD), generator)
    probs_s_BU = _distributions(first_s_B, tokens_plugin, generator)
    alpha_B = 0.2 * torch.rand(rows, generator=generator)
    alpha_B = torch.where(torch.rand(rows, generator=generator) < 0.5, alpha_B, 1 - alpha_B)
    return Draw(probs_l_BV.log().to(device), probs_s_BU.to(device), alpha_B.to(device))


def _embeddings(
    cluster_V: Tensor, centres: int, width: int, statistics: Statistics, generator: torch.Generator
) -> Tensor:
    deviation_D = spectrum(statistics, width).sqrt()

    def directions(n: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(n, width, generator=generator).mul_(deviation_D), dim=-1)

    common, cluster = statistics.common, statistics.cluster
    rows_VD = directions(len(cluster_V)).mul_((1 - common - cluster) ** 0.5)
    rows_VD += common**0.5 * directions(1) + cluster**0.5 * directions(centres)[cluster_V]
    length_V1 = torch.exp(statistics.length_spread * torch.randn(len(cluster_V), 1, generator=generator))
    return torch.nn.functional.normalize(rows_VD, dim=-1).mul_(length_V1)


def spectrum(statistics: Statistics, width: int) -> Tensor:
    """Eigenvalues of the covariance of a table with this width, D, in descending order; their mean is 1.

    They are those of the measured table, interpolated in the logarithms of rank and eigenvalue.
    """
    ranks = [0, *(2**n for n in range(len(statistics.spectrum) - 2)), statistics.width - 1]
    at_P = torch.tensor(ranks, dtype=torch.float64).log1p()
    log_P = torch.tensor(statistics.spectrum, dtype=torch.float64).log()
    rank_D = torch.linspace(0, statistics.width - 1, width, dtype=torch.float64).log1p()
    right_D = torch.searchsorted(at_P, rank_D).clamp(1, len(ranks) - 1)
    share_D = (rank_D - at_P[right_D - 1]) / (at_P[right_D] - at_P[right_D - 1])
    values_D = torch.lerp(log_P[right_D - 1], log_P[right_D], share_D).exp()
    return (values_D / values_D.mean()).float()


def _distributions(first_B: Tensor, tokens: int, generator: torch.Generator) -> Tensor:
    """Sharp or flat rows that sum to 1, with `first_B` as the most probable token."""
    rows = len(first_B)
    peak_B = torch.rand(rows, generator=generator)
    is_sharp_B = torch.rand(rows, generator=generator) < 0.5
    peak_B = torch.where(is_sharp_B, 0.6 + 0.39 * peak_B, 0.15 + 0.25 * peak_B)
    rank_V = torch.randperm(tokens, generator=generator)
    start_B = torch.randint(tokens, (rows,), generator=generator)
    rank_BV = (rank_V + start_B[:, None]) % tokens  # one random order, with a different start in each row
    tail_BV = (rank_BV + 1.0 + _TAIL_OFFSET).pow_(-_TAIL_EXPONENT).scatter_(1, first_B[:, None], 0.0)
    tail_BV *= ((1 - peak_B) / tail_BV.sum(dim=-1))[:, None]
    return tail_BV.scatter_(1, first_B[:, None], peak_B[:, None])
