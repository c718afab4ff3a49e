"""Drafts in the order of the files -> row numbers, ids, and what goes into which part of the catalogue.

All that follows from rows before is decided here, of 17 bytes a row; texts are looked at only where two ids have one
hash, which nearly always means that an id was used before.

Shape suffixes: R rows of a draft, E rows read of a draft, the bad ones too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influray.data.drafts import SCHEMA, Draft, mapped
from influray.data.identity import IdIndex, id_hashes
from influray.store.artifact import Receipt, map_table

PART_ROWS = 8192  # rows read, the bad ones too: they are kept in the part's receipt
PART_BYTES = 64 * 2**20  # of record bytes and tokens

Limits = Mapping[str, int]  # what is counted, over all files that it names: a task, an entry -> most usable rows


@dataclass(frozen=True)
class Piece:
    """What of a draft goes into a part: the rows [start, stop) of `draft.rows()` without those of `dropped`.

    `names` are ids in the place of the draft's, by row.
    """

    draft: Draft
    start: int
    stop: int
    dropped: tuple[int, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.stop - self.start - len(self.dropped)

    def positions(self) -> np.ndarray:
        """Return which rows of the draft these are, int64, ascending."""
        every = np.arange(self.start, self.stop)
        return np.delete(every, np.array(self.dropped, np.int64) - self.start)


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


def part_table(first_row: int, pieces: Sequence[tuple[pa.Table, Sequence[int], Mapping[int, str]]]) -> pa.Table | None:
    """Return the rows of a part, numbered from `first_row`; None where there are none.

    A piece is rows of a draft, which of them to leave out, and ids in the place of theirs, both by position.
    """
    tables = []
    for table, dropped, names in pieces:
        if names:
            ids = table["id"].to_pylist()
            for at, name in names.items():
                ids[at] = name
            table = table.set_column(SCHEMA.get_field_index("id"), SCHEMA.field("id"), [pa.array(ids, pa.string())])
        # What lies between, and not `take`, whose result is laid out otherwise.
        starts, stops = (0, *(at + 1 for at in dropped)), (*dropped, len(table))
        tables += [table.slice(start, stop - start) for start, stop in zip(starts, stops, strict=True)]
    # With one chunk more there is always something to combine: a slice alone would stay one, written in other bytes.
    whole = pa.concat_tables([*tables, SCHEMA.empty_table()]).combine_chunks()
    if not len(whole):
        return None
    numbers = pa.array(np.arange(first_row, first_row + len(whole), dtype=np.int64))
    return whole.set_column(SCHEMA.get_field_index("row"), SCHEMA.field("row"), [numbers])


class NumberedRows:
    """All rows so far, for the little that is asked of one: those of committed parts, then those only numbered."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._paths: list[Path] = []
        self._committed = 0
        self._pending: list[tuple[int, Piece]] = []
        self.count = 0

    def add(self, piece: Piece) -> None:
        """Number the rows of a piece."""
        if len(piece):
            self._pending.append((self.count, piece))
            self.count += len(piece)

    def commit(self, path: Path, rows: int) -> None:
        """Take in the next part; the drafts whose rows it and those before it hold are let go."""
        if not rows:
            return
        self._starts.append(self._committed)
        self._paths.append(path)
        self._committed += rows
        self.count = max(self.count, self._committed)
        done = 0
        while done < len(self._pending) and sum(_bounds(self._pending[done])) <= self._committed:
            done += 1
        del self._pending[:done]

    def cell(self, row: int, column: str) -> Any:
        if row < self._committed:
            at = bisect_right(self._starts, row) - 1
            return mapped(self._paths[at])[column][row - self._starts[at]].as_py()
        start, piece = self._pending[bisect_right(self._pending, row, key=lambda found: found[0]) - 1]
        position = int(piece.positions()[row - start])
        if column == "id" and position in piece.names:
            return piece.names[position]
        return piece.draft.rows()[column][position].as_py()


def _bounds(found: tuple[int, Piece]) -> tuple[int, int]:
    return found[0], len(found[1])


