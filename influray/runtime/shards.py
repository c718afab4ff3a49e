"""The shard pool: actors owned by the driver, one shard computed at a time by each, retries by the driver.

Ray's own actor retries spend themselves against a dead address while a node is being declared lost, and cannot tell a
shard that kills its worker from a worker that died. So actors never restart: a lost one is replaced, its shard goes
back to the front of the queue, and each attempt is counted. Workers commit, some while they compute the next shard;
the pool only hands out and listens.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import ray

from influray.interrupts import interrupt_between
from influray.protocols import StorageError
from influray.runtime.cluster import ResolvedResources
from influray.runtime.metrics import PoolMetrics
from influray.runtime.pool_state import InHand, Item, PoolRun, Worker
from influray.runtime.process import inheriting
from influray.runtime.retries import Loss, RayError, SideBySide, loss_of, need_memory
from influray.runtime.tasks import Attempt, Computed, PoolError, PoolEvent, PoolReport, ShardTask, WorkerStartError
from influray.runtime.watch import end, lost

if TYPE_CHECKING:
    from influray.store.artifact import Receipt

POLL_SECONDS = 0.2  # how soon a hung worker or a signal is noticed; results wake the loop at once
SIZE_SECONDS = 1.0  # how often the size is asked for: 1 ms a time
END_SECONDS = 2.0  # for a killed worker to end; it takes 0.1 s where its node answers
DRAIN_SECONDS = 2.0  # `ray job stop` kills a driver 3 s after its SIGTERM
WAITING_SECONDS = 30.0  # how often a pool without a single worker says so
WRITER = "writer"  # concurrency group of an actor that commits a shard beside the computing of the next


class ShardPool:
    """Actors `worker(*arguments, threads)` that compute shards, kept between runs and killed by `close`.

    They answer `ready()` with a WorkerInfo and `compute(task, attempt)` with the receipt they have committed, or with
    Computed: then `commit(key)`, which may run beside the next `compute`, answers with it. Those of a pool that may
    `isolate` rows know what to do with the `without` and the `probe` of an attempt, and answer a probe with None.
    """

    def __init__(
        self,
        worker: type[Any],
        arguments: tuple[Any, ...],
        resources: ResolvedResources,
        gpus: float = 0.0,
        *,
        lower: str,  # what of the config makes a worker need less memory
        isolate: bool = False,  # a shard that always kills its process is narrowed down to the row that does it
    ) -> None:
        options: dict[str, Any] = {"num_cpus": resources.cpus_per_worker, "num_gpus": gpus}
        if hasattr(worker, "commit"):
            options["concurrency_groups"] = {WRITER: 1}
        actor: Any = ray.remote(**options, max_restarts=0, max_task_retries=0)(inheriting(worker))
        self._make_worker = lambda: actor.remote(*arguments, resources.threads_per_worker)
        # Where it follows the cluster it is asked again and again: workers may join at any time.
        self._ask_size = lambda: resources.room(gpus) if resources.follows else resources.workers
        self._given_up = 0  # places where no worker comes up
        self._size, self._asked = 0, -math.inf
        self._max_attempts = resources.max_attempts
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
            KeyboardInterrupt: Ctrl-C or SIGTERM; what was in flight had DRAIN_SECONDS to commit.
        """
        if not tasks:
            return PoolReport(())
        items = [Item(task) for task in tasks]
        assert len({item.task.key for item in items}) == len(items), "two shards share a key"
        metrics = PoolMetrics(len(tasks), on_receipt, on_event)
        run = PoolRun(items, metrics.on_receipt, metrics.on_event, self._max_attempts, self._isolate)
        with interrupt_between() as check_interrupt:
            try:
                while run.left:
                    check_interrupt()
                    self._staff(run)
                    for worker in self._workers:
                        if run.queue and worker.takes(run.queue[0]):
                            self._issue(worker, run.queue.popleft())
                    self._settle(run, POLL_SECONDS)
                    self._end_hung(run)
            except BaseException as error:
                with contextlib.suppress(RayError):  # there may be no Ray any more
                    self._drain(run, interrupted=isinstance(error, KeyboardInterrupt))
                raise
            finally:
                busy = [worker for worker in self._workers if worker.shards]
                ended = [shard.ref for worker in busy for shard in worker.shards]
                for worker in busy:
                    self._drop(worker)  # it computes what nobody waits for
                # Until they are gone they may write beside what the caller is about to commit.
                if ended and ray.is_initialized() and not lost():
                    ray.wait(ended, num_returns=len(ended), timeout=END_SECONDS)
        report = run.report(self._token_budget)
        if losses := [(item.task, item.loss) for item in items if item.failed and item.loss is not None]:
            if memory := next(((task, loss) for task, loss in losses if loss.memory), None):
                raise need_memory(str(memory[0]), self._side_by_side.kills, self._lower, memory[1].reason)
            error = PoolError(report)
            unanswered = all(isinstance(loss.cause, StorageError) for _, loss in losses)
            raise StorageError(str(error)) if unanswered else error
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

    def _issue(self, worker: Worker, item: Item) -> None:
        item.issued += 1
        # The budget decides the batches, hence the bytes: one for all workers, even of different GPUs.
        probe = None if item.hunt is None else item.hunt.probe
        attempt = Attempt(item.issued, self._token_budget, item.without, probe)
        worker.shards.append(InHand(item, worker.handle.compute.remote(item.task, attempt), time.monotonic()))

    def _end_hung(self, run: PoolRun) -> None:
        """Replace workers that have been at a shard, or at their start, for so long that they will not return."""
        for worker in list(self._workers):
            # The time of a start counts from when there is a process: it may have waited for its place for hours.
            if worker.placed is not None and ray.wait([worker.placed], timeout=0)[0]:
                worker.placed, worker.since = None, time.monotonic()
            if reason := run.overdue(worker):
                self._lost(run, worker, Loss(reason))
        if slow := run.slow_first(self._workers):
            run.tell(PoolEvent("waiting", slow))

    def _settle(self, run: PoolRun, timeout: float) -> None:
        """Wait for one answer and take in every answer that is there."""
        waiting = {ref: (worker, shard) for worker in self._workers for ref, shard in worker.refs().items()}
        # Refs of pending actors stand among them but nothing depends on them: they are the autoscaler's demand signal.
        ray.wait(list(waiting), num_returns=1, timeout=timeout)
        done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
        for ref in done:
            worker, shard = waiting[ref]
            if worker in self._workers:  # else it has just been dropped
                self._take_in(run, worker, shard, ref)

    def _take_in(self, run: PoolRun, worker: Worker, shard: InHand | None, ref: Any) -> None:
        try:
            answer = ray.get(ref)
        except RayError as error:
            loss = loss_of(error)
            if shard is not None and shard.writing and loss.cause is not None:
                worker.shards.remove(shard)
                run.attempt_failed(shard.item, loss)
            else:
                # An unknown error leaves a process in an unknown state (a CUDA context, say): the next attempt gets a
                # new one, as if this one were gone.
                self._lost(run, worker, loss)
        else:
            self._answered(run, worker, shard, answer)

    def _answered(self, run: PoolRun, worker: Worker, shard: InHand | None, answer: Any) -> None:
        if shard is None:
            worker.info, run.starts_failed = answer, 0
            self._token_budget = self._token_budget or answer.token_budget
            text = f"worker {answer.name} is up on {answer.device} after {time.monotonic() - worker.since:.1f} s"
            run.tell(PoolEvent("started", text))
        elif isinstance(answer, Computed):
            shard.ref, shard.writing = worker.handle.commit.remote(shard.item.task.key), True
        else:
            worker.shards.remove(shard)
            if answer is None:
                run.probed(shard.item, died=False)
            else:
                run.committed(shard.item, answer, time.monotonic() - shard.since)

    def _lost(self, run: PoolRun, worker: Worker, loss: Loss) -> None:
        """Drop a worker that died or hung, or that raised, and see to its shards."""
        held = [shard.item for shard in worker.shards]
        computing = next((shard.item for shard in worker.shards if not shard.writing), None)
        began = min((shard.since for shard in worker.shards), default=worker.since)
        self._drop(worker)
        run.workers_lost += 1
        run.tell(PoolEvent("lost", f"{worker.info.name if worker.info else 'a new worker'}: {loss.reason}"))
        if loss.memory and not self._killed_alone(run, began):
            for item in held:
                run.again(item, loss.reason)
        elif worker.info is None:
            self._start_failed(run, loss)
        elif loss.cause is not None:
            assert computing is not None
            run.attempt_failed(computing, loss)
            for item in held:
                if item is not computing:  # it had no part in it
                    run.again(item, f"not written before {loss.reason}")
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
        end(worker.handle)

    def _drain(self, run: PoolRun, interrupted: bool) -> None:
        """Hand out nothing more and let what is written, and after an interrupt what is computed, still commit.

        It has DRAIN_SECONDS at most. Whatever fails now is tried again by the next run.
        """
        deadline = time.monotonic() + DRAIN_SECONDS
        if interrupted:
            run.tell(PoolEvent("waiting", "interrupted: shards in flight may still commit"))
        while ray.is_initialized() and not lost() and (left := deadline - time.monotonic()) > 0:
            waiting = {
                shard.ref: (worker, shard)
                for worker in self._workers
                for shard in worker.shards
                if interrupted or shard.writing
            }
            if not waiting:
                return
            for ref in ray.wait(list(waiting), num_returns=1, timeout=min(left, POLL_SECONDS))[0]:
                worker, shard = waiting[ref]
                try:
                    answer = ray.get(ref)
                except RayError:
                    worker.shards.remove(shard)
                else:
                    self._answered(run, worker, shard, answer)
