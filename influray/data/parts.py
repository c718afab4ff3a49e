"""One data file -> the parts of a catalogue: rows read, parsed, encoded, named, and committed in bounded pieces.

A part is closed by the number of rows read or by its bytes, so a file of any size is built in the same memory, and
an interrupted build goes on after its last whole part.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from influray.config import DataConfig
from influray.data.chat import Encoded
from influray.data.identity import IdIndex
from influray.data.readers import DataFile, read_rows
from influray.data.records import BadRow, Record, parse_record
from influray.protocols import DataError
from influray.store.artifact import Receipt, ShardStore, fingerprint, map_table

log = logging.getLogger(__name__)

PART_ROWS = 8192  # rows read, the bad ones too: they are kept in the part's receipt
PART_BYTES = 64 * 2**20  # of record bytes and tokens
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
        ("record", pa.binary()),  # the bytes as they were read
        ("input_ids", _TOKENS),
        ("loss_spans", _TOKENS),  # flat (start, stop) pairs of the trained tokens
    ]
)


class Encoder(Protocol):
    """What a catalogue needs of chat.ChatEncoder."""

    def encode_many(self, records: list[Record]) -> list[Encoded | BadRow]: ...


@dataclass(frozen=True)
class FileJob:
    """A file to be catalogued. `key` names its content, its settings and all files before it."""

    file: DataFile
    group: str
    digest: str
    key: str
    limit: int | None  # usable rows of the group, over all its files

    def part_key(self, number: int) -> str:
        return fingerprint({"file": self.key, "part": number})


@dataclass
class Part:
    """The rows of one part while it is made."""

    first_row: int
    read: int = 0
    size: int = 0
    columns: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in SCHEMA.names})
    bad: list[dict[str, Any]] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return self.read >= PART_ROWS or self.size >= PART_BYTES

    @property
    def next_row(self) -> int:
        return self.first_row + len(self.columns["row"])

    def add(self, line: int, raw: bytes, identity: str, job: FileJob, source: str, encoded: Encoded) -> None:
        values = {
            "row": self.next_row,
            "id": identity,
            "file": job.file.name,
            "line": line,
            "source": source,
            "group": job.group,
            "tokens": len(encoded.input_ids),
            "loss_tokens": encoded.loss_tokens,
            "truncated": encoded.truncated,
            "record": raw,
            "input_ids": encoded.input_ids,
            "loss_spans": encoded.loss_spans,
        }
        for name, value in values.items():
            self.columns[name].append(value)
        self.size += len(raw) + encoded.input_ids.nbytes

    def table(self) -> pa.Table | None:
        """Return the rows as a table, None where there are none."""
        if not self.columns["row"]:
            return None
        arrays = [
            _list_array(self.columns[name]) if kind == _TOKENS else pa.array(self.columns[name], kind)
            for name, kind in zip(SCHEMA.names, SCHEMA.types, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _list_array(rows: list[np.ndarray]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(rows).astype(np.int32, copy=False)))


class CommittedRows:
    """The parts that are done, for the little that a build asks them: a cell of one row."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._tables: list[pa.Table] = []
        self.rows = 0

    def append(self, folder: Path, receipt: Receipt) -> pa.Table | None:
        if not receipt.file:
            return None
        table = map_table(folder / receipt.file)
        self._starts.append(self.rows)
        self._tables.append(table)
        self.rows += table.num_rows
        return table

    def cell(self, row: int, column: str) -> Any:
        at = bisect_right(self._starts, row) - 1
        return self._tables[at][column][row - self._starts[at]].as_py()


