"""Some columns of an attribution matrix, as a matrix.

Shape suffixes: C columns of the view, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from influray.protocols import AttributionSource
from influray.store.attribution import stats_of
from influray.store.moments import ColumnStats
from influray.store.ranges import Blocks, Mapper, RangeCall, run_calls


@dataclass(frozen=True)
class ColumnView:
    """The columns `column_C` of `matrix`, whose tasks are `groups`. `stats` are the matrix's own of these columns."""

    matrix: AttributionSource
    column_C: np.ndarray
    groups: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], len(self.column_C)

    @property
    def rows(self) -> np.ndarray:
        return self.matrix.rows

    @cached_property
    def stats(self) -> ColumnStats:
        whole, column_C = stats_of(self.matrix), self.column_C
        return ColumnStats(whole.mean_T[column_C], whole.std_T[column_C], whole.used_T[column_C])

    @property
    def mapper(self) -> Mapper:
        return _Passes(self.column_C, getattr(getattr(self.matrix, "mapper", None), "threads", 1), self.matrix)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return _columns(self.matrix.blocks(), self.column_C)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return np.take(self.matrix.gather(rows), self.column_C, axis=1)


def sought(source: AttributionSource, groups: Sequence[str], roles: Mapping[str, str]) -> ColumnView:
    """Return the columns of the tasks that are sought; `roles` name those of others."""
    return columns_of(source, groups, [j for j, task in enumerate(groups) if roles.get(task, "seek") == "seek"])


def limited(source: AttributionSource, groups: Sequence[str], roles: Mapping[str, str]) -> ColumnView:
    """Return the columns of the tasks to protect and to avoid."""
    return columns_of(source, groups, [j for j, task in enumerate(groups) if roles.get(task, "seek") != "seek"])


def columns_of(source: AttributionSource, groups: Sequence[str], columns: Sequence[int] | np.ndarray) -> ColumnView:
    """Return some columns, one perhaps many times; `groups` are the tasks of all of the matrix."""
    return ColumnView(source, np.array(columns, np.int64), tuple(groups[j] for j in columns))


@dataclass
class _Passes:
    """Passes over some columns by whoever passes over the matrix: workers open that, and know of no view."""

    column_C: np.ndarray
    threads: int
    matrix: AttributionSource

    def map(self, source: Any, calls: Iterable[RangeCall]) -> Iterator[Any]:
        """Yield the results in order. `source` is the view."""
        given = ((call, (self.column_C, call.function, *call.arguments)) for call in calls)
        return run_calls(self.matrix, (RangeCall(on_columns, c.start, c.stop, arguments) for c, arguments in given))


def on_columns(blocks: Blocks, start: int, column_C: np.ndarray, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function(blocks of these columns, start, *arguments)`."""
    return function(_columns(blocks, column_C), start, *arguments)


def _columns(blocks: Blocks, column_C: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    # take, as indexing the second axis alone would give a transposed array, which NumPy sums in another order.
    for row_B, score_BT in blocks:
        yield row_B, np.take(score_BT, column_C, axis=1)
