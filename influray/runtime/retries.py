"""What is tried again: the one place that reads Ray's errors, for everything that waits for a process of Ray's.

A process may be lost with its node, be killed, or be killed because its machine ran out of memory. Ray tells these
apart by classes that have no more in common than RayError. Here an error becomes a `Loss`, which is tried again, or
what must be raised; and a kill for memory makes fewer processes run side by side, since with the same number the
next one would be killed as well.
"""

from __future__ import annotations

import errno
import math
import time
from dataclasses import dataclass
from typing import Any

from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from influray.protocols import USER_ERRORS, ConfigError, RunStopped
from influray.store.artifact import full_disk

NEWS_SECONDS = 2.0  # until the end of a process is known to those who wait for it

__all__ = ["Loss", "RayError", "SideBySide", "TooLittleMemory", "loss_of", "need_memory"]


@dataclass(frozen=True, slots=True)
class Loss:
    """An attempt that came to nothing and may be repeated.

    `cause` is what the code raised, in a process that still lives; None where the process, its node or its answer is
    gone. `memory`: the machine had too little of it, and Ray killed the process for that. `unavailable`: an actor did
    not answer, and Ray may yet start it again, as where its node has just gone.
    """

    reason: str  # in one line
    cause: Exception | None = None
    memory: bool = False
    unavailable: bool = False


class TooLittleMemory(ConfigError):
    """A process that is killed for memory also when it has its machine for itself."""


def loss_of(error: Exception) -> Loss:
    """Return what became of the process that an error of Ray's tells of, or raise what no attempt would change.

    Raises:
        ConfigError, DataError, ArtifactMismatch: the code raised it; unchanged.
        StorageError: a full disk.
        RunStopped: the cluster is gone.
    """
    if not isinstance(error, RayError):
        raise error
    if isinstance(error, RayTaskError):
        cause: Any = error.cause
        if isinstance(cause, RayError):  # of a process that this one had waited for
            return loss_of(cause)
        if isinstance(cause, (*USER_ERRORS, RunStopped)):
            raise cause from None
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:  # of a log, say; commits name the disk
            raise full_disk(cause.filename or "the run directory") from cause
        return Loss(f"{type(cause).__name__}: {cause}"[:500], cause)
    memory, away = isinstance(error, OutOfMemoryError), isinstance(error, ActorUnavailableError)
    text = str(error) or type(error).__name__
    if memory:  # the rest is a page of advice on Ray's own settings
        text = text.partition("\n")[0]
    return Loss(" ".join(line.strip() for line in text.splitlines() if line.strip())[:500], None, memory, away)


class SideBySide:
    """How many processes of a kind may run side by side: fewer after each one that is killed for memory."""

    def __init__(self) -> None:
        self.most: float = math.inf
        self.kills = 0
        self._lowered = -math.inf

    def killed(self, since: float, others: int) -> bool:
        """Take in a kill for memory; return whether it counts as a failed attempt.

        Args:
            since: when the process was given what it was at, by time.monotonic().
            others: how many of its kind have a process beside it.

        It counts only where the process had been alone all the time: else what did not fit may have been the others.
        """
        self.kills += 1
        if others:
            self.most, self._lowered = min(self.most, others), time.monotonic()
            return False
        # One that was killed with others may be given work before it is known to be dead.
        return since > self._lowered + NEWS_SECONDS

    def limit(self, wanted: int) -> int:
        """Return how many of `wanted` processes may be there."""
        return int(min(wanted, self.most))

    def told(self) -> str:
        """Return the limit in words."""
        return f"out of memory: {self.most:g} at a time from now on" if self.most < math.inf else "out of memory"


def need_memory(what: str, kills: int, lower: str, reason: str) -> TooLittleMemory:
    """Return the error that names what to lower where one process alone does not fit into memory."""
    return TooLittleMemory(
        f"{lower}: {what} was killed for memory {kills} times, at last with no other worker beside it ({reason}); "
        "lower it, or take a machine with more memory"
    )
