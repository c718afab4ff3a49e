"""The catalogue of a split: every usable row with its place, facts, bytes, tokens and trained spans, memory-mapped.

Rows are numbered once. A file that is added, whatever its name, goes to the end and leaves every other row's number
as it was; a file that changed or went renumbers only what came after it.

Shape suffixes: S tokens.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from influray.config import DataConfig
from influray.data.chat import mask_of
from influray.data.drafts import LEFT_OUT, SCHEMA, Encoder
from influray.data.files import DataFile, file_digest
from influray.data.parts import FileJob, FindCrew, PartsBuilder
from influray.data.quarantine import entry, write_quarantine
from influray.data.reading import Reading, reading_of
from influray.data.records import Record
from influray.data.weights import has_weights
from influray.protocols import DataError, TextExample, TokenizedExample
from influray.store.artifact import Receipt, ShardStore, checked_table, fingerprint, read_manifest, require_manifest
from influray.store.checks import broken
from influray.store.mirror import local

log = logging.getLogger(__name__)

Split = Literal["pool", "target", "test"]
SHOWN = 5  # bad rows that a message quotes


class Catalogue:
    """A committed catalogue, rows 0 to len - 1. Arrays it gives are views of the files where they can be."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = local(folder)
        self.manifest = require_manifest(self.folder, "run")
        self._files = [(part["file"], part["sha256"]) for part in self.manifest["parts"] if part["rows"]]
        lengths = [part["rows"] for part in self.manifest["parts"] if part["rows"]]
        self._starts = [0, *np.cumsum(lengths).tolist()]
        self._open: dict[int, pa.RecordBatch] = {}
        read = [file for file in self.manifest["files"] if file["rows"]]
        self._file_starts = np.cumsum([0, *(file["rows"] for file in read[:-1])]).tolist()
        self._readings = [reading_of(file.get("reading", {})) for file in read]

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def digest(self) -> str:
        """What identifies the whole: a hash of its parts' content in order."""
        return self.manifest["digest"]

    @property
    def never_scored(self) -> int:
        """Rows of the whole pool that did not pass a cascade: they are not in the catalogue."""
        found = self.manifest.get("cascade")
        return 0 if found is None else found["rows"] - len(self)

    @property
    def file_lengths(self) -> list[int]:
        """Rows of each source file, in row order: what shards are planned from."""
        return [file["rows"] for file in self.manifest["files"]]

    @cached_property
    def ids(self) -> list[str]:
        return self.facts("id")["id"]

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The task of each row."""
        return tuple(self.facts("group")["group"])

    def facts(self, *columns: str) -> dict[str, Any]:
        """Return whole columns: arrays of numbers and truths, lists of strings."""
        found: dict[str, Any] = {}
        for name in columns:
            chunks = [part.column(name) for part in self._parts()]
            if pa.types.is_string(SCHEMA.field(name).type):
                found[name] = [value for chunk in chunks for value in _shared_strings(chunk)]
            else:
                found[name] = np.concatenate([chunk.to_numpy(zero_copy_only=False) for chunk in chunks])
        return found

    def tokenized(self, start: int, stop: int) -> list[TokenizedExample]:
        """Return the rows [start, stop) as the model sees them."""
        examples = []
        for first, batch in self._slices(start, stop):
            ids, ids_at = _flat(batch.column("input_ids"))
            spans, spans_at = _flat(batch.column("loss_spans"))
            for i in range(batch.num_rows):
                ids_S = ids[ids_at[i] : ids_at[i + 1]]
                mask_S = mask_of(spans[spans_at[i] : spans_at[i + 1]], len(ids_S))
                examples.append(TokenizedExample(first + i, ids_S, mask_S))
        return examples

    def texts(self, start: int, stop: int) -> list[TextExample]:
        """Return the rows [start, stop) as people read them."""
        examples = []
        for first, batch in self._slices(start, stop):
            columns = (batch.column(name).to_pylist() for name in ("record", "tokens", "loss_tokens"))
            for i, (raw, tokens, loss_tokens) in enumerate(zip(*columns, strict=True)):
                turns = self.reading(first + i).parse(raw).turns
                text = "\n".join(turn.text for turn in turns if turn.role in ("user", "assistant"))
                examples.append(TextExample(first + i, text, tokens, loss_tokens))
        return examples

    def record_digest(self, start: int, stop: int) -> str:
        """Return what identifies the bytes of the records of rows [start, stop), 64 hex digits."""
        digest = hashlib.sha256()
        for _, batch in self._slices(start, stop):
            for record in batch.column("record"):
                view = record.as_buffer()
                digest.update(len(view).to_bytes(8, "big"))
                digest.update(view)
        return digest.hexdigest()

    def content_digest(self, start: int, stop: int) -> str:
        """Return what identifies the tokens and trained spans of rows [start, stop), 64 hex digits.

        Neither row numbers nor ids count, nor where one part of the catalogue ends and the next begins.
        """
        digests = [hashlib.sha256() for _ in range(4)]
        for _, batch in self._slices(start, stop):
            for column, of_values, of_lengths in (("input_ids", 0, 1), ("loss_spans", 2, 3)):
                values, at = _flat(batch.column(column))
                digests[of_values].update(np.ascontiguousarray(values[at[0] : at[-1]]).data)
                digests[of_lengths].update(np.diff(at).astype(np.int32).data)
        return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()

    def record(self, row: int) -> bytes:
        """Return the bytes of a row as they were read."""
        return self.cell(row, "record")

    def records(self, rows: Sequence[int]) -> list[bytes]:
        return [self.record(int(row)) for row in rows]

    def reading(self, row: int) -> Reading:
        """Return how the row was read: what of the config says what its bytes mean."""
        return self._readings[bisect_right(self._file_starts, row) - 1]

    def parsed(self, row: int) -> Record:
        """Return the record of a row, read as it was when it was catalogued."""
        return self.reading(row).parse(self.record(row), self.cell(row, "source"))

    def all_parsed(self, rows: Iterable[int]) -> list[Record]:
        """Return the records of rows."""
        return [self.parsed(int(row)) for row in rows]

    def cell(self, row: int, column: str) -> Any:
        """Return one value as a Python object."""
        ((_, batch),) = self._slices(row, row + 1)
        return batch.column(column)[0].as_py()

    def values(self, column: str, start: int, stop: int) -> list[Any]:
        """Return one column of the rows [start, stop) as Python objects."""
        return [value for _, batch in self._slices(start, stop) for value in batch.column(column).to_pylist()]

    def gather(self, column: str, rows: np.ndarray) -> list[Any]:
        """Return one column of these rows in the order given, as Python objects; no other row's are made."""
        chunks = [part.column(column) for part in self._parts()]
        return pa.chunked_array(chunks, SCHEMA.field(column).type).take(pa.array(rows)).to_pylist()

    def find(self, id: str) -> int:
        """Return the row of an id. Raises DataError where there is none."""
        for start, part in zip(self._starts, self._parts(), strict=False):
            at = pc.index(part.column("id"), pa.scalar(id)).as_py()
            if at >= 0:
                return start + at
        where = "did not pass the cascade, or stands" if self.never_scored else "may stand"
        raise DataError(f"{self.folder}: no row has the id {id!r}; it {where} in the quarantine")

    def part_at(self, start: int) -> tuple[pa.RecordBatch, str]:
        """Return the part that begins with row `start`, all columns of SCHEMA, and the sha256 of its file."""
        number = self._starts.index(start)
        return self._part(number), self._files[number][1]

    def _parts(self) -> Iterator[pa.RecordBatch]:
        return map(self._part, range(len(self._files)))

    def _part(self, number: int) -> pa.RecordBatch:
        if number not in self._open:
            name, digest = self._files[number]
            self._open[number] = checked_table(self.folder / name, digest).to_batches()[0]
        return self._open[number]

    def _slices(self, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (first row, batch) over the parts that hold rows [start, stop)."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start} to {stop} of a catalogue of {len(self)} rows")
        while start < stop:
            number = bisect_right(self._starts, start) - 1
            end = min(stop, self._starts[number + 1])
            yield start, self._part(number).slice(start - self._starts[number], end - start)
            start = end


