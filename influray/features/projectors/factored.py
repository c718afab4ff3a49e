"""The factored projection: layer inputs and output gradients are projected, not the gradient (LoGra, arXiv 2405.13954).

Shape suffixes: B batch, S tokens, D feature, p coordinates of one slice, o outputs, i inputs, k columns of a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from influray.features.projectors.hashing import SignBits, hash_words
from influray.protocols import ConfigError, FactorProjector

MOST_COLUMNS = 64  # unless asked for


@dataclass(frozen=True, slots=True)
class _Part:
    """One weight: where its coordinates begin, its two maps, and the column that its first number goes to."""

    offset: int
    output_ok: Tensor
    input_ik: Tensor
    column: int

    @property
    def size(self) -> int:
        return len(self.output_ok) * len(self.input_ik)


class FactoredProjector(FactorProjector):
    """G -> R_out' G R_in for the gradient G [out, in] of every weight, all put into D columns one after the other.

    G = sum_s g_s x_s' over tokens, so the result is sum_s (R_out' g_s)(R_in' x_s)', and G is never formed. A side wider
    than k = `columns` gets independent entries +-1/sqrt(k); a narrower one keeps its width and gets a sign for each
    coordinate. Where the weights' results do not fit D together they go round the ring of columns again, and add up.

    E[xR . yR] = x . y. The variance is not that of dense signs: for one weight with gradients X, Y, M = X Y', N = X' Y,
    of which both sides are projected, it is

        (|M|^2 + tr M^2 - 2 sum M_oo^2) / k  +  (|N|^2 + tr N^2 - 2 sum N_ii^2) / k  +  terms of order |X|^2 |Y|^2 / k^2

    (a side that keeps its width has no share), which for gradients of rank one is |X|^2 |Y|^2 / k and not / k^2. Many
    weights average it out: for L weights with equal shares it falls with 1 / (L k). Weights that share columns add what
    independent signs would.

    Options: `columns` (auto = the root of D, at most 64; for a single weight as many as D has room for).
    Cost: k (out + in) operations a token and weight, where forming the gradient takes out * in: worth it only where
    both sides are much wider than k, not for small ranks.
    """

    def __init__(
        self,
        dimension: int,
        parameters: int,
        seed: int,
        device: str | torch.device = "cpu",
        columns: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto",
    ) -> None:
        self._auto = columns == "auto"
        self.columns = min(MOST_COLUMNS, isqrt(dimension)) if columns == "auto" else columns
        if self.columns**2 > dimension:
            raise ConfigError(
                f"features.projector.options.columns: found {self.columns}; its square must be at most "
                f"features.projector.dimension = {dimension} (of features.blocks: module, what a weight has of it)"
            )
        self.dimension, self.parameters, self.seed = dimension, parameters, seed
        self.device = torch.device(device)
        self._shapes: Sequence[tuple[int, int, int]] = [(0, 1, parameters)]
        self._made: dict[int, _Part] = {}

    def set_layout(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Say what the coordinates are: (offset, out, in) of every weight. Before, they are one weight [1, P]."""
        self._shapes, self._made = list(shapes), {}
        if self._auto and len(self._shapes) == 1:
            _, outputs, inputs = self._shapes[0]
            fitting = (k for k in range(MOST_COLUMNS, 0, -1) if min(outputs, k) * min(inputs, k) <= self.dimension)
            self.columns = next(fitting)

    def result_shape(self, offset: int) -> tuple[int, int]:
        """Return (rows, columns) of the result of the weight at `offset`."""
        part = self._parts()[offset]
        return part.output_ok.shape[1], part.input_ik.shape[1]

    def _parts(self) -> dict[int, _Part]:
        if not self._made:
            column = 0
            for offset, outputs, inputs in self._shapes:
                part = _Part(offset, self._side(offset, outputs, 1), self._side(offset, inputs, 0), column)
                self._made[offset] = part
                column = (column + part.output_ok.shape[1] * part.input_ik.shape[1]) % self.dimension
        return self._made

    def _side(self, offset: int, width: int, which: int) -> Tensor:
        """Return the map of one side of the weight at `offset`, [width, k]: outputs are side 1, inputs side 0."""
        # Coordinate offset + n stands for output n and for input n; both are below out * in.
        words = -(-self.columns // 64)
        word_nw = hash_words(self.seed, offset, offset + width, 2 * words, self.device)
        sign_nk = SignBits(1.0, self.device).of_words(word_nw[:, which * words : (which + 1) * words])
        if width <= self.columns:
            return sign_nk[:, 0].diag()
        return sign_nk[:, : self.columns] * self.columns**-0.5

    @torch.no_grad()
    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of coordinates [offset, offset + p) of each row to `out_BD`, in place."""
        block_Bp = block_Bp.to(self.device, out_BD.dtype)
        B, p = block_Bp.shape
        for part in self._parts().values():
            start, stop = max(offset, part.offset), min(offset + p, part.offset + part.size)
            if start >= stop:
                continue
            whole_Bp = block_Bp.new_zeros(B, part.size)
            whole_Bp[:, start - part.offset : stop - part.offset] = block_Bp[:, start - offset : stop - offset]
            output_ok, input_ik = part.output_ok.to(block_Bp), part.input_ik.to(block_Bp)
            half_Bok = _each(whole_Bp.view(B, len(output_ok), len(input_ik)), input_ik)
            self._add(out_BD, _each(half_Bok.transpose(1, 2), output_ok).transpose(1, 2), part)

    @torch.no_grad()
    def add_factors(self, out_BD: Tensor, offset: int, grad_BSo: Tensor, x_BSi: Tensor) -> None:
        """Add the projection of sum_s grad_s x_s', the gradient of the weight at `offset`, to `out_BD`, in place."""
        part = self._parts()[offset]
        grad_BSo, x_BSi = grad_BSo.to(self.device, out_BD.dtype), x_BSi.to(self.device, out_BD.dtype)
        grad_BSk, x_BSk = _each(grad_BSo, part.output_ok.to(grad_BSo)), _each(x_BSi, part.input_ik.to(x_BSi))
        self._add(out_BD, torch.bmm(grad_BSk.transpose(1, 2), x_BSk), part)

    def _add(self, out_BD: Tensor, result_Bkk: Tensor, part: _Part) -> None:
        result = result_Bkk.flatten(1)
        head = min(result.shape[1], self.dimension - part.column)
        out_BD[:, part.column : part.column + head] += result[:, :head]
        out_BD[:, : result.shape[1] - head] += result[:, head:]


def _each(x_Bnm: Tensor, matrix_mk: Tensor) -> Tensor:
    # One product per row and not one for all: its shape, and so the order of its sums, does not depend on B. MKL's
    # batched product has an order for one matrix and another for several.
    if x_Bnm.device.type == "cpu" and len(x_Bnm):
        return torch.stack([x_nm @ matrix_mk for x_nm in x_Bnm])
    return torch.bmm(x_Bnm, matrix_mk.expand(len(x_Bnm), *matrix_mk.shape))
