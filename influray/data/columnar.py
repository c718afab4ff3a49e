"""Rows of Parquet, Arrow and `hf://` data sets, each as one canonical line of JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influray.data import hub
from influray.data.arrow_values import batch_rows
from influray.data.canonical import canonical_line
from influray.data.records import BadRow
from influray.protocols import USER_ERRORS, DataError

ROWS = 256  # that are in memory at a time


def columnar_rows(kind: str, path: str, max_line_bytes: int) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield (ordinal from 1, the row as a JSON line or why there is none).

    Where the data break off, the rows before come out and then one BadRow.

    Raises:
        DataError: two columns have one name; a hub data set cannot be loaded.
    """
    number = 0
    rows = _rows({"parquet": _parquet, "arrow": _arrow, "hub": hub.batches}[kind](path), path)
    while True:
        number += 1
        try:
            tree = next(rows)
        except StopIteration:
            return
        except (*USER_ERRORS, FileNotFoundError, PermissionError):
            raise
        except (pa.ArrowException, OSError, ValueError, *hub.own_errors(kind == "hub")) as error:
            yield number, BadRow(f"the {kind} data breaks off: {error}; the rows before were read")
            return
        yield number, tree if isinstance(tree, BadRow) else canonical_line(tree, max_line_bytes)


def _rows(batches: Iterator[pa.RecordBatch], path: str) -> Iterator[dict[str, Any] | BadRow]:
    for i, batch in enumerate(batches):
        twice = [name for name, count in Counter(batch.schema.names).items() if count > 1]
        if twice and i == 0:
            raise DataError(f"{path}: two columns are called {twice[0]!r}; give each its own name")
        for start in range(0, batch.num_rows, ROWS):
            yield from batch_rows(batch.slice(start, ROWS))


def _parquet(path: str) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as parquet:
        yield from parquet.iter_batches(batch_size=ROWS)


def _arrow(path: str) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(path, "r") as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:  # the stream form, which `datasets` writes
            source.seek(0)
            yield from pa.ipc.open_stream(source)