def build_catalogue(
    folder: str | Path,
    split: Split,
    files: Sequence[tuple[str, DataFile]],
    encoder: Encoder,
    encoder_key: str,
    config: DataConfig,
    *,
    quarantine: str | Path,
    find_crew: FindCrew | None = None,
) -> Catalogue:
    """Make or bring up to date the catalogue of a split in `folder` and return it.

    `files` are (group, file) in the order in which new ones get their rows; the group of a target is its task, of
    the pool "". `encoder_key` must change with whatever changes tokens: tokenizer, template, max_tokens, end token.
    Files whose content and settings are as in the catalogue that is there are neither read nor encoded again.
    `find_crew` gives, for the seconds that the work takes one process, others that do it, or None where that would
    not pay. The bytes are the same.
    Memory does not grow with the rows, but for 24 bytes each, by which ids are found again.

    Rows that cannot be used go to the file `quarantine` as stage "read" or "encode". An id may be used once a split.

    Raises:
        DataError: no usable row in the split or in a task; more than `config.max_bad_fraction` of its rows bad. The
            catalogue that was there stays as it was.
    """
    folder = local(folder)
    store = ShardStore(folder)
    previous = (read_manifest(folder) or {}).get("files", [])
    jobs, kept = _plan(store, split, files, encoder_key, config, previous)
    unchanged = kept == len(jobs) == len(previous)
    keys = [entry["parts"] for entry in previous[:kept]]
    if not unchanged:
        builder = PartsBuilder(store, split, encoder, config)
        for job, parts in zip(jobs[:kept], keys, strict=True):
            builder.keep(job, parts)
        keys += builder.build(jobs[kept:], find_crew)
    receipts = [_receipts(store, parts) for parts in keys]
    made = list(zip(jobs, receipts, strict=True))
    bad = [found for job, its in made for found in _bad_rows(split, job, its)]
    for stage in ("read", "encode"):
        write_quarantine(quarantine, split, stage, [found for _, found in bad if found["stage"] == stage])
    described = [_described(job, its) for job, its in made]
    _check(split, jobs, described, bad, config)
    _require_weighed(store, made, described)
    if not unchanged:
        digest = fingerprint([receipt.sha256 for its in receipts for receipt in its if receipt.file])
        facts = {"split": split, "encoder": encoder_key, "digest": digest, "files": described}
        store.freeze([key for parts in keys for key in parts], facts)
    return Catalogue(folder)


