"""JSON lines: each line's bytes, with its number; and where a file can be cut, so that several processes read it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from influray.data import streams
from influray.data.files import DataFile
from influray.data.records import BadRow
from influray.protocols import DataError

_LINE = re.compile(rb"[^\n]+")  # blank ones are passed over: a small compressed file may hold any number of them


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, stop) of a file of plain lines: `lines` whole lines, of which the first is number `line`."""

    start: int
    stop: int
    line: int
    lines: int


def line_rows(chunks: Iterator[bytes], max_line_bytes: int, span: Span | None) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield (line number, its bytes or why there are none) of the chunks of a file, or of a span of one.

    The bytes leave out the line end and a BOM before the first line; blank lines are counted but yield nothing.
    """
    number = 0 if span is None else span.line - 1
    pieces: list[bytes] = []  # of the line that is being read; dropped once it is too long
    length = 0
    wide, head = False, span is not None
    try:
        for chunk in chunks:
            if not head:
                head = True
                wide = streams.is_wide(chunk)
                chunk = chunk.removeprefix(streams.UTF8_BOM)
            end, last = chunk.find(b"\n"), chunk.rfind(b"\n") + 1
            first = chunk if end < 0 else chunk[:end]
            length += len(first)
            if length <= max_line_bytes:
                pieces.append(first)
            else:
                pieces = []
            if end < 0:
                continue
            row = _row(b"".join(pieces), length, max_line_bytes, wide)
            if row is not None:
                yield number + 1, row
            at = end
            for line in _LINE.finditer(chunk, end, last):
                number += chunk.count(b"\n", at, line.start())
                at = line.start()
                row = _row(line[0], len(line[0]), max_line_bytes, wide)
                if row is not None:
                    yield number + 1, row
            number += chunk.count(b"\n", at, last)
            pieces, length = [chunk[last:]], len(chunk) - last
    except streams.Fault as fault:
        yield number + 1, BadRow(f"{fault}; the complete rows before were read")
        return
    row = _row(b"".join(pieces), length, max_line_bytes, wide)
    if row is not None:
        yield number + 1, row


def _row(line: bytes, length: int, max_line_bytes: int, wide: bool) -> bytes | BadRow | None:
    if length > max_line_bytes:
        return BadRow(f"the line has {length} bytes, data.max_line_bytes is {max_line_bytes}")
    if wide:  # the NUL of a line end's other half may stand alone on the last line
        mend = "convert it (iconv -f UTF-16 -t UTF-8)"
        return BadRow(f"not UTF-8: the file is UTF-16 or UTF-32; {mend}") if line.strip(b"\0\r ") else None
    return line.removesuffix(b"\r") if line.strip() else None


def span_chunks(path: str, span: Span) -> Iterator[bytes]:
    """Yield the bytes of a span of a plain file."""
    with open(path, "rb") as stream:
        stream.seek(span.start)
        left = span.stop - span.start
        while chunk := stream.read(min(streams.CHUNK, left)):
            left -= len(chunk)
            yield chunk


def find_spans(file: DataFile, size: int, max_file_bytes: int) -> list[Span]:
    """Return spans of about `size` bytes that are all lines of a file, in order; none where it has to be read whole.

    Only plain lines can be read from the middle. Those of a file that `read_rows` refuses, or judges by how it begins,
    stay together. Costs one pass that counts line ends, 0.5 s a GB.

    Raises:
        DataError: the file cannot be opened.
    """
    if file.kind != "jsonl" or file.compression:
        return []
    try:
        with open(file.path, "rb") as stream:
            start = _plain_start(stream.read(streams.CHUNK))
            if start is None or os.fstat(stream.fileno()).st_size > max_file_bytes:
                return []
            stream.seek(start)
            return list(_spans(stream, size))
    except OSError as error:
        raise DataError(f"{file.path}: cannot be opened: {error.strerror}") from error


def _spans(stream: BinaryIO, size: int) -> Iterator[Span]:
    start, line = stream.tell(), 1
    while chunk := stream.read(size):
        lines = chunk.count(b"\n")
        while not chunk.endswith(b"\n") and (more := stream.readline(streams.CHUNK)):
            chunk = more
            lines += chunk.endswith(b"\n")
        lines += not chunk.endswith(b"\n")  # the last line may end without one
        stop = stream.tell()
        yield Span(start, stop, line, lines)
        start, line = stop, line + lines


def _plain_start(head: bytes) -> int | None:
    """Return where the lines of an uncompressed file that begins with `head` begin: after a BOM, where it has one.

    None where all of the file is judged by how it begins: it is UTF-16.
    """
    return None if streams.is_wide(head) else len(head) - len(head.removeprefix(streams.UTF8_BOM))
