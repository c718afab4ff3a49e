"""JSON lines: each line's bytes, with its number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from influray.data import streams
from influray.data.records import BadRow

# A record has more bytes. Where lines are shorter than that on average they are mostly empty, and a small compressed
# file may hold any number of them: they are passed over without a look at each.
SHORT = 16
_VISIBLE = re.compile(rb"[^\s]")


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
            first, whole, last = _divided(chunk, number + 1)
            length += len(first)
            if length <= max_line_bytes:
                pieces.append(first)
            else:
                pieces = []
            if last is None:
                continue
            row = _row(b"".join(pieces), length, max_line_bytes, wide)
            if row is not None:
                yield number + 1, row
            for at, line in whole:
                row = _row(line, len(line), max_line_bytes, wide)
                if row is not None:
                    yield at, row
            number += chunk.count(b"\n")
            pieces, length = [last], len(last)
    except streams.Fault as fault:
        yield number + 1, BadRow(f"{fault}; the complete rows before were read")
        return
    row = _row(b"".join(pieces), length, max_line_bytes, wide)
    if row is not None:
        yield number + 1, row


def _divided(chunk: bytes, number: int) -> tuple[bytes, Iterable[tuple[int, bytes]], bytes | None]:
    """Return what is before the first line end, the whole lines with their numbers, and what is after the last one.

    The first is line `number`, and blank ones may be left out of the whole lines. Without a line end the last is None.
    """
    if chunk.count(b"\n") * SHORT <= len(chunk):
        first, *others = chunk.split(b"\n")
        last = others.pop() if others else None
        return first, enumerate(others, number + 1), last
    start, stop = chunk.find(b"\n"), chunk.rfind(b"\n")
    return chunk[:start], _visible(chunk[start + 1 : max(start + 1, stop)], number), chunk[stop + 1 :]


def _visible(lines: bytes, number: int) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line) of whole lines after line `number`, without the blank ones; the last has no line end."""
    number, counted, at = number + 1, 0, 0
    while found := _VISIBLE.search(lines, at):
        start = lines.rfind(b"\n", at, found.start()) + 1 or at
        stop = lines.find(b"\n", found.end())
        stop = len(lines) if stop < 0 else stop
        number += lines.count(b"\n", counted, start)
        counted = start
        yield number, lines[start:stop]
        at = stop + 1


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


def plain_start(head: bytes) -> int | None:
    """Return where the lines of an uncompressed file that begins with `head` begin: after a BOM, where it has one.

    None where all of the file is judged by how it begins: it is UTF-16.
    """
    return None if streams.is_wide(head) else len(head) - len(head.removeprefix(streams.UTF8_BOM))