def _plan(
    store: ShardStore,
    split: Split,
    files: Sequence[tuple[str, DataFile]],
    encoder_key: str,
    config: DataConfig,
    previous: Sequence[Mapping[str, Any]],
) -> tuple[list[FileJob], int]:
    """Return the files in row order, and how many of them stand in the catalogue already, whole."""
    waiting = {(group, file.name): (file, file_digest(file)) for group, file in files}
    jobs: list[FileJob] = []

    def job(group: str, name: str) -> FileJob:
        # Rows and taken ids follow from the files before, so each key holds the one before it.
        file, digest = waiting[group, name]
        limits = _limits(split, group, file, config)
        facts = {
            "after": jobs[-1].key if jobs else split,
            "name": name,
            "group": group,
            "digest": digest,
            "kind": file.kind,
            "encoder": encoder_key,
            "limits": limits,
            "reading": file.reading.facts(),
            "max_line_bytes": config.max_line_bytes,
            "max_file_bytes": config.max_file_bytes,
        }
        return FileJob(file, group, digest, fingerprint(facts), limits)

    torn: list[int] = []
    for old in previous:
        place = (old["group"], old["name"])
        if place not in waiting or (found := job(*place)).key != old["key"]:
            break
        if not _is_there(store, old["parts"]):  # it is read again, and keeps its rows
            torn.append(len(jobs))
        jobs.append(found)
        del waiting[place]
    kept = torn[0] if torn else len(jobs)
    for place in waiting:
        found = job(*place)
        jobs.append(found)
    return jobs, kept


def _receipts(store: ShardStore, keys: Sequence[str]) -> list[Receipt]:
    return [receipt for key in keys if (receipt := store.receipt(key)) is not None]


def _is_there(store: ShardStore, keys: Sequence[str]) -> bool:
    found = _receipts(store, keys)
    return len(found) == len(keys) and not broken(store.folder, {"parts": [vars(receipt) for receipt in found]})


