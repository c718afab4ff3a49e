"""A committed selection, RUN/selection/NAME: how it is written, whole or not at all, and read.

selected.jsonl holds the records in order of choice, selection.parquet a line for each, selection.json a summary.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influray.protocols import Selection
from influray.store.artifact import committed_file, describe, read_json, replace_folder, write_json, write_manifest

RECORDS, TABLE, SUMMARY = "selected.jsonl", "selection.parquet", "selection.json"


def commit_selection(
    folder: Path, fingerprint: str, records: Iterable[bytes], table: pa.Table, summary: Mapping[str, Any]
) -> None:
    """Commit a selection in the place of an older one, which stays until the new one is complete."""
    scratch = _scratch(folder)
    try:
        with open(scratch / RECORDS, "wb") as file:
            file.writelines(record + b"\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        pq.write_table(table, scratch / TABLE)
        write_json(scratch / SUMMARY, summary)
        files = describe(scratch, [RECORDS, TABLE, SUMMARY])
        write_manifest(scratch, {"fingerprint": fingerprint, "rows": len(table), "beside": files})
        replace_folder(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def read_selection(folder: str | Path) -> Selection:
    """Return a committed selection.

    Raises:
        ArtifactMismatch: there is none.
        DamagedArtifact: a file of it is not what was committed.
    """
    table, summary = read_table(folder), read_summary(folder)
    rows, merit, column = (table[name].to_numpy() for name in ("row", "merit", "column"))
    return Selection(rows, merit, column, summary["method"], summary["options"])


def read_table(folder: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table of a committed selection, in order of choice. Raises as `read_selection`."""
    path = committed_file(folder, TABLE, "select")
    return pq.read_table(path, columns=None if columns is None else list(columns)).sort_by("rank")


def read_summary(folder: str | Path) -> dict[str, Any]:
    """Return the summary of a committed selection. Raises as `read_selection`."""
    return read_json(committed_file(folder, SUMMARY, "select"))


def _scratch(folder: Path) -> Path:
    """Return a new hidden folder beside `folder`, and clear what a killed run has left there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("tmp", "old"):
        for left in folder.parent.glob(f".{folder.name}.{'[0-9a-f]' * 32}.{suffix}"):
            shutil.rmtree(left, ignore_errors=True)
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    scratch.mkdir()
    return scratch
