"""Which paths of this process are mirrors of object storage, and what the primitives of the store do about it.

Outside the store a path is a path. Between machines places travel as `address_of(path)`, a URI and after a # what lies
below it, and `local(address)` is the path on this one. A path that lies in no mirror is left alone by all of this.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import threading
import time
from pathlib import Path
from urllib.parse import unquote

from influray.protocols import ConfigError, StorageError
from influray.store.location import Location
from influray.store.uri import is_uri, parse_uri

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 20.0  # between two uploads of a file that grows, at first less

_mirrors: dict[Path, Location] = {}
_followed: dict[Path, int] = {}  # path -> bytes that are uploaded
_guard = threading.RLock()
_follower: threading.Thread | None = None


def cache_folder() -> Path:
    """Return where mirrors lie: influray in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "influray"


def local(place: str | Path, key: str = "run_dir") -> Path:
    """Return the path on this machine of a path or of a URI, whose files come into being when they are asked for.

    Raises:
        ConfigError: as `parse_uri`; `key` is what it names.
    """
    if not is_uri(place):
        return Path(place)
    address, _, relative = str(place).partition("#")
    uri = parse_uri(address, key)
    if ".." in relative.split("/"):
        raise ConfigError(f"{key}: {uri.shown}: {relative!r} leads out of it")
    root = cache_folder() / hashlib.sha256(str(uri).encode()).hexdigest()[:16] / uri.prefix.rpartition("/")[2]
    _mirrors.setdefault(root, Location(uri, root))
    return root / unquote(relative)


def location_of(path: str | Path) -> Location | None:
    """Return the location whose mirror a path lies in, None where it is a path like any other."""
    if not _mirrors:
        return None
    path = Path(path)
    return next((_mirrors[folder] for folder in (path, *path.parents) if folder in _mirrors), None)


def address_of(path: str | Path) -> str:
    """Return what names a path on every machine: its URI, or the path itself where it lies in no mirror."""
    location = location_of(path)
    return str(path) if location is None else location.address(Path(path))


def present(path: str | Path, anew: bool = False) -> Path:
    """Return the path, its file being what the storage holds now; where that holds none, there is no file.

    Parts never change, and are asked for once a process; `anew` asks again.
    """
    path = local(path)
    location = location_of(path)
    if location is not None and location.shared(path) and path not in _followed:
        location.fetch(path, anew)
    return path


def present_folder(folder: str | Path) -> Path:
    """Return the path of a folder, all files below it being what the storage holds now."""
    folder = local(folder)
    location = location_of(folder)
    if location is not None and location.shared(folder):
        location.fetch_folder(folder)
    return folder


def publish(source: Path, path: Path) -> None:
    """Upload a file that is about to be renamed to `path`. On a disk the renaming is all."""
    location = location_of(path)
    if location is not None and location.shared(path):
        location.upload(source, path)


def publish_folder(new: Path, final: Path, manifests: tuple[str, ...]) -> None:
    """Upload a complete folder that is about to be renamed to `final`, in the place of what the storage holds there.

    The old manifest goes first and the new one comes last, so that at no moment one stands over files of another.
    """
    location = location_of(final)
    if location is None or not location.shared(final):
        return
    files = {
        final / path.relative_to(new): path
        for path in new.rglob("*")
        if path.is_file() and location.shared(final / path.relative_to(new))
    }
    before = location.paths(final)
    for path in before:
        if path.parent == final and path.name in manifests:
            location.delete(path)
    for path in sorted(files, key=lambda path: (_commits(path, final, manifests), path)):
        location.upload(files[path], path)
    for path in set(before) - set(files):
        location.delete(path)


def remove(path: Path) -> None:
    """Delete a file, here and on the storage, where it is."""
    location = location_of(path)
    if location is not None and location.shared(path):
        location.delete(path)
    path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder with all that is in it, here and on the storage, where it is."""
    location = location_of(folder)
    if location is not None and location.shared(folder):
        for path in location.paths(folder):
            location.delete(path)
    shutil.rmtree(folder, ignore_errors=True)


def children(folder: Path, pattern: str) -> list[Path]:
    """Return the paths in a folder whose names match, sorted: those here, and those on the storage."""
    found = set(folder.glob(pattern))
    location = location_of(folder)
    if location is not None and location.shared(folder):
        tops = {folder / path.relative_to(folder).parts[0] for path in location.paths(folder)}
        found |= {path for path in tops if path.match(pattern)}
    return sorted(found)


def sizes(folder: Path) -> dict[str, int]:
    """Return name -> bytes of the files in a folder, by one look; on the storage where it is the folder's."""
    location = location_of(folder)
    if location is not None and location.shared(folder):
        return location.sizes(folder)
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def follow(path: Path) -> None:
    """Keep the object of a file that this process appends to up to date: every FOLLOW_SECONDS and at the end.

    Lines that an earlier process has left on the storage are fetched first.
    """
    global _follower
    location = location_of(path)
    if location is None:
        return
    with _guard:
        if path in _followed:
            return
        info = location.stat(path)
        if info is not None and (not path.exists() or path.stat().st_size < info.size):
            location.fetch(path)
        _followed[path] = 0 if info is None else info.size
        if _follower is None:
            _follower = threading.Thread(target=_keep_following, daemon=True)
            _follower.start()
            atexit.register(flush)


def flush(leave: Path | None = None) -> None:
    """Upload what has been appended to the followed files, and follow those below `leave` no longer.

    A failure is logged: no run ends for its log.
    """
    with _guard:
        for path, uploaded in list(_followed.items()):
            location = location_of(path)
            if location is None or not path.exists() or path.stat().st_size == uploaded:
                continue
            copy = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                shutil.copyfile(path, copy)  # it may grow while it is uploaded
                location.upload(copy, path)
                _followed[path] = copy.stat().st_size
            except (StorageError, ConfigError, OSError) as error:
                logger.warning("%s was not uploaded: %s", path.name, error)
            finally:
                copy.unlink(missing_ok=True)
        for path in list(_followed):
            if leave is not None and path.is_relative_to(leave):
                del _followed[path]


def _keep_following() -> None:
    pause = 1.0  # a process may be killed soon
    while True:
        time.sleep(pause)
        flush()
        pause = min(2 * pause, FOLLOW_SECONDS)


def _commits(path: Path, folder: Path, manifests: tuple[str, ...]) -> int:
    """When a file of a folder is uploaded: data, then what describes it, then what makes the whole count."""
    if path.parent == folder and path.name in manifests:
        return 2
    return int(path.name in manifests or path.suffix == ".json")