def _limits(split: Split, group: str, file: DataFile, config: DataConfig) -> dict[str, int]:
    """Return what of the file's rows is limited: those of its task, those of its entry."""
    limits: dict[str, int] = {}
    if split != "pool":
        target = config.targets[group]
        limit = target.limit if split == "target" else target.test_limit
        limits |= {f"task {group}": limit} if limit is not None else {}
    if file.reading.limit is not None:
        limits[file.reading.entry] = file.reading.limit
    return limits


def _bad_rows(split: Split, job: FileJob, receipts: Sequence[Receipt]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:line as messages show it, quarantine entry) of the bad rows of a file, in order."""
    for bad in (bad for receipt in receipts for bad in receipt.details["bad"] if bad["stage"] != LEFT_OUT):
        facts = entry(split, bad["stage"], bad["reason"], file=job.file.name, line=bad["line"], id=bad["id"])
        yield f"{job.file.path}:{bad['line']}", facts


def _described(job: FileJob, receipts: Sequence[Receipt]) -> dict[str, Any]:
    return {
        "name": job.file.name,
        "group": job.group,
        "digest": job.digest,
        "key": job.key,
        "parts": [receipt.key for receipt in receipts],
        "rows": sum(receipt.rows for receipt in receipts),
        "read": sum(receipt.details["read"] for receipt in receipts),
        "left_out": sum(bad["stage"] == LEFT_OUT for receipt in receipts for bad in receipt.details["bad"]),
        "reading": job.file.reading.facts(),
    }


def _check(
    split: Split,
    jobs: Sequence[FileJob],
    described: Sequence[Mapping[str, Any]],
    bad: Sequence[tuple[str, Mapping[str, Any]]],
    config: DataConfig,
) -> None:
    quoted = "".join(f"\n  {where}: {found['reason']}" for where, found in bad[:SHOWN])
    quoted += f"\n  and {len(bad) - SHOWN} more, all in the quarantine" if len(bad) > SHOWN else ""
    key = {"pool": "data.pool", "target": "data.targets", "test": "data.targets"}[split]
    for group in dict.fromkeys(job.group for job in jobs):
        if not any(file["rows"] for file in described if file["group"] == group):
            place = key if split == "pool" else f"{key}.{group}.{'files' if split == 'target' else 'test'}"
            names = ", ".join(job.file.path for job in jobs if job.group == group)
            raise DataError(f"{place}: no usable row in {names}{quoted}")
    read = sum(file["read"] for file in described)
    if len(bad) > config.max_bad_fraction * read:
        raise DataError(
            f"{key}: {len(bad)} of {read} rows of the {split} cannot be used, more than data.max_bad_fraction = "
            f"{config.max_bad_fraction} allows; mend them or raise the limit{quoted}"
        )


def _require_weighed(
    store: ShardStore, made: Sequence[tuple[FileJob, Sequence[Receipt]]], described: Sequence[Mapping[str, Any]]
) -> None:
    """Raise DataError for a file of weights that names no row of its entry."""
    found: dict[str, bool] = {}
    for (job, receipts), facts in zip(made, described, strict=True):
        address, weights = job.file.reading.weights, job.file.reading.weights_by_id()
        if weights is None or all(weight == 1 for weight in weights.values()):
            continue
        if facts["left_out"]:
            log.info("%s: %d rows have the weight 0 and were left out", job.file.path, facts["left_out"])
        weighed = has_weights(store.folder / receipt.file for receipt in receipts if receipt.file)
        found[address] = found.get(address, False) or bool(facts["left_out"]) or weighed
    for address in (address for address, weighed in found.items() if not weighed):
        raise DataError(f"weight_of_ids: {address} names no row of its entry; its ids must be those of the rows")


def _shared_strings(column: pa.Array) -> list[str]:
    """Return the strings of a column, one object for all rows that have the same: sources are few, rows many."""
    encoded = column.dictionary_encode()
    values = encoded.dictionary.to_pylist()
    return [values[code] for code in encoded.indices.to_numpy().tolist()]


def _flat(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Return (all values, where each row begins and ends in them), views of the file."""
    return column.values.to_numpy(), column.offsets.to_numpy()
