"""Files in, rows out: JSON lines (plain, gzip, zstd), Parquet, Arrow and `hf://` data sets, as bytes, streamed.

A row is the bytes of its line. Rows of the columnar forms have no bytes of their own, so each is rendered to one
canonical line of JSON, which stands for it from then on.
"""

from __future__ import annotations

import gzip
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from influray.data import hub
from influray.data.canonical import canonical_line
from influray.data.reading import PLAIN, Reading
from influray.data.records import BadRow
from influray.protocols import USER_ERRORS, DataError
from influray.store.artifact import fingerprint, hash_file
from influray.store.mirror import local, present, present_folder
from influray.store.uri import is_uri, parse_uri

log = logging.getLogger(__name__)

Kind = Literal["jsonl", "parquet", "arrow", "hub"]
SUFFIXES: dict[str, tuple[Kind, str]] = {
    ".jsonl": ("jsonl", ""),
    ".jsonl.gz": ("jsonl", "gzip"),
    ".jsonl.zst": ("jsonl", "zstd"),
    ".parquet": ("parquet", ""),
    ".arrow": ("arrow", ""),
}
CHUNK = 2**18  # bytes of one read
COLUMNAR_ROWS = 256  # rows of a columnar file that are in memory at a time
_MAGIC = {b"\x1f\x8b": ("gzip", ".gz"), b"\x28\xb5\x2f\xfd": ("zstd", ".zst")}
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True)
class DataFile:
    """One source of rows. `path` is what messages show, `name` what the catalogue keeps: relative to the root."""

    path: str
    name: str
    kind: Kind
    compression: str = ""  # "", "gzip" or "zstd"
    reading: Reading = PLAIN  # what its entry says of its rows

    @property
    def stem(self) -> str:
        """The name without folders and suffixes: the source of rows that name none."""
        last = self.name.rstrip("/").rsplit("/", 1)[-1]
        suffix = _suffix(last)
        return last[: -len(suffix)] if suffix else last


def resolve_files(entries: Sequence[str], root: str | Path, key: str, first: int = 0) -> list[DataFile]:
    """Return the files that config entries name, in byte order of their names.

    An entry is a file, a folder (searched through, hidden names and other suffixes left out), the same on object
    storage (`s3://`, `gs://`) or an `hf://` id; relative ones start at `root`. `key` is the dotted key of the list,
    for messages, and `first` the place in it of the first entry.

    Raises:
        DataError: nothing there, a suffix that is not read, a folder without data, a file named twice.
    """
    found: dict[str, tuple[DataFile, str]] = {}
    for i, entry in enumerate(entries, first):
        where = f"{key}.{i}"
        for file in _entry_files(entry, Path(root), where):
            if file.name in found:
                raise DataError(f"{where}: {file.path} is already named by {found[file.name][1]}; name it once")
            found[file.name] = (file, where)
    return [found[name][0] for name in sorted(found, key=os.fsencode)]


def file_digest(file: DataFile) -> str:
    """Return what identifies the content: the sha256 of the bytes, or of a hub data set's resolved revision."""
    if file.kind == "hub":
        return fingerprint(hub.origin(file.path))
    try:
        return hash_file(file.path)
    except OSError as error:
        raise DataError(f"{file.path}: cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, stop) of a file of plain lines: `lines` whole lines, of which the first is number `line`."""

    start: int
    stop: int
    line: int
    lines: int


def read_rows(
    file: DataFile, max_line_bytes: int, max_file_bytes: int, span: Span | None = None
) -> Iterator[tuple[int, bytes | BadRow]]:
    """Yield (line number from 1, bytes of the row or why there are none), in order; of a span, only its lines.

    A row's bytes leave out the line end and a BOM before the first line; blank lines are counted but yield nothing.
    Where a stream breaks off (torn, not of its kind, wrong checksum), the complete rows before that come out, then
    one BadRow at the line where it broke. Holds about one line and one chunk in memory, whatever the file expands to.

    Raises:
        DataError: the file cannot be opened, or holds more than `max_file_bytes` once decompressed.
    """
    if file.kind == "jsonl":
        rows = _lines(file, max_line_bytes, max_file_bytes, span)
    else:
        rows = _columnar(file, max_line_bytes, max_file_bytes)
    try:
        yield from rows
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise DataError(f"{file.path}: cannot be opened: {error.strerror}") from error


def _suffix(name: str) -> str:
    return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s) and name != s), "")


