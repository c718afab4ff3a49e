"""Random maps from P gradient coordinates to D numbers that keep inner products on average.

Every entry is a function of (seed, coordinate, column) through a 64-bit integer hash, so one seed is one matrix, bit
for bit, on every device, and none of it need be stored: coordinates are taken in chunks of a fixed grid, and chunks
that fit a bounded cache are kept. Each projector's docstring says what its estimate of x . y is worth.

Shape suffixes: B batch, D feature, p coordinates of one slice, c of one chunk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from influray.protocols import ConfigError

_KEY = "features.projector"
_CACHE_BYTES = 2**29

Chunk = TypeVar("Chunk")


def mix64(value: Tensor) -> Tensor:
    """Return a bijective hash of int64 values, read as unsigned 64-bit numbers; equal on CPU and GPU.

    Source: the finalizer of splitmix64 (Steele, Lea and Flood 2014; constants of Stafford's Mix13).
    """
    value = (value ^ _shift_right(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift_right(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift_right(value, 31)


def hash_words(seed: int, start: int, stop: int, columns: int, device: torch.device) -> Tensor:
    """Return one 64-bit word for every coordinate in [start, stop) and column, [stop - start, columns] int64."""
    golden, second = _signed(0x9E3779B97F4A7C15), _signed(0xD1B54A32D192ED03)
    key = mix64(torch.tensor(_signed(seed % 2**64), device=device) + golden)
    row_c = mix64(key + torch.arange(start + 1, stop + 1, device=device) * golden)
    return mix64(row_c[:, None] + torch.arange(1, columns + 1, device=device) * second)


class ChunkCache(Generic[Chunk]):
    """Chunks of a matrix by their coordinates: made when asked for, kept while they fit `limit` bytes."""

    def __init__(self, make: Callable[[int, int], Chunk], size: Callable[[Chunk], int], limit: int) -> None:
        self._make, self._size, self._limit = make, size, limit
        self._kept: dict[tuple[int, int], Chunk] = {}
        self.bytes = 0

    def get(self, start: int, stop: int) -> Chunk:
        chunk = self._kept.get((start, stop))
        if chunk is None:
            chunk = self._make(start, stop)
            size = self._size(chunk)
            # First come, first kept: every batch walks through all chunks in the same order, where throwing out the
            # oldest would throw out each one just before it is needed.
            if self.bytes + size <= self._limit:
                self._kept[start, stop] = chunk
                self.bytes += size
        return chunk


class RademacherProjector:
    """x -> x R with independent entries R = +-1/sqrt(D).

    E[xR . yR] = x . y and Var[xR . yR] = (|x|^2 |y|^2 + (x . y)^2 - 2 sum_i x_i^2 y_i^2) / D, over seeds.

    A row's result has the same bits however its batch is split: rows are multiplied in tiles of `ROWS`, filled up
    with zeros, so the product always has one shape. Slices may be cut further at multiples of `CHUNK` coordinates
    without changing a bit, as long as they come in the same order.

    Options: `cache_bytes`, the most memory to keep parts of R in (default 512 MiB; the rest is made anew each time).
    Cost: 2 P D operations a row.
    """

    ROWS = 32
    CHUNK = 4096

    def __init__(
        self, dimension: int, parameters: int, seed: int, device: str | torch.device = "cpu", **options: Any
    ) -> None:
        chosen = _read_options("rademacher", options, {"cache_bytes": (_CACHE_BYTES, 0)})
        assert sys.byteorder == "little", "signs are read from the bytes of a word, lowest first"
        self.dimension, self.parameters, self.seed = dimension, parameters, seed
        self.device = torch.device(device)
        entry = dimension**-0.5
        table = [[entry if byte >> bit & 1 else -entry for bit in range(8)] for byte in range(256)]
        self._signs_of_byte = torch.tensor(table, dtype=torch.float32, device=self.device)
        self._chunks = ChunkCache(self.matrix, lambda chunk: chunk.nbytes, chosen["cache_bytes"])

    def matrix(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) of R, [stop - start, D] float32."""
        words = -(-self.dimension // 64)
        byte_c = hash_words(self.seed, start, stop, words, self.device).view(torch.uint8)
        # A table lookup turns a byte into eight signs at once; single bits would take eight passes more.
        signs = F.embedding(byte_c.int(), self._signs_of_byte).view(stop - start, words * 64)
        return signs[:, : self.dimension].contiguous()

    @torch.no_grad()
    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of coordinates [offset, offset + p) of each row to `out_BD`, in place."""
        B = len(block_Bp)
        padded = -(-B // self.ROWS) * self.ROWS
        block = F.pad(block_Bp.to(self.device, out_BD.dtype), (0, 0, 0, padded - B))
        for start, stop in _grid(offset, offset + block.shape[1], self.CHUNK):
            matrix_cD = self._chunks.get(start, stop).to(out_BD.dtype)
            part = block[:, start - offset : stop - offset]
            for row in range(0, padded, self.ROWS):
                tile = part[row : row + self.ROWS].contiguous() @ matrix_cD
                out_BD[row : row + self.ROWS] += tile[: B - row]


class SparseJLProjector:
    """x -> x R where each coordinate has `nonzeros` entries +-1/sqrt(nonzeros), one in each of as many equal blocks
    of columns.

    E[xR . yR] = x . y and Var[xR . yR] = (|x|^2 |y|^2 + (x . y)^2 - 2 sum_i x_i^2 y_i^2) / D, over seeds: the same as
    with dense signs. (Higher moments are not: few non-zeros need spread-out gradients.)

    Sums run in ascending order of coordinates within each column, by elementwise additions without collisions, so
    the bits depend neither on the batch nor on the device. Slices may be cut further at multiples of `CHUNK`
    coordinates without changing a bit, as long as they come in the same order.

    Options: `nonzeros` (default 8; it must divide D), `cache_bytes` (default 512 MiB, of index tables).
    Cost: 2 P nonzeros operations a row.

    Source: the block construction of Kane and Nelson, arXiv 1012.1577, with hashed positions and signs.
    """

    CHUNK = 2**18

    def __init__(
        self, dimension: int, parameters: int, seed: int, device: str | torch.device = "cpu", **options: Any
    ) -> None:
        chosen = _read_options("sparse_jl", options, {"nonzeros": (8, 1), "cache_bytes": (_CACHE_BYTES, 0)})
        self.nonzeros: int = chosen["nonzeros"]
        if dimension % self.nonzeros:
            raise ConfigError(
                f"{_KEY}.options.nonzeros: {self.nonzeros} does not divide features.projector.dimension = {dimension}; "
                "each non-zero has an equal block of columns to itself"
            )
        self.dimension, self.parameters, self.seed = dimension, parameters, seed
        self.device = torch.device(device)
        self._chunks = ChunkCache(self._levels, _levels_bytes, chosen["cache_bytes"])

    def entries(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return columns (int64) and signs (float32) of the non-zeros of coordinates [start, stop), each [c, s]."""
        word = hash_words(self.seed, start, stop, self.nonzeros, self.device)
        width = self.dimension // self.nonzeros
        within = (_shift_right(word, 32) * width) >> 32  # a uniform 32-bit number scaled to [0, width)
        column = within + torch.arange(self.nonzeros, device=self.device) * width
        return column, (word & 1).float() * 2 - 1

    def _levels(self, start: int, stop: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return rounds of (columns, coordinates, signs); a column occurs in a round once at most, in round k with
        its k-th coordinate."""
        column, sign = (entry.reshape(-1) for entry in self.entries(start, stop))
        order = torch.argsort(column, stable=True)  # by column, then by coordinate
        count_D = torch.bincount(column, minlength=self.dimension)
        first_D = count_D.cumsum(0) - count_D
        rank = torch.arange(len(column), device=self.device) - first_D[column[order]]
        by_rank = torch.argsort(rank, stable=True)
        order = order[by_rank]
        sizes = torch.bincount(rank).tolist()
        parts = (column[order].split(sizes), (order // self.nonzeros).split(sizes), sign[order].split(sizes))
        return list(zip(*parts, strict=True))

    @torch.no_grad()
    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of coordinates [offset, offset + p) of each row to `out_BD`, in place."""
        block = block_Bp.to(self.device, out_BD.dtype) * self.nonzeros**-0.5
        for start, stop in _grid(offset, offset + block.shape[1], self.CHUNK):
            part_cB = block[:, start - offset : stop - offset].t().contiguous()
            sum_DB = torch.zeros(self.dimension, len(block), dtype=block.dtype, device=self.device)
            for column, coordinate, sign in self._chunks.get(start, stop):
                # Columns of a round are all different: no two of its additions meet.
                sum_DB[column] += part_cB[coordinate] * sign.to(block.dtype)[:, None]
            out_BD += sum_DB.t()


class IdentityProjector:
    """x -> x: the gradient itself, exactly (variance zero). D must equal P."""

    def __init__(
        self, dimension: int, parameters: int, seed: int, device: str | torch.device = "cpu", **options: Any
    ) -> None:
        _read_options("identity", options, {})
        if dimension != parameters:
            raise ConfigError(
                f"{_KEY}.dimension: {dimension}, but the identity projector keeps all {parameters} coordinates; "
                "set it to that, or use another projector"
            )
        self.dimension, self.parameters, self.seed = dimension, parameters, seed
        self.device = torch.device(device)

    @torch.no_grad()
    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add coordinates [offset, offset + p) of each row to `out_BD`, in place."""
        out_BD[:, offset : offset + block_Bp.shape[1]] += block_Bp.to(self.device, out_BD.dtype)


def _grid(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) cut at all multiples of `step`."""
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        yield start, end
        start = end


def _levels_bytes(levels: list[tuple[Tensor, Tensor, Tensor]]) -> int:
    return sum(tensor.nbytes for level in levels for tensor in level)


def _read_options(name: str, given: Mapping[str, Any], known: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Return integer options with their defaults; `known` has (default, lowest value)."""
    for key, value in given.items():
        if key not in known:
            there = f"it knows {', '.join(sorted(known))}" if known else "it has no options"
            raise ConfigError(f"{_KEY}.options.{key}: {name} has no such option; {there}")
        if isinstance(value, bool) or not isinstance(value, int) or value < known[key][1]:
            raise ConfigError(f"{_KEY}.options.{key}: found {value!r}; it must be an integer >= {known[key][1]}")
    return {key: given.get(key, default) for key, (default, _) in known.items()}


def _shift_right(value: Tensor, bits: int) -> Tensor:
    # torch's >> of int64 copies the sign; the mask takes those copies away.
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
