"""Passes over an attribution matrix by plain tasks, each on some ranges of rows.

The results come in the order of the rows and belong to their range alone, so that neither the number of tasks nor the
loss of one changes a bit of what is made of them.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from influray.runtime.plain_tasks import Call, PlainTasks
from influray.runtime.process import once, prepare_process
from influray.store.attribution import Attribution
from influray.store.mirror import address_of
from influray.store.ranges import RANGE_ROWS, RangeCall, Threads

LARGE_BYTES = 2**31  # read by one thread in a second or two, as long as processes take to start
# Ranges a task at most: between two tasks a process waits for the driver. On a busy machine of two cores a pass over
# 640,000 x 350 by two processes took 0.93 s with one, 0.70 s with four, and 0.58 s by actors with two ranges queued.
TOGETHER = 4
TASKS = 8  # for each process at least, so that none waits long for the last one
AHEAD = 4  # tasks a process that may be begun while an earlier one is not done
MAX_LOSSES = 4  # of the process that had the same ranges
LOWER = "the number of targets, or of selectors that read the whole matrix"  # what a range's memory goes with


def worth_workers(rows: int, columns: int) -> bool:
    """Return whether a matrix is so large that starting processes costs less than they save."""
    return 4 * rows * columns >= LARGE_BYTES


class ColumnWorkers:
    """A Mapper by `workers` tasks side by side, whose processes keep the matrix open from one range to the next."""

    threads: int

    def __init__(self, workers: int, cpus: float, logs: str, threads: int = 1) -> None:
        self.threads = threads
        self.tasks = PlainTasks(workers, cpus, lower=LOWER, max_attempts=MAX_LOSSES)
        self._workers = workers
        self._logs = logs
        self._token = uuid.uuid4().hex  # a process may have had another matrix of the same place before

    def map(self, source: Attribution, calls: Iterable[RangeCall]) -> Iterator[Any]:
        """Yield the result of every call, in order. Raises as `PlainTasks.run`."""
        count = max(1, min(TOGETHER, source.shape[0] // (RANGE_ROWS * TASKS * self._workers)))
        opened, todo = (self._token, self._logs, address_of(source.folder.resolve())), iter(calls)
        tasks = (
            Call(f"rows {some[0].start}-{some[-1].stop - 1} of the attribution matrix", (*opened, some))
            for some in iter(lambda: tuple(itertools.islice(todo, count)), ())
        )
        found = self.tasks.run(
            *(read_ranges, tasks), ahead=AHEAD * self._workers, here=lambda *given: [c.on(source) for c in given[-1]]
        )
        return (_own(result) for results in found for result in results)


def read_ranges(token: str, logs: str, folder: str, calls: Sequence[RangeCall]) -> list[Any]:
    """Return the results of calls on the matrix at `folder`."""
    source = once(token, _open, logs, folder)
    return [call.on(source) for call in calls]


def _open(logs: str, folder: str) -> Attribution:
    prepare_process(logs, 1)
    return Attribution(folder, Threads(1))


def _own(value: Any) -> Any:
    """Return the arrays of a result in memory of this process: Ray's are views that keep its store filled."""
    if isinstance(value, np.ndarray):
        return value.copy()
    return type(value)(_own(part) for part in value) if type(value) in (tuple, list) else value
