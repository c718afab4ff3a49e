"""Passes over an attribution matrix by plain tasks, each on a range of rows.

The results come in the order of the rows and belong to their range alone, so that neither the number of tasks nor the
loss of one changes a bit of what is made of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from influray.runtime.plain_tasks import Call, PlainTasks
from influray.runtime.process import once, prepare_process
from influray.store.attribution import Attribution
from influray.store.mirror import address_of
from influray.store.ranges import RangeCall, Threads

LARGE_BYTES = 2**31  # read by one thread in a second or two, as long as processes take to start
AHEAD = 4  # ranges a task that may be begun while an earlier one is not done
MAX_LOSSES = 4  # of one range, with the process that had it
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
        self._ahead = AHEAD * workers
        self._logs = logs
        self._token = uuid.uuid4().hex  # a process may have had another matrix of the same place before

    def map(self, source: Attribution, calls: Iterable[RangeCall]) -> Iterator[Any]:
        """Yield the result of every call, in order. Raises as `PlainTasks.run`."""
        opened = (self._token, self._logs, address_of(source.folder.resolve()))
        ranges = (
            Call(f"rows {call.start}-{call.stop - 1} of the attribution matrix", (*opened, call)) for call in calls
        )
        results = self.tasks.run(read_range, ranges, ahead=self._ahead, here=lambda *given: given[-1].on(source))
        return map(_own, results)


def read_range(token: str, logs: str, folder: str, call: RangeCall) -> Any:
    """Return the result of a call on the matrix at `folder`."""
    return call.on(once(token, _open, logs, folder))


def _open(logs: str, folder: str) -> Attribution:
    prepare_process(logs, 1)
    return Attribution(folder, Threads(1))


def _own(value: Any) -> Any:
    """Return the arrays of a result in memory of this process: Ray's are views that keep its store filled."""
    if isinstance(value, np.ndarray):
        return value.copy()
    return type(value)(_own(part) for part in value) if type(value) in (tuple, list) else value