def _entry_files(entry: str, root: Path, where: str) -> Iterator[DataFile]:
    if entry.startswith(hub.PREFIX):
        hub.parse(entry, where)
        yield DataFile(entry, entry, "hub")
        return
    if is_uri(entry):
        yield from _stored_files(entry, where)
        return
    path = root / entry
    if path.is_dir():
        yield from _folder_files(path, root, where)
    elif path.is_file():
        if not _suffix(path.name):
            raise DataError(f"{where}: {path} has no suffix that is read; one of {', '.join(SUFFIXES)}")
        yield _data_file(path, root)
    else:
        what = "is neither a file nor a folder" if path.exists() else "no such file or folder"
        raise DataError(f"{where}: {path}: {what}; relative paths start at data.root ({root})")


def _folder_files(folder: Path, root: Path, where: str) -> Iterator[DataFile]:
    paths, others = [], 0
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if _suffix(name) and not name.startswith("."):
                paths.append(Path(here, name))
            else:
                others += 1
    if not paths:
        raise DataError(f"{where}: {folder} holds no file with a suffix that is read; one of {', '.join(SUFFIXES)}")
    if others:
        log.info("%s: %d files of %s are not data and were left out", where, others, folder)
    for path in paths:
        yield _data_file(path, root)


def _stored_files(uri: str, where: str) -> Iterator[DataFile]:
    """Fetch a file or a folder of object storage into this machine's cache."""
    place, name = local(uri, where), parse_uri(uri, where).shown
    if present(place).is_file():
        found = {name: place}
    else:
        paths = [path for path in present_folder(place).rglob("*") if path.is_file()]
        found = {f"{name}/{path.relative_to(place).as_posix()}": path for path in paths}
    kept = {shown: path for shown, path in found.items() if _suffix(path.name) and not path.name.startswith(".")}
    if not kept:
        raise DataError(f"{where}: {name} holds no file with a suffix that is read; one of {', '.join(SUFFIXES)}")
    for shown, path in kept.items():
        yield DataFile(str(path), shown, *SUFFIXES[_suffix(path.name)])


def _data_file(path: Path, root: Path) -> DataFile:
    kind, compression = SUFFIXES[_suffix(path.name)]
    relative = os.path.relpath(path, root)
    name = str(path) if relative.startswith("..") else relative
    return DataFile(str(path), name.replace(os.sep, "/"), kind, compression)


def _lines(
    file: DataFile, max_line_bytes: int, max_file_bytes: int, span: Span | None
) -> Iterator[tuple[int, bytes | BadRow]]:
    number, total = (0 if span is None else span.line - 1), 0
    pieces: list[bytes] = []  # of the line that is being read; dropped once it is too long
    length = 0
    wide, head = False, span is not None
    try:
        for chunk in _chunks(file) if span is None else _span_chunks(file.path, span):
            total += len(chunk)
            if total > max_file_bytes:
                raise DataError(
                    f"{file.path}:{number + 1}: more than data.max_file_bytes = {max_file_bytes} bytes of lines; "
                    "raise the limit if the file is meant to be that large"
                )
            if not head:
                head = True
                if reason := _not_lines(chunk, file.compression):
                    yield 1, BadRow(reason)
                    return
                wide = chunk.startswith(_UTF16_BOMS)
                chunk = chunk.removeprefix(_UTF8_BOM)
            first, *others = chunk.split(b"\n")
            for following in others:
                number += 1
                row = _row(b"".join([*pieces, first]), length + len(first), max_line_bytes, wide)
                if row is not None:
                    yield number, row
                pieces, length, first = [], 0, following
            length += len(first)
            if length <= max_line_bytes:
                pieces.append(first)
            else:
                pieces = []
    except _Fault as fault:
        yield number + 1, BadRow(f"{fault}; the complete rows before were read")
        return
    row = _row(b"".join(pieces), length, max_line_bytes, wide)
    if row is not None:
        yield number + 1, row


def _row(line: bytes, length: int, max_line_bytes: int, wide: bool) -> bytes | BadRow | None:
    if length > max_line_bytes:
        return BadRow(f"the line has {length} bytes, data.max_line_bytes is {max_line_bytes}")
    if wide:  # the NUL of a line end's other half may stand alone on the last line
        return BadRow("not UTF-8: the file is UTF-16 or UTF-32; convert it") if line.strip(b"\0\r ") else None
    return line.removesuffix(b"\r") if line.strip() else None


def _not_lines(head: bytes, compression: str) -> str:
    for magic, (name, ending) in _MAGIC.items():
        if not compression and head.startswith(magic):
            return f"the file is {name} but its name says plain lines; name it .jsonl{ending}"
    # A complete array on the first line is one bad row among others; an open one makes every line meaningless.
    first, newline, _ = head.removeprefix(_UTF8_BOM).lstrip().partition(b"\n")
    if first.startswith(b"[") and newline and not first.rstrip().endswith(b"]"):
        return "the file is one JSON array; write one record a line instead (jq -c '.[]')"
    return ""