class Numbering:
    """Numbers the rows of one split, file by file."""

    def __init__(self) -> None:
        self.rows = NumberedRows()
        self._index = IdIndex(lambda row: self.rows.cell(row, "id"))
        self._usable: dict[str, int] = {}  # what is counted -> rows
        self._part = Part(0, 1)
        self._name, self._room = "", None
        self._counted: tuple[str, ...] = ()

    def take(self, folder: Path, receipt: Receipt, limits: Limits) -> None:
        """Take in a part that is committed, ids and all; `limits` are those of its file."""
        first = self.rows.count
        if receipt.file:
            self._index.load(id_hashes(map_table(folder / receipt.file)["id"].to_pylist()), first)
        self.rows.commit(folder / receipt.file, receipt.rows)
        for name in limits:
            self._usable[name] = self._usable.get(name, 0) + receipt.rows

    def begin(self, name: str, line: int, limits: Limits) -> None:
        """Begin a file, or go on with it at a line."""
        self._name, self._counted = name, tuple(limits)
        rooms = [max(0, limit - self._usable.get(counted, 0)) for counted, limit in limits.items()]
        self._room = min(rooms, default=None)
        self._part = Part(self.rows.count, line)

    @property
    def satisfied(self) -> bool:
        """Whether there are as many rows as a limit of the file allows, so that no more are to be read."""
        return self._room == 0

    def feed(self, draft: Draft) -> Iterator[Part]:
        """Number the next rows of the file and yield each part that they fill."""
        first_row = self.rows.count
        dropped, names, repeated, used = self._identify(draft, first_row)
        whole = Piece(draft, draft.offset, draft.offset + used, tuple(dropped), names)
        self.rows.add(whole)
        for name in self._counted:
            self._usable[name] = self._usable.get(name, 0) + len(whole)
        if self._room is not None:
            self._room -= len(whole)
        bad = draft.bad
        if self.satisfied:  # what comes after the last row that is wanted was never read
            stop = int(draft.marks.line_R[used - 1]) if used else 0
            bad = [found for found in bad if found["line"] < stop]
        yield from self._fill(whole, sorted((*bad, *repeated), key=lambda found: found["line"]))

    def end(self) -> Part:
        """Return the last part of the file, with what is left of it, be it nothing."""
        return self._part

    def _identify(self, draft: Draft, first_row: int) -> tuple[list[int], dict[int, str], list[dict[str, Any]], int]:
        """Return (rows left out, names, bad rows, how many rows were looked at); the first two by place in `rows()`."""
        hash_R, line_R = draft.marks.hash_R, draft.marks.line_R
        seen_R = self._index.seen(hash_R)
        if not seen_R.any() and len(np.unique(hash_R)) == len(draft):
            used = len(draft) if self._room is None else min(len(draft), self._room)
            self._index.load(hash_R[:used], first_row)
            return [], {}, [], used
        dropped: list[int] = []
        names: dict[int, str] = {}
        repeated: list[dict[str, Any]] = []
        kept: list[int] = []
        used = len(draft)
        rows = zip(draft.ids(), draft.marks.given_R.tolist(), seen_R.tolist(), strict=True)
        for at, (identity, given, seen) in enumerate(rows):
            if len(kept) == self._room:
                used = kept[-1] + 1 if kept else 0
                break
            first = self._index.find(identity) if seen else self._index.find_recent(identity)
            if first is not None and given:
                here = (self._name, line_R[kept[first - first_row]]) if first >= first_row else None
                file, line = here or (self.rows.cell(first, name) for name in ("file", "line"))
                reason = f"the id was used before, at {file}:{line}"
                if file != self._name:
                    reason += f"; if each file has its own, name them as {{files: [{self._name}], ids: scoped}}"
                repeated.append({"line": int(line_R[at]), "id": identity, "stage": "read", "reason": reason})
                dropped.append(draft.offset + at)
                continue
            if first is not None:
                identity = names[draft.offset + at] = self._index.name_for(identity)
            self._index.add(identity, first_row + len(kept))
            kept.append(at)
        self._index.settle()
        return dropped, names, repeated, used

    def _fill(self, whole: Piece, bad: list[dict[str, Any]]) -> Iterator[Part]:
        draft, positions = whole.draft, whole.positions()
        kept = positions - draft.offset
        line_E = np.concatenate([draft.marks.line_R[kept], np.array([found["line"] for found in bad], np.int64)])
        order_E = np.argsort(line_E, kind="stable")
        size_E = np.concatenate([draft.marks.size_R[kept], np.zeros(len(bad), np.int64)])[order_E]
        kept_E = np.concatenate([[0], np.cumsum(order_E < len(kept))])  # usable rows among those before each
        total_E = np.concatenate([[0], np.cumsum(size_E)])
        begin, count = 0, len(order_E)
        while begin < count:
            part = self._part
            by_size = int(np.searchsorted(total_E, total_E[begin] + PART_BYTES - part.size))
            stop = min(count, begin + PART_ROWS - part.read, by_size)
            first, last = int(kept_E[begin]), int(kept_E[stop])
            if last > first:
                part.pieces.append(_cut(whole, int(positions[first]), int(positions[last - 1]) + 1))
            part.bad += bad[begin - first : stop - last]
            part.read += stop - begin
            part.size += int(total_E[stop] - total_E[begin])
            part.next_line = int(line_E[order_E[stop - 1]]) + 1
            if part.full and not (self.satisfied and stop == count):  # else it is the last one, full or not
                yield part
                self._part = Part(part.first_row + sum(map(len, part.pieces)), part.next_line)
            begin = stop


def _cut(whole: Piece, start: int, stop: int) -> Piece:
    dropped = tuple(at for at in whole.dropped if start <= at < stop)
    names = {at: name for at, name in whole.names.items() if start <= at < stop}
    return Piece(whole.draft, start, stop, dropped, names)
