"""The work of a catalogue in pieces that any process can do: drafts of pieces of files, and parts made of drafts.

A file of plain lines is cut into spans. Any other can only be read from its start; since that costs 1 % (gzip, zstd)
to 3 % (Parquet) of encoding it, several processes read the same file, and each drafts every n-th piece.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from influray.config import DataConfig
from influray.data.drafts import Draft, Encoder, Row, commit_draft, drafts, open_draft, stretches, whole_draft
from influray.data.files import DataFile
from influray.data.lines import Span
from influray.data.numbering import Part, part_table
from influray.data.readers import read_rows
from influray.protocols import DataError
from influray.store.artifact import Receipt, ShardStore, fingerprint
from influray.store.mirror import local, present

DRAFTS = "drafts"  # folder of a catalogue, while it is made
DRAFT_BYTES = 2**22  # of lines: a second's work, and memory for some hundred bytes a token
DRAFT_ROWS = 2**16


@dataclass(frozen=True, slots=True)
class DraftJob:
    """Draft a span; without one, all those drafts of a file whose number is `turn` modulo `turns`."""

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
    def key(self) -> str:
        """That of the receipt."""
        return fingerprint({"file": self.digest, "span": self._span, "turn": [self.turn, self.turns]})

    def draft_key(self, number: int) -> str:
        """Return the key of a draft, which does not depend on the number of turns."""
        return fingerprint(
            {"file": self.digest, "span": self._span, "draft": number, "size": [DRAFT_BYTES, DRAFT_ROWS]}
        )

    @property
    def _span(self) -> list[int]:
        return [] if self.span is None else [self.span.start, self.span.stop, self.span.line]

    @property
    def place(self) -> tuple[int, int]:
        """Where the first row stands that it may find a fault with: (number of the file, line)."""
        return self.order, 1 if self.span is None else self.span.line

    @property
    def label(self) -> str:
        """What people call it."""
        where = f"part {self.turn + 1} of {self.turns}" if self.span is None else f"from line {self.span.line}"
        return f"{self.file.path}, {where}"


@dataclass(frozen=True, slots=True)
class PartJob:
    """Make a part; `last` of its file, which people call `name`."""

    key: str
    split: str
    name: str
    part: Part
    last: bool

    @property
    def label(self) -> str:
        """What people call it."""
        return f"{self.split} rows from {self.part.first_row} on, of {self.name}"


class Unfit(DataError):
    """A process that cannot do the work where it is; another one may."""


class Crew(Protocol):
    """Processes that run jobs side by side."""

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


def run_job(folder: str | Path, job: DraftJob | PartJob, encoder: Encoder, config: DataConfig) -> Receipt:
    """Do a job of the catalogue in `folder`, commit what it makes and return the receipt.

    Where a file cannot be catalogued at all, the receipt is not committed and its details are `error`, the message of
    the DataError that is due, and the `line` where it was found: of several, the driver wants the first.

    Raises:
        Unfit: the file is not to be seen from here.
        DamagedArtifact: a draft is not what was committed.
    """
    folder = local(folder)
    if isinstance(job, PartJob):
        return make_part(ShardStore(folder), job)
    store = ShardStore(folder / DRAFTS)
    receipt = store.receipt(job.key)
    if receipt is not None:
        if all(whole_draft(store, job.draft_key(n)) for n in range(job.turn, receipt.details["drafts"], job.turns)):
            return receipt
        store.forget(job.key)
    rows = _Lines(job, config)
    try:
        return _make_drafts(store, rows, job, encoder)
    except DataError as error:
        return Receipt(job.key, "", "", 0, 0, {"error": str(error), "line": rows.line})


def make_part(store: ShardStore, job: PartJob) -> Receipt:
    """Commit a part, unless it is there, and return its receipt."""
    found = store.valid_receipt(job.key)
    return found or store.commit(job.key, part_table(store.folder / DRAFTS, job.part), job.part.details(job.last))


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


def _make_drafts(store: ShardStore, rows: _Lines, job: DraftJob, encoder: Encoder) -> Receipt:
    """Commit the drafts that are this job's and a receipt that says how many drafts there are."""
    count = made = tokens = 0
    for number, stretch in enumerate(stretches(rows, DRAFT_ROWS, DRAFT_BYTES)):
        count += 1
        key = job.draft_key(number)
        if number % job.turns != job.turn or whole_draft(store, key) is not None:
            continue
        details = commit_draft(store, key, drafts(stretch, job.file, job.group, encoder)).details
        made, tokens = made + details["rows"], tokens + details["tokens"]
    return store.commit(job.key, None, {"drafts": count, "rows": made, "tokens": tokens})


def committed_drafts(store: ShardStore, jobs: Sequence[DraftJob], receipts: Sequence[Receipt]) -> Iterator[Draft]:
    """Yield the drafts of one file in order, from the receipts of all its jobs."""
    for job, receipt in zip(jobs, receipts, strict=True):
        if not job.turn:  # the first one's receipt tells of them all
            yield from (open_draft(store, job.draft_key(number)) for number in range(receipt.details["drafts"]))
