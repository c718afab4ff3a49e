"""How far a training or an evaluation is: what its process tells, and how that reads in a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SHOWN = 3  # jobs of a line; the others are counted


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How far a job is: `done` of `total` steps or records; `share` of all its work, of which `before` was there."""

    name: str
    done: int = 0
    total: int = 0
    unit: str = ""
    loss: float | None = None  # mean of the last steps
    share: float = 0.0
    before: float = 0.0
    finished: bool = False

    def line(self) -> str:
        """Return it in words; the name alone where nothing is done yet."""
        done = f" {self.done}/{self.total} {self.unit}" if self.total else ""
        return f"{self.name}{done}" + ("" if self.loss is None else f" at loss {self.loss:.3f}")


class Tell(Protocol):
    """Hears that `done` of `total` steps or records are done; `share` of all work, where that is not their quotient."""

    def __call__(
        self, done: int, total: int, unit: str, loss: float | None = None, share: float | None = None
    ) -> None: ...


def tell_nobody(done: int, total: int, unit: str, loss: float | None = None, share: float | None = None) -> None:
    """Hear it and do nothing."""


class OnJobs(Protocol):
    """Hears how many jobs are finished, and how far those are that run."""

    def __call__(self, finished: int, running: Sequence[JobStatus]) -> None: ...


def not_shown(finished: int, running: Sequence[JobStatus]) -> None:
    """Hear it and do nothing."""


def jobs_line(running: Sequence[JobStatus]) -> str:
    """Return how far jobs are, in one line."""
    rest = len(running) - SHOWN
    return ", ".join([job.line() for job in running[:SHOWN]] + ([f"{rest} more at work"] if rest > 0 else []))
