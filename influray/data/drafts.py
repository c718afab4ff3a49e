"""Rows read, parsed and encoded: the work on a row that needs nothing of the rows before it, so that anyone can do it.

A draft holds the usable rows of a stretch of one file as the catalogue will hold them. Their numbers, and which ids
were used before, follow from all drafts before it: parts.py sees to that.

Shape suffixes: R rows of a draft.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from influray.data.chat import Encoded
from influray.data.files import DataFile
from influray.data.identity import content_name, id_hashes
from influray.data.records import BadRow, Record
from influray.data.weights import Weights
from influray.protocols import DamagedArtifact
from influray.store.artifact import Receipt, ShardStore, checked_table, fingerprint, map_table

# What is encoded at once. An encoding takes some 100 bytes a token, and a byte can be a token.
BLOCK_ROWS, BLOCK_BYTES = 256, 2**19
MAPPED = 64  # files that stay mapped for look-ups

_TOKENS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("source", pa.string()),
        ("group", pa.string()),  # the task of a target, "" in the pool
        ("tokens", pa.int32()),
        ("loss_tokens", pa.int32()),
        ("truncated", pa.bool_()),
        ("cut_by_template", pa.bool_()),  # the template leaves out or rewrites a part of an answer, or the tools
        ("weight", pa.float32()),  # that the entry's file of weights gives the row, else 1
        ("record", pa.binary()),  # the bytes as they were read
        ("input_ids", _TOKENS),
        ("loss_spans", _TOKENS),  # flat (start, stop) pairs of the trained tokens
    ]
)
# In a file of its own, so that nobody reads the rows for it.
MARKS = pa.schema([("hash", pa.int64()), ("size", pa.int64()), ("line", pa.int64()), ("given", pa.bool_())])

LEFT_OUT = "weight"  # the stage of rows whose weight is 0: they are counted, and not bad

Row = tuple[int, bytes | BadRow]  # a line's number, and its bytes or why there are none


class Encoder(Protocol):
    """What a catalogue needs of chat.ChatEncoder."""

    def encode_many(self, records: list[Record]) -> list[Encoded | BadRow]: ...


class LeftOut(BadRow):
    """A row whose weight is 0."""


class Marks(NamedTuple):
    """What is asked of the rows of a draft when they are numbered; `line_R` ascends."""

    hash_R: np.ndarray  # of the id, int64
    size_R: np.ndarray  # bytes of record and tokens, int64
    line_R: np.ndarray  # int64
    given_R: np.ndarray  # whether the record gives the id, bool


@dataclass(frozen=True)
class Draft:
    """The usable rows of a stretch of a file, and the bad ones as they stand in receipts.

    `rows()` is a table of SCHEMA without row numbers; a row that gives no id has the one of its content's first
    occurrence. Of it the rows from `offset` on count.
    """

    marks: Marks
    bad: list[dict[str, Any]]
    rows: Callable[[], pa.Table]
    offset: int = 0
    file: str = ""  # of the rows, and its sha256, where the draft is committed
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.marks.line_R)

    @classmethod
    def empty(cls) -> Draft:
        """Return a draft of no rows."""
        nothing = np.zeros(0, np.int64)
        return cls(Marks(nothing, nothing, nothing, nothing.astype(bool)), [], SCHEMA.empty_table)

    def tokens(self) -> int:
        """Return how many tokens the rows have."""
        return int(self.rows()["tokens"].to_numpy().sum(dtype=np.int64))

    def ids(self) -> list[str]:
        return self.rows()["id"].slice(self.offset).to_pylist()

    def from_line(self, line: int) -> Draft:
        """Return the draft without what stands before a line."""
        first = int(np.searchsorted(self.marks.line_R, line))
        marks = Marks(*(array_R[first:] for array_R in self.marks))
        bad = [found for found in self.bad if found["line"] >= line]
        return replace(self, marks=marks, bad=bad, offset=self.offset + first)


def drafts(rows: Iterable[Row], file: DataFile, group: str, encoder: Encoder) -> Iterator[Draft]:
    """Yield a draft for each block of rows of a file, in order. `group` is the rows' task, "" in the pool."""
    for block in stretches(rows, BLOCK_ROWS, BLOCK_BYTES):
        yield _draft(block, file, group, encoder)


def stretches(rows: Iterable[Row], count: int, size: int) -> Iterator[list[Row]]:
    """Yield the rows in lists, each closed when it holds `count` rows or `size` bytes."""
    found: list[Row] = []
    total = 0
    for number, raw in rows:
        found.append((number, raw))
        total += len(raw) if isinstance(raw, bytes) else 0
        if len(found) >= count or total >= size:
            yield found
            found, total = [], 0
    if found:
        yield found


def merged(found: Sequence[Draft]) -> Draft:
    """Return consecutive drafts of a file, one or more, that are in memory, as one."""
    marks = Marks(*map(np.concatenate, zip(*(draft.marks for draft in found), strict=True)))
    table = pa.concat_tables([draft.rows() for draft in found]).combine_chunks()
    return Draft(marks, [bad for draft in found for bad in draft.bad], lambda: table)


