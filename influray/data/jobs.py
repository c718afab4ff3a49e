"""The work of a catalogue in pieces that any process can do: drafts of stretches of files, and parts made of drafts.

A file of plain lines is cut into spans. Any other can only be read from its start; since that costs 1 % (gzip, zstd)
to 3 % (Parquet) of encoding it, several processes read the same file, and each drafts every so manieth stretch.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from influray.config import DataConfig
from influray.data.drafts import (
    Draft,
    Encoder,
    Row,
    commit_draft,
    drafts,
    merged,
    open_draft,
    stretches,
    whole_draft,
)
from influray.data.files import DataFile
from influray.data.lines import Span
from influray.data.numbering import part_table
from influray.data.readers import read_rows
from influray.protocols import DataError
from influray.store.artifact import Receipt, ShardStore, checked_table, fingerprint
from influray.store.mirror import local, present

DRAFTS = "drafts"  # folder of a catalogue, while it is made
DRAFT_BYTES = 2**22  # of lines: a second's work, and memory for some hundred bytes a token
DRAFT_ROWS = 2**16


@dataclass(frozen=True)
class DraftJob:
    """Make a draft of a span; without one, all those drafts of a file whose number is `turn` modulo `turns`."""

    key: str  # of the receipt
    split: str
    order: int  # of the file
    file: DataFile
    size: int  # bytes of the file
    address: str  # of the file, on any machine
    group: str
    digest: str  # what names the drafts of the file: its content, settings and the files before
    span: Span | None
    turn: int = 0
    turns: int = 1

    @property
    def place(self) -> tuple[int, int]:
        """Where the first row stands that it may find a fault with: (number of the file, line)."""
        return self.order, 1 if self.span is None else self.span.line

    @property
    def label(self) -> str:
        """What people call it."""
        where = f"part {self.turn + 1} of {self.turns}" if self.span is None else f"from line {self.span.line}"
        return f"{self.file.path}, {where}"


@dataclass(frozen=True)
class PartJob:
    """Make a part: its rows are numbered from `first_row`.

    A piece is (file, its sha256, start, stop, rows left out, ids in the place of the draft's), rows by their place in
    the draft's file.
    """

    key: str
    split: str
    name: str  # of the file, for people
    first_row: int
    pieces: tuple[tuple[str, str, int, int, tuple[int, ...], Mapping[int, str]], ...]
    details: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.split} rows from {self.first_row} on, of {self.name}"


class Unfit(DataError):
    """A process that cannot do the work where it is; another one may."""


class Crew(Protocol):
    """Processes that carry out jobs side by side."""

    workers: int  # how many there are, about

    def __call__(self, jobs: Sequence[DraftJob | PartJob]) -> list[Receipt]:
        """Carry out jobs, in any order, and return the receipts in that of the jobs.

        Raises:
            DataError: the first in the order of the files that the receipts tell of.
            Unfit: a process is.
        """
        ...


class Faults:
    """What jobs find that stops the catalogue: it is raised once no job is left that could find an earlier place."""

    def __init__(self, jobs: Sequence[DraftJob | PartJob]) -> None:
        self._left = {job.key: job.place for job in jobs if isinstance(job, DraftJob)}
        self._found: list[tuple[tuple[int, int], str]] = []

    def note(self, job: DraftJob | PartJob, receipt: Receipt) -> None:
        """Take in the receipt of a job. Raises DataError: the first fault in the order of the files."""
        if not isinstance(job, DraftJob):
            return
        self._left.pop(job.key, None)
        if "error" in receipt.details:
            self._found.append(((job.order, receipt.details["line"]), receipt.details["error"]))
        if self._found:
            place, error = min(self._found)
            if all(other > place for other in self._left.values()):
                raise DataError(error)


def draft_key(digest: str, number: int) -> str:
    """Return the key of a draft of a file that is read from its start."""
    return fingerprint({"file": digest, "draft": number, "size": [DRAFT_BYTES, DRAFT_ROWS]})


def span_key(digest: str, span: Span) -> str:
    """Return the key of the draft of a span."""
    return fingerprint({"file": digest, "span": [span.start, span.stop, span.line]})


def carry_out(folder: str | Path, job: DraftJob | PartJob, encoder: Encoder, config: DataConfig) -> Receipt:
    """Do a job of the catalogue in `folder`, commit what it makes and return the receipt.

    Where a file cannot be catalogued at all, the receipt is not committed and its details are `error`, the message of
    the DataError that is due, and the `line` where it was found: of several, the driver wants the first.

    Raises:
        Unfit: the file is not to be seen from here.
        DamagedArtifact: a draft is not what was committed.
    """
    folder = local(folder)
    if isinstance(job, PartJob):
        return _make_part(folder, job)
    store = ShardStore(folder / DRAFTS)
    committed = _committed(store, job)
    if committed is not None:
        return committed
    rows = _Lines(job, config)
    try:
        if job.span is not None:
            return commit_draft(store, job.key, *_drafted(rows, job, encoder))
        return _make_drafts(store, rows, job, encoder)
    except DataError as error:
        return Receipt(job.key, "", "", 0, 0, {"error": str(error), "line": rows.line})


def _committed(store: ShardStore, job: DraftJob) -> Receipt | None:
    """Return the receipt of a job that is done, its drafts being whole."""
    if job.span is not None:
        return whole_draft(store, job.key)
    receipt = store.receipt(job.key)
    if receipt is None:
        return None
    mine = range(job.turn, receipt.details["drafts"], job.turns)
    if all(whole_draft(store, draft_key(job.digest, number)) is not None for number in mine):
        return receipt
    store.forget(job.key)
    return None


class _Lines:
    """The rows of a job; `line` is the number of the last one read."""

    def __init__(self, job: DraftJob, config: DataConfig) -> None:
        path = present(local(job.address))
        if not path.is_file() or path.stat().st_size != job.size:
            raise Unfit(f"{job.file.path}: {socket.gethostname()} does not see this file, or sees another one")
        file = replace(job.file, path=str(path))
        self._rows = read_rows(file, config.max_line_bytes, config.max_file_bytes, job.span)
        self.line = job.place[1]

    def __iter__(self) -> Iterator[Row]:
        for line, raw in self._rows:
            self.line = line
            yield line, raw


def _drafted(rows: Iterator[Row] | _Lines | list[Row], job: DraftJob, encoder: Encoder) -> tuple[Draft, dict[str, Any]]:
    found = list(drafts(rows, job.file, job.group, encoder))
    draft = merged(found) if found else Draft.empty()
    return draft, {"rows": len(draft), "tokens": draft.tokens()}


def _make_drafts(store: ShardStore, rows: _Lines, job: DraftJob, encoder: Encoder) -> Receipt:
    """Commit the drafts that are this job's and a receipt that says how many the file has."""
    count = made = tokens = 0
    for count, stretch in enumerate(stretches(rows, DRAFT_ROWS, DRAFT_BYTES), start=1):
        number = count - 1
        key = draft_key(job.digest, number)
        if number % job.turns != job.turn or whole_draft(store, key) is not None:
            continue
        draft, details = _drafted(stretch, job, encoder)
        commit_draft(store, key, draft, details)
        made, tokens = made + details["rows"], tokens + details["tokens"]
    return store.commit(job.key, None, {"drafts": count, "rows": made, "tokens": tokens})


def committed_drafts(store: ShardStore, jobs: Sequence[DraftJob], receipts: Sequence[Receipt]) -> Iterator[Draft]:
    """Yield the drafts of one file in order, from the receipts of all its jobs."""
    if jobs[0].span is None:
        found = (store.receipt(draft_key(jobs[0].digest, i)) for i in range(receipts[0].details["drafts"]))
        receipts = [receipt for receipt in found if receipt is not None]
    for receipt in receipts:
        yield open_draft(store, receipt)


def _make_part(folder: Path, job: PartJob) -> Receipt:
    store = ShardStore(folder)
    if store.receipt(job.key) is not None and (committed := store.valid_receipt(job.key)) is not None:
        return committed
    pieces = []
    for file, sha256, start, stop, dropped, names in job.pieces:
        table = checked_table(folder / DRAFTS / file, sha256).slice(start, stop - start)
        pieces.append((table, [at - start for at in dropped], {at - start: name for at, name in names.items()}))
    return store.commit(job.key, part_table(job.first_row, pieces), job.details)
