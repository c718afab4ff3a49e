"""What a file holds, by its content: a name may say anything."""

from __future__ import annotations

import json
import re
from typing import Literal

from influray.data.streams import MAGIC, UTF8_BOM, Fault, chunks, is_wide
from influray.protocols import DataError

Kind = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "hub"]
SUFFIXES: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
PACKED = {".gz": "gzip", ".zst": "zstd"}  # after a suffix of text
READ = "JSON (lines, an array, indented objects), CSV and TSV, also .gz and .zst, Parquet, Arrow"
HEAD = 2**16  # bytes by which a file is judged
_TEXT = ("jsonl", "json", "csv", "tsv")
_LFS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
# What people name by mistake: how it begins, at which byte, what it is, and what to do about it.
_OTHERS = (
    (0, b"BZh", "bzip2", "decompress it (bunzip2), or compress with gzip or zstd"),
    (0, b"\xfd7zXZ\0", "xz", "decompress it (unxz), or compress with gzip or zstd"),
    (0, b"\x04\x22\x4d\x18", "lz4", "decompress it (unlz4), or compress with gzip or zstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "extract it and name the folder"),
    (0, b"Rar!", "a rar archive", "extract it and name the folder"),
    (257, b"ustar", "a tar archive", "extract it (tar -xf) and name the folder"),
    (0, b"SQLite format 3\0", "an SQLite database", "write its table to CSV (sqlite3 FILE -header -csv 'select ...')"),
    (0, b"\xd0\xcf\x11\xe0", "an old Office file (.xls)", "save the sheet as CSV UTF-8"),
    (0, b"ORC", "an ORC file", "convert it to Parquet"),
    (0, b"Obj\x01", "an Avro file", "convert it to Parquet"),
    (0, b"FEA1", "a Feather file of version 1", "write it again as Parquet or Feather version 2"),
    (0, b"\x89HDF", "an HDF5 file", "write its rows as JSON lines or Parquet"),
    (0, b"\x93NUMPY", "a NumPy array", "write its rows as JSON lines or Parquet"),
    (0, b"\x80\x02", "a Python pickle, which can run code when it is read", "write its rows as JSON lines or Parquet"),
    (0, b"\x80\x03", "a Python pickle, which can run code when it is read", "write its rows as JSON lines or Parquet"),
    (0, b"\x80\x04", "a Python pickle, which can run code when it is read", "write its rows as JSON lines or Parquet"),
    (0, b"\x80\x05", "a Python pickle, which can run code when it is read", "write its rows as JSON lines or Parquet"),
    (0, b"%PDF", "a PDF", "write its text as JSON lines"),
)
_HTML = re.compile(rb"\s*<(!doctype html|html[\s>])", re.IGNORECASE)
_ARRAY = re.compile(rb'\[\s*(?:[\[{"\]\d-]|true|false|null)')
_PLAINLY_JSON = re.compile(rb'\s*[\[{]\s*["\[{]')  # what no header of a table begins with
_SLACK = 16  # bytes before the end of a head within which a token may be cut off


def suffix_of(name: str) -> str:
    """Return the ending of a file's name by which it counts as data in a folder, with that of its compression."""
    low = name.lower()
    packed = next((ending for ending in PACKED if low.endswith(ending)), "")
    plain = low.removesuffix(packed)
    known = next((suffix for suffix, kind in SUFFIXES.items() if plain.endswith(suffix)), "")
    if not known or plain == known or (packed and SUFFIXES[known] not in _TEXT):
        return ""
    return name[-len(known + packed) :]


def recognise(path: str) -> tuple[Kind, str]:
    """Return the kind of a file and its compression ("", "gzip" or "zstd").

    Its name decides only what the content leaves open: CSV, an empty file, a torn one.

    Raises:
        DataError: it is of another kind, with what would mend it; or it cannot be opened.
    """
    suffix = suffix_of(path.rpartition("/")[2]).lower()
    packed = next((ending for ending in PACKED if suffix.endswith(ending)), "")
    named = SUFFIXES.get(suffix.removesuffix(packed))
    try:
        with open(path, "rb") as file:
            raw = file.read(HEAD)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error.strerror}") from error
    compression = next((name for name, magic in MAGIC.items() if raw.startswith(magic)), "")
    if not compression and packed and _kind(path, raw, len(raw) < HEAD, None) is None:
        compression = PACKED[packed]  # torn before the end of its magic, or not what its name says
    if not compression:
        _refuse(path, raw)
        kind = _kind(path, raw, len(raw) < HEAD, named)
    else:
        head, complete = _unpacked(path, compression)
        _refuse(path, head)
        if any(head.startswith(magic) for magic in MAGIC.values()):
            raise DataError(f"{path}: is compressed twice; decompress it once")
        kind = _kind(path, head, complete, named if named in _TEXT else "jsonl")
        if kind in ("parquet", "arrow"):
            raise DataError(
                f"{path}: is a {compression} of {kind.capitalize()}, which is read at any place; decompress it"
            )
    if kind is None:
        raise DataError(f"{path}: neither its name nor its content says what it is; what is read: {READ}")
    return kind, compression


