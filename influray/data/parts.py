"""Data files -> the parts of a catalogue, by this process alone or by a crew, with the same bytes.

A part is closed by the number of rows read or by its bytes, so a file of any size is built in the same memory, and
an interrupted build goes on after its last whole part, or draft.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from influray.config import DataConfig
from influray.data.costs import COMPRESSED, TOKEN_BYTES, DataRates, data_seconds
from influray.data.drafts import Draft, Encoder, drafts
from influray.data.files import DataFile
from influray.data.jobs import (
    DRAFT_BYTES,
    DRAFTS,
    Crew,
    DraftJob,
    Faults,
    PartJob,
    Unfit,
    committed_drafts,
    make_part,
    run_job,
)
from influray.data.lines import Span, find_spans
from influray.data.numbering import Limits, Numbering, Part
from influray.data.readers import read_rows
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


class PartsBuilder:
    """Builds the files of one split, in order."""

    def __init__(self, store: ShardStore, split: str, encoder: Encoder, config: DataConfig) -> None:
        self._store = store
        self._drafts = ShardStore(store.folder / DRAFTS)
        self._split = split
        self._encoder = encoder
        self._config = config
        self._numbering = Numbering(self._drafts.folder)
        self._crew: Crew | None = None

    def keep(self, job: FileJob, keys: Sequence[str]) -> None:
        """Take the parts of a file that is as it was; its rows and ids are not given again."""
        for key in keys:
            receipt = self._store.receipt(key)
            assert receipt is not None, f"{job.file.name}: part {key} lost its receipt"
            self._numbering.take(self._store.folder, job.file.name, receipt, job.limits)

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
            self._crew = find_crew(sum(_seconds(job.file, spans[job.key]) for job in travelling))
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
        keys, line = self._begun(job)
        self.keep(job, keys)
        if line is None:
            return keys
        self._numbering.begin(job.file.name, line, job.limits)
        rows = read_rows(job.file, self._config.max_line_bytes, self._config.max_file_bytes)
        found = drafts((row for row in rows if row[0] >= line), job.file, job.group, self._encoder)
        for part_job in self._part_jobs(job, len(keys), found):
            receipt = make_part(self._store, part_job)
            keys.append(receipt.key)
            log.info("%s: %d rows read, %d usable", job.file.path, part_job.part.read, receipt.rows)
        return keys

    def _build_by_crew(self, wave: Sequence[FileJob], spans: Mapping[str, list[Span]]) -> list[list[str]]:
        """Have all files of a wave drafted, number their rows, and have the parts made of the drafts."""
        begun = [self._begun(job) for job in wave]
        # Rows have numbers once all files before theirs have; of a file begun, parts that are there are not made again.
        done = list(itertools.takewhile(lambda found: found[1] is None, begun))
        for job, (keys, _) in zip(wave, done, strict=False):
            self.keep(job, keys)
        left = wave[len(done) :]
        readers = sum(not spans[job.key] for job in left)
        drafting = [self._draft_jobs(job, order, spans[job.key], readers) for order, job in enumerate(left)]
        receipts = iter(self._run([job for jobs in drafting for job in jobs]))
        making: list[list[PartJob]] = []
        for job, jobs in zip(left, drafting, strict=True):
            self._numbering.begin(job.file.name, 1, {})
            found = committed_drafts(self._drafts, jobs, [next(receipts) for _ in jobs])
            making.append(list(self._part_jobs(job, 0, found)))
        self._run([job for jobs in making for job in jobs])
        remove_folder(self._drafts.folder)
        return [keys for keys, _ in done] + [[job.key for job in jobs] for jobs in making]

    def _part_jobs(self, job: FileJob, number: int, found: Iterator[Draft]) -> Iterator[PartJob]:
        """Yield the parts that the drafts of a file fill, from part `number` on, as they are full."""

        def made(part: Part, last: bool) -> PartJob:
            return PartJob(job.part_key(number), self._split, job.file.name, part, last)

        while not self._numbering.satisfied and (draft := next(found, None)) is not None:
            for part in self._numbering.feed(draft):
                yield made(part, last=False)
                number += 1
        yield made(self._numbering.end(), last=True)

    def _draft_jobs(self, job: FileJob, order: int, spans: Sequence[Span], readers: int) -> list[DraftJob]:
        """Return what is to be drafted of a file. Without spans it is one of `readers` that are read from the start."""
        assert self._crew is not None
        size = os.stat(job.file.path).st_size
        common = (self._split, order, job.file, size, address_of(job.file.path), job.group, job.key)
        turns = max(1, min(MAX_TURNS, self._crew.workers // max(1, readers), _text_bytes(job.file) // DRAFT_BYTES))
        in_turn = [DraftJob(*common, None, turn, turns) for turn in range(turns)]
        return [DraftJob(*common, span) for span in spans] or in_turn

    def _run(self, jobs: Sequence[DraftJob | PartJob]) -> list[Receipt]:
        """Return the receipts of jobs, in their order; where the crew is unfit, this process does the work."""
        if self._crew is not None:
            try:
                return self._crew(jobs)
            except Unfit as error:
                log.warning("%s; this process does what is left of the data by itself", error)
                self._crew = None
        receipts, faults = [], Faults(jobs)
        for job in jobs:
            receipts.append(run_job(self._store.folder, job, self._encoder, self._config))
            faults.note(job, receipts[-1])
        return receipts

    def _begun(self, job: FileJob) -> tuple[list[str], int | None]:
        """Return the keys of a file's first parts that are committed, and the line after them, None at its end."""
        keys, line = [], 1
        while line is not None and (receipt := self._store.valid_receipt(job.part_key(len(keys)))) is not None:
            keys.append(receipt.key)
            line = None if receipt.details["last"] else receipt.details["next_line"]
        return keys, line


def _text_bytes(file: DataFile) -> int:
    size = os.stat(file.path).st_size
    return int(size * COMPRESSED) if file.compression or file.kind == "parquet" else size


def _seconds(file: DataFile, spans: Sequence[Span]) -> float:
    """Return the seconds that one process takes for a file, about."""
    size = _text_bytes(file)
    rows = sum(span.lines for span in spans) if spans else size / ROW_BYTES
    return data_seconds(round(rows), size / TOKEN_BYTES, DataRates())


def _travels(job: FileJob) -> bool:
    """Whether others may draft a file: a row limit is applied while reading, and hub streams are not shared."""
    return not job.limits and job.file.kind != "hub"


def _waves(jobs: Sequence[FileJob]) -> Iterator[list[FileJob]]:
    """Yield the files in groups: those that travel, up to WAVE_BYTES, and others one by one."""
    wave: list[FileJob] = []
    total = 0
    for job in jobs:
        if wave and (not _travels(job) or not _travels(wave[0]) or total >= WAVE_BYTES):
            yield wave
            wave, total = [], 0
        wave.append(job)
        total += os.stat(job.file.path).st_size if _travels(job) else 0
    if wave:
        yield wave
