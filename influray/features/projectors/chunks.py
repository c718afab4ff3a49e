"""Coordinates taken in chunks of a fixed grid, and parts of a matrix kept while they fit a bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

from pydantic import Field
from torch import Tensor

CACHE_BYTES = 2**29
CacheBytes = Annotated[int, Field(ge=0)]


def grid(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) cut at all multiples of `step`."""
    while start < stop:
        end = min(stop, (start // step + 1) * step)
        yield start, end
        start = end


class ChunkCache:
    """Chunks of a matrix by their coordinates: made when asked for, kept while they fit `limit` bytes."""

    def __init__(self, make: Callable[[int, int], Tensor], limit: int) -> None:
        self._make, self._limit = make, limit
        self._kept: dict[tuple[int, int], Tensor] = {}
        self.bytes = 0

    def get(self, start: int, stop: int) -> Tensor:
        chunk = self._kept.get((start, stop))
        if chunk is None:
            chunk = self._make(start, stop)
            # First come, first kept: every batch walks through all chunks in the same order, where throwing out the
            # oldest would throw out each one just before it is needed.
            if self.bytes + chunk.nbytes <= self._limit:
                self._kept[start, stop] = chunk
                self.bytes += chunk.nbytes
        return chunk
