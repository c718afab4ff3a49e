"""How many queries are let in: as many as are answered in time, by the pace of those before them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

PATIENCE_SECONDS = 8.0  # until a query is answered; one that would wait for longer is told to come again
MOST = 256  # in hand, however fast they go
LEAST = 8  # in hand, however slowly
MEMORY = 0.8  # how much of the pace that was the next batch leaves


class Busy(Exception):
    """More queries are in hand than are answered in time; `retry_after` seconds from now there may be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


class Admission:
    """The queries in hand. All calls come from one thread, that of the server's loop."""

    def __init__(self, engines: int = 1, patience: float = PATIENCE_SECONDS) -> None:
        self._engines = engines
        self._patience = patience
        self._in_hand = 0
        self._seconds = self._queries = 0.0  # of the batches so far, the last ones weighing most

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a query while the block runs. Raises Busy."""
        expected = (self._in_hand + 1) * self.pace
        if self._in_hand >= LEAST and (self._in_hand >= MOST or expected > self._patience):
            raise Busy(max(1, math.ceil(expected - self._patience / 2)))
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1

    @property
    def pace(self) -> float:
        """Seconds from one answer to the next, by all engines."""
        return self._seconds / self._queries / self._engines if self._queries else 0.0

    def answered(self, seconds: float, queries: int) -> None:
        """Take in how long an engine took for a batch of queries; told once for each of them, it counts once."""
        share = 1 / queries
        self._seconds = self._seconds * (1 - share * (1 - MEMORY)) + seconds * share
        self._queries = self._queries * (1 - share * (1 - MEMORY)) + 1
