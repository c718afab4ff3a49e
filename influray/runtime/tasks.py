"""What crosses between a shard pool and its workers: tasks, attempts, events and reports. Imports no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from influray.store.artifact import Receipt


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard of one artifact: what it is made from does not depend on who makes it, or how often it is tried."""

    key: str  # of its receipt
    split: str
    checkpoint: int
    start: int  # catalogue rows [start, stop)
    stop: int
    folder: str  # of the ShardStore it is committed to
    name: str = ""  # what people call it, where that is not a range of rows

    def __str__(self) -> str:
        place = f" of checkpoint {self.checkpoint}" if self.checkpoint else ""
        return self.name or f"{self.split} rows {self.start}-{self.stop - 1}{place}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One handing out of a shard."""

    number: int = 1
    token_budget: int | None = None  # padded tokens a batch; None = the worker's own
    without: tuple[int, ...] = ()  # rows that are not computed: they kill the process, and go to the quarantine
    probe: tuple[int, int] | None = None  # compute these rows [start, stop) alone and commit nothing


@dataclass(frozen=True, slots=True)
class Computed:
    """What `compute` answers where the rows of a shard are there, and the worker's `commit(key)` has to write them."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself once it can compute."""

    name: str  # host and process
    device: str = "cpu"
    token_budget: int | None = None  # what it would take; the first worker's holds for all


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """Something that people should hear of, in one line."""

    kind: Literal["started", "lost", "retry", "shrunk", "isolated", "failed", "waiting", "memory"]
    text: str
    key: str = ""
    side_by_side: int = 0  # of "memory": how many workers may run from now on


@dataclass(frozen=True)
class ShardFailure:
    """A shard that failed `max_attempts` times, with the reason of each."""

    task: ShardTask
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class PoolReport:
    """What a run of the pool did; `receipts` are in the order of its tasks."""

    receipts: tuple[Receipt, ...]
    retries: int = 0  # attempts beyond the first
    workers_lost: int = 0
    memory_kills: int = 0  # of them, killed because their machine ran out of memory
    token_budget: int | None = None  # padded tokens a batch, of all shards but those that did not fit
    failures: tuple[ShardFailure, ...] = ()


class PoolError(RuntimeError):
    """Shards that failed for good, after all others were committed."""

    def __init__(self, report: PoolReport) -> None:
        shown = "; ".join(f"{f.task}: {' | '.join(f.reasons)}" for f in report.failures[:3])
        more = f"; and {len(report.failures) - 3} more" if len(report.failures) > 3 else ""
        super().__init__(
            f"{len(report.failures)} of {len(report.failures) + len(report.receipts)} shards failed in every attempt, "
            f"the others are committed: {shown}{more}"
        )
        self.report = report


class WorkerStartError(RuntimeError):
    """No worker comes up: every one that was started died before it could compute."""
