"""What crosses between the driver and its workers: tasks, attempts, events and reports. Imports no Ray."""

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


@dataclass(frozen=True, slots=True)
class Attempt:
    """One handing out of a shard."""

    number: int = 1
    token_budget: int | None = None  # padded tokens a batch; None = the worker's own
    shrunk: bool = False  # a larger budget did not fit into memory
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

    kind: Literal["started", "lost", "retry", "shrunk", "speculated", "isolated", "failed", "waiting", "memory"]
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
    retries: int = 0  # attempts beyond the first, smaller token budgets included, copies for stragglers not
    workers_lost: int = 0
    memory_kills: int = 0  # of them, killed because their machine ran out of memory
    speculated: int = 0
    token_budget: int | None = None  # padded tokens a batch, of all shards but those in `shrunk`
    shrunk: tuple[str, ...] = ()  # keys of shards that needed a smaller one
    seconds: float = 0.0
    failures: tuple[ShardFailure, ...] = ()


class ShardOutOfMemory(RuntimeError):
    """A worker ran out of memory under `token_budget`; `divisible` where a smaller one would change its batches."""

    def __init__(self, message: str, token_budget: int, divisible: bool) -> None:
        super().__init__(message, token_budget, divisible)  # all of them, or it does not survive pickling
        self.token_budget = token_budget
        self.divisible = divisible

    def __str__(self) -> str:
        return f"{self.args[0]} (token budget {self.token_budget})"


class PoolError(RuntimeError):
    """Shards that failed for good, after all others were committed."""

    def __init__(self, report: PoolReport) -> None:
        shown = "; ".join(f"{label(f.task)}: {' | '.join(f.reasons)}" for f in report.failures[:3])
        more = f"; and {len(report.failures) - 3} more" if len(report.failures) > 3 else ""
        super().__init__(
            f"{len(report.failures)} of {len(report.failures) + len(report.receipts)} shards failed in every attempt, "
            f"the others are committed: {shown}{more}"
        )
        self.report = report


class WorkerStartError(RuntimeError):
    """No worker comes up: every one that was started died before it could compute."""


def label(task: ShardTask) -> str:
    """Return what people call a shard."""
    if task.name:
        return task.name
    place = f" of checkpoint {task.checkpoint}" if task.checkpoint else ""
    return f"{task.split} rows {task.start}-{task.stop - 1}{place}"