def _unpacked(path: str, compression: str) -> tuple[bytes, bool]:
    """Return the beginning of a compressed file, and whether that is all of it."""
    head = b""
    try:
        for chunk in chunks(path, compression):
            head += chunk
            if len(head) >= HEAD:
                return head[:HEAD], False
    except Fault:  # told with its line when the file is read
        return head, False
    return head, True


def _refuse(path: str, head: bytes) -> None:
    if head.startswith(_LFS):
        raise DataError(
            f"{path}: is a pointer of git-lfs, not the data; fetch the data with `git lfs pull` in its repository"
        )
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        if b"xl/" in head or b"[Content_Types].xml" in head:
            raise DataError(f"{path}: is an Excel workbook; save the sheet as CSV UTF-8")
        raise DataError(f"{path}: is a zip archive; extract it (unzip) and name the folder")
    for at, magic, what, mend in _OTHERS:
        if head[at : at + len(magic)] == magic:
            raise DataError(f"{path}: is {what}; {mend}")
    if _HTML.match(head):
        raise DataError(f"{path}: is a page of HTML, as downloads leave it that were refused; fetch the file again")


def _kind(path: str, head: bytes, complete: bool, named: Kind | None) -> Kind | None:
    """Return what the beginning of a file says, `named` where it leaves that open, None where nothing does."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    text = head.removeprefix(UTF8_BOM).lstrip()
    found = _json_kind(text, complete)
    if found is not None and (named not in ("csv", "tsv") or _PLAINLY_JSON.match(text)):
        return found
    if named in ("parquet", "arrow"):
        return _columnar(path, head, named)
    if not text or named is None:
        return named
    if is_wide(head):
        if named in ("csv", "tsv"):
            raise DataError(f"{path}: is UTF-16, not UTF-8; convert it (iconv -f UTF-16 -t UTF-8)")
        return "jsonl"  # every line is a bad row that says so
    if text.count(0) > len(text) // 10 and text[:1] not in (b"{", b"["):
        raise DataError(f"{path}: holds binary data of no kind that is read: {READ}")
    return "jsonl" if named == "json" else named


def _columnar(path: str, head: bytes, named: Kind) -> Kind:
    if not head:
        raise DataError(f"{path}: is empty; a {named.capitalize()} file never is: fetch or write it again")
    if named == "arrow" and b"\0" in head[:8]:  # a stream of Arrow before 0.15 begins with a length
        return named
    raise DataError(f"{path}: its name says {named.capitalize()} and its content does not; what is read: {READ}")


def _json_kind(text: bytes, complete: bool) -> Kind | None:
    """Return "jsonl" or "json" (one array, or values over several lines) where a text begins as JSON does."""
    first, newline, rest = text.partition(b"\n")
    if text.startswith(b"["):
        if not _ARRAY.match(text):
            return None
        if newline and _is_json(first):  # a line that is an array is a bad row among others, one alone is the file
            return "jsonl" if rest.strip() else "json"
        return "json"
    if not text.startswith(b"{"):
        return None
    if _is_json(first):
        return "jsonl"
    whole = text.decode("utf-8", "ignore")
    try:
        _, stop = json.JSONDecoder().raw_decode(whole)
    except RecursionError:
        return "jsonl"
    except json.JSONDecodeError as error:
        cut = not complete and (error.msg.startswith("Unterminated string") or error.pos >= len(whole) - _SLACK)
        if not cut or not newline:
            return "jsonl"
        # Where the line break is one of a value, the text before it ends like the inside of one.
        return "json" if first.rstrip().endswith((b"{", b"[", b",", b":", b'"')) else "jsonl"
    follows = whole[stop:].lstrip(" \t\r\n")
    return "json" if "\n" in whole[:stop] or follows.startswith("{") else "jsonl"


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
