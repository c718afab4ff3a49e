"""Where a file can be cut, so that several processes read it at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from influray.data.files import DataFile
from influray.data.lines import Span, plain_start
from influray.data.streams import CHUNK
from influray.protocols import DataError


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
            start = plain_start(stream.read(CHUNK))
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
        while chunk and not chunk.endswith(b"\n"):
            end = (chunk := stream.read(CHUNK)).find(b"\n") + 1
            if end:
                lines += 1
                stream.seek(end - len(chunk), os.SEEK_CUR)
                break
        else:
            lines += not chunk  # the last line may end without one
        stop = stream.tell()
        yield Span(start, stop, line, lines)
        start, line = stop, line + lines
