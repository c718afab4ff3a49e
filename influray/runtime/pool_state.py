"""What a shard pool knows while it runs: its shards, its actors, and what happened so far. Imports no Ray."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from influray.runtime.poison import Hunt
from influray.runtime.tasks import PoolEvent, PoolReport, ShardFailure, ShardTask, WorkerInfo

if TYPE_CHECKING:
    from influray.store.artifact import Receipt

HUNG_FLOOR_SECONDS = 600.0  # a worker that is at a shard for less is not taken for hung
HUNG_TIMES = 20.0  # the longest shard so far; twice as much in each further attempt
HUNG_FIRST_SECONDS = 86_400.0  # for a shard while none is done: nobody knows yet how long one takes
HUNG_START_SECONDS = 3600.0  # for a worker to load its model once it has a place; twice as much after each failure


@dataclass(eq=False)
class Item:
    """A shard of a run: what became of its attempts."""

    task: ShardTask
    reasons: list[str] = field(default_factory=list)
    issued: int = 0
    copies: int = 0  # in flight
    tries: int = 0  # failed attempts that count against `max_attempts`
    deaths: int = 0  # those among them that ended with the process
    unanswered: bool = False  # the last failed attempt, by object storage
    hunt: Hunt | None = None  # for the row that kills it
    hunted: bool = False  # in vain
    without: tuple[int, ...] = ()
    shrunk_to: int | None = None  # token budget
    receipt: Receipt | None = None
    failed: bool = False

    @property
    def open(self) -> bool:
        return self.receipt is None and not self.failed


@dataclass(eq=False)
class Worker:
    """An actor of the pool."""

    handle: Any
    ref: Any  # of ready(), then of the shard in flight; None while idle
    since: float  # it was asked for, or placed, or given its shard
    placed: Any = None  # ref that is there once the actor has a process; None afterwards
    info: WorkerInfo | None = None
    item: Item | None = None


@dataclass
class PoolRun:
    """One call of `run`."""

    items: list[Item]
    on_receipt: Callable[[ShardTask, Receipt], None]
    on_event: Callable[[PoolEvent], None]
    queue: collections.deque[Item]
    left: int  # items that are open
    seconds: list[float] = field(default_factory=list)  # of each committed shard
    longest: float = 0.0  # of them
    retries: int = 0
    workers_lost: int = 0
    speculated: int = 0
    shrunk: list[str] = field(default_factory=list)
    starts_failed: int = 0  # in a row
    quiet_since: float = field(default_factory=time.monotonic)
    told_of_first: float = 0.0  # when it was last said that the first shards take long

    def overdue(self, worker: Worker) -> str:
        """Return why a worker is taken for hung; "" where it is not, or has no process yet."""
        age = time.monotonic() - worker.since
        if worker.info is None:
            late = worker.placed is None and age > HUNG_START_SECONDS * 2**self.starts_failed
            return f"not ready {age:.0f} s after it was given a place" if late else ""
        if worker.item is None:
            return ""
        limit = max(HUNG_FLOOR_SECONDS, HUNG_TIMES * self.longest) if self.longest else HUNG_FIRST_SECONDS
        others = f"other shards took {self.longest:.1f} s at most" if self.longest else "no shard is done yet"
        return f"no answer after {age:.0f} s; {others}" if age > limit * 2**worker.item.tries else ""

    def slow_first(self, workers: Sequence[Worker]) -> str:
        """Return, now and then, that the first shards take long, else "": what hangs and what is slow look the same."""
        busy = [worker.since for worker in workers if worker.item is not None]
        now = time.monotonic()
        if self.longest or not busy or now - max(min(busy), self.told_of_first) <= HUNG_FLOOR_SECONDS:
            return ""
        self.told_of_first = now
        return f"the first shard is not done after {now - min(busy):.0f} s; smaller ones (rows_per_shard) show more"

    def report(self, started: float, token_budget: int | None) -> PoolReport:
        """Return what the run has done since `started`."""
        return PoolReport(
            receipts=tuple(item.receipt for item in self.items if item.receipt is not None),
            retries=self.retries,
            workers_lost=self.workers_lost,
            speculated=self.speculated,
            token_budget=token_budget,
            shrunk=tuple(self.shrunk),
            seconds=time.monotonic() - started,
            failures=tuple(ShardFailure(item.task, tuple(item.reasons)) for item in self.items if item.failed),
        )
