"""Entries of the config -> files, each with how its rows are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from influray.config_data import ColumnsConfig, DataConfig, Entry, EntryConfig
from influray.data.columns import columns_of
from influray.data.readers import DataFile, resolve_files
from influray.data.reading import Reading
from influray.data.weights import weights_digest
from influray.protocols import DataError
from influray.store.mirror import address_of, local, present
from influray.store.uri import is_uri


def pool_files(data: DataConfig) -> list[DataFile]:
    """Return the files of the pool. Raises DataError as `entry_files`."""
    return entry_files(data.pool, data.root, "data.pool", data.columns)


def target_files(data: DataConfig, task: str, test: bool = False) -> list[DataFile]:
    """Return the files of a task, or of its held-out records. Raises DataError as `entry_files`."""
    target = data.targets[task]
    entries, name = (target.test, "test") if test else (target.files, "files")
    return entry_files(entries, data.root, f"data.targets.{task}.{name}", target.columns.over(data.columns))


def entry_files(
    entries: Sequence[Entry], root: str | Path, key: str, columns: ColumnsConfig | None = None
) -> list[DataFile]:
    """Return the files that entries name, in byte order of their names, each with its reading.

    `key` is the dotted key of the list, for messages; `columns` are those that an entry's own go over.

    Raises:
        DataError: as `resolve_files`; a file that two entries name; a file of weights that is not there.
    """
    columns = columns or ColumnsConfig()
    found: dict[str, tuple[DataFile, str]] = {}
    for i, entry in enumerate(entries):
        where = f"{key}.{i}"
        if isinstance(entry, str):
            files = resolve_files([entry], root, key, first=i)
            reading = Reading(columns_of(columns))
        else:
            files = resolve_files(entry.files, root, f"{where}.files")
            reading = _reading(entry, Path(root), where, columns)
        for file in files:
            if file.name in found:
                raise DataError(f"{where}: {file.path} is already named by {found[file.name][1]}; name it once")
            scope = file.name if isinstance(entry, EntryConfig) and entry.ids == "scoped" else ""
            found[file.name] = (replace(file, reading=replace(reading, scope=scope)), where)
    return [found[name][0] for name in sorted(found, key=os.fsencode)]


def _reading(entry: EntryConfig, root: Path, where: str, columns: ColumnsConfig) -> Reading:
    address = digest = ""
    if entry.weight_of_ids is not None:
        name = entry.weight_of_ids
        path = present(local(name) if is_uri(name) else root / name)
        address, digest = address_of(path), weights_digest(path, f"{where}.weight_of_ids")
    return Reading(
        columns=columns_of(entry.columns.over(columns)),
        source=entry.source or "",
        entry=where if entry.limit is not None else "",
        limit=entry.limit,
        weights=address,
        weights_digest=digest,
    )
