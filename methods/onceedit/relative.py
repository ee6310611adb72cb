"""Relative representations: each token as a distribution over the anchors (OnceEdit eq. 15-16, DeePEn).

Row i of the relative transfer matrix R (V × A) is a softmax over the cosines between token i and all anchors. For a
vocabulary of 32k it would take 4.1 GB, so it is never materialised. One pass over tiles of rows keeps, per token, the scale
and normaliser of its softmax, its nearest anchors, and bounds on the others; and per anchor, the token that owns it. Rows
and columns are computed from the embeddings on demand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from harness.api import Advance
from harness.models.precision import working_dtype
from methods.common.memory import buffer_bytes
from methods.onceedit import single
from methods.onceedit.editor import PASS_BYTES
from methods.onceedit.geometry import Geometry, Transform

Rule = Literal["deepen", "plain", "centred", "whitened"]

_TRANSFORMS: dict[Rule, Transform] = {"deepen": "none", "plain": "none", "centred": "centred", "whitened": "whitened"}

NEAREST = 32
"""Anchors listed per token; they hold most of a row's mass, which makes the first bound tight."""

TILE_BYTES = 8 * 2**20
"""Size of a tile of rows, and of the block of anchor embeddings converted to fp64 to compute it."""

TILE_SHARE = 1 / 1024
"""The same as a share of a GPU's memory; every tile costs a few kernel launches there."""

SINGLE_ABOVE_PAIRS = 2**28
"""On a CPU, states of more pairs of tokens and anchors are computed in fp32 (see `single`). Data-centre GPUs multiply fp64
matrices as fast as fp32 ones."""

_DEEPEN_SCALE = 100.0
_GIVEN = ("rule", "temperature", "embeddings_VD", "geometry", "error")
_SMALLEST_NORM = 1e-12  # makes the row of a zero embedding uniform


