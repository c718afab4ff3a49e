"""What a shard pool knows while it runs: its shards, its actors, and what becomes of attempts. Imports no Ray."""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from influray.protocols import StorageError
from influray.runtime.poison import MAX_CONVICTED, Hunt
from influray.runtime.tasks import (
    PoolEvent,
    PoolReport,
    ShardFailure,
    ShardOutOfMemory,
    ShardTask,
    WorkerInfo,
    label,
)

if TYPE_CHECKING:
    from influray.runtime.retries import Loss
    from influray.store.artifact import Receipt

logger = logging.getLogger(__name__)

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
    doubted: bool = False  # a process has died that had this shard and another one in hand
    unanswered: bool = False  # the last failed attempt, by object storage
    starved: bool = False  # the last failed attempt was killed for memory
    hunt: Hunt | None = None  # for the row that kills it
    hunted: bool = False  # in vain
    without: tuple[int, ...] = ()
    shrunk_to: int | None = None  # token budget
    receipt: Receipt | None = None
    failed: bool = False

    @property
    def open(self) -> bool:
        return self.receipt is None and not self.failed

    @property
    def suspect(self) -> bool:
        """Whether it may be what kills processes: then it has one to itself."""
        return self.doubted or self.tries > 0 or self.hunt is not None


@dataclass(eq=False)
class Write:
    """A computed shard that its worker commits while it computes the next one."""

    item: Item
    ref: Any  # of commit()
    since: float  # the shard was given to the worker


@dataclass(eq=False)
class Worker:
    """An actor of the pool."""

    handle: Any
    ref: Any  # of ready(), then of the shard that is computed; None while there is none
    since: float  # it was asked for, or placed, or given its shard
    placed: Any = None  # ref that is there once the actor has a process; None afterwards
    info: WorkerInfo | None = None
    item: Item | None = None
    writes: list[Write] = field(default_factory=list)

    def takes(self, item: Item) -> bool:
        """Return whether it may compute this shard now.

        One shard at most is written beside it, and a suspect one is alone until it is committed.
        """
        beside = [write.item for write in self.writes]
        alone = item.suspect or any(other.suspect for other in beside)
        return self.info is not None and self.item is None and len(beside) <= (0 if alone else 1)

    def in_hand(self) -> Iterator[tuple[Item, float]]:
        """Yield the shards that it writes and the one that it computes, with the times that they were given to it."""
        for write in self.writes:
            yield write.item, write.since
        if self.item is not None:
            yield self.item, self.since

    def refs(self) -> list[Any]:
        """Return what it will answer; of shards that it writes first."""
        return [write.ref for write in self.writes] + ([self.ref] if self.ref is not None else [])

    def write_of(self, ref: Any) -> Write | None:
        """Return the shard whose writing this is an answer to, None where it is one to something else."""
        return next((write for write in self.writes if write.ref == ref), None)

    def computed(self) -> Item:
        """Take the shard that it has computed from it, and return it."""
        item, self.item, self.ref = self.item, None, None
        assert item is not None
        item.copies -= 1
        return item

    def write(self, item: Item, ref: Any) -> None:
        """Let it write a shard that it has just computed; `ref` will be the answer."""
        item.copies += 1
        self.writes.append(Write(item, ref, self.since))

    def written(self, write: Write) -> None:
        """Take a shard from it that it has written, or could not write."""
        self.writes.remove(write)
        write.item.copies -= 1

    def give_back(self) -> None:
        """Take all shards from it, and what it would answer."""
        for item, _ in list(self.in_hand()):
            item.copies -= 1
        self.item, self.ref, self.writes = None, None, []


