"""Drafts in the order of the files -> row numbers, ids, and what goes into which part of the catalogue.

All that follows from rows before is decided here, by the marks of the rows; texts of ids are looked at only where one
may have been used before.

Shape suffixes: R rows of a draft, K of them that are kept, E rows kept or bad.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influray.data.drafts import SCHEMA, Draft, DraftRows
from influray.data.identity import IdIndex, id_hashes
from influray.store.artifact import Receipt, checked_table

PART_ROWS = 8192  # rows read, the bad ones too: they are kept in the part's receipt
PART_BYTES = 64 * 2**20  # of record bytes and tokens

Limits = Mapping[str, int]  # what is counted, over all files that it names: a task, an entry -> most usable rows

LINES = 2**40  # more than a file has: a place is the number of a file times this, and a line


@dataclass(frozen=True)
class Piece:
    """What of a draft goes into a part: the rows at the positions `kept`; `names` are ids in the place of the draft's,
    by position."""

    rows: pa.Table | DraftRows
    kept: np.ndarray
    names: Mapping[int, str] = field(default_factory=dict)

    def table(self, folder: Path) -> pa.Table:
        """Return the rows. `folder` is that of committed drafts."""
        table = (self.rows.table(folder) if isinstance(self.rows, DraftRows) else self.rows).take(self.kept)
        if not self.names:
            return table
        ids = [self.names.get(at, its) for at, its in zip(self.kept.tolist(), table["id"].to_pylist(), strict=True)]
        return table.set_column(SCHEMA.get_field_index("id"), SCHEMA.field("id"), [pa.array(ids, pa.string())])


@dataclass
class Part:
    """The rows of one part: what to make it of. A part is full when it has read enough rows or bytes."""

    first_row: int
    next_line: int  # of the file, after the last row read
    read: int = 0
    size: int = 0
    pieces: list[Piece] = field(default_factory=list)
    bad: list[dict[str, Any]] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return self.read >= PART_ROWS or self.size >= PART_BYTES

    def details(self, last: bool) -> dict[str, Any]:
        """Return what its receipt says; `last` of its file."""
        return {"read": self.read, "bad": self.bad, "next_line": self.next_line, "last": last}


def part_table(folder: Path, part: Part) -> pa.Table | None:
    """Return the numbered rows of a part, None where there are none. `folder` is that of committed drafts."""
    # With one chunk more there is always something to combine: a slice alone would stay one, written in other bytes.
    whole = pa.concat_tables([*(piece.table(folder) for piece in part.pieces), SCHEMA.empty_table()]).combine_chunks()
    if not len(whole):
        return None
    numbers = pa.array(np.arange(part.first_row, part.first_row + len(whole), dtype=np.int64))
    return whole.set_column(SCHEMA.get_field_index("row"), SCHEMA.field("row"), [numbers])


class Numbering:
    """Numbers the rows of one split, file by file."""

    def __init__(self, drafts: Path) -> None:
        self._drafts = drafts  # folder of those that are committed
        self._index = IdIndex()
        self._files: list[str] = []
        self._usable: dict[str, int] = {}  # what is counted -> rows
        self._rows = 0
        self._part = Part(0, 1)
        self._room: int | None = None
        self._counted: tuple[str, ...] = ()

    def take(self, folder: Path, name: str, receipt: Receipt, limits: Limits) -> None:
        """Take in a part of the file `name` that is committed, ids and all; `limits` are those of the file."""
        if receipt.file:
            table = checked_table(folder / receipt.file, receipt.sha256)
            self._index.load(id_hashes(table["id"].to_pylist()), self._places(name, table["line"].to_numpy()))
        self._rows += receipt.rows
        for counted in limits:
            self._usable[counted] = self._usable.get(counted, 0) + receipt.rows

    def begin(self, name: str, line: int, limits: Limits) -> None:
        """Begin a file, or go on with it at a line."""
        self._places(name, np.zeros(0))
        self._counted = tuple(limits)
        rooms = [max(0, limit - self._usable.get(counted, 0)) for counted, limit in limits.items()]
        self._room = min(rooms, default=None)
        self._part = Part(self._rows, line)

    @property
    def satisfied(self) -> bool:
        """Whether there are as many rows as a limit of the file allows, so that no more are to be read."""
        return self._room == 0

    def feed(self, draft: Draft) -> Iterator[Part]:
        """Number the next rows of the file and yield each part that they fill."""
        kept_K, names, repeated = self._identify(draft)
        for name in self._counted:
            self._usable[name] = self._usable.get(name, 0) + len(kept_K)
        if self._room is not None:
            self._room -= len(kept_K)
        bad = draft.bad
        if self.satisfied:  # what comes after the last row that is wanted was never read
            stop = draft.marks["line"][int(kept_K[-1])].as_py() if len(kept_K) else 0
            bad = [found for found in bad if found["line"] < stop]
        yield from self._fill(Piece(draft.rows, kept_K, names), draft.marks, bad + repeated)

    def end(self) -> Part:
        """Return the last part of the file, with what is left of it, which may be nothing."""
        return self._part

    def _places(self, name: str, line_R: np.ndarray) -> np.ndarray:
        if self._files[-1:] != [name]:
            self._files.append(name)
        return (len(self._files) - 1) * LINES + line_R.astype(np.int64)

    def _identify(self, draft: Draft) -> tuple[np.ndarray, dict[int, str], list[dict[str, Any]]]:
        """Return the positions of the rows that are kept, ids in the place of theirs, and rows that repeat an id."""
        index, name = self._index, self._files[-1]
        hash_R2 = np.stack([draft.marks[half].to_numpy() for half in ("hash", "check")], axis=1)
        place_R = self._places(name, draft.marks["line"].to_numpy())
        seen_R = index.seen(hash_R2)
        if not seen_R.any() and len(np.unique(hash_R2[:, 0])) == len(draft):
            kept_K = np.arange(len(draft))[: self._room]
            index.load(hash_R2[kept_K], place_R[kept_K])
            return kept_K, {}, []
        names: dict[int, str] = {}
        repeated: list[dict[str, Any]] = []
        kept: list[int] = []
        table = draft.rows.table(self._drafts) if isinstance(draft.rows, DraftRows) else draft.rows
        columns = table["id"], draft.marks["given"], pa.array(seen_R), pa.array(place_R)
        rows = zip(*(column.to_pylist() for column in columns), map(tuple, hash_R2.tolist()), strict=True)
        for at, (identity, given, seen, place, hashed) in enumerate(rows):
            if len(kept) == self._room:
                break
            first = index.find(hashed) if seen else index.recent.get(hashed)
            if first is not None and given:
                repeated.append(self._repeated(identity, place, first))
                continue
            if first is not None:
                names[at] = index.name_for(identity)
                hashed = tuple(id_hashes([names[at]])[0].tolist())
            index.recent[hashed] = place
            kept.append(at)
        index.settle()
        return np.array(kept, np.int64), names, repeated

    def _repeated(self, identity: str, place: int, first: int) -> dict[str, Any]:
        name, file = self._files[-1], self._files[first // LINES]
        reason = f"the id was used before, at {file}:{first % LINES}"
        if file != name:
            reason += f"; if each file has its own, name them as {{files: [{name}], ids: scoped}}"
        return {"line": place % LINES, "id": identity, "stage": "read", "reason": reason}

    def _fill(self, whole: Piece, marks: pa.Table, bad: list[dict[str, Any]]) -> Iterator[Part]:
        bad = sorted(bad, key=lambda found: found["line"])
        bad_lines = np.array([found["line"] for found in bad], np.int64)
        line_E = np.concatenate([marks["line"].to_numpy()[whole.kept], bad_lines])
        order_E = np.argsort(line_E, kind="stable")
        size_E = np.concatenate([marks["size"].to_numpy()[whole.kept], np.zeros(len(bad), np.int64)])[order_E]
        kept_E = np.concatenate([[0], np.cumsum(order_E < len(whole.kept))])  # usable rows among those before each
        total_E = np.concatenate([[0], np.cumsum(size_E)])
        begin, count = 0, len(order_E)
        while begin < count:
            part = self._part
            by_size = int(np.searchsorted(total_E, total_E[begin] + PART_BYTES - part.size))
            stop = min(count, begin + PART_ROWS - part.read, by_size)
            first, last = int(kept_E[begin]), int(kept_E[stop])
            if last > first:
                part.pieces.append(Piece(whole.rows, whole.kept[first:last], whole.names))
            self._rows += last - first
            part.bad += bad[begin - first : stop - last]
            part.read += stop - begin
            part.size += int(total_E[stop] - total_E[begin])
            part.next_line = int(line_E[order_E[stop - 1]]) + 1
            if part.full and not (self.satisfied and stop == count):  # else it is the last one, full or not
                yield part
                self._part = Part(self._rows, part.next_line)
            begin = stop
