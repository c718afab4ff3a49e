"""The subsampled randomised Hadamard transform, block by block.

Shape suffixes: B batch, D feature, p coordinates of one slice, c of one chunk, n of one block, w blocks of a chunk.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from influray.features.projectors.chunks import CACHE_BYTES, CacheBytes, ChunkCache, grid
from influray.features.projectors.hashing import SignBits, below, coordinate_signs, hash_words
from influray.features.projectors.rotation import add_rotated
from influray.protocols import ConfigError, Projector


class HadamardProjector(Projector):
    """x -> x R: signs, a Walsh-Hadamard transform of every block of n = `block` coordinates, signs again, and all
    blocks added into D columns.

    A chunk is c = n floor(D / n) coordinates, w = c / n blocks side by side: block r holds coordinates r, r + w,
    r + 2 w ... of its chunk, so that every step works on runs of w numbers. The transformed chunk is added at a hashed
    offset on the ring of columns. Within a chunk the map is orthogonal; two coordinates of different chunks meet with
    E[(R_i . R_j)^2] = 1 / D, spread over up to n columns. Let S = |x|^2 |y|^2 + (x . y)^2 and S_m the same for the
    coordinates of chunk m alone. Over seeds, E[xR . yR] = x . y and

        Var[xR . yR] = (S - sum_m S_m) / D,

    at most the variance of dense signs. Nothing needs to be left out at random, since no block is longer than D.
    Fourth moments are nearer those of a normal distribution than with one sign a coordinate.

    Elementwise, so a row has the same bits in every batch and on every device. Slices may be cut further at multiples
    of c without changing a bit, as long as they come in the same order.

    Options: `block` (a power of two, at most D; auto = 64 where it fits), `cache_bytes`, the most memory to keep signs
    in (default 512 MiB). Cost: P (log2 n + 3) operations a row; a slice that ends within a chunk costs the whole chunk.

    Source: Ailon and Chazelle 2009; Tropp, arXiv 1011.1595; the sum over blocks with signs on both sides is the block
    SRHT, arXiv 2210.11295, with offsets in place of its subsampling.
    """

    def __init__(
        self,
        dimension: int,
        parameters: int,
        seed: int,
        device: str | torch.device = "cpu",
        block: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto",
        cache_bytes: CacheBytes = CACHE_BYTES,
    ) -> None:
        self.block = min(64, 1 << (dimension.bit_length() - 1)) if block == "auto" else block
        if self.block & (self.block - 1) or self.block > dimension:
            raise ConfigError(
                f"features.projector.options.block: found {self.block}; it must be a power of two and at most "
                f"features.projector.dimension = {dimension}"
            )
        self.dimension, self.parameters, self.seed = dimension, parameters, seed
        self.device = torch.device(device)
        self.chunk = dimension // self.block * self.block
        self._bits = SignBits(1.0, self.device)
        self._signs = ChunkCache(self._make_signs, cache_bytes)
        chunks = -(-parameters // self.chunk)
        word_m = hash_words(seed, 0, chunks, 3, torch.device("cpu"))[:, 2]  # words of signs have columns 0 and 1
        self._offset_m: list[int] = below(word_m, dimension).tolist()

    def _make_signs(self, start: int, stop: int) -> Tensor:
        sign_2c = coordinate_signs(self._bits, self.seed, start, stop, 2, self.device)
        sign_2c[0] *= self.block**-0.5  # makes the transform orthogonal
        return sign_2c

    @torch.no_grad()
    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of coordinates [offset, offset + p) of each row to `out_BD`, in place."""
        block_Bp = block_Bp.to(self.device, out_BD.dtype)
        B, c = len(block_Bp), self.chunk
        for start, stop in grid(offset, offset + block_Bp.shape[1], c):
            m = start // c
            before_c, after_c = self._signs.get(m * c, (m + 1) * c).to(out_BD.dtype)
            part = slice(start - m * c, stop - m * c)
            signed_Bc = block_Bp.new_zeros(B, c)
            torch.mul(block_Bp[:, start - offset : stop - offset], before_c[part], out=signed_Bc[:, part])
            mixed_Bc = walsh_hadamard(signed_Bc.view(B, self.block, c // self.block)).view(B, c)
            add_rotated(out_BD, mixed_Bc, after_c, self._offset_m[m])


def walsh_hadamard(x_Bnw: Tensor) -> Tensor:
    """Return H x over the middle axis, H the Hadamard matrix of order n with entries +-1; `x_Bnw` is overwritten."""
    B, n, w = x_Bnw.shape
    other = torch.empty_like(x_Bnw)
    half = 1
    while half < n:
        x, y = (t.view(B, n // (2 * half), 2, half * w) for t in (x_Bnw, other))
        torch.add(x[:, :, 0], x[:, :, 1], out=y[:, :, 0])
        torch.sub(x[:, :, 0], x[:, :, 1], out=y[:, :, 1])
        x_Bnw, other = other, x_Bnw
        half *= 2
    return x_Bnw
