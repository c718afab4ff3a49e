"""Entries of the config -> files, each with how its rows are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from influray.config_data import ColumnsConfig, DataConfig, Entry, EntryConfig
from influray.data.columns import columns_of
from influray.data.files import DataFile, in_order, resolve_files
from influray.data.reading import Reading
from influray.data.weights import weights_digest
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
    found: list[tuple[str, DataFile]] = []
    for i, entry in enumerate(entries):
        where = f"{key}.{i}"
        if isinstance(entry, str):
            files = resolve_files([entry], root, key, first=i)
            reading = Reading(columns_of(columns))
        else:
            files = resolve_files(entry.files, root, f"{where}.files")
            reading = _reading(entry, Path(root), where, columns)
        for file in files:
            scope = file.name if isinstance(entry, EntryConfig) and entry.ids == "scoped" else ""
            found.append((where, replace(file, reading=replace(reading, scope=scope))))
    return in_order(found)


def in_pool(pool: Iterable[DataFile], files: Iterable[DataFile]) -> list[DataFile]:
    """Return which of the files the pool holds too: its rows would be chosen for themselves."""
    paths = {os.path.realpath(file.path) for file in pool if file.kind != "hub"}
    return [file for file in files if os.path.realpath(file.path) in paths]


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
