"""Calls as plain Ray tasks, several side by side: the one place where tasks are started and tried again.

It is for what is not committed shard by shard. Ray's own retries are off: they would give a machine that is out of
memory as many processes as before, and count no attempt against a call.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from influray.protocols import USER_ERRORS, StorageError
from influray.runtime.retries import Loss, RayError, SideBySide, loss_of, need_memory
from influray.runtime.tasks import PoolEvent
from influray.runtime.watch import end

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # without any answer, until a call that may be made here is


@dataclass(frozen=True, slots=True)
class Call:
    """Arguments for the function of a task. `name` is what people call it."""

    name: str
    arguments: tuple[Any, ...]
    number: int = 0  # among those of a run


class PlainTasks:
    """Tasks of `cpus` and `gpus` each, `most` at a time; fewer after one is killed for memory, also in later runs.

    `lower` names what of the config makes a task need less memory.
    """

    def __init__(
        self,
        most: int,
        cpus: float,
        gpus: float = 0.0,
        *,
        lower: str,
        max_attempts: int = 3,
        on_event: Callable[[PoolEvent], None] = lambda event: None,
    ) -> None:
        self._most = most
        self._options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 0}
        self._lower = lower
        self._max_attempts = max_attempts
        self._on_event = on_event
        self.beside = SideBySide()

    @property
    def limit(self) -> int:
        """How many run side by side from now on."""
        return self.beside.limit(self._most)

    def run(
        self,
        function: Callable[..., Any],
        calls: Iterable[Call],
        *,
        ahead: float = math.inf,
        here: Callable[..., Any] | None = None,
    ) -> Iterator[Any]:
        """Yield what `function` returns for every call, in their order. A call whose process is lost goes first again.

        Args:
            function: a module's; a process may run many calls, one after the other.
            ahead: how many calls may be begun, counted from the first whose result is not taken yet.
            here: the function for this process, where the cluster has no room for a single task.

        Raises:
            ConfigError, DataError, ArtifactMismatch, StorageError: a call raised it; unchanged.
            RayTaskError: a call raised anything else; with its traceback. Of several errors it is the first call's.
            TooLittleMemory: a call was killed for memory `max_attempts` times, with no other beside it.
            RuntimeError: the process of a call was lost `max_attempts` times.
        """
        run = _Run(ray.remote(function).options(**self._options), enumerate(calls), ahead, here)
        try:
            while run.running or run.again or run.more:
                run.begin(self.limit)
                for call, loss, since in run.settle():
                    self._lost(call, loss, since, run)
                yield from run.in_order()
        finally:  # an error, or a reader who has seen enough
            for reference in run.running:
                end(reference)

    def _lost(self, call: Call, loss: Loss, since: float, run: _Run) -> None:
        """Have a call made again whose process was lost; raise where it was lost too often."""
        run.again.append(call)
        logger.warning("%s: its process was lost, trying again: %s", call.name, loss.reason)
        self._on_event(PoolEvent("retry", f"{call.name}: {loss.reason}"))
        if loss.memory:
            alone = self.beside.killed(since, len(run.running))
            logger.warning("%s", self.beside.told())
            self._on_event(PoolEvent("memory", self.beside.told(), side_by_side=self.limit))
            if not alone:
                return
        run.lost[call.number] += 1
        if run.lost[call.number] >= self._max_attempts:
            if loss.memory:
                raise need_memory(call.name, self.beside.kills, self._lower, loss.reason)
            raise RuntimeError(f"{call.name}: its process was lost {run.lost[call.number]} times: {loss.reason}")


@dataclass
class _Run:
    """The calls of one run: those that wait, that a task is at, and that have a result which is not taken yet."""

    task: Any
    todo: Iterator[tuple[int, Call]]
    ahead: float
    here: Callable[..., Any] | None
    again: deque[Call] = field(default_factory=deque)  # whose process was lost
    running: dict[Any, tuple[Call, float]] = field(default_factory=dict)  # by reference, and since when
    results: dict[int, tuple[Any, Exception | None]] = field(default_factory=dict)
    lost: Counter[int] = field(default_factory=Counter)
    begun: int = 0
    taken: int = 0
    more: bool = True  # there may be calls in `todo`, and none has raised an error
    quiet_until: float = field(default_factory=lambda: time.monotonic() + START_SECONDS)

    def begin(self, limit: int) -> None:
        while len(self.running) < limit and (self.again or (self.more and self.begun - self.taken < self.ahead)):
            if self.again:
                call = self.again.popleft()
            elif (following := next(self.todo, None)) is not None:
                call = replace(following[1], number=following[0])
                self.begun += 1
            else:
                self.more = False
                return
            self.running[self.task.remote(*call.arguments)] = call, time.monotonic()

    def settle(self) -> Iterator[tuple[Call, Loss, float]]:
        """Wait for answers and take them in; yield the calls whose process was lost."""
        quiet = self.here is not None and time.monotonic() > self.quiet_until
        done = ray.wait(list(self.running), timeout=0 if quiet else 1.0)[0] if self.running else []
        for reference in done:
            call, since = self.running.pop(reference)
            outcome = _outcome(reference)
            if isinstance(outcome, Loss):
                yield call, outcome, since
            else:
                self.results[call.number], self.quiet_until = outcome, math.inf
                self.more &= outcome[1] is None
        if quiet and not done and self.running and self.here is not None:
            reference = next(iter(self.running))
            call, _ = self.running.pop(reference)
            end(reference)
            logger.warning("there is no room for a task: %s is read by the driver itself", call.name)
            self.results[call.number] = self.here(*call.arguments), None

    def in_order(self) -> Iterator[Any]:
        while self.taken in self.results:
            result, error = self.results.pop(self.taken)
            if error is not None:
                raise error
            self.taken += 1
            yield result


def _outcome(reference: Any) -> tuple[Any, Exception | None] | Loss:
    """Return what a task returned, or with None what is to be raised in its turn, or that its process was lost."""
    try:
        return ray.get(reference), None
    except RayError as error:
        try:
            loss = loss_of(error)
        except (*USER_ERRORS, StorageError) as raised:
            return None, raised
        if loss.cause is None:
            return loss
        return None, loss.cause if isinstance(loss.cause, StorageError) else error
