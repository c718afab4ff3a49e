"""Atomic commit: data first, receipts per shard, the manifest last. What has no manifest does not exist.

A shard's file is written under a hidden name, synced, and renamed to a name of its own attempt; the receipt
that makes it count is created exclusively, so of two workers that finish the same shard exactly one wins and
the other deletes its file. Readers believe receipts and manifests only, never a directory listing.

On object storage a PUT takes the place of the renaming: what is written here is uploaded first (store/mirror.py),
under the same names and in the same order. There of two receipts the last stays, and both tell of whole files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from influray.protocols import ArtifactMismatch, ConfigError, DamagedArtifact
from influray.store.checks import check_file, committed_files, damage, hash_file, is_whole, set_aside
from influray.store.mirror import (
    children,
    local,
    location_of,
    present,
    publish,
    publish_folder,
    remove,
    remove_folder,
)
from influray.store.sealed import SCHEMA, read_sealed, sealed

__all__ = ["SCHEMA", "hash_file", "read_sealed"]

MANIFEST = "manifest.json"
COMMITS = (MANIFEST, "state.json")  # of an artifact, of a checkpoint
RECEIPTS = "_receipts"
FILES = ("parts", "beside", "adapter")  # lists of files in a manifest


def fingerprint(value: Any) -> str:
    """Return the sha256 of the canonical JSON of `value` (sorted keys, no spaces), 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def hash_bytes(*parts: bytes | memoryview) -> str:
    """Return the sha256 of the parts one after the other, 64 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def naming_full_disk(path: str | Path) -> Iterator[None]:
    """Turn "no space left" (or a quota) into an error for people while the block writes at `path`.

    Raises:
        ConfigError: the disk is full; names host, folder and what is free. What is committed stays.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise full_disk(path) from error


