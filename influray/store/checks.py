"""Whether a committed file is still what was committed: the one place where that is found out.

Every reader goes through `check_file` before it believes a file, and a process hashes a file once: at 1.3 GB/s a core
with SHA instructions. A file that was replaced (another inode, size or time) is hashed anew. Where a reader has other
things to do first, `check_ahead` hashes in threads meanwhile, and `check_file` waits for what is not done.

Readers change nothing. What is damaged is told with its address, and `set_aside` is for the driver that holds the run
directory: it moves the file away, so that the step that made it finds it missing and makes it again.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from influray.protocols import DamagedArtifact
from influray.store.mirror import address_of, local, location_of, present, remove, remove_folder, sizes

MOST_THREADS = 8  # that hash at a time: more of them wait for the disk

# Folder of a run directory -> the step that makes what is in it.
MADE_BY = {
    "cascade": "cascade",
    "data": "data",
    "warmup": "warmup",
    "features": "featurize",
    "fit": "score",
    "attribution": "score",
    "selection": "select",
    "tune": "tune",
    "evaluation": "evaluate",
    "index": "index",
    "validate": "validate",
    "report": "report",
    "quarantine.jsonl": "data",
    "quarantine.sha256": "data",
}
# Which verb makes it again, where it is not called as its step.
_VERBS = {"cascade": "run", "data": "run", "report": "run", "": "run"}

_Version = tuple[int, int, int]
_checked: dict[tuple[str, str], _Version] = {}  # (path, sha256) -> the version of the file that has that content
_hashed: dict[str, tuple[_Version, str]] = {}
_ahead: dict[tuple[str, str], Future[None]] = {}
_guard = threading.Lock()


def hash_file(path: str | Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    with open(present(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_once(path: str | Path) -> str:
    """Return the sha256 of a file's bytes; of one that this process has hashed, without reading it again.

    For files of the user's, of which several parts of a run ask. A file that was replaced is hashed anew.
    """
    path = present(path)
    facts = path.stat()
    version = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    before = _hashed.get(str(path))
    if before is None or before[0] != version:
        before = _hashed[str(path)] = (version, hash_file(path))
    return before[1]


def check_file(path: str | Path, sha256: str) -> Path:
    """Return the path of a file whose content is the committed one, on this machine; hashed once a process.

    Raises:
        DamagedArtifact: its content is another, or it is gone or no file.
    """
    path = local(path)
    with _guard:
        waiting = _ahead.get((str(path), sha256))
    if waiting is not None:
        waiting.result()
    return _check(path, sha256)


def check_ahead(files: Iterable[tuple[Path, str]]) -> None:
    """Begin to hash files (path, sha256) in threads; what is found is told by `check_file`."""
    with _guard:
        for path, sha256 in files:
            key = (str(local(path)), sha256)
            if key not in _ahead and key not in _checked:
                _ahead[key] = _threads().submit(_quietly, local(path), sha256)


def damaged(folder: str | Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of files that a manifest tells of and that are missing or of another size; none is read."""
    found = sizes(local(folder))
    return [name for name, _, size in committed_files(manifest) if found.get(name) != size]


def broken(folder: str | Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of files that a manifest tells of and that are not what was committed, moved out of the way.

    For the driver that holds the run directory. Of a run on object storage sizes are looked at alone: its files are
    hashed by those who fetch them.
    """
    folder = local(folder)
    names = damaged(folder, manifest)
    if location_of(folder) is None:
        known = {name: digest for name, digest, _ in committed_files(manifest) if name not in names}
        check_ahead((folder / name, digest) for name, digest in known.items())
        names += [name for name, digest in known.items() if not is_whole(folder / name, digest)]
    for name in names:
        set_aside(folder / name)
    return names


def is_whole(path: str | Path, sha256: str) -> bool:
    """Return whether a file is what was committed."""
    try:
        check_file(path, sha256)
    except DamagedArtifact:
        return False
    return True


def committed_files(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """Yield (name, sha256, bytes) of the files that a manifest tells of: its parts and what lies beside them."""
    for part in (*manifest.get("parts", ()), *manifest.get("beside", ())):
        if part["file"]:
            yield part["file"], part["sha256"], part["bytes"]


def step_of(path: str | Path) -> str:
    """Return the step that makes a file of a run directory, "" for what belongs to the run as a whole."""
    path = local(path)
    location = location_of(path)
    roots = [location.root] if location is not None else list(path.parents)
    for root in roots:
        if location is not None or (root / "config.yaml").exists() or (root / "run.json").exists():
            return MADE_BY.get(path.relative_to(root).parts[0], "") if path != root else ""
    return next((MADE_BY[piece] for piece in reversed(path.parts) if piece in MADE_BY), "")


def remedy(path: str | Path) -> str:
    """Return what to do about a file of a run directory, as messages say it."""
    step = step_of(path)
    verb = _VERBS.get(step, step)
    return f"`influray {verb}` makes it again" + ("" if verb in ("run", "validate") else ", as `influray run` does")


def damage(path: str | Path, what: str) -> DamagedArtifact:
    """Return the error that names a damaged file, what is wrong with it, and the step that makes it again."""
    path = local(path)
    if above := [folder for folder in path.parents if folder.is_file()]:
        path, what = above[0], "a file where a folder belongs"
    elif path.is_dir():
        what = "a folder where a file belongs"
    elif path.is_file() and not path.stat().st_size:
        what = f"an empty file, {what}"
    # Of object storage there is a copy here at most; the step that makes the file again replaces it there.
    there = "delete it: " if path.exists() and location_of(path) is None else ""
    address = address_of(path)
    return DamagedArtifact(f"{address}: {what}; {there}{remedy(path)}", address)


def set_aside(path: str | Path) -> None:
    """Move a damaged file, or what stands in its place, out of the way; of object storage it is deleted."""
    path = local(path)
    if location_of(path) is not None:
        remove_folder(path) if path.is_dir() else remove(path)
        return
    # Under a name that `ShardStore.sweep` deletes. Another may have found it first, or it is just not there.
    try:
        os.replace(path, path.with_name(f".{path.name}.{uuid.uuid4().hex}.damaged.tmp"))
    except (FileNotFoundError, NotADirectoryError):
        return


def _check(path: Path, sha256: str) -> Path:
    try:
        path = present(path)
        facts = path.stat()
        version = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
        if _checked.get((str(path), sha256)) == version:
            return path
        if not stat.S_ISREG(facts.st_mode):
            raise damage(path, "no plain file")
        found = hash_file(path)
    except FileNotFoundError:
        raise damage(path, "gone") from None
    except OSError as error:
        raise damage(path, f"cannot be read ({error})") from error
    if found != sha256:
        raise damage(path, f"not what was committed (sha256 {found[:16]}... in the place of {sha256[:16]}...)")
    _checked[str(path), sha256] = version
    return path


def _quietly(path: Path, sha256: str) -> None:
    try:
        _check(path, sha256)
    except DamagedArtifact:  # `check_file` comes to the same, and tells
        pass
    finally:
        with _guard:
            _ahead.pop((str(path), sha256), None)


@cache
def _threads() -> ThreadPoolExecutor:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(min(MOST_THREADS, cores), thread_name_prefix="check")