def plain_start(head: bytes) -> int | None:
    """Return where the lines of an uncompressed file that begins with `head` begin: after a BOM, where it has one.

    None where all of the file is judged by how it begins: it is UTF-16, compressed after all, or one JSON array.
    """
    if _not_lines(head, "") or head.startswith(_UTF16_BOMS):
        return None
    return len(head) - len(head.removeprefix(_UTF8_BOM))


class _Fault(Exception):
    pass


def _span_chunks(path: str, span: Span) -> Iterator[bytes]:
    with open(path, "rb") as stream:
        stream.seek(span.start)
        left = span.stop - span.start
        while chunk := stream.read(min(CHUNK, left)):
            left -= len(chunk)
            yield chunk


def _chunks(file: DataFile) -> Iterator[bytes]:
    if file.compression == "zstd":
        yield from _zstd_chunks(file.path)
    elif file.compression == "gzip":
        with gzip.GzipFile(file.path, "rb") as stream:
            yield from _gzip_chunks(stream)
    else:
        with open(file.path, "rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk


def _gzip_chunks(stream: gzip.GzipFile) -> Iterator[bytes]:
    # read1 hands out what one step of the decompressor made, so a fault in a later step loses nothing before it.
    while True:
        try:
            chunk = stream.read1(CHUNK)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _Fault(f"the gzip stream breaks off: {error}") from error
        if not chunk:
            return
        yield chunk


def _zstd_chunks(path: str) -> Iterator[bytes]:
    # Arrow's reader, because the one of the zstandard package ends a torn stream as if it were complete.
    done = 0
    try:
        with pa.CompressedInputStream(pa.OSFile(path), "zstd") as stream:
            while chunk := stream.read(CHUNK):
                done += len(chunk)
                yield chunk
    except FileNotFoundError:
        raise
    except OSError as error:
        yield _zstd_tail(path, done)
        raise _Fault(f"the zstd stream breaks off: {error}") from error


def _zstd_tail(path: str, done: int) -> bytes:
    """Return what a broken stream holds after `done` bytes.

    Arrow decompresses up to a megabyte ahead and a fault costs all of that; the zstandard package, asked byte by
    byte, gives everything before it.
    """
    tail = bytearray()
    with open(path, "rb") as file, zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream:
        try:
            while done and (skipped := stream.read(min(done, CHUNK))):
                done -= len(skipped)
            while byte := stream.read(1):
                tail += byte
        except zstandard.ZstdError:
            log.debug("%s: broken after %d more bytes", path, len(tail))
    return bytes(tail)


def _columnar(file: DataFile, max_line_bytes: int, max_file_bytes: int) -> Iterator[tuple[int, bytes | BadRow]]:
    number = total = 0
    trees = {"parquet": _parquet_rows, "arrow": _arrow_rows, "hub": hub.rows}[file.kind](file.path)
    while True:
        number += 1
        try:
            tree = next(trees)
        except StopIteration:
            return
        except (*USER_ERRORS, FileNotFoundError, PermissionError):
            raise
        except (pa.ArrowException, OSError, ValueError, *hub.own_errors(file.kind == "hub")) as error:
            yield number, BadRow(f"the {file.kind} data breaks off: {error}; the rows before were read")
            return
        row = tree if isinstance(tree, BadRow) else canonical_line(tree)
        if isinstance(row, bytes):
            total += len(row)
            if total > max_file_bytes:
                raise DataError(f"{file.path}:{number}: more than data.max_file_bytes = {max_file_bytes} bytes of rows")
            if len(row) > max_line_bytes:
                row = BadRow(f"the row has {len(row)} bytes as JSON, data.max_line_bytes is {max_line_bytes}")
        yield number, row


def _parquet_rows(path: str) -> Iterator[dict[str, Any] | BadRow]:
    with pq.ParquetFile(path) as parquet:
        for batch in parquet.iter_batches(batch_size=COLUMNAR_ROWS):
            yield from _batch_rows(batch)


def _arrow_rows(path: str) -> Iterator[dict[str, Any] | BadRow]:
    with pa.memory_map(path, "r") as source:
        if source.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:  # the stream form, which `datasets` writes
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            for start in range(0, batch.num_rows, COLUMNAR_ROWS):
                yield from _batch_rows(batch.slice(start, COLUMNAR_ROWS))


def _batch_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | BadRow]:
    try:
        rows = batch.to_pylist()
    except ValueError:  # one value, such as a string that is not UTF-8, takes the whole batch with it
        rows = None
    if rows is not None:
        yield from rows
        return
    for i in range(batch.num_rows):
        try:
            yield batch.slice(i, 1).to_pylist()[0]
        except ValueError as error:
            yield BadRow(f"a value cannot be read: {error}")
