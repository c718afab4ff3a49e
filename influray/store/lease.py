"""Who drives a run directory on object storage: an object that its holder renews.

Advisory: no storage can refuse a second writer through pyarrow. A holder that was killed is noticed when its lease
has not been renewed for STALE_SECONDS of the storage's own clock; on the holder's machine at once.
"""

from __future__ import annotations

import contextlib
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

from influray.protocols import ConfigError, StorageError
from influray.store.location import Location

logger = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
STALE_SECONDS = 45.0  # times of objects are whole seconds, and a beat may need several attempts
LOOK_SECONDS = 1.0


@contextlib.contextmanager
def leased(location: Location, path: Path, since: str) -> Iterator[None]:
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
    thread = threading.Thread(target=_renew, args=(location, path, mine, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(StorageError):  # it ends by itself
            if _read(location, path).get("token") == mine["token"]:
                location.delete(path)


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


def _renew(location: Location, path: Path, mine: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        try:
            found = _read(location, path)
            if found.get("token") not in (mine["token"], None):
                logger.error("%s was taken over by %s: stop one of the two", location.uri.shown, shown(found))
                return
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