def full_disk(path: str | Path) -> ConfigError:
    """Return the error that says that the disk of a path is full."""
    there = next(parent for parent in (Path(path), *Path(path).parents) if parent.exists())
    free = shutil.disk_usage(there).free
    return ConfigError(
        f"run_dir: no space left on the disk of {path} on {socket.gethostname()} ({free / 2**20:.1f} MiB free, or a "
        "quota is used up); make room and repeat the command: what is committed is kept"
    )


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """Give a file to write to; when the block ends, `path` holds all of it, and its old content until then."""
    path = local(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with naming_full_disk(path), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` so that `path` holds either its old content or all of the new one."""
    with writing(path) as file:
        file.write(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_sealed(path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write JSON with the schema number and its own checksum, atomically; see store/sealed.py."""
    write_json(path, sealed(facts))


def read_json(path: str | Path) -> Any:
    """Return the value of a JSON file. Raises FileNotFoundError, or ValueError where it is not JSON."""
    return json.loads(present(path).read_bytes())


def write_table(path: str | Path, table: pa.Table) -> None:
    """Write an Arrow IPC file, uncompressed and of one record batch, so that it maps without a copy."""
    table = table.combine_chunks()
    with writing(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def map_table(path: str | Path) -> pa.Table:
    """Return the table of an Arrow IPC file as a memory map: columns are views of the file.

    Its content is believed: see `checked_table`.

    Raises:
        DamagedArtifact: the file is missing or torn.
    """
    try:
        with pa.memory_map(str(present(path)), "r") as source:
            return pa.ipc.open_file(source).read_all()
    except (OSError, pa.ArrowException) as error:
        raise damage(path, f"not a readable Arrow file ({error})") from error


def checked_table(path: str | Path, sha256: str) -> pa.Table:
    """Return the mapped table of a file whose content is the committed one. Raises DamagedArtifact."""
    return map_table(check_file(path, sha256))


@dataclass(frozen=True)
class Receipt:
    """A committed shard: `key` names what it was made from, `file` and `sha256` what it is."""

    key: str
    file: str  # name within the artifact's folder; "" where the shard left no file
    sha256: str
    bytes: int
    rows: int
    details: Mapping[str, Any]  # failures, timings, counts: anything JSON
    columns: Mapping[str, str] = field(default_factory=dict)  # plain number column -> sha256 of its values


class ShardStore:
    """A folder of shard files with their receipts."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = local(folder)
        self._known: dict[str, Receipt] = {}  # on object storage, where each look is a request

    def commit(self, key: str, table: pa.Table | None, details: Mapping[str, Any]) -> Receipt:
        """Write a shard and its receipt; where `key` has one already, return that and leave no trace."""
        name = ""
        digest = ""
        if table is not None:
            name = f"part-{key[:16]}-{uuid.uuid4().hex[:8]}.arrow"
            write_table(self.folder / name, table)
            digest = hash_file(self.folder / name)
        size = (self.folder / name).stat().st_size if name else 0
        rows, columns = (0, {}) if table is None else (table.num_rows, column_digests(table))
        receipt = Receipt(key, name, digest, size, rows, dict(details), columns)
        if self._write_receipt(receipt):
            return receipt
        if name:
            remove(self.folder / name)
        return self.receipt(key) or receipt

    def receipt(self, key: str) -> Receipt | None:
        if key in self._known:
            return self._known[key]
        try:
            facts = read_sealed(self._receipt_path(key))
            facts.pop("schema")
            found = Receipt(**facts)
        except (FileNotFoundError, NotADirectoryError, ArtifactMismatch, TypeError):
            return None  # not there, damaged or foreign: its shard is to be made again
        if found.file and not _plain_name(found.file):
            return None  # it may not lead out of the folder
        if location_of(self.folder) is not None:
            self._known[key] = found
        return found

    def valid_receipt(self, key: str) -> Receipt | None:
        """Return the receipt of `key` if its file is there and of the recorded content; else forget it."""
        receipt = self.receipt(key)
        if receipt is None:
            self.forget(key)  # torn or foreign
            return None
        path = self.folder / receipt.file
        if receipt.file and (not present(path, anew=True).exists() or not is_whole(path, receipt.sha256)):
            self.forget(key)
            set_aside(path)
            return None
        return receipt

    def forget(self, key: str) -> None:
        """Delete the receipt of `key`, so that it is to be made again."""
        self._known.pop(key, None)
        path = self._receipt_path(key)
        if path.is_dir():  # someone put it there
            set_aside(path)
        remove(path)

    def sweep(self, keep: set[str]) -> None:
        """Delete every file and receipt that does not belong to a key of `keep`."""
        files = {r.file for r in map(self.receipt, keep) if r is not None}
        for path in children(self.folder, "part-*.arrow"):
            if path.name not in files:
                remove(path)
        for path in children(self.folder / RECEIPTS, "*.json"):
            if path.stem not in keep:
                remove(path)
        for path in (*self.folder.glob(".*.tmp"), *self.folder.glob(f"{RECEIPTS}/.*.tmp")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def freeze(self, keys: list[str], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest over the receipts of `keys`, in that order, and return it."""
        receipts = []
        for key in keys:
            receipt = self.receipt(key)
            assert receipt is not None, f"shard {key} has no receipt"
            receipts.append(receipt)
        manifest = {
            **facts,
            "parts": [
                {name: getattr(r, name) for name in ("key", "file", "sha256", "bytes", "rows", "columns")}
                for r in receipts
            ],
            "rows": sum(r.rows for r in receipts),
        }
        write_manifest(self.folder, manifest)
        self.sweep(set(keys))
        return manifest

    def _write_receipt(self, receipt: Receipt) -> bool:
        """Write a receipt where its key has none; return whether it was written."""
        path = self._receipt_path(receipt.key)
        data = json.dumps(sealed(receipt.__dict__), sort_keys=True).encode()
        if location_of(path) is not None:
            if self.receipt(receipt.key) is not None:
                return False
            write_bytes(path, data)  # no storage knows "only if there is none" through pyarrow: the last one stays
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        write_bytes(temporary, data)
        try:
            os.link(temporary, path)  # fails where the receipt exists: of two writers, one wins
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
        return True

    def _receipt_path(self, key: str) -> Path:
        return self.folder / RECEIPTS / f"{key}.json"


def write_manifest(folder: str | Path, facts: Mapping[str, Any]) -> None:
    """Commit an artifact: after this it exists, with `facts` as its sealed manifest."""
    write_sealed(local(folder) / MANIFEST, facts)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Return the manifest of an artifact, or None where there is none.

    Raises:
        DamagedArtifact: it is not what was written.
        ArtifactMismatch: it is of another schema, or names a part outside the folder.
    """
    path = local(folder) / MANIFEST
    try:
        manifest = read_sealed(path)
    except FileNotFoundError:
        return None
    for part in (part for name in FILES for part in manifest.get(name, ())):
        if part["file"] and not _plain_name(part["file"]):
            raise ArtifactMismatch(
                f"{path}: a part is called {part['file']!r}, which is no file of this folder; whoever wrote it may "
                f"want others to be read: delete {path.parent} and run the step again"
            )
    return manifest


def whole_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Return the manifest of an artifact, or None where there is none that is whole: its step makes that again."""
    try:
        return read_manifest(folder)
    except DamagedArtifact:
        return None


def column_digests(table: pa.Table) -> dict[str, str]:
    """Return the sha256 of the values of each column of plain numbers, by name.

    A reader of one such column checks it alone, and not the file of which it is a thousandth.
    """
    plain = [
        field.name for field in table.schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    ]
    return {name: column_digest(table, name) for name in plain if not table[name].null_count}


def column_digest(table: pa.Table, name: str) -> str:
    """Return the sha256 of the values of a column of plain numbers."""
    return hash_bytes(*(np.ascontiguousarray(chunk.to_numpy()).view(np.uint8).data for chunk in table[name].chunks))


def describe(folder: str | Path, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return what a manifest says of files: file, sha256 and bytes of each."""
    paths = [Path(folder) / name for name in names]
    return [{"file": path.name, "sha256": hash_file(path), "bytes": path.stat().st_size} for path in paths]


def committed_file(folder: str | Path, name: str, step: str) -> Path:
    """Return the path of a file that the manifest of an artifact tells of, once it is found to be what was committed.

    Raises:
        ArtifactMismatch: there is no such artifact; `step` makes it.
        DamagedArtifact: the file is not what was committed.
    """
    digests = {file: sha256 for file, sha256, _ in committed_files(require_manifest(folder, step))}
    if name not in digests:
        raise ArtifactMismatch(f"{folder}: holds no {name}; run `influray {step}` again")
    return check_file(local(folder) / name, digests[name])


def _plain_name(name: Any) -> bool:
    """Return whether this names a file within a folder, on any system: run directories travel."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")


def require_manifest(folder: str | Path, step: str) -> dict[str, Any]:
    """Return the manifest of an artifact. Raises ArtifactMismatch naming the `influray` step that makes it."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ArtifactMismatch(f"{folder}: not there or not complete; run `influray {step}` first")
    return manifest


def replace_folder(new: str | Path, final: str | Path) -> None:
    """Put a complete folder in the place of an older one; at no moment is a half-written one there."""
    new, final = Path(new), local(final)
    publish_folder(new, final, COMMITS)
    old = final.with_name(f".{final.name}.{uuid.uuid4().hex}.old")
    if final.exists():
        os.rename(final, old)
    os.rename(new, final)
    remove_folder(old)
    remove_folder(new)  # what of it was uploaded while it was made


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
