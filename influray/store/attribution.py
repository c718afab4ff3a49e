"""The attribution matrix A [N, T], on disk or in memory, read in blocks of ascending rows.

On disk: parts of (row, A[row, :]) written per shard, and targets.arrow, which names the columns and keeps their
moments. The matrix may be far larger than memory.

Shape suffixes: N rows of the matrix, T target columns, B rows of one block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influray.protocols import ArtifactMismatch, AttributionSource, DataError
from influray.store.artifact import ShardStore, checked_table, describe, require_manifest, write_table
from influray.store.features import JoinedRows, run_features
from influray.store.mirror import local
from influray.store.moments import (
    ColumnMoments,
    ColumnStats,
    column_moments,
    column_stats,
    merge_in_order,
    range_moments,
)
from influray.store.ranges import Mapper, Threads, map_ranges
from influray.store.score_part import ScorePart

logger = logging.getLogger(__name__)

TARGETS = "targets.arrow"
BLOCK_ROWS = 2048  # of an array in memory: what a pass works on stays in the cache
READ_BYTES = 2**22  # of a matrix on disk, for the same reason


class Attribution:
    """A committed attribution matrix. `groups` is the task of each column; `stats` its moments.

    `mapper` runs its passes (`map_ranges`); by default threads of this process do.

    Raises:
        ArtifactMismatch: there is none at `folder`, or its parts do not fit its targets.
    """

    def __init__(self, folder: str | Path, mapper: Mapper | None = None) -> None:
        self.folder = local(folder)
        self.mapper: Mapper = mapper or Threads()
        self.manifest = require_manifest(self.folder, "score")
        digests = {one["file"]: one["sha256"] for one in self.manifest["beside"]}
        targets = checked_table(self.folder / TARGETS, digests[TARGETS])
        self.target_ids: tuple[str, ...] = tuple(targets["id"].to_pylist())
        self.groups: tuple[str, ...] = tuple(targets["task"].to_pylist())
        self.target_rows: np.ndarray = targets["row"].to_numpy()  # -1 where a column is not one target's
        self.stats = ColumnStats(
            targets["mean"].to_numpy(), targets["std"].to_numpy(), targets["used"].to_numpy(zero_copy_only=False)
        )

    @property
    def known_stats(self) -> ColumnStats:
        return self.stats

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.manifest["rows"]), len(self.groups)

    @property
    def rows(self) -> np.ndarray:
        """The catalogue rows of the matrix, int64 [N], ascending; read from all parts when first asked for."""
        return self._rows

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int64), *(part.row_numbers(0, part.rows) for part in self._parts)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the whole matrix in memory, [N, T] float32, in the order of `rows`: what `np.asarray` gives."""
        if copy is False:
            raise ValueError("the matrix lies in several files; np.asarray reads it into a copy")
        found_NT = np.empty(self.shape, dtype or np.float32)
        start = 0
        for row_B, score_BT in self.blocks():
            found_NT[start : start + len(row_B)] = score_BT
            start += len(row_B)
        return found_NT

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (row_B int64, A_BT float32), some MiB each, rows ascending; memory does not grow with the matrix."""
        return self.range_blocks(0, self.shape[0])

    def range_blocks(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the blocks of the lines at positions [start, stop)."""
        step = max(1, READ_BYTES // (4 * max(1, len(self.groups))))
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            part, first = self._parts[number], int(self._starts[number])
            end = min(stop, first + part.rows)
            for low in range(start, end, step):
                high = min(low + step, end)
                yield part.row_numbers(low - first, high - first), part.scores(low - first, high - first)
            start, number = max(start, end), number + 1

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the lines of these catalogue rows in the order given, [len(rows), T] float32.

        Raises:
            DataError: a row that the matrix does not hold.
        """
        rows = np.asarray(rows, np.int64)
        place_B = np.searchsorted(self.rows, rows)
        known_B = place_B < len(self.rows)
        known_B[known_B] = self.rows[place_B[known_B]] == rows[known_B]
        if not known_B.all():
            raise DataError(f"{self.folder}: row {int(rows[~known_B][0])} is not in the attribution matrix")
        line, back_B = np.unique(place_B, return_inverse=True)
        number = np.searchsorted(self._starts, line, side="right") - 1
        # Neighbours within a part are one read.
        cuts = np.flatnonzero((np.diff(line) != 1) | (np.diff(number) != 0)) + 1
        runs = []
        for run in np.split(np.arange(len(line)), cuts) if len(line) else []:
            part = self._parts[number[run[0]]]
            first = int(line[run[0]] - self._starts[number[run[0]]])
            runs.append((part, first, first + len(run)))
        if len(runs) > 1:
            for part, first, last in runs:
                part.announce(first, last)
        read = [part.scores(first, last) for part, first, last in runs]
        lines = np.concatenate([np.empty((0, len(self.groups)), np.float32), *read]) if len(read) != 1 else read[0]
        return lines if len(rows) == 1 else lines[back_B]

    def features(self) -> JoinedRows:
        """Return the pool's feature rows of the run that the matrix belongs to. Raises as `run_features`."""
        pool = self.folder.parent / "features" / "pool"
        return run_features(pool, [float(weight) for weight in self.manifest["weights"]])

    @cached_property
    def _parts(self) -> list[ScorePart]:
        parts = self.manifest["parts"]
        width = len(self.groups)
        return [
            ScorePart(self.folder / part["file"], part["rows"], width, part["sha256"], part["columns"]["row"])
            for part in parts
            if part["file"]
        ]

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(part.rows for part in self._parts)])[:-1]


