"""The shard pool: actors owned by the driver, one shard computed at a time by each, retries by the driver.

Ray's own actor retries spend themselves against a dead address while a node is being declared lost, and cannot tell a
shard that kills its worker from a worker that died. So actors never restart: a lost one is replaced, its shard goes
back to the front of the queue, and each attempt is counted. Workers commit, some while they compute the next shard;
the pool only hands out and listens.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray

from influray.interrupts import interrupt_between
from influray.protocols import StorageError
from influray.runtime.pool_state import Item, PoolRun, Worker, Write
from influray.runtime.retries import Loss, RayError, SideBySide, loss_of, need_memory
from influray.runtime.tasks import (
    Attempt,
    Computed,
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
from influray.runtime.watch import end_actor, lost

if TYPE_CHECKING:
    from influray.store.artifact import Receipt

__all__ = [
    "Attempt",
    "Computed",
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
    `compute(task, attempt)` with the receipt it has committed, or with Computed: then `commit(key)`, which may run
    beside the next `compute`, answers with it. Those of a pool that may `isolate` rows know what to do with the
    `without` and the `probe` of an attempt, and answer a probe with None.
    """

    def __init__(
        self,
        make_worker: Callable[[], Any],
        size: int | Callable[[], int],  # a function is asked again and again: workers may join at any time
        max_attempts: int = 3,
        speculate_after: float = 3.0,  # times the median shard
        drain_seconds: float = 2.0,  # `ray job stop` kills a driver 3 s after its SIGTERM
        isolate: bool = False,  # a shard that always kills its process is narrowed down to the row that does it
        lower: str = "resources.workers",  # what of the config makes a worker need less memory
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
        self._lower = lower
        self._side_by_side = SideBySide()
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
            TooLittleMemory: shards were killed for memory in every attempt, alone on their machine.
            PoolError: shards failed in every attempt; all others are committed.
            StorageError: as PoolError, where each failed at last because object storage did not answer.
            WorkerStartError: workers die before they can compute.
            KeyboardInterrupt: Ctrl-C or SIGTERM; what was in flight had `drain_seconds` to commit.
        """
        started = time.monotonic()
        items = [Item(task) for task in tasks]
        assert len({item.task.key for item in items}) == len(items), "two shards share a key"
        todo = collections.deque(items)
        run = PoolRun(items, on_receipt, on_event, todo, len(items), self._max_attempts, self._isolate)
        with interrupt_between() as check_interrupt:
            try:
                while run.left:
                    check_interrupt()
                    self._staff(run)
                    self._hand_out(run)
                    self._speculate(run)
                    self._settle(run, POLL_SECONDS)
                    self._end_hung(run)
            except BaseException as error:
                with contextlib.suppress(RayError):  # there may be no Ray any more
                    self._drain(run, interrupted=isinstance(error, KeyboardInterrupt))
                raise
            finally:
                busy = [(worker, worker.refs()) for worker in self._workers if any(worker.in_hand())]
                for worker, _ in busy:
                    self._drop(worker)  # it computes what nobody waits for
                # Until they are gone they may write beside what the caller is about to commit.
                ended = [ref for _, refs in busy for ref in refs if ray.is_initialized() and not lost()]
                if ended:
                    ray.wait(ended, num_returns=len(ended), timeout=END_SECONDS)
        report = run.report(started, self._token_budget)
        if failed := [item for item in items if item.failed]:
            if memory := next((item for item in failed if item.starved), None):
                what = label(memory.task)
                raise need_memory(what, self._side_by_side.kills, self._lower, memory.reasons[-1])
            error = PoolError(report)
            raise StorageError(str(error)) if all(item.unanswered for item in failed) else error
        return report

    def close(self) -> None:
        """Kill all actors."""
        for worker in list(self._workers):
            self._drop(worker)

    def _staff(self, run: PoolRun) -> None:
        """Start workers up to the size, or to the open shards where those are fewer."""
        if time.monotonic() - self._asked > SIZE_SECONDS:
            self._size, self._asked = max(1, self._ask_size() - self._given_up), time.monotonic()
        wanted = self._side_by_side.limit(min(self._size, run.left))
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
            run.tell(PoolEvent("waiting", text))

    def _hand_out(self, run: PoolRun) -> None:
        for worker in self._workers:
            if run.queue and worker.takes(run.queue[0]):
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
        idle = [worker for worker in self._workers if worker.info is not None and not any(worker.in_hand())]
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
                run.tell(PoolEvent("speculated", text, item.task.key))
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
                self._lost(run, worker, Loss(reason))
        slow = run.slow_first(self._workers)
        if slow:
            run.tell(PoolEvent("waiting", slow))

    def _settle(self, run: PoolRun, timeout: float) -> None:
        """Wait for one answer and take in every answer that is there."""
        waiting = {ref: worker for worker in self._workers for ref in worker.refs()}
        # Refs of pending actors stand among them but nothing depends on them: they are the autoscaler's demand signal.
        ray.wait(list(waiting), num_returns=1, timeout=timeout)
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for ref in done:
            if ref in waiting[ref].refs():  # else it has just been dropped
                self._take_in(run, waiting[ref], ref)

    def _take_in(self, run: PoolRun, worker: Worker, ref: Any) -> None:
        write = worker.write_of(ref)
        try:
            answer = ray.get(ref)
        except RayError as error:
            loss = loss_of(error)
            if loss.cause is None:  # the actor, its node or its answer is gone
                self._lost(run, worker, loss)
            else:
                self._raised(run, worker, write, loss)
        else:
            self._answered(run, worker, write, answer)

    def _answered(self, run: PoolRun, worker: Worker, write: Write | None, answer: Any) -> None:
        if write is not None:
            worker.written(write)
            if write.item.open:
                run.committed(write.item, answer, time.monotonic() - write.since)
            return
        if worker.info is None:
            worker.ref, worker.info, run.starts_failed = None, answer, 0
            self._token_budget = self._token_budget or answer.token_budget
            text = f"worker {answer.name} is up on {answer.device} after {time.monotonic() - worker.since:.1f} s"
            run.tell(PoolEvent("started", text))
            return
        item = worker.computed()
        if isinstance(answer, Computed):
            worker.write(item, worker.handle.commit.remote(item.task.key))
        elif item.open and answer is None:
            run.probed(item, died=False)
        elif item.open:
            run.committed(item, answer, time.monotonic() - worker.since)

    def _raised(self, run: PoolRun, worker: Worker, write: Write | None, loss: Loss) -> None:
        cause = loss.cause
        if write is not None:
            worker.written(write)
            run.attempt_failed(write.item, loss)
        elif isinstance(cause, ShardOutOfMemory) and worker.item is not None:
            item = worker.computed()
            if cause.divisible and cause.token_budget > 1:
                run.shrink(item, cause)
            else:
                run.attempt_failed(item, loss)
        else:
            # An unknown error leaves a process in an unknown state (a CUDA context, say): the next attempt gets a new
            # one.
            self._lost(run, worker, loss)

    def _lost(self, run: PoolRun, worker: Worker, loss: Loss) -> None:
        """Drop a worker that died or hung, or that raised, and see to its shards."""
        computing, writing = worker.item, [write.item for write in worker.writes]
        began = min((since for _, since in worker.in_hand()), default=worker.since)
        self._drop(worker)
        run.workers_lost += 1
        run.tell(PoolEvent("lost", f"{worker.info.name if worker.info else 'a new worker'}: {loss.reason}"))
        held = [*writing, *([] if computing is None else [computing])]
        if loss.memory and not self._killed_alone(run, began):
            for item in held:
                run.once_more(item, loss.reason)
        elif worker.info is None:
            self._start_failed(run, loss)
        elif loss.cause is not None:
            assert computing is not None
            run.attempt_failed(computing, loss)
            for item in writing:  # which had no part in it
                run.once_more(item, f"not written before {loss.reason}")
        elif len(held) > 1:
            for item in held:
                run.doubt(item, loss.reason)
        elif computing is not None and computing.hunt is not None:
            run.probed(computing, died=True)
        else:
            run.attempt_failed(held[0], loss)

    def _killed_alone(self, run: PoolRun, began: float) -> bool:
        """Let fewer workers run side by side after a kill for memory; return whether there were none beside it."""
        others = sum(worker.info is not None or worker.placed is None for worker in self._workers)
        alone = self._side_by_side.killed(began, others)
        run.memory_kills += 1
        run.tell(PoolEvent("memory", self._side_by_side.told(), side_by_side=self._side_by_side.limit(self._size)))
        return alone

    def _start_failed(self, run: PoolRun, loss: Loss) -> None:
        run.starts_failed += 1
        if run.starts_failed < self._max_attempts:
            return
        if any(worker.info is not None for worker in self._workers):
            self._given_up += 1  # a bad GPU or node, say: the others can do without it
            self._size = max(1, self._size - 1)
            run.starts_failed = 0
            run.tell(PoolEvent("lost", f"no worker comes up in its place; going on with {self._size}: {loss.reason}"))
        elif run.starts_failed >= self._max_attempts * self._side_by_side.limit(self._size):
            if loss.memory:
                raise need_memory("a worker that was starting", self._side_by_side.kills, self._lower, loss.reason)
            kind = StorageError if isinstance(loss.cause, StorageError) else WorkerStartError
            raise kind(f"{run.starts_failed} workers died while starting; the last one: {loss.reason}")

    def _drop(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.give_back()
        end_actor(worker.handle)

    def _drain(self, run: PoolRun, interrupted: bool) -> None:
        """Hand out nothing more and let what is written, and after an interrupt what is computed, still commit.

        It has `drain_seconds` at most. Whatever fails now is tried again by the next run.
        """
        deadline = time.monotonic() + self._drain_seconds
        run.queue.clear()
        if interrupted:
            run.tell(PoolEvent("waiting", "interrupted: shards in flight may still commit"))
        while ray.is_initialized() and not lost() and (left := deadline - time.monotonic()) > 0:
            busy = [worker for worker in self._workers if worker.info is not None]
            waiting = {ref: w for w in busy for ref in (w.refs() if interrupted else [write.ref for write in w.writes])}
            if not waiting:
                return
            done, _ = ray.wait(list(waiting), num_returns=1, timeout=min(left, POLL_SECONDS))
            for ref in done:
                worker = waiting[ref]
                write = worker.write_of(ref)
                try:
                    answer = ray.get(ref)
                except RayError:
                    if write is not None:
                        worker.written(write)
                    else:
                        worker.ref = None
                else:
                    self._answered(run, worker, write, answer)
