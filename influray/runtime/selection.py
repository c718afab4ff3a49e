"""The selection driver: a named actor that carries out the selectors, can be asked how far it is, and survives a kill.

Ray restarts it and calls `run` again, which skips what this call has finished already: each job leaves a mark beside
the selections when it is done. The marks belong to one call; what is done between calls is the caller's to know.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from influray.interrupts import interrupt_on_sigterm
from influray.protocols import StorageError
from influray.runtime.cluster import NAMESPACE
from influray.runtime.columns import LOWER, ColumnWorkers
from influray.runtime.process import inheriting, logged, prepare_process
from influray.runtime.retries import RayError, loss_of, need_memory
from influray.runtime.watch import end_actor
from influray.store.artifact import naming_full_disk, read_json, write_json
from influray.store.mirror import address_of, local, present, remove_folder
from influray.store.ranges import Mapper, Threads
from influray.store.run_directory import RunDirectory

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class SelectionJob:
    """One call to carry out: `function` is "module:attribute", which commits its own output whole or not at all."""

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
    memory_kills: int = 0  # of column workers
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

    What a function returns must be JSON. The actor takes `cpus` of the cluster: no pool may hold them all meanwhile.
    With `workers` > 1 the passes over the matrix are carried out by as many actors of `cpus_per_worker` each, without
    by threads of the driver, one for each of its CPUs.

    Raises:
        ConfigError, DataError, ArtifactMismatch, StorageError: a job raised it; unchanged.
        SelectionError: the actor died more than MAX_RESTARTS times.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the jobs that are done stay done.
    """
    assert len({job.name for job in jobs}) == len(jobs), "two jobs share a name"
    if not jobs:
        return {}
    run = RunDirectory(run_dir)
    marks = run.path / "selection" / f".driver-{uuid.uuid4().hex}"
    options: dict[str, Any] = {
        "num_cpus": cpus,
        "max_restarts": MAX_RESTARTS,
        "max_task_retries": MAX_RESTARTS,
        "concurrency_groups": {"run": 1, "status": 1},  # so that it can be asked while it works
    }
    actor: Any = ray.remote(**options)(inheriting(SelectionDriver))
    driver = actor.options(name=driver_name(run_dir), namespace=NAMESPACE).remote(
        address_of(marks), address_of(run.logs), max(1, int(cpus)), workers, cpus_per_worker
    )
    try:
        with interrupt_on_sigterm():
            return _follow(driver, list(jobs), on_status)
    finally:
        end_actor(driver)
        remove_folder(marks)


def driver_name(run_dir: str | Path) -> str:
    """Return the name of the driver actor of a run directory, in the namespace "influray"."""
    return f"selection-{hashlib.sha256(RunDirectory(run_dir).address.encode()).hexdigest()[:16]}"


def _follow(driver: Any, jobs: list[SelectionJob], on_status: Callable[[SelectionStatus], None]) -> dict[str, Any]:
    running = driver.run.remote(jobs)
    asked = None
    while True:
        done, _ = ray.wait([running], timeout=POLL_SECONDS)
        if done:
            break
        asked = asked or driver.status.remote()
        answered, _ = ray.wait([asked], timeout=0)
        if answered:
            try:
                on_status(ray.get(asked))
            except RayError as error:  # the actor is between two lives; `run` tells when there is no other
                logger.warning("the selection driver was lost and is started again: %s", type(error).__name__)
            asked = None
    try:
        return ray.get(running)
    except RayError as error:
        loss = loss_of(error)
        if isinstance(loss.cause, StorageError):
            raise loss.cause from None
        if loss.cause is not None:
            raise  # a bug, with the actor's traceback
        if loss.memory:
            raise need_memory("the selection driver", MAX_RESTARTS + 1, LOWER, loss.reason) from error
        raise SelectionError(
            f"the selection driver died more than {MAX_RESTARTS} times; the last time: {loss.reason}"
        ) from error


class SelectionDriver:
    """Runs jobs in order; `run` may be called again after a kill and goes on with the first that has no mark."""

    def __init__(self, marks: str, logs: str, threads: int, workers: int = 0, cpus_per_worker: float = 1.0) -> None:
        prepare_process(logs, threads)
        self._marks = local(marks)
        many, self._workers_wanted = workers > 1, workers
        self._workers = ColumnWorkers(workers, cpus_per_worker, logs, threads) if many else None
        self._mapper: Mapper = self._workers or Threads(threads)
        self._done: list[str] = []
        self._running = ""
        self._since = time.monotonic()
        self._begin()

    @ray.method(concurrency_group="run")
    def run(self, jobs: Sequence[SelectionJob]) -> dict[str, Any]:
        """Carry out the jobs that have no mark and return name -> result of all."""
        results: dict[str, Any] = {}
        for job in jobs:
            self._begin()
            mark = self._marks / f"{job.name}.json"
            if not present(mark).exists():
                self._running, self._since = job.name, time.monotonic()
                module, _, attribute = job.function.partition(":")
                function = getattr(importlib.import_module(module), attribute)
                help_with = {"mapper": self._mapper, "on_progress": self._note} if job.helped else {}
                with logged(f"selection {job.name}"), naming_full_disk(self._marks.parent):
                    write_json(mark, function(**job.arguments, **help_with))
                self._running = ""
            results[job.name] = read_json(mark)
            self._done.append(job.name)
        if self._workers is not None:
            self._workers.close()
        return results

    @ray.method(concurrency_group="status")
    def status(self) -> SelectionStatus:
        """Return how far `run` is, also while it runs."""
        seconds = time.monotonic() - self._since if self._running else 0.0
        first, began, chosen, budget, now = self._rows
        rate = (chosen - first) / (now - began) if now > began else 0.0
        beside = None if self._workers is None else self._workers.side_by_side
        if beside is None or not beside.kills:
            return SelectionStatus(tuple(self._done), self._running, seconds, chosen, budget, rate)
        left = beside.limit(self._workers_wanted)
        return SelectionStatus(tuple(self._done), self._running, seconds, chosen, budget, rate, beside.kills, left)

    def _begin(self) -> None:
        self._rows = (0, 0.0, 0, 0, 0.0)  # rows chosen and the time when it was first heard of, rows, budget, time

    def _note(self, chosen: int, budget: int) -> None:
        first, began, _, total, _ = self._rows
        now = time.monotonic()
        self._rows = (first, began, chosen, budget, now) if total else (chosen, now, chosen, budget, now)
