"""Passes over an attribution matrix carried out by workers: each holds the matrix open and is given ranges of rows.

The results come in the order of the rows and belong to their range alone, so that neither the number of workers nor
the loss of one changes a bit of what is made of them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import ray

from influray.protocols import USER_ERRORS, StorageError
from influray.runtime.process import prepare_process
from influray.runtime.retries import Loss, RayError, SideBySide, loss_of, need_memory
from influray.runtime.watch import end_actor
from influray.store.attribution import Attribution
from influray.store.mirror import address_of
from influray.store.ranges import RangeCall, Threads

logger = logging.getLogger(__name__)

LARGE_BYTES = 2**31  # read by one thread in a second or two, as long as workers take to start
AHEAD = 2  # ranges a worker has before it
MAX_LOSSES = 3  # of one range, with the worker that had it
LOWER = "the number of targets, or of selectors that read the whole matrix"  # what a range's memory goes with
START_SECONDS = 60.0  # without a single worker, until the ranges are read here


def worth_workers(rows: int, columns: int) -> bool:
    """Return whether a matrix is so large that starting workers costs less than they save."""
    return 4 * rows * columns >= LARGE_BYTES


class ColumnWorkers:
    """A Mapper of `workers` actors, which start at the first pass and go over one matrix after another."""

    threads: int

    def __init__(self, workers: int, cpus: float, logs: str, threads: int = 1) -> None:
        self.threads = threads
        self._workers = workers
        self._logs = logs
        self._actor: Any = ray.remote(num_cpus=cpus, max_restarts=0, max_task_retries=0)(ColumnWorker)
        self._starting: dict[Any, Any] = {}  # what its `ready` returns -> actor
        self._load: dict[Any, int] = {}  # actor -> ranges it has
        self._patience = 0.0  # the time from when on no worker is waited for; 0 = one is there
        self.side_by_side = SideBySide()

    def map(self, source: Attribution, calls: Iterable[RangeCall]) -> Iterator[Any]:
        """Yield the result of every call, in order. A lost worker is replaced and its ranges are given out again.

        Raises:
            ConfigError, DataError, ArtifactMismatch, StorageError: a call raised it; unchanged.
            TooLittleMemory: one range was killed for memory more than MAX_LOSSES times, alone.
            RuntimeError: one range lost its worker more than MAX_LOSSES times.
        """
        folder = address_of(source.folder.resolve())
        todo, again = iter(enumerate(calls)), deque[tuple[int, RangeCall]]()
        results: dict[int, Any] = {}
        running: dict[Any, tuple[int, RangeCall, Any, float]] = {}
        losses: dict[int, int] = {}
        given, yielded, last = 0, 0, False
        try:
            while True:
                self._staff()
                self._welcome()
                room = 2 * AHEAD * self._workers  # results that wait for an earlier one
                while (worker := self._idle()) is not None and (again or (not last and given - yielded < room)):
                    item = again.popleft() if again else next(todo, None)
                    if item is None:
                        last = True
                        break
                    given = max(given, item[0] + 1)
                    running[worker.run.remote(folder, item[1])] = (*item, worker, time.monotonic())
                    self._load[worker] += 1
                if not running and not self._load and time.monotonic() > self._patience:
                    item = again.popleft() if again else next(todo, None)
                    last = last or item is None
                    if item is not None:
                        logger.warning("no column worker is there: the driver reads from row %d itself", item[1].start)
                        given = max(given, item[0] + 1)
                        results[item[0]] = item[1].on(source)
                elif waiting := [*running, *self._starting]:
                    done, _ = ray.wait(waiting, timeout=1.0)
                    for reference in done:
                        if reference in running:
                            self._take(reference, running, results, again, losses)
                while yielded in results:
                    result = results.pop(yielded)
                    if isinstance(result, BaseException):  # of several, that of the lowest rows, whoever was first
                        raise result
                    yield result
                    yielded += 1
                if last and not running and not again and yielded == given:
                    return
        finally:  # an error, or a reader who has seen enough
            for _, _, worker, _ in running.values():
                self._relieve(worker)

    def close(self) -> None:
        """End the workers."""
        for actor in [*self._load, *self._starting.values()]:
            end_actor(actor)
        self._load.clear()
        self._starting.clear()

    def _take(
        self,
        reference: Any,
        running: dict[Any, tuple[int, RangeCall, Any, float]],
        results: dict[int, Any],
        again: deque[tuple[int, RangeCall]],
        losses: dict[int, int],
    ) -> None:
        number, call, worker, since = running.pop(reference)
        try:
            results[number] = _own(ray.get(reference))
        except RayError as error:
            try:
                loss = loss_of(error)
            except (*USER_ERRORS, StorageError) as raised:
                loss = Loss(str(raised), raised)
            if loss.cause is not None:  # raised in its turn, see `map`; a bug with the worker's traceback
                results[number] = loss.cause if isinstance(loss.cause, (*USER_ERRORS, StorageError)) else error
                self._relieve(worker)
                return
            first = self._load.pop(worker, None) is not None  # of the ranges that it had
            again.append((number, call))
            logger.warning("a column worker was lost at rows %d-%d: %s", call.start, call.stop - 1, loss.reason)
            if self._counts(loss, since, first):
                losses[number] = losses.get(number, 0) + 1
            if losses.get(number, 0) > MAX_LOSSES:
                what = f"rows {call.start}-{call.stop - 1} of the attribution matrix"
                if loss.memory:
                    raise need_memory(what, self.side_by_side.kills, LOWER, loss.reason) from error
                raise RuntimeError(f"{what}: lost {losses[number]} workers: {loss.reason}") from error
        else:
            self._relieve(worker)

    def _counts(self, loss: Loss, since: float, first: bool = True) -> bool:
        """Return whether a lost worker counts against its range; one of several that was killed for memory does not."""
        if not loss.memory or not first:
            return not loss.memory
        alone = self.side_by_side.killed(since, len(self._load))
        logger.warning("column workers: %s", self.side_by_side.told())
        return alone

    def _relieve(self, worker: Any) -> None:
        if worker in self._load:  # not lost meanwhile
            self._load[worker] -= 1

    def _staff(self) -> None:
        missing = self.side_by_side.limit(self._workers) - len(self._load) - len(self._starting)
        if not self._load and not self._patience:
            self._patience = time.monotonic() + START_SECONDS
        for _ in range(missing):
            actor = self._actor.remote(self._logs)
            self._starting[actor.ready.remote()] = actor

    def _welcome(self) -> None:
        if not self._starting:
            return
        ready, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=0)
        for reference in ready:
            actor = self._starting.pop(reference)
            try:
                ray.get(reference)
            except RayError as error:
                loss = loss_of(error)
                logger.warning("a column worker died before it began: %s", loss.reason)
                self._counts(loss, self._patience)
            else:
                self._load[actor], self._patience = 0, 0.0

    def _idle(self) -> Any:
        worker = min(self._load, key=self._load.__getitem__, default=None)
        return worker if worker is not None and self._load[worker] < AHEAD else None


class ColumnWorker:
    """Carries out range calls on the matrix it was last asked about."""

    def __init__(self, logs: str) -> None:
        self._logs = logs
        self._source: Attribution | None = None

    def ready(self) -> str:
        """Prepare the process and return its name."""
        return prepare_process(self._logs, 1)

    def run(self, folder: str, call: RangeCall) -> Any:
        """Return the result of a call on the matrix at `folder`."""
        if self._source is None or address_of(self._source.folder) != folder:
            self._source = Attribution(folder, Threads(1))
        return call.on(self._source)


def _own(value: Any) -> Any:
    """Return the arrays of a result in memory of this process: Ray's are views that keep its store filled."""
    if isinstance(value, np.ndarray):
        return value.copy()
    return type(value)(_own(part) for part in value) if type(value) in (tuple, list) else value
