"""What a shard pool knows while it runs: its shards, its actors, and what happened so far. Imports no Ray."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from influray.runtime.poison import Hunt
from influray.runtime.tasks import PoolEvent, PoolReport, ShardFailure, ShardTask, WorkerInfo

if TYPE_CHECKING:
    from influray.store.artifact import Receipt


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