class ArrayAttribution:
    """A matrix in memory: numpy array or memmap, torch tensor, nested lists, anything numpy reads as 2-D numbers.

    Its rows are the positions 0..N-1. float32 and float64 stay as they are; float16 and bfloat16 become float32,
    integers float64, block by block.

    Raises:
        DataError: not two-dimensional, empty, masked, or not real numbers.
    """

    def __init__(self, scores: Any, block_rows: int = BLOCK_ROWS) -> None:
        assert block_rows >= 1
        self._array = _real_matrix(scores)
        self._rows = np.arange(len(self._array), dtype=np.int64)
        self._block_rows = block_rows
        self.mapper: Mapper = Threads()
        kind = self._array.dtype
        self._dtype = np.dtype(np.float64 if kind.kind in "iu" or kind.itemsize == 8 else np.float32)
        self.known_stats: ColumnStats | None = None  # None where no method has asked for them

    @property
    def shape(self) -> tuple[int, int]:
        return self._array.shape[0], self._array.shape[1]

    @property
    def rows(self) -> np.ndarray:
        """0..N-1, int64."""
        return self._rows

    @property
    def stats(self) -> ColumnStats:
        """The moments of the columns; one pass, when first asked for, which logs the columns that are left out."""
        if self.known_stats is None:
            self.known_stats = column_stats(merge_in_order(map_ranges(self, range_moments)))
            for column, reason in self.known_stats.left_out().items():
                logger.warning("column %d takes no part: it is %s", column, reason)
        return self.known_stats

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (row_B int64, A_BT float32 or float64) of `block_rows` rows, contiguous; views where they can be."""
        return self.range_blocks(0, len(self._array))

    def range_blocks(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the blocks of the lines [start, stop)."""
        for low in range(start, stop, self._block_rows):
            high = min(low + self._block_rows, stop)
            yield self._rows[low:high], np.ascontiguousarray(self._array[low:high], dtype=self._dtype)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return these lines in the order given, [len(rows), T]."""
        return self._array[rows].astype(self._dtype, copy=False)


def stats_of(source: AttributionSource) -> ColumnStats:
    """Return the column statistics that a source carries, else those of a pass over its blocks.

    Raises:
        DataError: a row has no finite value, or there is no row.
    """
    stats = getattr(source, "stats", None)
    if isinstance(stats, ColumnStats):
        return stats
    return column_stats(merge_in_order(map_ranges(source, range_moments)))


def attribution_table(row_B: np.ndarray, score_BT: np.ndarray) -> pa.Table:
    """Return the Arrow table of a shard: row int64, score fixed-size list<float32>[T], in the order given."""
    width = score_BT.shape[1]
    values = pa.array(np.ascontiguousarray(score_BT, dtype=np.float32).reshape(-1))
    return pa.table(
        {"row": pa.array(np.asarray(row_B, np.int64)), "score": pa.FixedSizeListArray.from_arrays(values, width)}
    )


def write_targets(
    folder: str | Path,
    rows: Sequence[int] | np.ndarray,
    ids: Sequence[str],
    tasks: Sequence[str],
    moments: ColumnMoments,
) -> ColumnStats:
    """Write targets.arrow (row, id, task, mean, std, used), one line per column of A, and return the statistics.

    `rows` are the targets' catalogue rows, -1 where a column is not one target's. Columns that are left out are logged.
    """
    stats = column_stats(moments)
    assert len(rows) == len(ids) == len(tasks) == len(stats.mean_T), "one line per column"
    table = pa.table(
        {
            "row": pa.array(np.asarray(rows, np.int64)),
            "id": pa.array([str(i) for i in ids], pa.string()),
            "task": pa.array([str(t) for t in tasks], pa.string()),
            "mean": pa.array(stats.mean_T),
            "std": pa.array(stats.std_T),
            "used": pa.array(stats.used_T),
        }
    )
    write_table(Path(folder) / TARGETS, table)
    for column, reason in stats.left_out().items():
        logger.warning("target %s of task %s takes no part: its column is %s", ids[column], tasks[column], reason)
    return stats


def commit_attribution(
    store: ShardStore,
    keys: Sequence[str],
    facts: Mapping[str, Any],
    target_rows: Sequence[int] | np.ndarray,
    target_ids: Sequence[str],
    tasks: Sequence[str],
    sample_nT: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write targets.arrow over the committed shards of `keys` (ascending rows), then the manifest; return that.

    The moments of the columns are those of the rows, or of the scores `sample_nT` that speak for them.

    Raises:
        DataError: no row at all, or a row with no finite score.
        ArtifactMismatch: a shard has another number of columns.
    """

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        last = -1
        for key in keys:
            receipt = store.receipt(key)
            assert receipt is not None, f"shard {key} has no receipt"
            if receipt.file and receipt.rows:
                row_B, block_BT = _scores(store.folder / receipt.file, receipt.sha256, len(tasks))
                assert row_B[0] > last, "shards must come in ascending rows"
                assert (np.diff(row_B) > 0).all(), "rows of a shard must ascend"
                last = int(row_B[-1])
                yield row_B, block_BT

    moments = column_moments(blocks())
    if sample_nT is not None:
        moments = column_moments([(np.arange(len(sample_nT)), sample_nT)])
    write_targets(store.folder, target_rows, target_ids, tasks, moments)
    beside = describe(store.folder, [TARGETS])
    return store.freeze(list(keys), {**facts, "targets": len(tasks), "beside": beside})


