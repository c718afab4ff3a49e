"""The folders of private Ray clusters: one for each driver, locked while it lives, and swept by others once it is dead.

A driver that is killed leaves its folder. Whether its owner lives is told by a lock that no end of a process outlives,
and not by a process id, which may be another process's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

PREFIX = "influray-"
OWNER = "owner.lock"
LOGS = "ray-logs"  # what is kept of a folder after an error, and is no longer swept


class ScratchFolder:
    """A folder of this process in `parent`; those there that killed drivers of this user left are removed first."""

    def __init__(self, parent: Path) -> None:
        with _alone(parent):
            sweep(parent)
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            self._lock = open(self.path / OWNER, "w")  # noqa: SIM115 - held open for the lock's life
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self, keep: bool) -> None:
        """Remove the folder; with `keep`, all of it but Ray's logs, and say where these are."""
        if keep:
            kept = self.path.with_name(f"{LOGS}-{self.path.name}")
            for logs in self.path.glob("session_2*/logs"):
                with contextlib.suppress(OSError):  # the error that they belong to is what counts
                    shutil.move(logs, kept)
                    logger.info("Ray's own logs are kept in %s", kept)
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep(parent: Path) -> list[Path]:
    """Remove the folders in `parent` whose drivers are dead, and return them. One without a lock is left alone."""
    swept = []
    for folder in sorted(parent.glob(f"{PREFIX}*")):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with open(folder / OWNER) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                swept.append(folder)
        except OSError:  # it is held, or no such folder, or not ours to read
            continue
    if swept:
        logger.info("removed what killed drivers left: %s", ", ".join(map(str, swept)))
    return swept


@contextlib.contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Let one process at a time make or sweep folders: between its making and its locking a folder has no owner."""
    # A file and no folder: `glob` above finds it, and it holds no lock file.
    path = parent / f".{PREFIX}{os.getuid()}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
