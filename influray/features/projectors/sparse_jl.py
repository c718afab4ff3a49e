"""The sparse projection: every coordinate is added, with a sign, to a few of the D columns.

Shape suffixes: B batch, D feature, p coordinates of one slice, c of one chunk, s non-zeros, n blocks.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from influray.features.projectors.chunks import CACHE_BYTES, CacheBytes, ChunkCache, grid
from influray.features.projectors.hashing import SignBits, below, coordinate_signs, hash_words
from influray.features.projectors.rotation import add_rotated
from influray.protocols import ConfigError, Projector


class SparseJLProjector(Projector):
    """x -> x R where each coordinate has s = `nonzeros` entries +-1/sqrt(s) in different columns.

    Signs are hashed by coordinate, columns by block of D coordinates: coordinate i goes to the columns
    (i + offset_k(i // D)) mod D, k < s, where the offsets of a block are s different numbers below D. So a block is
    added where it lies, rotated, and no coordinate is moved on its own.

    Two coordinates x_i, y_j of different blocks share a column with chance s^2 / D, as if hashed one by one. Within a
    block they do not for s = 1, and otherwise seldom. Let S = |x|^2 |y|^2 + (x . y)^2, S_n the same for the
    coordinates of block n alone, and Q = 2 sum_i x_i^2 y_i^2. Over seeds, E[xR . yR] = x . y and

        Var[xR . yR] = (S - q Q - (1 - q) sum_n S_n) / D,    q = (1 - 1/s) D / (D - 1).

    As q <= 1 and Q <= sum_n S_n, this is at most the variance (S - Q) / D of dense signs, and least for s = 1 (q = 0).
    Fourth moments are near those of a normal distribution where the gradient is spread over many more than sqrt(D)
    coordinates; for others take more non-zeros (jobs/benchmark_projectors.py has numbers).

    Sums run in ascending order of coordinates, elementwise, so a row has the same bits in every batch and on every
    device. Slices may be cut further at multiples of D (with s = 1 anywhere) without changing a bit, as long as they
    come in the same order.

    Options: `nonzeros` (default 1), `cache_bytes`, the most memory to keep signs in (default 512 MiB).
    Cost: 2 P s operations a row, in one pass over the coordinates.

    Source: count-sketch, Charikar, Chen and Farach-Colton 2002 (s = 1), and Kane and Nelson, arXiv 1012.1577 (s > 1);
    the offsets by block and their smaller variance for s = 1 are those of ROBE, arXiv 2108.02191.
    """

    CHUNK = 2**18  # coordinates whose signs are made at once

    def __init__(
        self,
        dimension: int,
        parameters: int,
        seed: int,
        device: str | torch.device = "cpu",
        nonzeros: Annotated[int, Field(ge=1)] = 1,
        cache_bytes: CacheBytes = CACHE_BYTES,
    ) -> None:
        self.nonzeros = nonzeros
        if self.nonzeros > dimension:
            raise ConfigError(
                f"features.projector.options.nonzeros: {self.nonzeros} of each coordinate do not fit "
                f"features.projector.dimension = {dimension} columns; take fewer"
            )
        self.dimension, self.parameters, self.seed = dimension, parameters, seed
        self.device = torch.device(device)
        self._bits = SignBits(1.0, self.device)
        self._signs = ChunkCache(self._make_signs, cache_bytes)
        self.offset_ns: list[list[int]] = self._offsets().tolist()  # of every block

    def _make_signs(self, start: int, stop: int) -> Tensor:
        return coordinate_signs(self._bits, self.seed, start, stop, self.nonzeros, self.device)

    def _offsets(self) -> Tensor:
        """Return s different columns for every block, [n, s], all choices equally likely."""
        blocks, s = -(-self.parameters // self.dimension), self.nonzeros
        # Words of signs have columns 0 to s - 1.
        word_ns = hash_words(self.seed, 0, blocks, 2 * s, torch.device("cpu"))[:, s:]
        chosen_ns = torch.empty(blocks, 0, dtype=torch.int64)
        for k in range(s):
            offset_n = below(word_ns[:, k], self.dimension - k)  # among the columns that are left
            for taken_n in chosen_ns.sort(1).values.unbind(1):
                offset_n = offset_n + (offset_n >= taken_n)
            chosen_ns = torch.cat([chosen_ns, offset_n[:, None]], 1)
        return chosen_ns

    @torch.no_grad()
    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of coordinates [offset, offset + p) of each row to `out_BD`, in place."""
        D = self.dimension
        block_Bp = block_Bp.to(self.device, out_BD.dtype)
        for start, stop in grid(offset, offset + block_Bp.shape[1], self.CHUNK):
            sign_sc = self._signs.get(start, stop).to(out_BD.dtype)
            for first, last in grid(start, stop, D):
                part_Bc = block_Bp[:, first - offset : last - offset]
                if self.nonzeros > 1:
                    part_Bc = part_Bc * self.nonzeros**-0.5
                for k, shift in enumerate(self.offset_ns[first // D]):
                    add_rotated(out_BD, part_Bc, sign_sc[k, first - start : last - start], (first + shift) % D)
