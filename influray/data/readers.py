"""A file in, rows out: as bytes, streamed, with their numbers.

A row of JSON lines is the bytes of its line, and an element of a JSON array the bytes of the element. Rows of tables
(CSV, Parquet, Arrow, `hf://`) have no such bytes, so each is rendered to one canonical line of JSON, which stands for
it from then on.
"""

from __future__ import annotations

from collections.abc import Iterator

from influray.data import streams
from influray.data.columnar import columnar_rows
from influray.data.csv_rows import DELIMITERS, csv_rows
from influray.data.files import DataFile
from influray.data.json_values import value_rows
from influray.data.lines import Span, line_rows, span_chunks
from influray.data.records import BadRow
from influray.protocols import DataError


def read_rows(
    file: DataFile, max_line_bytes: int, max_file_bytes: int, span: Span | None = None
) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield (number from 1, bytes of the row or why there are none), in order; of a span, only its lines.

    The number is that of the line on which the row begins, for JSON lines and CSV, and else the ordinal of the row.
    Bytes leave out the line end and a BOM before the first line; blank lines are counted but yield nothing.
    Where a stream breaks off (torn, not of its kind, wrong checksum), the complete rows before that come out, then
    one BadRow at the place where it broke. Holds about one row and one chunk in memory, whatever the file expands to.

    Raises:
        DataError: the file cannot be opened, or holds more than `max_file_bytes` once decompressed; the header of a
            table cannot be used.
    """
    meter = _Meter(file.path, max_file_bytes)
    try:
        if file.kind in ("parquet", "arrow", "hub"):
            for number, row in columnar_rows(file.kind, file.path, max_line_bytes):
                meter.add(len(row) if isinstance(row, bytes) else 0, number)
                yield number, row
            return
        chunks = streams.chunks(file.path, file.compression) if span is None else span_chunks(file.path, span)
        chunks = meter.measured(chunks, 1 if span is None else span.line)
        if file.kind == "jsonl":
            yield from line_rows(chunks, max_line_bytes, span)
        elif file.kind == "json":
            yield from value_rows(chunks, max_line_bytes)
        else:
            yield from csv_rows(file.path, chunks, DELIMITERS[file.kind], max_line_bytes)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f"{file.path}: cannot be opened: {error.strerror}") from error


class _Meter:
    """Counts the bytes of a file, decompressed."""

    def __init__(self, path: str, most: int) -> None:
        self._path, self._most, self._total = path, most, 0

    def add(self, size: int, number: int) -> None:
        """Count bytes, which end or begin at the line or row `number`. Raises DataError beyond the limit."""
        self._total += size
        if self._total > self._most:
            raise DataError(
                f"{self._path}:{number}: more than data.max_file_bytes = {self._most} bytes of rows; "
                "raise the limit if the file is meant to be that large"
            )

    def measured(self, chunks: Iterator[bytes], line: int) -> Iterator[bytes]:
        """Yield chunks of a text, of which the first begins with line `line`."""
        for chunk in chunks:
            self.add(len(chunk), line)
            line += chunk.count(b"\n")
            yield chunk