def _scores(path: Path, sha256: str, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (row_B, A_BT) of a part, views of the file."""
    table = checked_table(path, sha256)
    width = table.schema.field("score").type.list_size
    if width != columns:
        raise ArtifactMismatch(f"{path}: {width} columns, but {TARGETS} names {columns}; run `influray score` again")
    score = table["score"].combine_chunks()
    score = score.chunk(0) if isinstance(score, pa.ChunkedArray) else score
    return table["row"].to_numpy(), score.flatten().to_numpy(zero_copy_only=True).reshape(-1, width)


def as_array(values: Any) -> np.ndarray:
    """Return what NumPy makes of an array, a tensor of any device and dtype, a data frame or nested lists."""
    if hasattr(values, "detach"):  # a torch tensor; asked for by its behaviour so that torch is not imported here
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    return np.asarray(values)


def _real_matrix(scores: Any) -> np.ndarray:
    if isinstance(scores, np.ma.MaskedArray):
        raise DataError("attribution: a masked array; fill it first, NaN where there is no score")
    try:
        array = as_array(scores)
    except (ValueError, TypeError) as error:
        raise DataError(f"attribution: not an array of numbers: {error}") from error
    if array.ndim != 2:
        raise DataError(f"attribution: shape {array.shape}, expected [pool rows, target columns]")
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise DataError(f"attribution: dtype {array.dtype}, expected float16, float32, float64 or integers")
    if 0 in array.shape:
        raise DataError(f"attribution: shape {array.shape} is empty; at least one row and one column are needed")
    return array
