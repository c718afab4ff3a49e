"""CSV and TSV with a header, as RFC 4180 has them: each row as the JSON line of its cells."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence

from influray.data.canonical import canonical_line
from influray.data.records import BadRow
from influray.data.streams import UTF8_BOM, Fault
from influray.protocols import DataError

DELIMITERS = {"csv": ",", "tsv": "\t"}
_ESCAPED = re.compile(r"[\ud800-\udfff]")  # bytes that are not UTF-8, as they are handed to the csv module
_BLANK_LINES = re.compile(rb"[\r\n]*")
_MOST = 2**31 - 1  # the csv module's own limit on a cell; that of a row is counted here


def csv_rows(
    path: str, chunks: Iterator[bytes], delimiter: str, max_line_bytes: int
) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield (number of the line on which a row begins, the row as a JSON line or why there is none).

    The first row names the columns. Every value is a text, an empty cell an absent one. Lines end with LF or CRLF;
    a cell in quotes may hold delimiters, quotes (doubled) and line ends. Holds one row and one chunk.

    Raises:
        DataError: the header cannot be used: it names a column twice, or another delimiter stands in it.
    """
    csv.field_size_limit(_MOST)
    lines = _Lines(chunks, max_line_bytes)
    header: list[str] | None = None
    while True:
        try:
            number, cells = lines.row(delimiter)
        except Fault as fault:
            yield lines.number + 1, BadRow(f"{fault}; the complete rows before were read")
            return
        if cells is None:
            return
        if header is None:
            header = _header(path, number, cells, delimiter)
            continue
        yield number, cells if isinstance(cells, BadRow) else _row(header, cells, max_line_bytes)


def _row(header: Sequence[str], cells: Sequence[str], max_line_bytes: int) -> bytes | BadRow:
    if len(cells) != len(header):
        return BadRow(f"the row has {len(cells)} cells, the header {len(header)} ({', '.join(header)[:200]})")
    if any("\0" in cell for cell in cells):
        return BadRow("a cell holds the character NUL")
    return canonical_line({name: cell for name, cell in zip(header, cells, strict=True) if cell}, max_line_bytes)


def _header(path: str, number: int, cells: list[str] | BadRow, delimiter: str) -> list[str]:
    if isinstance(cells, BadRow):
        raise DataError(f"{path}:{number}: the header cannot be read: {cells.reason}")
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        raise DataError(f"{path}:{number}: the header names the column {twice[0]!r} twice; give each its own name")
    other = next((mark for mark in (";", "\t", ",", "|") if mark != delimiter and mark in cells[0]), None)
    if len(cells) == 1 and other is not None:
        raise DataError(
            f"{path}:{number}: the header is one column, {cells[0][:200]!r}; .csv has commas between cells "
            f"and .tsv tabs, this file seems to have {other!r}"
        )
    return cells


class _TooLong(Exception):
    pass


class _Lines:
    """The lines of a file with their ends, handed to the csv module row by row. `number` is that of the last one."""

    def __init__(self, chunks: Iterator[bytes], max_bytes: int) -> None:
        self._chunks = chunks
        self._max = max_bytes
        self._data, self._at = b"", 0
        self._begun = self._ended = False
        self._bytes = self._quotes = 0  # of the row that is being read
        self.number = 0

    def row(self, delimiter: str) -> tuple[int, list[str] | BadRow | None]:
        """Return the number of the next row's first line and its cells, None at the end. Raises Fault."""
        self._pass_blanks()
        begin, self._bytes, self._quotes = self.number + 1, 0, 0
        reader = csv.reader(self, delimiter=delimiter, strict=True)
        try:
            cells = next(reader, None)
        except _TooLong:
            return begin, self._rest_of_row()
        except csv.Error as error:
            if self._ended and self._quotes % 2:
                return begin, BadRow("a quote that opens in this row is not closed before the end of the file")
            alone = "new-line character" in str(error)
            reason = "a carriage return stands alone; lines end with LF or CRLF" if alone else str(error)
            return begin, BadRow(f"not CSV: {reason}")
        if cells is not None and _ESCAPED.search("".join(cells)):
            return begin, BadRow("not UTF-8: a cell holds bytes that are none")
        return begin, cells

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._line()
        if not line:
            self._ended = True
            raise StopIteration
        if self._bytes > self._max:
            raise _TooLong
        return line.decode("utf-8", "surrogateescape")

    def _line(self) -> bytes:
        """Return the next line with its end, b"" at the end of the file; of a longer one than the limit only a part."""
        line, stop = b"", 0
        while not stop and len(line) <= self._max and (self._at < len(self._data) or self._more()):
            stop = self._data.find(b"\n", self._at) + 1
            line += self._data[self._at : stop or len(self._data)]
            self._at = stop or len(self._data)
        self.number += line.endswith(b"\n")
        self._bytes += len(line)
        self._quotes += line.count(b'"')
        return line

    def _more(self) -> bool:
        while (chunk := next(self._chunks, None)) is not None:
            if not self._begun:
                chunk, self._begun = chunk.removeprefix(UTF8_BOM), True
            if chunk:
                self._data, self._at = chunk, 0
                return True
        return False

    def _pass_blanks(self) -> None:
        while True:
            stop = _BLANK_LINES.match(self._data, self._at).end()  # pyright: ignore[reportOptionalMemberAccess]
            self.number += self._data.count(b"\n", self._at, stop)
            self._at = stop
            if stop < len(self._data) or not self._more():
                return

    def _rest_of_row(self) -> BadRow:
        """Pass over what is left of a row that is too long: up to the first line end outside quotes."""
        while self._quotes % 2 or not self._data.endswith(b"\n", 0, self._at):
            if not self._line():
                return BadRow(
                    f"the row has {self._bytes} bytes, data.max_line_bytes is {self._max}; it goes on to "
                    "the end of the file: a quote may be missing"
                )
        return BadRow(f"the row has {self._bytes} bytes, data.max_line_bytes is {self._max}")