def commit_draft(store: ShardStore, key: str, draft: Draft, details: dict[str, Any]) -> Receipt:
    """Commit a draft under `key` and return its receipt, to whose details its bad rows are added."""
    store.commit(_rows_key(key), draft.rows() if len(draft) else None, {})
    marks = pa.Table.from_arrays(list(map(pa.array, draft.marks)), schema=MARKS) if len(draft) else None
    return store.commit(key, marks, {**details, "bad": draft.bad})


def whole_draft(store: ShardStore, key: str) -> Receipt | None:
    """Return the receipt of a draft whose files are as they were committed; else forget it."""
    receipt = store.receipt(key)
    if receipt is None:
        return None
    files = [store.valid_receipt(key), store.valid_receipt(_rows_key(key))]
    if all(found is not None for found in files):
        return receipt
    store.forget(key)
    return None


def open_draft(store: ShardStore, receipt: Receipt) -> Draft:
    """Return the committed draft of a receipt. Raises DamagedArtifact where a file of it is gone."""
    body = store.receipt(_rows_key(receipt.key))
    if body is None:
        raise DamagedArtifact(f"{store.folder}: rows of a draft are gone; run again to make them again")
    path = store.folder / receipt.file
    marks = checked_table(path, receipt.sha256) if receipt.file else MARKS.empty_table()
    rows = partial(mapped, store.folder / body.file) if body.file else SCHEMA.empty_table
    arrays = Marks(*(marks[name].to_numpy() for name in MARKS.names))
    return Draft(arrays, list(receipt.details["bad"]), rows, file=body.file, sha256=body.sha256)


def _rows_key(key: str) -> str:
    return fingerprint([key, "rows"])


@functools.lru_cache(MAPPED)
def mapped(path: Path) -> pa.Table:
    """Return a committed table; the last MAPPED stay mapped."""
    return map_table(path)


def _draft(block: Sequence[Row], file: DataFile, group: str, encoder: Encoder) -> Draft:
    bad: list[dict[str, Any]] = []
    lines: list[int] = []
    raws: list[bytes] = []
    records: list[Record] = []
    encodings: list[Encoded] = []
    weights = file.reading.weights_by_id()
    parsed = [(line, raw, _parsed(raw, file, weights)) for line, raw in block]
    encoded = iter(encoder.encode_many([found for _, _, found in parsed if isinstance(found, Record)]))
    for line, raw, found in parsed:
        if isinstance(found, BadRow):
            stage = LEFT_OUT if isinstance(found, LeftOut) else "read"
            bad.append({"line": line, "id": found.id, "stage": stage, "reason": found.reason})
            continue
        outcome = next(encoded)
        if isinstance(outcome, BadRow):
            bad.append({"line": line, "id": found.id, "stage": "encode", "reason": outcome.reason})
            continue
        assert isinstance(raw, bytes)
        lines.append(line)
        raws.append(raw)
        records.append(found)
        encodings.append(outcome)
    ids = [content_name(record) if record.id is None else file.reading.scoped(record.id) for record in records]
    columns: dict[str, Any] = {
        "row": [0] * len(lines),
        "id": ids,
        "file": [file.name] * len(lines),
        "line": lines,
        "source": [record.source for record in records],
        "group": [group] * len(lines),
        "tokens": [len(found.input_ids) for found in encodings],
        "loss_tokens": [found.loss_tokens for found in encodings],
        "truncated": [found.truncated for found in encodings],
        "cut_by_template": [found.cut_by_template for found in encodings],
        "weight": [1.0 if weights is None else weights.get(_own_id(record), 1.0) for record in records],
        "record": raws,
        "input_ids": _list_array([found.input_ids for found in encodings]),
        "loss_spans": _list_array([found.loss_spans for found in encodings]),
    }
    table = pa.Table.from_arrays(
        [
            column if isinstance(column, pa.Array) else pa.array(column, SCHEMA.field(name).type)
            for name, column in columns.items()
        ],
        schema=SCHEMA,
    )
    marks = Marks(
        id_hashes(ids),
        np.array([len(raw) + found.input_ids.nbytes for raw, found in zip(raws, encodings, strict=True)], np.int64),
        np.array(lines, np.int64),
        np.array([record.id is not None for record in records], bool),
    )
    return Draft(marks, bad, lambda: table)


def _parsed(raw: bytes | BadRow, file: DataFile, weights: Weights | None) -> Record | BadRow:
    if isinstance(raw, BadRow):
        return raw
    try:
        record = file.reading.parse(raw, file.stem)
    except BadRow as bad:
        return bad
    if weights is not None and weights.get(_own_id(record), 1.0) == 0:
        return LeftOut("")
    return record


def _own_id(record: Record) -> str:
    return content_name(record) if record.id is None else record.id


def _list_array(rows: list[np.ndarray]) -> pa.ListArray:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    values = np.concatenate(rows).astype(np.int32, copy=False) if rows else np.zeros(0, np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
