"""The selection driver: a named actor that runs the selectors, can be asked how far it is, and survives a kill.

Ray restarts it and gives it the job again that it was at; what is done is with the driver of the run.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from influray.interrupts import interrupt_on_sigterm
from influray.protocols import StorageError
from influray.runtime.cluster import NAMESPACE
from influray.runtime.columns import LOWER, ColumnWorkers
from influray.runtime.process import inheriting, logged, prepare_process
from influray.runtime.retries import RayError, loss_of, need_memory
from influray.runtime.watch import end
from influray.store.mirror import address_of
from influray.store.ranges import Mapper, Threads
from influray.store.run_directory import RunDirectory

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
POLL_SECONDS = 1.0
AGAIN_SECONDS = 5.0  # in which Ray may know of a lost node


@dataclass(frozen=True)
class SelectionJob:
    """One call to run: `function` is "module:attribute", which commits its own output whole or not at all."""

    name: str  # of the selection
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    helped: bool = False  # the function also takes `mapper` and `on_progress`


@dataclass(frozen=True, slots=True)
class SelectionStatus:
    """How far the driver is."""

    done: tuple[str, ...]
    running: str  # "" between jobs
    seconds: float  # of the running one
    chosen: int = 0  # rows of the running one, where its method chooses one by one
    budget: int = 0
    rows_per_second: float = 0.0  # since it began, or went on
    memory_kills: int = 0  # of tasks that read the matrix
    side_by_side: int = 0  # how many of them may run after that


class SelectionError(RuntimeError):
    """The selection driver was lost more often than it may be restarted."""


def run_selection(
    run_dir: str | Path,
    jobs: Sequence[SelectionJob],
    on_status: Callable[[SelectionStatus], None] = lambda status: None,
    cpus: float = 1.0,
    workers: int = 0,
    cpus_per_worker: float = 1.0,
) -> dict[str, Any]:
    """Carry out the jobs one after another in the named driver actor and return name -> what its function returned.

    The actor takes `cpus` of the cluster: no pool may hold them all meanwhile. With `workers` > 1 the passes over the
    matrix are made by as many tasks of `cpus_per_worker` each, without by threads of the driver, one for each of its
    CPUs.

    Raises:
        ConfigError, DataError, ArtifactMismatch, StorageError: a job raised it; unchanged.
        SelectionError: the actor died more than MAX_RESTARTS times.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the jobs that are done stay done.
    """
    assert len({job.name for job in jobs}) == len(jobs), "two jobs share a name"
    if not jobs:
        return {}
    options: dict[str, Any] = {
        "num_cpus": cpus,
        "max_restarts": MAX_RESTARTS,
        "max_task_retries": MAX_RESTARTS,
        "concurrency_groups": {"run": 1, "status": 1},  # so that it can be asked while it works
    }
    actor: Any = ray.remote(**options)(inheriting(SelectionDriver))
    driver = actor.options(name=driver_name(run_dir), namespace=NAMESPACE).remote(
        address_of(RunDirectory(run_dir).logs), max(1, int(cpus)), workers, cpus_per_worker
    )
    results: dict[str, Any] = {}
    try:
        with interrupt_on_sigterm():
            for job in jobs:
                done = tuple(results)
                results[job.name] = _follow(
                    driver, job, lambda status, done=done: on_status(replace(status, done=done))
                )
        return results
    finally:
        end(driver)


def driver_name(run_dir: str | Path) -> str:
    """Return the name of the driver actor of a run directory, in the namespace "influray"."""
    return f"selection-{hashlib.sha256(RunDirectory(run_dir).address.encode()).hexdigest()[:16]}"


def _follow(driver: Any, job: SelectionJob, on_status: Callable[[SelectionStatus], None]) -> Any:
    for _ in range(MAX_RESTARTS):
        try:
            return ray.get(_ended(driver.run.remote(job), driver, on_status))
        except RayError as error:
            loss = loss_of(error)
            if loss.unavailable:
                logger.warning("the selection driver does not answer and is asked again: %s", loss.reason)
                time.sleep(AGAIN_SECONDS)
                continue
            if isinstance(loss.cause, StorageError):
                raise loss.cause from None
            if loss.cause is not None:
                raise  # a bug, with the actor's traceback
            if loss.memory:
                raise need_memory("the selection driver", MAX_RESTARTS + 1, LOWER, loss.reason) from error
            raise SelectionError(
                f"the selection driver died more than {MAX_RESTARTS} times; the last time: {loss.reason}"
            ) from error
    raise SelectionError(f"the selection driver did not answer {MAX_RESTARTS} times")


def _ended(running: Any, driver: Any, on_status: Callable[[SelectionStatus], None]) -> Any:
    """Return the call once it has ended, telling how far it is until then."""
    asked = None
    while not ray.wait([running], timeout=POLL_SECONDS)[0]:
        asked = asked or driver.status.remote()
        if ray.wait([asked], timeout=0)[0]:
            try:
                on_status(ray.get(asked))
            except RayError as error:  # the actor is between two lives; `run` tells when there is no other
                logger.warning("the selection driver was lost and is started again: %s", type(error).__name__)
            asked = None
    return running


class SelectionDriver:
    """Runs one job at a time; what is killed within one begins it again."""

    def __init__(self, logs: str, threads: int, workers: int = 0, cpus_per_worker: float = 1.0) -> None:
        prepare_process(logs, threads)
        many = workers > 1
        self._tasks = ColumnWorkers(workers, cpus_per_worker, logs, threads) if many else None
        self._mapper: Mapper = self._tasks or Threads(threads)
        self._running, self._since = "", time.monotonic()
        self._rows = (0, 0.0, 0, 0, 0.0)  # rows chosen and the time when it was first heard of, rows, budget, time

    @ray.method(concurrency_group="run")
    def run(self, job: SelectionJob) -> Any:
        """Carry out a job and return what its function does."""
        self._running, self._since, self._rows = job.name, time.monotonic(), (0, 0.0, 0, 0, 0.0)
        module, _, attribute = job.function.partition(":")
        function = getattr(importlib.import_module(module), attribute)
        help_with = {"mapper": self._mapper, "on_progress": self._note} if job.helped else {}
        with logged(f"selection {job.name}"):
            return function(**job.arguments, **help_with)

    @ray.method(concurrency_group="status")
    def status(self) -> SelectionStatus:
        """Return how far `run` is, also while it runs."""
        first, began, chosen, budget, now = self._rows
        rate = (chosen - first) / (now - began) if now > began else 0.0
        tasks = None if self._tasks is None or not self._tasks.tasks.beside.kills else self._tasks.tasks
        memory = (0, 0) if tasks is None else (tasks.beside.kills, tasks.limit)
        return SelectionStatus((), self._running, time.monotonic() - self._since, chosen, budget, rate, *memory)

    def _note(self, chosen: int, budget: int) -> None:
        first, began, _, total, _ = self._rows
        now = time.monotonic()
        self._rows = (first, began, chosen, budget, now) if total else (chosen, now, chosen, budget, now)
