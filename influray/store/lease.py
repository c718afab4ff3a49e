"""The lease on a run directory: one driver at a time, which stops when it loses the lease.

On a disk the folder itself is locked, which nobody can remove without removing the run; beside it lies a file that says
who holds it, locked too, for file systems (NFS) on which folders cannot be. On object storage it is an object that its
holder renews, and advisory: no storage can refuse a second writer through pyarrow. A holder that was killed is noticed
when its lease has not been renewed for STALE_SECONDS of the storage's own clock; on the holder's machine at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from influray import interrupts
from influray.protocols import ConfigError, RunStopped, StorageError
from influray.store.location import Location

logger = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
STALE_SECONDS = 45.0  # times of objects are whole seconds, and a beat may need several attempts
LOOK_SECONDS = 1.0


class Holding:
    """That a driver holds a run directory. Once it is lost the driver is stopped, and `check` raises."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.lost: RunStopped | None = None
        self._main = threading.current_thread() is threading.main_thread()

    def lose(self, why: str) -> None:
        """Stop the driver: it no longer holds the directory."""
        self.lost = RunStopped(f"run_dir: {self.place} {why}; this run stops, one driver at a time")
        if self._main:
            interrupts.stop(self.lost)

    def check(self) -> None:
        """Raise RunStopped where the directory is no longer held."""
        if self.lost is not None:
            raise self.lost


@contextlib.contextmanager
def locked(folder: Path, name: str, since: str) -> Iterator[Holding]:
    """Lock a folder of this machine while the block runs; its file `name` says who holds it.

    The lock goes with the process, however it ends. A folder that is removed or replaced meanwhile stops the driver,
    and so does the file where the folder itself cannot be locked; else the file is written again.

    Raises:
        ConfigError: another driver holds it, and which one, or the folder cannot be made or written.
    """
    path = folder / name
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            file = stack.enter_context(open(path, "a+"))
        except OSError as error:
            raise ConfigError(f"run_dir: {folder} cannot be written: {error}") from error
        try:
            firm = _lock_folder(descriptor, folder)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"run_dir: {folder} is in use by {shown(_told(path))}; one driver at a time") from None
        mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        file.seek(0)
        file.truncate()
        file.write(mine)
        file.flush()
        holding = Holding(str(folder))
        stop = threading.Event()
        thread = threading.Thread(target=_watch, args=(holding, descriptor, file, path, firm, stop), daemon=True)
        thread.start()
        try:
            yield holding
        finally:
            stop.set()
            thread.join()


@contextlib.contextmanager
def leased(location: Location, path: Path, since: str, holding: Holding) -> Iterator[None]:
    """Hold the lease that is the object of `path` while the block runs. A dead holder's is waited for.

    Raises:
        ConfigError: a living driver holds it, and which one.
    """
    _wait_until_free(location, path)
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "token": uuid.uuid4().hex}
    _write(location, path, mine)
    time.sleep(LOOK_SECONDS / 4)  # of two that found it free, the last one has it
    found = _read(location, path)
    if found.get("token") != mine["token"]:
        raise ConfigError(f"run_dir: {location.uri.shown} is in use by {shown(found)}; one driver at a time")
    stop = threading.Event()
    thread = threading.Thread(target=_renew, args=(location, path, mine, holding, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(StorageError):  # it ends by itself
            if _read(location, path).get("token") == mine["token"]:
                location.delete(path)


def _lock_folder(descriptor: int, folder: Path) -> bool:
    """Lock an open folder and return True; False where its file system has no such locks. Raises BlockingIOError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        logger.info("%s: the folder cannot be locked (%s), only its lease file", folder, error)
        return False
    return True


def _watch(holding: Holding, descriptor: int, file: Any, path: Path, firm: bool, stop: threading.Event) -> None:
    while not stop.wait(LOOK_SECONDS):
        if not _same(path.parent, os.fstat(descriptor)):
            holding.lose("was removed or replaced by another folder while this run wrote to it")
            return
        if _same(path, os.fstat(file.fileno())):
            continue
        if not firm:
            holding.lose(f"was taken over by {shown(_told(path))}: {path.name} is not the file that it locked")
            return
        if not path.exists():
            logger.warning("%s was removed; the run goes on, for the folder itself is locked", path)
            with contextlib.suppress(OSError):  # it only says who holds the lock
                file.seek(0)
                path.write_text(file.read())


def _same(path: Path, opened: os.stat_result) -> bool:
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # a server that does not answer just now has removed nothing
        return True
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)


def _told(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def shown(holder: dict[str, Any]) -> str:
    """Return what people call a holder."""
    try:
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (KeyError, TypeError):
        return "another process"


def _wait_until_free(location: Location, path: Path) -> None:
    first = location.stat(path)
    if first is None:
        return
    holder = _read(location, path)
    if holder.get("host") == socket.gethostname() and isinstance(holder.get("pid"), int):
        if _alive(holder["pid"]):
            raise ConfigError(f"run_dir: {location.uri.shown} is in use by {shown(holder)}; one driver at a time")
        return
    age = (location.probe(path.with_name("lease-probe")) - first.mtime_ns) / 1e9
    deadline = time.monotonic() + STALE_SECONDS - age
    if age < STALE_SECONDS:
        logger.warning(
            "%s: held by %s, renewed %.0f s ago; waiting to see whether it still lives",
            *(location.uri.shown, shown(holder), age),
        )
    while time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        now = location.stat(path)
        if now is None:
            return
        if now.mtime_ns != first.mtime_ns:
            raise ConfigError(f"run_dir: {location.uri.shown} is in use by {shown(holder)}; one driver at a time")


def _renew(location: Location, path: Path, mine: dict[str, Any], holding: Holding, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        try:
            found = _read(location, path)
            if found.get("token") not in (mine["token"], None):
                holding.lose(f"was taken over by {shown(found)}")
                return
            if not found:
                logger.warning("%s: its lease was removed, and is written again", location.uri.shown)
            _write(location, path, mine)
        except (StorageError, ConfigError) as error:
            logger.warning("the lease was not renewed: %s", error)


def _write(location: Location, path: Path, holder: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(json.dumps(holder))
        location.upload(temporary, path)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(location: Location, path: Path) -> dict[str, Any]:
    location.fetch(path)
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