class PartsBuilder:
    """Builds the files of one split, in order."""

    def __init__(self, store: ShardStore, encoder: Encoder, config: DataConfig) -> None:
        self._store = store
        self._encoder = encoder
        self._config = config
        self._done = CommittedRows()
        self._index = IdIndex(lambda row: self._done.cell(row, "id"))
        self._usable: dict[str, int] = {}  # group -> rows

    def keep(self, job: FileJob, keys: list[str]) -> None:
        """Take the parts of a file that is as it was; its rows and ids are not given again."""
        for key in keys:
            receipt = self._store.receipt(key)
            assert receipt is not None, f"{job.file.name}: part {key} lost its receipt"
            self._take(job, receipt)

    def build(self, job: FileJob) -> list[str]:
        """Commit the parts of a file and return their keys; parts that an interrupted build left are kept."""
        keys: list[str] = []
        line = 1
        while (receipt := self._store.valid_receipt(job.part_key(len(keys)))) is not None:
            keys.append(receipt.key)
            self._take(job, receipt)
            line = receipt.details["next_line"]
            if receipt.details["last"]:
                return keys
        part = Part(self._done.rows)
        room = None if job.limit is None else job.limit - self._usable.get(job.group, 0)
        if room is None or room > 0:
            for number, raw, outcome in self._outcomes(job, line):
                line = number + 1
                self._place(part, job, number, raw, outcome)
                if room is not None and part.next_row - part.first_row >= room:
                    break
                if part.full:
                    keys.append(self._commit(job, part, len(keys), line, last=False))
                    room = None if room is None else room - (part.next_row - part.first_row)
                    part = Part(self._done.rows)
        keys.append(self._commit(job, part, len(keys), line, last=True))
        return keys

    def _outcomes(
        self, job: FileJob, line: int
    ) -> Iterator[tuple[int, bytes, tuple[Record, Encoded | BadRow] | BadRow]]:
        for block in self._blocks(job, line):
            parsed = [raw if isinstance(raw, BadRow) else _parsed(raw, job.file.stem) for _, raw in block]
            records = [record for record in parsed if isinstance(record, Record)]
            try:
                encoded = iter(self._encoder.encode_many(records))
            except DataError as error:
                raise DataError(f"{job.file.path}: lines {block[0][0]} to {block[-1][0]}: {error}") from error
            for (number, raw), record in zip(block, parsed, strict=True):
                outcome = (record, next(encoded)) if isinstance(record, Record) else record
                yield number, raw if isinstance(raw, bytes) else b"", outcome

    def _blocks(self, job: FileJob, line: int) -> Iterator[list[tuple[int, bytes | BadRow]]]:
        block, size = [], 0
        for number, raw in read_rows(job.file, self._config.max_line_bytes, self._config.max_file_bytes):
            if number < line:
                continue
            block.append((number, raw))
            size += len(raw) if isinstance(raw, bytes) else 0
            if len(block) >= BLOCK_ROWS or size >= BLOCK_BYTES:
                yield block
                block, size = [], 0
        if block:
            yield block

    def _place(
        self, part: Part, job: FileJob, line: int, raw: bytes, outcome: tuple[Record, Encoded | BadRow] | BadRow
    ) -> None:
        part.read += 1
        if isinstance(outcome, BadRow):
            part.bad.append({"line": line, "id": outcome.id, "stage": "read", "reason": outcome.reason})
            return
        record, encoded = outcome
        if isinstance(encoded, BadRow):
            part.bad.append({"line": line, "id": record.id, "stage": "encode", "reason": encoded.reason})
            return
        identity = record.id
        if identity is None:
            identity = self._index.name_for(record.turns)
        elif (first := self._index.find(identity)) is not None:
            reason = f"the id was used before, at {self._where(part, first)}"
            part.bad.append({"line": line, "id": identity, "stage": "read", "reason": reason})
            return
        self._index.add(identity, part.next_row)
        part.add(line, raw, identity, job, record.source, encoded)

    def _where(self, part: Part, row: int) -> str:
        if row >= part.first_row:
            file, line = (part.columns[name][row - part.first_row] for name in ("file", "line"))
        else:
            file, line = (self._done.cell(row, name) for name in ("file", "line"))
        return f"{file}:{line}"

    def _commit(self, job: FileJob, part: Part, number: int, next_line: int, last: bool) -> str:
        details: Mapping[str, Any] = {"read": part.read, "bad": part.bad, "next_line": next_line, "last": last}
        receipt = self._store.commit(job.part_key(number), part.table(), details)
        self._done.append(self._store.folder, receipt)
        self._index.settle()
        self._usable[job.group] = self._usable.get(job.group, 0) + receipt.rows
        log.info("%s: %d rows read, %d usable", job.file.path, part.read, receipt.rows)
        return receipt.key

    def _take(self, job: FileJob, receipt: Receipt) -> None:
        first = self._done.rows
        table = self._done.append(self._store.folder, receipt)
        if table is not None:
            self._index.load(table["id"].to_pylist(), first)
        self._usable[job.group] = self._usable.get(job.group, 0) + receipt.rows


def _parsed(raw: bytes, source: str) -> Record | BadRow:
    try:
        return parse_record(raw, source)
    except BadRow as bad:
        return bad
