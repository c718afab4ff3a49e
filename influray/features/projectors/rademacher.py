"""The dense projection: a sign for every coordinate and column, streamed in blocks.

Shape suffixes: B batch, D feature, p coordinates of one slice, c of one chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from influray.features.projectors.chunks import CACHE_BYTES, CacheBytes, ChunkCache, grid
from influray.features.projectors.hashing import SignBits, hash_words
from influray.protocols import Projector


class RademacherProjector(Projector):
    """x -> x R with independent entries R = +-1/sqrt(D).

    E[xR . yR] = x . y and Var[xR . yR] = (|x|^2 |y|^2 + (x . y)^2 - 2 sum_i x_i^2 y_i^2) / D, over seeds.

    A row's result has the same bits however its batch is split: rows are multiplied in tiles of `ROWS`, filled up
    with zeros, and columns are filled up to whole words, so the product always has one shape and no edge. Slices may
    be cut further at multiples of `CHUNK` coordinates without changing a bit, as long as they come in the same order.

    Options: `cache_bytes`, the most memory to keep parts of R in (default 512 MiB; the rest is made anew each time).
    Cost: 2 P D operations a row.

    Source: Achlioptas 2003, Database-friendly random projections.
    """

    ROWS = 32
    CHUNK = 4096

    def __init__(
        self,
        dimension: int,
        parameters: int,
        seed: int,
        device: str | torch.device = "cpu",
        cache_bytes: CacheBytes = CACHE_BYTES,
    ) -> None:
        self.dimension, self.parameters, self.seed = dimension, parameters, seed
        self.device = torch.device(device)
        self._bits = SignBits(dimension**-0.5, self.device)
        self._chunks = ChunkCache(self._whole_words, cache_bytes)

    def matrix(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) of R, [stop - start, D] float32."""
        return self._whole_words(start, stop)[:, : self.dimension]

    def _whole_words(self, start: int, stop: int) -> Tensor:
        # With 9 columns MKL gives equal rows of a tile unequal bits; with multiples of 64, up to 2048, it never did.
        return self._bits.of_words(hash_words(self.seed, start, stop, -(-self.dimension // 64), self.device))

    @torch.no_grad()
    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of coordinates [offset, offset + p) of each row to `out_BD`, in place."""
        B = len(block_Bp)
        padded = -(-B // self.ROWS) * self.ROWS
        block = F.pad(block_Bp.to(self.device, out_BD.dtype), (0, 0, 0, padded - B))
        for start, stop in grid(offset, offset + block.shape[1], self.CHUNK):
            matrix_cw = self._chunks.get(start, stop).to(out_BD.dtype)
            part = block[:, start - offset : stop - offset]
            for row in range(0, padded, self.ROWS):
                tile = part[row : row + self.ROWS].contiguous() @ matrix_cw
                out_BD[row : row + self.ROWS] += tile[: B - row, : self.dimension]
