"""Data files -> the parts of a catalogue, by this process alone or by a crew, with the same bytes.

A part is closed by the number of rows read or by its bytes, so a file of any size is built in the same memory, and
an interrupted build goes on after its last whole part, or draft.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from influray.config import DataConfig
from influray.data.costs import COMPRESSED, TOKEN_BYTES, DataRates, data_seconds
from influray.data.drafts import Draft, Encoder, Row, drafts, mapped
from influray.data.files import DataFile
from influray.data.jobs import (
    DRAFT_BYTES,
    DRAFTS,
    Crew,
    DraftJob,
    Faults,
    PartJob,
    Unfit,
    carry_out,
    committed_drafts,
    span_key,
)
from influray.data.lines import Span
from influray.data.numbering import Limits, Numbering, Part, part_table
from influray.data.readers import read_rows
from influray.data.spans import find_spans
from influray.store.artifact import Receipt, ShardStore, fingerprint
from influray.store.mirror import address_of, remove_folder

log = logging.getLogger(__name__)

WAVE_BYTES = 2**36  # of data files, whose drafts lie in the catalogue's folder at once
MAX_TURNS = 16  # processes that read one file from its start
ROW_BYTES = 500  # of a row whose line end is not seen, where only the order of magnitude counts

FindCrew = Callable[[float], Crew | None]


@dataclass(frozen=True)
class FileJob:
    """A file to be catalogued. `key` names its content, its settings and all files before it."""

    file: DataFile
    group: str
    digest: str
    key: str
    limits: Limits  # of usable rows, over all files that count towards the same

    def part_key(self, number: int) -> str:
        return fingerprint({"file": self.key, "part": number})


@dataclass(frozen=True)
class _Begun:
    """A file whose first parts are committed, `receipts`; its rows from `line` on are not."""

    job: FileJob
    receipts: tuple[Receipt, ...] = ()
    line: int = 1
    done: bool = False


class PartsBuilder:
    """Builds the files of one split, in order."""

    def __init__(self, store: ShardStore, split: str, encoder: Encoder, config: DataConfig) -> None:
        self._store = store
        self._drafts = ShardStore(store.folder / DRAFTS)
        self._split = split
        self._encoder = encoder
        self._config = config
        self._numbering = Numbering()
        self._crew: Crew | None = None

    def keep(self, job: FileJob, keys: Sequence[str]) -> None:
        """Take the parts of a file that is as it was; its rows and ids are not given again."""
        for key in keys:
            receipt = self._store.receipt(key)
            assert receipt is not None, f"{job.file.name}: part {key} lost its receipt"
            self._numbering.take(self._store.folder, receipt, job.limits)

    def build(self, jobs: Sequence[FileJob], find_crew: FindCrew | None = None) -> list[list[str]]:
        """Commit the parts of files and return their keys; what an interrupted build left is kept.

        `find_crew` is asked with the seconds that one process would take, and may answer None: then this process does
        it all. So it does where a member of the crew is unfit, with a warning.

        Raises:
            DataError: a file cannot be read, or the chat template cannot be used on it.
        """
        spans: dict[str, list[Span]] = {}
        if find_crew is not None:
            travelling = [job for job in jobs if _travels(job)]
            spans = {job.key: find_spans(job.file, DRAFT_BYTES, self._config.max_file_bytes) for job in travelling}
            self._crew = find_crew(sum(encoding_seconds(job.file, spans[job.key]) for job in travelling))
        made: list[list[str]] = []
        for wave in _waves(jobs):
            if self._crew is not None and _travels(wave[0]):
                made += self._build_by_crew(wave, spans)
            else:
                made += [self._build_here(job) for job in wave]
        remove_folder(self._drafts.folder)
        return made

    def _build_here(self, job: FileJob) -> list[str]:
        """Draft, number and commit block after block, nothing but a part in memory."""
        numbering, begun = self._numbering, self._begun(job)
        self._take(begun)
        keys = [receipt.key for receipt in begun.receipts]
        if begun.done:
            return keys
        numbering.begin(job.file.name, begun.line, job.limits)
        found = drafts(self._rows(job, begun.line), job.file, job.group, self._encoder)
        while not numbering.satisfied and (draft := next(found, None)) is not None:
            for part in numbering.feed(draft):
                keys.append(self._commit(job, len(keys), part, last=False))
        keys.append(self._commit(job, len(keys), numbering.end(), last=True))
        return keys

    def _build_by_crew(self, wave: Sequence[FileJob], spans: Mapping[str, list[Span]]) -> list[list[str]]:
        """Have all files of a wave drafted, number their rows, and have the parts made of the drafts."""
        begun: list[_Begun] = []
        for job in wave:  # the rows of a file have numbers once all files before it have
            begun.append(self._begun(job) if all(found.done for found in begun) else _Begun(job))
        readers = sum(not spans[found.job.key] for found in begun if not found.done)
        drafting = [
            [] if found.done else self._draft_jobs(found, order, spans[found.job.key], readers)
            for order, found in enumerate(begun)
        ]
        receipts = iter(self._carry_out([job for jobs in drafting for job in jobs]))
        making: list[list[PartJob]] = []
        for found, jobs in zip(begun, drafting, strict=True):
            self._take(found)
            made = committed_drafts(self._drafts, jobs, [next(receipts) for _ in jobs])
            making.append([] if found.done else self._number(found, made))
        parts = self._carry_out([job for jobs in making for job in jobs])
        for receipt in parts:
            self._numbering.rows.commit(self._store.folder / receipt.file, receipt.rows)
        mapped.cache_clear()
        remove_folder(self._drafts.folder)
        return [
            [*(receipt.key for receipt in found.receipts), *(job.key for job in jobs)]
            for found, jobs in zip(begun, making, strict=True)
        ]

    def _number(self, begun: _Begun, found: Iterator[Draft]) -> list[PartJob]:
        job, numbering = begun.job, self._numbering
        jobs: list[PartJob] = []

        def add(part: Part, last: bool) -> None:
            number = len(begun.receipts) + len(jobs)
            pieces = tuple(
                (p.draft.file, p.draft.sha256, p.start, p.stop, p.dropped, dict(p.names)) for p in part.pieces
            )
            name, key = job.file.name, job.part_key(number)
            jobs.append(PartJob(key, self._split, name, part.first_row, pieces, part.details(last)))

        numbering.begin(job.file.name, begun.line, {})
        for draft in found:
            for part in numbering.feed(draft if begun.line == 1 else draft.from_line(begun.line)):
                add(part, last=False)
        add(numbering.end(), last=True)
        return jobs

    def _draft_jobs(self, begun: _Begun, order: int, spans: Sequence[Span], readers: int) -> list[DraftJob]:
        """Return what is to be drafted of a file. Without spans it is one of `readers` that are read from the start."""
        job = begun.job
        size = os.stat(job.file.path).st_size
        common = (self._split, order, job.file, size, address_of(job.file.path), job.group, job.key)
        if spans:
            wanted = [span for span in spans if span.line + span.lines > begun.line]
            return [DraftJob(span_key(job.key, span), *common, span) for span in wanted or spans[-1:]]
        assert self._crew is not None
        turns = max(1, min(MAX_TURNS, self._crew.workers // readers, _text_bytes(job.file) // DRAFT_BYTES))
        keys = [fingerprint({"file": job.key, "turn": [turn, turns]}) for turn in range(turns)]
        return [DraftJob(key, *common, None, turn, turns) for turn, key in enumerate(keys)]

    def _carry_out(self, jobs: Sequence[DraftJob | PartJob]) -> list[Receipt]:
        """Return the receipts of jobs, in their order; where the crew is unfit, this process does the work."""
        if self._crew is not None:
            try:
                return self._crew(jobs)
            except Unfit as error:
                log.warning("%s; this process does what is left of the data by itself", error)
                self._crew = None
        receipts, faults = [], Faults(jobs)
        for job in jobs:
            receipts.append(carry_out(self._store.folder, job, self._encoder, self._config))
            faults.note(job, receipts[-1])
        return receipts

    def _begun(self, job: FileJob) -> _Begun:
        receipts: list[Receipt] = []
        while (receipt := self._store.valid_receipt(job.part_key(len(receipts)))) is not None:
            receipts.append(receipt)
            if receipt.details["last"]:
                break
        if not receipts:
            return _Begun(job)
        details = receipts[-1].details
        return _Begun(job, tuple(receipts), details["next_line"], details["last"])

    def _take(self, begun: _Begun) -> None:
        for receipt in begun.receipts:
            self._numbering.take(self._store.folder, receipt, begun.job.limits)

    def _rows(self, job: FileJob, line: int) -> Iterator[Row]:
        rows = read_rows(job.file, self._config.max_line_bytes, self._config.max_file_bytes)
        return ((number, raw) for number, raw in rows if number >= line)

    def _commit(self, job: FileJob, number: int, part: Part, last: bool) -> str:
        pieces = [
            (
                piece.draft.rows().slice(piece.start, piece.stop - piece.start),
                [at - piece.start for at in piece.dropped],
                {at - piece.start: name for at, name in piece.names.items()},
            )
            for piece in part.pieces
        ]
        receipt = self._store.commit(job.part_key(number), part_table(part.first_row, pieces), part.details(last))
        self._numbering.rows.commit(self._store.folder / receipt.file, receipt.rows)
        log.info("%s: %d rows read, %d usable", job.file.path, part.read, receipt.rows)
        return receipt.key


def encoding_seconds(file: DataFile, spans: Sequence[Span]) -> float:
    """Return the seconds that one process takes for a file, about."""
    size = _text_bytes(file)
    rows = sum(span.lines for span in spans) if spans else size / ROW_BYTES
    return data_seconds(round(rows), size / TOKEN_BYTES, DataRates())


def _text_bytes(file: DataFile) -> int:
    size = os.stat(file.path).st_size
    return int(size * COMPRESSED) if file.compression or file.kind == "parquet" else size


def _travels(job: FileJob) -> bool:
    """Whether others may draft a file: a limit says row by row how far it is read, and hubs count their readers."""
    return not job.limits and job.file.kind != "hub"


def _waves(jobs: Sequence[FileJob]) -> Iterator[list[FileJob]]:
    """Yield the files in groups: those that travel, up to WAVE_BYTES, and others one by one."""
    wave: list[FileJob] = []
    total = 0
    for job in jobs:
        if wave and (not _travels(job) or total >= WAVE_BYTES):
            yield wave
            wave, total = [], 0
        wave.append(job)
        if _travels(job):
            total += os.stat(job.file.path).st_size
        else:
            yield wave
            wave = []
    if wave:
        yield wave
