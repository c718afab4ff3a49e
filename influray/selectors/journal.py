"""What a selection has chosen so far, kept in a file every few seconds, so that a killed one goes on.

Sums are made again in order of choice, so that the selection has the same bytes as one that was never interrupted.
"""

from __future__ import annotations

import io
import logging
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from influray.store.artifact import write_bytes
from influray.store.mirror import present, remove

logger = logging.getLogger(__name__)

SECONDS = 5.0  # between two writes
SHARE = 20  # of the time, at most one part in so many goes into writing
LOOK_EVERY = 64  # picks: the clock is not read for each


class FileJournal:
    """A Journal in the file `path`, believed by a selection of the same `fingerprint` only.

    `on_progress(done, total)` is told how far the selection is.
    """

    def __init__(
        self, path: Path, fingerprint: str, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._on_progress = on_progress
        self._due = time.monotonic() + SECONDS

    def restore(self) -> dict[str, np.ndarray] | None:
        """Return the state that was recorded last, or None where there is none of this selection."""
        try:
            with np.load(present(self._path), allow_pickle=False) as file:
                state = {name: file[name] for name in file.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            logger.warning("%s cannot be read (%s): the selection begins anew", self._path, error)
            return None
        if str(state.pop("fingerprint", "")) != self._fingerprint:
            return None
        return state

    def record(self, done: int, total: int, state: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Take note that `done` of about `total` rows are chosen; `state()` is asked for when it is to be written."""
        if done % LOOK_EVERY and done != total:
            return
        self._on_progress(done, total)
        started = time.monotonic()
        if started < self._due:
            return
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, fingerprint=np.array(self._fingerprint), **state())
        write_bytes(self._path, data.getvalue())
        now = time.monotonic()
        self._due = now + max(SECONDS, SHARE * (now - started))

    def discard(self) -> None:
        """Forget everything: the selection is committed."""
        remove(self._path)
