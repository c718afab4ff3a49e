"""Rows read, parsed and encoded: the work on a row that needs nothing of the rows before it, so that anyone can do it.

A draft holds the usable rows of a stretch of one file as the catalogue will hold them. Their numbers, and which ids
were used before, follow from all drafts before it: numbering.py sees to that.

Shape suffixes: R rows of a draft.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from influray.store.artifact import Receipt, ShardStore, checked_table, fingerprint

# What is encoded at once. An encoding takes some 100 bytes a token, and a byte can be a token.
BLOCK_ROWS, BLOCK_BYTES = 256, 2**19

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
# What is asked of a row when it is numbered. In a file of its own, so that nobody reads the rows for it.
MARKS = pa.schema(
    [
        ("hash", pa.int64()),  # both halves of that of the id
        ("check", pa.int64()),
        ("size", pa.int64()),  # bytes of record and tokens
        ("line", pa.int64()),  # ascends
        ("given", pa.bool_()),  # whether the record gives the id
    ]
)

LEFT_OUT = "weight"  # the stage of rows whose weight is 0: they are counted, and not bad

Row = tuple[int, bytes | BadRow]  # a line's number, and its bytes or why there are none


class Encoder(Protocol):
    """What a catalogue needs of chat.ChatEncoder."""

    def encode_many(self, records: list[Record]) -> list[Encoded | BadRow]: ...


class LeftOut(BadRow):
    """A row whose weight is 0."""


class DraftRows(NamedTuple):
    """The committed rows of a draft: a file of the store of drafts, "" where there are none."""

    file: str
    sha256: str

    def table(self, folder: Path) -> pa.Table:
        """Return the rows. Raises DamagedArtifact."""
        return checked_table(folder / self.file, self.sha256) if self.file else SCHEMA.empty_table()


@dataclass(frozen=True)
class Draft:
    """The usable rows of a stretch of a file with their marks, and the bad ones as they stand in receipts.

    The rows are a table of SCHEMA without row numbers, or where it is committed; a row that gives no id has the one of
    its content's first occurrence.
    """

    marks: pa.Table
    bad: list[dict[str, Any]]
    rows: pa.Table | DraftRows

    def __len__(self) -> int:
        return len(self.marks)


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


def commit_draft(store: ShardStore, key: str, found: Iterable[Draft]) -> Receipt:
    """Commit consecutive drafts of a file as one under `key`, and return its receipt."""
    every = list(found)
    marks = pa.concat_tables([draft.marks for draft in every]).combine_chunks()
    rows = pa.concat_tables([draft.rows for draft in every]).combine_chunks()  # pyright: ignore[reportArgumentType]
    tokens = int(rows["tokens"].to_numpy().sum(dtype=np.int64))
    bad = [bad for draft in every for bad in draft.bad]
    store.commit(_rows_key(key), rows if len(rows) else None, {})
    return store.commit(key, marks if len(rows) else None, {"rows": len(rows), "tokens": tokens, "bad": bad})


def whole_draft(store: ShardStore, key: str) -> Receipt | None:
    """Return the receipt of a draft whose files are as they were committed; else forget it."""
    receipt = store.receipt(key)
    if receipt is not None and None in (store.valid_receipt(key), store.valid_receipt(_rows_key(key))):
        store.forget(key)
        return None
    return receipt


def open_draft(store: ShardStore, key: str) -> Draft:
    """Return a committed draft. Raises DamagedArtifact where a file of it is gone."""
    receipt, body = store.receipt(key), store.receipt(_rows_key(key))
    if receipt is None or body is None:
        raise DamagedArtifact(f"{store.folder}: rows of a draft are gone; run again to make them again")
    marks = checked_table(store.folder / receipt.file, receipt.sha256) if receipt.file else MARKS.empty_table()
    return Draft(marks, list(receipt.details["bad"]), DraftRows(body.file, body.sha256))


def _rows_key(key: str) -> str:
    return fingerprint([key, "rows"])


def _draft(block: Sequence[Row], file: DataFile, group: str, encoder: Encoder) -> Draft:
    weights = file.reading.weights_by_id()
    parsed = [_parsed(raw, file, weights) for _, raw in block]
    encoded = iter(encoder.encode_many([found for found in parsed if isinstance(found, Record)]))
    bad: list[dict[str, Any]] = []
    usable: list[tuple[int, bytes, Record, Encoded]] = []
    for (line, raw), found in zip(block, parsed, strict=True):
        outcome = next(encoded) if isinstance(found, Record) else found
        if isinstance(outcome, Encoded):
            usable.append((line, raw, found, outcome))  # pyright: ignore[reportArgumentType]
            continue
        stage = LEFT_OUT if isinstance(found, LeftOut) else "encode" if isinstance(found, Record) else "read"
        bad.append({"line": line, "id": found.id, "stage": stage, "reason": outcome.reason})
    lines, raws, records, encodings = map(list, zip(*usable, strict=True)) if usable else ([], [], [], [])
    ids = [content_name(record) if record.id is None else file.reading.scoped(record.id) for record in records]
    rows = {
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
        "input_ids": [found.input_ids for found in encodings],
        "loss_spans": [found.loss_spans for found in encodings],
    }
    hash_R2 = id_hashes(ids)
    marks = {
        "hash": hash_R2[:, 0],
        "check": hash_R2[:, 1],
        "size": [len(raw) + found.input_ids.nbytes for raw, found in zip(raws, encodings, strict=True)],
        "line": lines,
        "given": [record.id is not None for record in records],
    }
    return Draft(pa.Table.from_pydict(marks, MARKS), bad, pa.Table.from_pydict(rows, SCHEMA))


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
