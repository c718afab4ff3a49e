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
from dataclasses import dataclass
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
            function: a module's; a process may carry out many calls, one after the other.
            ahead: how many calls may be begun, counted from the first whose result is not taken yet.
            here: the function for this process, where the cluster has no room for a single task.

        Raises:
            ConfigError, DataError, ArtifactMismatch, StorageError: a call raised it; unchanged.
            RayTaskError: a call raised anything else; with its traceback. Of several errors it is the first call's.
            TooLittleMemory: a call was killed for memory `max_attempts` times, with no other beside it.
            RuntimeError: the process of a call was lost `max_attempts` times.
        """
        task = ray.remote(function).options(**self._options)
        todo, again = enumerate(calls), deque[Call]()
        running: dict[Any, tuple[Call, float]] = {}
        results: dict[int, tuple[Any, Exception | None]] = {}
        lost: Counter[int] = Counter()
        begun, taken, more, quiet_until = 0, 0, True, time.monotonic() + START_SECONDS
        try:
            while True:
                while len(running) < self.limit and (again or (more and begun - taken < ahead)):
                    if again:
                        call = again.popleft()
                    elif (following := next(todo, None)) is not None:
                        call = Call(following[1].name, following[1].arguments, following[0])
                        begun += 1
                    else:
                        more = False
                        break
                    running[task.remote(*call.arguments)] = call, time.monotonic()
                alone = here is not None and time.monotonic() > quiet_until
                done = ray.wait(list(running), timeout=0 if alone else 1.0)[0] if running else []
                for reference in done:
                    call, since = running.pop(reference)
                    outcome = _outcome(reference)
                    if isinstance(outcome, Loss):
                        again.append(call)
                        self._lost(call, outcome, since, len(running), lost)
                    else:
                        results[call.number], quiet_until = outcome, math.inf
                        more &= outcome[1] is None
                if alone and not done and running and here is not None:
                    reference = next(iter(running))
                    call, _ = running.pop(reference)
                    end(reference)
                    logger.warning("there is no room for a task: %s is read by the driver itself", call.name)
                    results[call.number] = here(*call.arguments), None
                while taken in results:
                    result, error = results.pop(taken)
                    if error is not None:
                        raise error
                    taken += 1
                    yield result
                if not (running or again or more):
                    return
        finally:  # an error, or a reader who has seen enough
            for reference in running:
                end(reference)

    def _lost(self, call: Call, loss: Loss, since: float, others: int, lost: Counter[int]) -> None:
        """Count the loss of a call's process; raise where it was lost too often."""
        logger.warning("%s: its process was lost, trying again: %s", call.name, loss.reason)
        self._on_event(PoolEvent("retry", f"{call.name}: {loss.reason}"))
        if loss.memory:
            alone = self.beside.killed(since, others)
            logger.warning("%s", self.beside.told())
            self._on_event(PoolEvent("memory", self.beside.told(), side_by_side=self.limit))
            if not alone:
                return
        lost[call.number] += 1
        if lost[call.number] >= self._max_attempts:
            if loss.memory:
                raise need_memory(call.name, self.beside.kills, self._lower, loss.reason)
            raise RuntimeError(f"{call.name}: its process was lost {lost[call.number]} times: {loss.reason}")


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