@dataclass(frozen=True, eq=False)
class RelativeState:
    """Compact representation of one model's relative transfer matrix R.

    The exponent of a pair is x_ia = scale_i · cos(i, a), and R_ia = exp(x_ia) / Z_i. The rule determines both factors:

    * `plain` (the paper's formula): scale 1, cosines of the embeddings;
    * `deepen` (as in DeePEn's code): scale 100 / ‖c_i‖₂, where c_i are the cosines of token i with all anchors;
    * `centred`, `whitened` (beyond the paper): scale `temperature`, cosines in that geometry (see `geometry`).

    Attributes:
        rule: see above.
        temperature: used by `centred` and `whitened`.
        embeddings_VD: the model's input embeddings, without a copy.
        geometry: their inner product.
        norm_V: their norms in this geometry; fp64, like all following tensors unless noted.
        anchor_ids_A: token id of each anchor, int64.
        scale_V: factor of row i inside its softmax.
        log_z_V: log Z_i.
        near_VM: the M nearest anchors of each token, int32, nearest first.
        near_x_VM: their exponents, fp32.
        next_x_V, low_x_V, mean_x_V: largest, smallest and mean exponent of the unlisted anchors; all equal to the smallest
            exponent of the row if every anchor is listed.
        owner_A: token with the largest value in each column, int64; ties go to the anchor's own token, else to the lowest
            id. -1 where it is not known yet: read it with `owners`.
        error: bound on the error of `log_z_V` and `near_x_VM` beyond their own precision; 0 after a pass in fp64.
    """

    rule: Rule
    temperature: float
    embeddings_VD: Tensor
    geometry: Geometry
    norm_V: Tensor
    anchor_ids_A: Tensor
    scale_V: Tensor
    log_z_V: Tensor
    near_VM: Tensor
    near_x_VM: Tensor
    next_x_V: Tensor
    low_x_V: Tensor
    mean_x_V: Tensor
    owner_A: Tensor
    error: float = 0.0

    @classmethod
    def build(
        cls,
        embeddings_VD: Tensor,
        anchor_ids: Sequence[int],
        rule: Rule = "deepen",
        temperature: float = 1.0,
        *,
        nearest: int = NEAREST,
        advance: Advance = lambda steps=1: None,
    ) -> Self:
        """Build the state in one pass over the rows of R; needs memory for a few tiles and the state itself.

        Args:
            embeddings_VD: input embeddings in any precision.
            anchor_ids: token id of each anchor, in anchor order, without duplicates.
            rule, temperature: see the class.
            nearest: number of anchors to list per token, capped at the number of anchors.
            advance: called with the number of tokens of each tile, V in all.
        """
        if len(set(anchor_ids)) != len(anchor_ids):
            raise ValueError("duplicate anchor: a token id occurs twice")
        embeddings_VD = embeddings_VD.detach()
        n_tokens, n_anchors = embeddings_VD.shape[0], len(anchor_ids)
        nearest = min(nearest, n_anchors)
        wide = embeddings_VD.new_empty(0, dtype=torch.float64)
        state = cls(
            rule,
            temperature,
            embeddings_VD,
            Geometry.of(embeddings_VD, _TRANSFORMS[rule]),
            norm_V=wide.new_empty(n_tokens),
            anchor_ids_A=torch.tensor(anchor_ids, dtype=torch.long, device=embeddings_VD.device),
            scale_V=wide.new_ones(n_tokens),
            log_z_V=wide.new_empty(n_tokens),
            near_VM=wide.new_empty(n_tokens, nearest, dtype=torch.int32),
            near_x_VM=wide.new_empty(n_tokens, nearest, dtype=torch.float32),
            next_x_V=wide.new_empty(n_tokens),
            low_x_V=wide.new_empty(n_tokens),
            mean_x_V=wide.new_empty(n_tokens),
            owner_A=wide.new_zeros(n_anchors, dtype=torch.long),
        )
        return state._filled(advance)

    @property
    def n_tokens(self) -> int:
        """V, the number of rows of the embedding table."""
        return self.embeddings_VD.shape[0]

    @property
    def n_anchors(self) -> int:
        """A, the number of anchors."""
        return self.anchor_ids_A.shape[0]

    @cached_property
    def token_ids_V(self) -> Tensor:
        """All token ids: 0, 1, … V - 1."""
        return torch.arange(self.n_tokens, device=self.embeddings_VD.device)

    @property
    def is_zero_V(self) -> Tensor:
        """Mask of zero embeddings (after centring, if any): their cosine with any other token is 0, with themselves still 1."""
        return self.norm_V <= _SMALLEST_NORM

    @property
    def largest_x(self) -> float:
        """Upper bound on |x_ia|: the scale; under `deepen` 100, since |c_ia| ≤ ‖c_i‖ in 100 · c_ia / ‖c_i‖."""
        return _DEEPEN_SCALE if self.rule == "deepen" else self._scale

    @property
    def _scale(self) -> float:
        return 1.0 if self.rule == "plain" else self.temperature

    @property
    def state_bytes(self) -> int:
        """Size of the state in bytes, without the embeddings."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state except the embeddings and the geometry, by attribute name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in _GIVEN}

    def vectors(self, ids: Tensor | slice, dtype: torch.dtype = torch.float64) -> Tensor:
        """Embeddings of N tokens, N × D, centred if the rule says so."""
        return self.geometry.centre(self.embeddings_VD[ids].to(dtype))

    def exponents(self, ids: Tensor | slice, anchors: Tensor | slice, dtype: torch.dtype = torch.float64) -> Tensor:
        """Exponents x of N tokens and C anchors, N × C; a token's cosine with itself is exactly 1."""
        anchor_ids_C = self.anchor_ids_A[anchors]
        products_NC = self.geometry.products(self.vectors(ids, dtype), self.vectors(anchor_ids_C, dtype))
        products_NC.mul_((self.scale_V[ids] / self.norm_V[ids]).to(dtype)[:, None])
        products_NC.div_(self.norm_V[anchor_ids_C].to(dtype))
        token_ids_N = self.token_ids_V[ids]
        return torch.where(token_ids_N[:, None] == anchor_ids_C, self.scale_V[ids].to(dtype)[:, None], products_NC)

    def exact_log_z(self, ids: Tensor) -> Tensor:
        """Logarithm of Z of N tokens in fp64; those that are not known to that precision yet are computed from the embeddings."""
        if not self.error:
            return self.log_z_V[ids]
        unknown = torch.unique(ids[self._exact_log_z_V[ids].isnan()])
        for part in torch.split(unknown, max(1, PASS_BYTES // (8 * self.n_anchors))):
            self._exact_log_z_V[part] = self._exponents_of_all_anchors(part, torch.float64).logsumexp(dim=-1)
        return self._exact_log_z_V[ids]

    @cached_property
    def _exact_log_z_V(self) -> Tensor:
        return torch.full_like(self.log_z_V, torch.nan)

    def owners(self, anchors_B: Tensor) -> Tensor:
        """Token with the largest value in the columns of some anchors; those that are not known yet are computed in fp64."""
        if not self.error:
            return self.owner_A[anchors_B]
        for anchor in torch.unique(anchors_B[self.owner_A[anchors_B] < 0]):
            log_r_V = self.log_columns(anchor[None])[0]
            best = (log_r_V == log_r_V.amax()).nonzero().squeeze(-1)
            own = self.anchor_ids_A[anchor]
            self.owner_A[anchor] = own if bool((best == own).any()) else best[0]
        return self.owner_A[anchors_B]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of R, stop - start × A, at least fp32; each sums to 1."""
        dtype = working_dtype(self.embeddings_VD)
        ids = slice(start, stop)
        return (self._exponents_of_all_anchors(ids, dtype) - self.log_z_V[ids, None].to(dtype)).exp_()

    def log_columns(self, anchors_B: Tensor) -> Tensor:
        """Logarithms of single columns of R in fp64, B × V; finite even if a value of R underflows.

        They are exact for every token that may have the largest value: those of an anchor and of the same word without a space
        in front can be 1 - 1e-9 and 1 - 1e-8, which are equal in fp32.
        """
        columns_BV = self.log_z_V.new_empty(len(anchors_B), self.n_tokens)
        for ids in self.tiles(self.embeddings_VD.shape[1]):
            columns_BV[:, ids] = (self.exponents(ids, anchors_B) - self.log_z_V[ids, None]).T
        if self.error:
            for log_r_V in columns_BV:
                rivals_N = (log_r_V >= log_r_V.amax() - 2 * self.error).nonzero().squeeze(-1)
                log_r_V[rivals_N] += self.log_z_V[rivals_N] - self.exact_log_z(rivals_N)
        return columns_BV

    def columns(self, anchors_B: Tensor) -> Tensor:
        """Single columns of R as rows, B × V."""
        return self.log_columns(anchors_B).exp_()

    def tiles(self, width: int) -> Iterator[slice]:
        """Tokens in order, in tiles that fill `TILE_BYTES` with `width` fp64 numbers per token."""
        return self._slices(self.n_tokens, width)

    def anchor_blocks(self, n_anchors: int | None = None, tokens: int = 0) -> Iterator[slice]:
        """The first `n_anchors` anchors (default: all), in blocks of `TILE_BYTES` of fp64 embeddings, or of pairs with `tokens`."""
        return self._slices(n_anchors or self.n_anchors, max(tokens, self.embeddings_VD.shape[1]))

    def _slices(self, total: int, width: int, tile_bytes: int | None = None) -> Iterator[slice]:
        tile_bytes = buffer_bytes(self.embeddings_VD.device, tile_bytes or TILE_BYTES, TILE_SHARE)
        step = max(1, tile_bytes // (8 * width))
        for start in range(0, total, step):
            yield slice(start, min(start + step, total))

    def _exponents_of_all_anchors(self, ids: Tensor | slice, dtype: torch.dtype) -> Tensor:
        x_TA = torch.empty(len(self.token_ids_V[ids]), self.n_anchors, dtype=dtype, device=self.embeddings_VD.device)
        for block in self.anchor_blocks():
            x_TA[:, block] = self.exponents(ids, block, dtype)
        return x_TA

    def _filled(self, advance: Advance) -> Self:
        """This state, with all tensors computed."""
        for ids in self.tiles(self.embeddings_VD.shape[1]):
            self.norm_V[ids] = self.geometry.norms(self.vectors(ids)).clamp_min_(_SMALLEST_NORM)
        if self.rule != "deepen":
            self.scale_V.fill_(self._scale)
        if self.embeddings_VD.is_cuda or self.n_tokens * self.n_anchors <= SINGLE_ABOVE_PAIRS:
            self._fill(advance)
            return self
        return replace(self, error=single.fill(self, _DEEPEN_SCALE if self.rule == "deepen" else None, advance))

    def _fill(self, advance: Advance) -> None:
        """Compute all tensors in fp64."""
        listed = self.near_VM.shape[1]
        best_A = torch.full_like(self.owner_A, -torch.inf, dtype=torch.float64)
        own_A = torch.empty_like(best_A)
        for ids in self._slices(self.n_tokens, self.n_anchors, PASS_BYTES):
            x_TA = self._exponents_of_all_anchors(ids, torch.float64)
            if self.rule == "deepen":
                self.scale_V[ids] = _DEEPEN_SCALE / x_TA.norm(dim=-1).clamp_min(_SMALLEST_NORM)
                x_TA.mul_(self.scale_V[ids, None])
            self.log_z_V[ids] = x_TA.logsumexp(dim=-1)
            top_TM, near_TM = x_TA.topk(min(listed + 1, self.n_anchors), dim=-1)
            self.near_VM[ids] = near_TM[:, :listed].int()
            self.near_x_VM[ids] = top_TM[:, :listed].float()
            self.low_x_V[ids] = low_T = x_TA.amin(dim=-1)
            if listed < self.n_anchors:
                rest_T = x_TA.sum(dim=-1) - top_TM[:, :listed].sum(dim=-1)
                self.next_x_V[ids] = top_TM[:, listed]
                self.mean_x_V[ids] = rest_T / (self.n_anchors - listed)
            else:
                self.next_x_V[ids] = self.mean_x_V[ids] = low_T
            log_r_TA = x_TA.sub_(self.log_z_V[ids, None])
            is_here_A = (self.anchor_ids_A >= ids.start) & (self.anchor_ids_A < ids.stop)
            anchor_N = is_here_A.nonzero().squeeze(-1)
            own_A[anchor_N] = log_r_TA[self.anchor_ids_A[anchor_N] - ids.start, anchor_N]
            values_A, index_A = log_r_TA.max(dim=0)
            is_better_A = values_A > best_A
            best_A = torch.where(is_better_A, values_A, best_A)
            self.owner_A.copy_(torch.where(is_better_A, index_A + ids.start, self.owner_A))
            advance(ids.stop - ids.start)
        self.owner_A.copy_(torch.where(own_A >= best_A, self.anchor_ids_A, self.owner_A))
