"""JSON that is not a record a line: one array, or values that run over several lines. Streamed value by value.

Where a value ends is told by its brackets and strings alone, so that one that is no JSON spoils itself only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from influray.data.records import BadRow
from influray.data.streams import UTF8_BOM, Fault

# No string of JSON holds a line end: one that is met closes it, and the damage ends there.
_STRING = rb'[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+'
_IN_STRING = re.compile(_STRING)
_TOKEN_OR_SPACE = re.compile(rb'("' + _STRING + rb'")|\s+')
_BLANK = re.compile(rb"\s*")
_INSIDE = re.compile(rb'["\[\]{}]')  # of a value
_ELEMENT = re.compile(rb'["\[\]{},]')  # between the elements of the array
_OUTSIDE = re.compile(rb'["\[\]{}\n]')  # where text that is no value ends with its line


def value_rows(chunks: Iterator[bytes], max_line_bytes: int) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield (ordinal from 1, bytes of a value or why there are none): the elements of one array, or values in a row.

    A value on one line has the bytes that it has in the file. One on several lines loses the white space between its
    tokens and nothing else, since a record is one line of what is written later. Holds one value and one chunk.
    """
    cutter = _Cutter(max_line_bytes)
    number = 0
    try:
        for chunk in chunks:
            for row in cutter.feed(chunk):
                number += 1
                yield number, row
        rest = cutter.end()
    except Fault as fault:
        rest = [BadRow(f"{fault}; the complete rows before were read")]
    for row in rest:
        number += 1
        yield number, row


class _Cutter:
    """Where values end in a text that comes in chunks."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._begun = self._string = False
        self._base = 0  # brackets around the values: 1 in an array
        self._depth = 0  # brackets that are open
        self._carry = b""  # a backslash whose character is not there yet
        self._value = bytearray()  # of the value that is being read, up to the limit
        self._length = 0

    def feed(self, chunk: bytes) -> Iterator[bytes | BadRow]:
        """Yield the values that end in a chunk."""
        data, self._carry = self._carry + chunk, b""
        at = 0
        if not self._begun:
            at = _BLANK.match(data, len(UTF8_BOM) if data.startswith(UTF8_BOM) else 0).end()  # pyright: ignore
            if at == len(data):
                return
            self._begun = True
            if data.startswith(b"[", at):
                self._base = self._depth = 1
                at += 1
        start = at
        while at < len(data):
            if self._string:
                at = self._string_end(data, at)
                continue
            if start == at and not self._length:
                start = at = _BLANK.match(data, at).end()  # pyright: ignore[reportOptionalMemberAccess]
            inside = self._depth > self._base
            found = (_INSIDE if inside else _ELEMENT if self._base else _OUTSIDE).search(data, at)
            if found is None:
                break
            mark, at = found[0], found.end()
            if mark == b'"':
                self._string = True
            elif mark in b"[{":
                self._depth += 1
            elif mark in b",\n":
                yield from self._cut(data[start : at - 1], mark)
                start = at
            elif inside:
                self._depth -= 1
                if self._depth == self._base == 0:
                    yield from self._cut(data[start:at], mark)
                    start = at
            else:  # the bracket of the array, or one too many
                yield from self._cut(data[start : at - bool(self._base)], mark)
                self._base = self._depth = 0
                start = at
        self._take(data[start : len(data) - len(self._carry)])

    def end(self) -> list[bytes | BadRow]:
        """Return what is left at the end of the file."""
        if self._base:
            return [BadRow("the array breaks off: it is not closed; the complete rows before were read")]
        if self._depth or self._string:
            return [BadRow("the last value breaks off: it is not closed; the complete rows before were read")]
        return list(self._cut(b"", b"\n"))

    def _string_end(self, data: bytes, at: int) -> int:
        """Return where the string that is open at `at` ends, or the data do."""
        at = _IN_STRING.match(data, at).end()  # pyright: ignore[reportOptionalMemberAccess]
        if data[at:] == b"\\":
            self._carry = b"\\"
            return len(data)
        if at < len(data):
            self._string = False
            at += data[at] != ord("\n")
        return at

    def _take(self, piece: bytes) -> None:
        if not self._length:
            piece = piece.lstrip()
        self._length += len(piece)
        self._value += piece[: max(0, self._max + 1 - len(self._value))]

    def _cut(self, piece: bytes, mark: bytes) -> Iterator[bytes | BadRow]:
        self._take(piece)
        value, length = bytes(self._value).strip(), self._length
        self._value, self._length = bytearray(), 0
        if length > self._max:
            yield BadRow(f"the value has {length} bytes, data.max_line_bytes is {self._max}")
        elif value:
            yield _TOKEN_OR_SPACE.sub(rb"\1", value) if b"\n" in value or b"\r" in value else value
        elif mark == b",":
            yield BadRow("nothing stands before a comma of the array")