@dataclass
class PoolRun:
    """One call of `run`."""

    items: list[Item]
    on_receipt: Callable[[ShardTask, Receipt], None]
    on_event: Callable[[PoolEvent], None]
    queue: collections.deque[Item]
    left: int  # items that are open
    max_attempts: int = 3
    isolate: bool = False  # a shard that always kills its process is narrowed down to the row that does it
    seconds: list[float] = field(default_factory=list)  # of each committed shard
    longest: float = 0.0  # of them
    retries: int = 0
    workers_lost: int = 0
    memory_kills: int = 0
    speculated: int = 0
    shrunk: list[str] = field(default_factory=list)
    starts_failed: int = 0  # in a row
    quiet_since: float = field(default_factory=time.monotonic)
    told_of_first: float = 0.0  # when it was last said that the first shards take long

    def overdue(self, worker: Worker) -> str:
        """Return why a worker is taken for hung; "" where it is not, or has no process yet."""
        now = time.monotonic()
        if worker.info is None:
            age = now - worker.since
            late = worker.placed is None and age > HUNG_START_SECONDS * 2**self.starts_failed
            return f"not ready {age:.0f} s after it was given a place" if late else ""
        limit = max(HUNG_FLOOR_SECONDS, HUNG_TIMES * self.longest) if self.longest else HUNG_FIRST_SECONDS
        others = f"other shards took {self.longest:.1f} s at most" if self.longest else "no shard is done yet"
        for item, since in worker.in_hand():
            if (age := now - since) > limit * 2**item.tries:
                return f"no answer after {age:.0f} s; {others}"
        return ""

    def slow_first(self, workers: Sequence[Worker]) -> str:
        """Return, now and then, that the first shards take long, else "": what hangs and what is slow look the same."""
        busy = [worker.since for worker in workers if worker.item is not None]
        now = time.monotonic()
        if self.longest or not busy or now - max(min(busy), self.told_of_first) <= HUNG_FLOOR_SECONDS:
            return ""
        self.told_of_first = now
        return f"the first shard is not done after {now - min(busy):.0f} s; smaller ones (rows_per_shard) show more"

    def committed(self, item: Item, receipt: Receipt, seconds: float) -> None:
        """Take in a receipt, the first one of its shard."""
        item.receipt = receipt
        self.left -= 1
        self.seconds.append(seconds)
        self.longest = max(self.longest, seconds)
        self.on_receipt(item.task, receipt)

    def attempt_failed(self, item: Item, loss: Loss) -> None:
        """Count a failed attempt, by an exception or by the end of its process, and see to the next one."""
        if not item.open:
            return
        item.tries += 1
        reason = loss.reason if loss.cause is not None else f"worker lost: {loss.reason}"
        item.deaths += loss.cause is None
        item.unanswered, item.starved = isinstance(loss.cause, StorageError), loss.memory
        item.reasons.append(f"attempt {item.tries}: {reason}")
        if item.copies:
            return  # another copy may still commit it
        if item.tries < self.max_attempts:
            self.again(item, PoolEvent("retry", f"{label(item.task)}: {reason}", item.task.key))
        elif self.isolate and item.deaths == item.tries and not item.hunted and item.hunt is None:
            item.hunt = Hunt(item.task.start, item.task.stop, item.without)
            text = f"{label(item.task)}: every attempt killed its process; looking for the row"
            self.again(item, PoolEvent("retry", text, item.task.key))
        else:
            item.failed = True
            self.left -= 1
            self.tell(PoolEvent("failed", f"{label(item.task)}: given up: {reason}", item.task.key))

    def once_more(self, item: Item, reason: str) -> None:
        """Try a shard again that had no part in what ended its process."""
        if item.open and not item.copies:
            self.again(item, PoolEvent("retry", f"{label(item.task)}: {reason}", item.task.key))

    def doubt(self, item: Item, reason: str) -> None:
        """Count no attempt of a shard whose process died: it may have been the other one. The next one will tell."""
        item.doubted |= item.open
        self.once_more(item, reason)

    def probed(self, item: Item, died: bool) -> None:
        """Take in one answer of the hunt for a row; once it is over, try the shard again, without the row."""
        hunt = item.hunt
        assert hunt is not None
        first, stop = hunt.probe
        hunt.note(died)
        text = f"{label(item.task)}: rows {first}-{stop - 1} alone: the process {'died' if died else 'lived'}"
        if not hunt.done:
            self.again(item, PoolEvent("retry", text, item.task.key))
            return
        item.hunt, item.tries, item.deaths = None, 0, 0
        item.reasons.append(hunt.finding)
        if hunt.row is None or len(item.without) == MAX_CONVICTED:
            item.hunted = True
        else:
            item.without = (*item.without, hunt.row)
        self.again(item, PoolEvent("isolated", f"{label(item.task)}: {hunt.finding}", item.task.key))

    def shrink(self, item: Item, cause: ShardOutOfMemory) -> None:
        """Try a shard again with half the token budget."""
        if not item.open:
            return
        item.shrunk_to = min(item.shrunk_to or cause.token_budget, cause.token_budget // 2)
        if item.task.key not in self.shrunk:
            self.shrunk.append(item.task.key)
        if not item.copies:
            text = f"{label(item.task)}: {cause}; again with {item.shrunk_to}"
            self.again(item, PoolEvent("shrunk", text, item.task.key))

    def again(self, item: Item, event: PoolEvent) -> None:
        """Put a shard back to the front of the queue."""
        self.retries += 1
        self.queue.appendleft(item)
        self.tell(event)

    def tell(self, event: PoolEvent) -> None:
        level = logging.INFO if event.kind in ("started", "speculated") else logging.WARNING
        logger.log(level, "%s", event.text)
        self.on_event(event)

    def report(self, started: float, token_budget: int | None) -> PoolReport:
        """Return what the run has done since `started`."""
        return PoolReport(
            receipts=tuple(item.receipt for item in self.items if item.receipt is not None),
            retries=self.retries,
            workers_lost=self.workers_lost,
            memory_kills=self.memory_kills,
            speculated=self.speculated,
            token_budget=token_budget,
            shrunk=tuple(self.shrunk),
            seconds=time.monotonic() - started,
            failures=tuple(ShardFailure(item.task, tuple(item.reasons)) for item in self.items if item.failed),
        )
