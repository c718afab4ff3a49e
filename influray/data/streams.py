"""The bytes of a text file in chunks, decompressed, however far they can be read."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator

import pyarrow as pa
import zstandard

log = logging.getLogger(__name__)

CHUNK = 2**18  # bytes of one read
UTF8_BOM = b"\xef\xbb\xbf"
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}


class Fault(Exception):
    """A stream that breaks off; what it held before has come out."""


def is_wide(head: bytes) -> bool:
    """Return whether a text is UTF-16 or UTF-32 by how it begins: a byte order mark, or NUL beside every letter."""
    begin = head[:512]
    return begin.startswith(UTF16_BOMS) or max(begin[::2].count(0), begin[1::2].count(0)) > 0.4 * len(begin)


def chunks(path: str, compression: str) -> Iterator[bytes]:
    """Yield the bytes of a file, decompressed ("gzip", "zstd" or ""), at most CHUNK at a time.

    Raises:
        Fault: the stream is torn, not of its kind or of another checksum; what could be read has been yielded.
    """
    if compression == "zstd":
        yield from _zstd_chunks(path)
    elif compression == "gzip":
        with gzip.GzipFile(path, "rb") as stream:
            yield from _gzip_chunks(stream)
    else:
        with open(path, "rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk


def _gzip_chunks(stream: gzip.GzipFile) -> Iterator[bytes]:
    # read1 hands out what one step of the decompressor made, so a fault in a later step loses nothing before it.
    while True:
        try:
            chunk = stream.read1(CHUNK)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise Fault(f"the gzip stream breaks off: {error}") from error
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
        raise Fault(f"the zstd stream breaks off: {error}") from error


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
