"""A function applied to fixed ranges of rows of the attribution matrix, its results in the order of the rows.

This is the one way in which a selection passes over the matrix. What the ranges are depends on the number of rows
alone, and results come in their order, so threads here or workers elsewhere change the time and no bit of the result.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from influray.protocols import AttributionSource

RANGE_ROWS = 2**14  # a power of two times CHUNK_ROWS of the moments: their tree is then the same for any cut
MOST_THREADS = 8  # a pass is bound by memory before it is by more cores
SMALL = 2**22  # scores: below it a thread costs more than it saves

Blocks = Iterable[tuple[np.ndarray, np.ndarray]]  # (row_B, A_BT), rows ascending


@dataclass(frozen=True)
class RangeCall:
    """`function(blocks, start, *arguments)` on the rows [start, stop); a module's function, so that it can travel."""

    function: Callable[..., Any]
    start: int
    stop: int
    arguments: tuple[Any, ...]

    def on(self, source: Any) -> Any:
        """Return its result for a source that has `range_blocks`."""
        return self.function(source.range_blocks(self.start, self.stop), self.start, *self.arguments)


class Mapper(Protocol):
    """What runs the calls of a pass. `threads`: how many the caller may use itself, when none is on."""

    threads: int

    def map(self, source: Any, calls: Iterable[RangeCall]) -> Iterator[Any]:
        """Yield the result of every call, in their order; what one raises is raised here."""
        ...


class Threads:
    """Calls run in this process; 1 is one after another, without a thread."""

    def __init__(self, count: int | None = None) -> None:
        self.threads = min(MOST_THREADS, _cores()) if count is None else count

    def map(self, source: Any, calls: Iterable[RangeCall]) -> Iterator[Any]:
        """Yield the results in order; no more than twice as many as there are threads wait to be taken."""
        rows, columns = source.shape
        if self.threads == 1 or rows <= RANGE_ROWS or rows * columns < SMALL:
            for call in calls:
                yield call.on(source)
            return
        pool = ThreadPoolExecutor(self.threads)
        waiting = deque()
        try:
            for call in calls:
                waiting.append(pool.submit(call.on, source))
                if len(waiting) > 2 * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def map_ranges(
    source: AttributionSource, function: Callable[..., Any], *arguments: Any, by_row: tuple[np.ndarray, ...] = ()
) -> Iterator[Any]:
    """Yield `function(blocks, start, *by_row of the range, *arguments)` for every range of rows, in order.

    `blocks` yields (row_B, A_BT) of the range, whose first row is at position `start`. Of each array of `by_row`, [N],
    a call is given its own part. `function` must be a module's, its arguments and result such that they can be pickled,
    and its result one of the range alone. A source says by its `mapper` who does the work; one that has no
    `range_blocks` is read in its own order, here.
    """
    total = source.shape[0]
    calls = (
        RangeCall(function, start, stop, (*(value[start:stop] for value in by_row), *arguments))
        for start in range(0, total, RANGE_ROWS)
        for stop in (min(start + RANGE_ROWS, total),)
    )
    return run_calls(source, calls)


def run_calls(source: AttributionSource, calls: Iterable[RangeCall]) -> Iterator[Any]:
    """Yield the results of calls on ranges that follow one another, as `map_ranges` does."""
    mapper: Mapper | None = getattr(source, "mapper", None)
    if mapper is None and not hasattr(source, "range_blocks"):
        return _one_after_another(source, calls)
    return (mapper or Threads(1)).map(source, calls)


def _one_after_another(source: AttributionSource, calls: Iterable[RangeCall]) -> Iterator[Any]:
    blocks, left = iter(source.blocks()), (np.zeros(0, np.int64), np.zeros((0, source.shape[1])))
    for call in calls:
        parts, missing = [], call.stop - call.start
        while missing:
            row_B, block_BT = left if len(left[0]) else next(blocks)
            parts.append((row_B[:missing], block_BT[:missing]))
            left = row_B[missing:], block_BT[missing:]
            missing -= len(parts[-1][0])
        yield call.function(iter(parts), call.start, *call.arguments)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
