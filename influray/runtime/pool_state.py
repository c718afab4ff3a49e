"""What a shard pool knows while it runs: its shards, its actors, and what becomes of attempts. Imports no Ray."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from influray.runtime.poison import MAX_CONVICTED, Hunt
from influray.runtime.tasks import PoolEvent, PoolReport, ShardFailure, ShardTask, WorkerInfo

if TYPE_CHECKING:
    from influray.runtime.retries import Loss
    from influray.store.artifact import Receipt

logger = logging.getLogger(__name__)

HUNG_FLOOR_SECONDS = 600.0  # a worker that is at a shard for less is not given up
HUNG_TIMES = 20.0  # the longest shard so far; twice as much in each further attempt
HUNG_FIRST_SECONDS = 86_400.0  # for a shard while none is done: nobody knows yet how long one takes
HUNG_START_SECONDS = 3600.0  # for a worker to load its model once it has a place; twice as much after each failure


@dataclass(eq=False)
class Item:
    """A shard of a run: what became of its attempts."""

    task: ShardTask
    reasons: list[str] = field(default_factory=list)
    issued: int = 0
    tries: int = 0  # failed attempts that count against `max_attempts`
    deaths: int = 0  # those among them that ended with the process
    doubted: bool = False  # a process has died that had this shard and another one in hand
    loss: Loss | None = None  # of the last failed attempt
    hunt: Hunt | None = None  # for the row that kills it
    hunted: bool = False  # in vain
    without: tuple[int, ...] = ()
    receipt: Receipt | None = None
    failed: bool = False

    @property
    def suspect(self) -> bool:
        """Whether it may be what kills processes: then it has one to itself."""
        return self.doubted or self.tries > 0 or self.hunt is not None


@dataclass(eq=False)
class InHand:
    """A shard that a worker computes, or has computed and commits while it computes the next one."""

    item: Item
    ref: Any  # of compute(), then of commit()
    since: float  # the shard was given to the worker
    writing: bool = False


@dataclass(eq=False)
class Worker:
    """An actor of the pool."""

    handle: Any
    start: Any  # ref of ready()
    since: float  # it was asked for, or placed
    placed: Any = None  # ref that is there once the actor has a process; None afterwards
    info: WorkerInfo | None = None  # None until it is ready
    shards: list[InHand] = field(default_factory=list)  # those that it writes first

    def takes(self, item: Item) -> bool:
        """Return whether it may compute this shard now.

        One shard at most is written beside it, and a suspect one is alone until it is committed.
        """
        alone = item.suspect or any(shard.item.suspect for shard in self.shards)
        return (
            self.info is not None
            and all(shard.writing for shard in self.shards)
            and len(self.shards) <= (0 if alone else 1)
        )

    def refs(self) -> dict[Any, InHand | None]:
        """Return what it will answer, with the shard that an answer belongs to; None of that to its start."""
        return {shard.ref: shard for shard in self.shards} if self.info is not None else {self.start: None}


@dataclass
class PoolRun:
    """One call of `run`."""

    items: list[Item]
    on_receipt: Callable[[ShardTask, Receipt], None]
    on_event: Callable[[PoolEvent], None]
    max_attempts: int = 3
    isolate: bool = False  # a shard that always kills its process is narrowed down to the row that does it
    longest: float = 0.0  # seconds of a committed shard
    retries: int = 0
    workers_lost: int = 0
    memory_kills: int = 0
    starts_failed: int = 0  # in a row
    quiet_since: float = field(default_factory=time.monotonic)
    told_of_first: float = 0.0  # when it was last said that the first shards take long

    def __post_init__(self) -> None:
        self.queue = collections.deque(self.items)
        self.left = len(self.items)  # neither committed nor failed

    def overdue(self, worker: Worker) -> str:
        """Return why a worker is given up as hung; "" where it is not, or has no process yet."""
        now = time.monotonic()
        if worker.info is None:
            age = now - worker.since
            late = worker.placed is None and age > HUNG_START_SECONDS * 2**self.starts_failed
            return f"not ready {age:.0f} s after it was given a place" if late else ""
        limit = max(HUNG_FLOOR_SECONDS, HUNG_TIMES * self.longest) if self.longest else HUNG_FIRST_SECONDS
        others = f"other shards took {self.longest:.1f} s at most" if self.longest else "no shard is done yet"
        for shard in worker.shards:
            if (age := now - shard.since) > limit * 2**shard.item.tries:
                return f"no answer after {age:.0f} s; {others}"
        return ""

    def slow_first(self, workers: Sequence[Worker]) -> str:
        """Return, now and then, that the first shards take long, else "": what hangs and what is slow look the same."""
        busy = [shard.since for worker in workers for shard in worker.shards]
        now = time.monotonic()
        if self.longest or not busy or now - max(min(busy), self.told_of_first) <= HUNG_FLOOR_SECONDS:
            return ""
        self.told_of_first = now
        return f"the first shard is not done after {now - min(busy):.0f} s; smaller ones (rows_per_shard) show more"

    def committed(self, item: Item, receipt: Receipt, seconds: float) -> None:
        """Take in the receipt of a shard."""
        item.receipt = receipt
        self.left -= 1
        self.longest = max(self.longest, seconds)
        if receipt.details.get("shrunk"):
            text = f"{item.task}: did not fit into memory, made in batches of {receipt.details['token_budget']} tokens"
            self.tell(PoolEvent("shrunk", text, item.task.key))
        self.on_receipt(item.task, receipt)

    def attempt_failed(self, item: Item, loss: Loss) -> None:
        """Count a failed attempt, by an exception or by the end of its process, and see to the next one."""
        item.tries += 1
        item.loss = loss
        item.deaths += loss.cause is None
        reason = loss.reason if loss.cause is not None else f"worker lost: {loss.reason}"
        item.reasons.append(f"attempt {item.tries}: {reason}")
        if item.tries < self.max_attempts:
            self.again(item, reason)
        elif self.isolate and item.deaths == item.tries and not item.hunted and item.hunt is None:
            item.hunt = Hunt(item.task.start, item.task.stop, item.without)
            self.again(item, "every attempt killed its process; looking for the row")
        else:
            item.failed = True
            self.left -= 1
            self.tell(PoolEvent("failed", f"{item.task}: given up: {reason}", item.task.key))

    def doubt(self, item: Item, reason: str) -> None:
        """Count no attempt of a shard whose process died: it may have been the other one. The next one will tell."""
        item.doubted = True
        self.again(item, reason)

    def probed(self, item: Item, died: bool) -> None:
        """Take in one answer of the hunt for a row; once it is over, try the shard again, without the row."""
        hunt = item.hunt
        assert hunt is not None
        first, stop = hunt.probe
        hunt.note(died)
        if not hunt.done:
            self.again(item, f"rows {first}-{stop - 1} alone: the process {'died' if died else 'lived'}")
            return
        item.hunt, item.tries, item.deaths = None, 0, 0
        item.reasons.append(hunt.finding)
        if hunt.row is None or len(item.without) == MAX_CONVICTED:
            item.hunted = True
        else:
            item.without = (*item.without, hunt.row)
        self.again(item, hunt.finding, "isolated")

    def again(self, item: Item, reason: str, kind: Any = "retry") -> None:
        """Put a shard back to the front of the queue."""
        self.retries += 1
        self.queue.appendleft(item)
        self.tell(PoolEvent(kind, f"{item.task}: {reason}", item.task.key))

    def tell(self, event: PoolEvent) -> None:
        logger.log(logging.INFO if event.kind == "started" else logging.WARNING, "%s", event.text)
        self.on_event(event)

    def report(self, token_budget: int | None) -> PoolReport:
        """Return what the run has done."""
        return PoolReport(
            receipts=tuple(item.receipt for item in self.items if item.receipt is not None),
            retries=self.retries,
            workers_lost=self.workers_lost,
            memory_kills=self.memory_kills,
            token_budget=token_budget,
            failures=tuple(ShardFailure(item.task, tuple(item.reasons)) for item in self.items if item.failed),
        )
