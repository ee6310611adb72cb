"""Random embeddings and next-token distributions that resemble those of trained models.

The cost of a certified arg-max depends on how widely the rows of R spread over the anchors and on the lead of the most
probable anchor. Isotropic embeddings and the flat logits of random weights would be realistic in neither respect.

**Embeddings.** A unit row is √c · common direction + √.25 · centre of its cluster + √(.75 - c) · an individual direction, so
the mean cosine is c over all pairs and c + .25 within a cluster. Clusters have 60 tokens on average, with sizes proportional
to 1 / rank; norms are log-normal (σ = .25). An anchor belongs to the same cluster in both models. c is an option: larger
values make the rows of R flatter and the arg-max harder to certify.

**Next-token distributions.** Half of the rows are sharp (the top token's probability is uniform in .6 … .99), half are flat
(.15 … .4). The remaining mass is distributed over the vocabulary as 1 / (rank + 2.7)^1.5 (Zipf-Mandelbrot) in random order;
the mean entropy is about 2.6 nats. In half of the rows, the plug-in's top token is that of the target model; its sharpness is
drawn independently. Alpha is near 0 or 1, as after training: uniform in 0 … .2 or in .8 … 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_CLUSTER = 0.25
_CLUSTER_SIZE = 60
_LENGTH_SPREAD = 0.25
_TAIL_OFFSET, _TAIL_EXPONENT = 2.7, 1.5


@dataclass(frozen=True, slots=True)
class PairShape:
    """Sizes of a pair in anchor space.

    Attributes:
        tokens_llm, tokens_plugin: rows of the embedding tables, including `[WEIGHT]`.
        anchors: number of shared tokens.
        width_llm, width_plugin: widths of the embeddings.
        common: share c of the direction common to all embeddings, 0 … .75.
    """

    tokens_llm: int
    tokens_plugin: int
    anchors: int
    width_llm: int
    width_plugin: int
    common: float

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
    llm_VD = _embeddings(cluster_V, centres, shape.width_llm, shape.common, generator)
    plugin_UD = _embeddings(cluster_U, centres, shape.width_plugin, shape.common, generator)
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


def _embeddings(cluster_V: Tensor, centres: int, width: int, common: float, generator: torch.Generator) -> Tensor:
    def directions(n: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=-1)

    rows_VD = directions(len(cluster_V)).mul_((1 - common - _CLUSTER) ** 0.5)
    rows_VD += common**0.5 * directions(1) + _CLUSTER**0.5 * directions(centres)[cluster_V]
    return rows_VD.mul_(torch.exp(_LENGTH_SPREAD * torch.randn(len(cluster_V), 1, generator=generator)))


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
