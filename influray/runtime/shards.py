"""The shard pool: actors owned by the driver, one shard in flight per actor, retries by the driver.

Ray's own actor retries spend themselves against a dead address while a node is being declared lost, and cannot tell a
shard that kills its worker from a worker that died. So actors never restart: a lost one is replaced, its shard goes
back to the front of the queue, and each attempt is counted. Workers commit; the pool only hands out and listens.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError, RayTaskError

from influray.protocols import USER_ERRORS, StorageError
from influray.runtime.cluster import interrupt_between
from influray.runtime.poison import MAX_CONVICTED, Hunt
from influray.runtime.pool_state import Item, PoolRun, Worker
from influray.runtime.tasks import (
    Attempt,
    PoolError,
    PoolEvent,
    PoolReport,
    ShardFailure,
    ShardOutOfMemory,
    ShardTask,
    WorkerInfo,
    WorkerStartError,
    label,
)
from influray.store.artifact import full_disk

if TYPE_CHECKING:
    from influray.store.artifact import Receipt

__all__ = [
    "Attempt",
    "PoolError",
    "PoolEvent",
    "PoolReport",
    "ShardFailure",
    "ShardOutOfMemory",
    "ShardPool",
    "ShardTask",
    "WorkerInfo",
    "WorkerStartError",
]

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2  # how soon a straggler or a signal is noticed; results wake the loop at once
SPECULATE_FLOOR_SECONDS = 1.0  # a shard younger than this is never issued twice
SIZE_SECONDS = 1.0  # how often the size is asked for: 1 ms a time
END_SECONDS = 2.0  # for a killed worker to end; it takes 0.1 s where its node answers
WAITING_SECONDS = 30.0  # how often a pool without a single worker says so


class ShardPool:
    """Actors that compute shards, kept between runs and killed by `close`.

    An actor of `make_worker` is created with `max_restarts=0` and answers `ready()` with a WorkerInfo and
    `compute(task, attempt)` with the receipt it has committed. Those of a pool that may `isolate` rows know what to do
    with the `without` and the `probe` of an attempt, and answer a probe with None.
    """

    def __init__(
        self,
        make_worker: Callable[[], Any],
        size: int | Callable[[], int],  # a function is asked again and again: workers may join at any time
        max_attempts: int = 3,
        speculate_after: float = 3.0,  # times the median shard
        drain_seconds: float = 2.0,  # `ray job stop` kills a driver 3 s after its SIGTERM
        isolate: bool = False,  # a shard that always kills its process is narrowed down to the row that does it
    ) -> None:
        assert max_attempts >= 1
        self._make_worker = make_worker
        self._ask_size = size if callable(size) else lambda: size
        self._given_up = 0  # places where no worker comes up
        self._size, self._asked = 0, -math.inf
        self._max_attempts = max_attempts
        self._speculate_after = speculate_after
        self._drain_seconds = drain_seconds
        self._isolate = isolate
        self._workers: list[Worker] = []
        self._token_budget: int | None = None

    def __enter__(self) -> ShardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        tasks: Sequence[ShardTask],
        on_receipt: Callable[[ShardTask, Receipt], None] = lambda task, receipt: None,
        on_event: Callable[[PoolEvent], None] = lambda event: None,
    ) -> PoolReport:
        """Compute all shards and return their receipts.

        Raises:
            ConfigError, DataError, ArtifactMismatch: a worker raised it; unchanged, and the rest is not begun.
            PoolError: shards failed in every attempt; all others are committed.
            StorageError: as PoolError, where each failed at last because object storage did not answer.
            WorkerStartError: workers die before they can compute.
            KeyboardInterrupt: Ctrl-C or SIGTERM; what was in flight had `drain_seconds` to commit.
        """
        started = time.monotonic()
        items = [Item(task) for task in tasks]
        assert len({item.task.key for item in items}) == len(items), "two shards share a key"
        run = PoolRun(items, on_receipt, on_event, collections.deque(items), len(items))
        with interrupt_between() as check_interrupt:
            try:
                while run.left:
                    check_interrupt()
                    self._staff(run)
                    self._hand_out(run)
                    self._speculate(run)
                    self._settle(run, POLL_SECONDS)
                    self._end_hung(run)
            except KeyboardInterrupt:
                self._drain(run)
                raise
            finally:
                busy = [worker for worker in self._workers if worker.item is not None]
                for worker in busy:
                    self._drop(worker)  # it computes what nobody waits for
                # Until they are gone they may write beside what the caller is about to commit.
                ended = [worker.ref for worker in busy if worker.ref is not None and ray.is_initialized()]
                if ended:
                    ray.wait(ended, num_returns=len(ended), timeout=END_SECONDS)
        report = run.report(started, self._token_budget)
        if report.failures:
            error = PoolError(report)
            raise StorageError(str(error)) if all(i.unanswered for i in items if i.failed) else error
        return report

    def close(self) -> None:
        """Kill all actors."""
        for worker in list(self._workers):
            self._drop(worker)

    def _staff(self, run: PoolRun) -> None:
        """Start workers up to the size, or to the open shards where those are fewer."""
        if time.monotonic() - self._asked > SIZE_SECONDS:
            self._size, self._asked = max(1, self._ask_size() - self._given_up), time.monotonic()
        wanted = min(self._size, run.left)
        while len(self._workers) < wanted:
            handle = self._make_worker()
            # Calls run in order: the first is answered once the worker has a place, which may be hours from now.
            placed = handle.__ray_ready__.remote()
            self._workers.append(Worker(handle, handle.ready.remote(), time.monotonic(), placed))
        if any(worker.info for worker in self._workers):
            run.quiet_since = time.monotonic()
        elif time.monotonic() - run.quiet_since > WAITING_SECONDS:
            run.quiet_since = time.monotonic()
            oldest = time.monotonic() - min(worker.since for worker in self._workers)
            text = f"no worker is up after {oldest:.0f} s: the model is loading, or the cluster has no room for one"
            self._tell(run, PoolEvent("waiting", text))

    def _hand_out(self, run: PoolRun) -> None:
        for worker in self._workers:
            if not run.queue:
                return
            if worker.info is not None and worker.item is None:
                self._issue(worker, run.queue.popleft())

    def _issue(self, worker: Worker, item: Item) -> None:
        item.issued += 1
        item.copies += 1
        worker.item, worker.since = item, time.monotonic()
        # The budget decides the batches, hence the bytes: one for all workers, even of different GPUs.
        budget, shrunk = (self._token_budget, False) if item.shrunk_to is None else (item.shrunk_to, True)
        probe = None if item.hunt is None else item.hunt.probe
        attempt = Attempt(item.issued, budget, shrunk, item.without, probe)
        worker.ref = worker.handle.compute.remote(item.task, attempt)

    def _speculate(self, run: PoolRun) -> None:
        """Where nothing is queued, give idle workers copies of the shards that take unusually long."""
        if run.queue or not run.seconds:
            return
        idle = [worker for worker in self._workers if worker.info is not None and worker.item is None]
        limit = max(SPECULATE_FLOOR_SECONDS, self._speculate_after * statistics.median(run.seconds))
        busy = sorted((w for w in self._workers if w.item is not None), key=lambda worker: worker.since)
        for late in busy:
            item, age = late.item, time.monotonic() - late.since
            if not idle or item is None or age <= limit:
                return
            if item.open and item.copies == 1 and item.hunt is None:
                run.speculated += 1
                text = (
                    f"{label(item.task)} takes {age:.1f} s, others {limit / self._speculate_after:.1f} s: second copy"
                )
                self._tell(run, PoolEvent("speculated", text, item.task.key))
                self._issue(idle.pop(), item)

    def _end_hung(self, run: PoolRun) -> None:
        """Replace workers that have been at a shard, or at their start, for so long that they will not return.

        A copy overtakes a straggler only where a worker is idle; a lone one that hangs would be waited for for ever.
        """
        for worker in list(self._workers):
            # The time of a start counts from when there is a process: it may have waited for its place for hours.
            if worker.placed is not None and ray.wait([worker.placed], timeout=0)[0]:
                worker.placed, worker.since = None, time.monotonic()
            reason = run.overdue(worker)
            if reason:
                self._lost(run, worker, reason)
        slow = run.slow_first(self._workers)
        if slow:
            self._tell(run, PoolEvent("waiting", slow))

    def _settle(self, run: PoolRun, timeout: float) -> None:
        """Wait for one answer and take in every answer that is there."""
        waiting = {worker.ref: worker for worker in self._workers if worker.ref is not None}
        # Refs of pending actors stand among them but nothing depends on them: they are the autoscaler's demand signal.
        ray.wait(list(waiting), num_returns=1, timeout=timeout)
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for ref in done:
            worker = waiting[ref]
            try:
                answer = ray.get(ref)
            except RayTaskError as error:
                self._raised(run, worker, error)
            except RayError as error:  # the actor, its node or its answer is gone
                self._lost(run, worker, f"worker lost: {_first_lines(error)}")
            else:
                self._answered(run, worker, answer)

    def _answered(self, run: PoolRun, worker: Worker, answer: Any) -> None:
        worker.ref = None
        if worker.info is None:
            worker.info, run.starts_failed = answer, 0
            self._token_budget = self._token_budget or answer.token_budget
            text = f"worker {answer.name} is up on {answer.device} after {time.monotonic() - worker.since:.1f} s"
            self._tell(run, PoolEvent("started", text))
            return
        item = self._take_back(worker)
        if item.open and answer is None:
            self._probed(run, item, died=False)
        elif item.open:
            item.receipt = answer
            run.left -= 1
            run.seconds.append(time.monotonic() - worker.since)
            run.longest = max(run.longest, run.seconds[-1])
            run.on_receipt(item.task, answer)

    def _raised(self, run: PoolRun, worker: Worker, error: RayTaskError) -> None:
        cause = error.cause
        if isinstance(cause, USER_ERRORS):
            raise cause from None
        if (
            isinstance(cause, OSError) and cause.errno == errno.ENOSPC
        ):  # of a log, say; commits name the disk themselves
            raise full_disk(cause.filename or "the run directory") from cause
        if isinstance(cause, ShardOutOfMemory) and worker.item is not None:
            worker.ref = None
            item = self._take_back(worker)
            if cause.divisible and cause.token_budget > 1:
                self._shrink(run, item, cause)
            else:
                self._attempt_failed(run, item, f"{type(cause).__name__}: {cause}", cause)
            return
        # An unknown error leaves a process in an unknown state (a CUDA context, say): the next attempt gets a new one.
        self._lost(run, worker, f"{type(cause).__name__}: {cause}"[:500], cause)

    def _lost(self, run: PoolRun, worker: Worker, reason: str, cause: Exception | None = None) -> None:
        """Drop a worker that died or hung, or that raised `cause`, and see to its shard."""
        item = self._take_back(worker) if worker.item is not None else None
        self._drop(worker)
        run.workers_lost += 1
        self._tell(run, PoolEvent("lost", f"{worker.info.name if worker.info else 'a new worker'}: {reason}"))
        if item is not None:
            if item.hunt is not None and cause is None:
                self._probed(run, item, died=True)
            else:
                self._attempt_failed(run, item, reason, cause)
        elif worker.info is None:
            self._start_failed(run, reason, cause)

    def _start_failed(self, run: PoolRun, reason: str, cause: Exception | None) -> None:
        run.starts_failed += 1
        if run.starts_failed < self._max_attempts:
            return
        if any(worker.info is not None for worker in self._workers):
            self._given_up += 1  # a bad GPU or node, say: the others can do without it
            self._size = max(1, self._size - 1)
            run.starts_failed = 0
            self._tell(run, PoolEvent("lost", f"no worker comes up in its place; going on with {self._size}: {reason}"))
        elif run.starts_failed >= self._max_attempts * self._size:
            kind = StorageError if isinstance(cause, StorageError) else WorkerStartError
            raise kind(f"{run.starts_failed} workers died while starting; the last one: {reason}")

    def _attempt_failed(self, run: PoolRun, item: Item, reason: str, cause: Exception | None) -> None:
        if not item.open:
            return
        item.tries += 1
        item.deaths += cause is None
        item.unanswered = isinstance(cause, StorageError)
        item.reasons.append(f"attempt {item.tries}: {reason}")
        if item.copies:
            return  # another copy may still commit it
        if item.tries < self._max_attempts:
            self._requeue(run, item, PoolEvent("retry", f"{label(item.task)}: {reason}", item.task.key))
        elif self._isolate and item.deaths == item.tries and not item.hunted and item.hunt is None:
            item.hunt = Hunt(item.task.start, item.task.stop, item.without)
            text = f"{label(item.task)}: every attempt killed its process; looking for the row"
            self._requeue(run, item, PoolEvent("retry", text, item.task.key))
        else:
            self._give_up(run, item, reason)

    def _give_up(self, run: PoolRun, item: Item, reason: str) -> None:
        item.failed = True
        run.left -= 1
        self._tell(run, PoolEvent("failed", f"{label(item.task)}: given up: {reason}", item.task.key))

    def _probed(self, run: PoolRun, item: Item, died: bool) -> None:
        """Take in one answer of the hunt for a row; once it is over, try the shard again, without the row."""
        hunt = item.hunt
        assert hunt is not None
        first, stop = hunt.probe
        hunt.note(died)
        text = f"{label(item.task)}: rows {first}-{stop - 1} alone: the process {'died' if died else 'lived'}"
        if not hunt.done:
            self._requeue(run, item, PoolEvent("retry", text, item.task.key))
            return
        item.hunt, item.tries, item.deaths = None, 0, 0
        item.reasons.append(hunt.finding)
        if hunt.row is None or len(item.without) == MAX_CONVICTED:
            item.hunted = True
        else:
            item.without = (*item.without, hunt.row)
        self._requeue(run, item, PoolEvent("isolated", f"{label(item.task)}: {hunt.finding}", item.task.key))

    def _shrink(self, run: PoolRun, item: Item, cause: ShardOutOfMemory) -> None:
        if not item.open:
            return
        item.shrunk_to = min(item.shrunk_to or cause.token_budget, cause.token_budget // 2)
        if item.task.key not in run.shrunk:
            run.shrunk.append(item.task.key)
        if not item.copies:
            text = f"{label(item.task)}: {cause}; again with {item.shrunk_to}"
            self._requeue(run, item, PoolEvent("shrunk", text, item.task.key))

    def _requeue(self, run: PoolRun, item: Item, event: PoolEvent) -> None:
        run.retries += 1
        run.queue.appendleft(item)
        self._tell(run, event)

    def _take_back(self, worker: Worker) -> Item:
        item, worker.item = worker.item, None
        assert item is not None
        item.copies -= 1
        return item

    def _drop(self, worker: Worker) -> None:
        self._workers.remove(worker)
        if worker.item is not None:
            self._take_back(worker)
        if ray.is_initialized():
            ray.kill(worker.handle, no_restart=True)

    def _drain(self, run: PoolRun) -> None:
        """Hand out nothing more and let shards in flight commit, for `drain_seconds` at most."""
        deadline = time.monotonic() + self._drain_seconds
        run.queue.clear()
        self._tell(run, PoolEvent("waiting", "interrupted: shards in flight may still commit"))
        while (left := deadline - time.monotonic()) > 0:
            waiting = {w.ref: w for w in self._workers if w.item is not None and w.ref is not None}
            if not waiting:
                return
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=min(left, POLL_SECONDS))
            for ref in done:
                worker = waiting[ref]
                with contextlib.suppress(RayError):  # whatever failed now is tried again by the next run
                    self._answered(run, worker, ray.get(ref))
                worker.ref = None

    def _tell(self, run: PoolRun, event: PoolEvent) -> None:
        level = logging.INFO if event.kind in ("started", "speculated") else logging.WARNING
        logger.log(level, "%s", event.text)
        run.on_event(event)


def _first_lines(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return " ".join(line.strip() for line in text.splitlines() if line.strip())[:500]
