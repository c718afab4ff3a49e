"""Retrainings on Ray: plain tasks of a few each, whose processes keep the base model from one to the next."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import ray

from influray.job_status import OnJobs, not_shown
from influray.runtime.cluster import ResolvedResources
from influray.runtime.job_progress import JobBoard, telling
from influray.runtime.plain_tasks import Call, PlainTasks
from influray.runtime.process import once
from influray.runtime.retraining_worker import Bench, Retrainer, Retraining, token_of
from influray.runtime.tasks import PoolEvent
from influray.runtime.training import plan_layout
from influray.runtime.training_worker import working_in

logger = logging.getLogger(__name__)

MOST = 4  # retrainings of a task: each commits by itself, so a lost process costs one
ROUNDS = 4  # tasks that a slot has at least, where there are so many, so that all end at about the same time


def retrain(
    bench: Bench,
    todo: Sequence[Retraining],
    resources: ResolvedResources,
    on_event: Callable[[PoolEvent], None] = lambda event: None,
    on_jobs: OnJobs = not_shown,
) -> None:
    """Carry out retrainings; their results are committed. Ray must be initialised.

    Args:
        on_jobs: hears every two seconds how many more are done, and how far others are.

    Raises:
        ConfigError, DataError, ArtifactMismatch: what the user can mend, as it was raised in the worker.
        TooLittleMemory, RuntimeError: as `PlainTasks.run`.
    """
    layout = plan_layout(len(todo), resources, ray.cluster_resources().get("GPU", 0.0), alone=True)
    each = max(1, min(MOST, len(todo) // (layout.slots * ROUNDS)))
    lower = f"tune.device_batch_size (now {bench.parsed.retraining.device_batch_size})"
    limits: dict[str, Any] = {"lower": lower, "max_attempts": resources.max_attempts, "on_event": on_event}
    tasks = PlainTasks(layout.slots, resources.cpus_per_worker, layout.gpus, **limits)
    place = os.getcwd(), layout.gpus, resources.threads_per_worker
    with JobBoard(on_jobs) as board:
        told = [(one, board.address(n)) for n, one in enumerate(todo, start=1)]
        parts = [tuple(told[at : at + each]) for at in range(0, len(todo), each)]
        calls = (Call(f"retrainings {n * each + 1} to {n * each + len(part)}", (bench, part, *place))
                 for n, part in enumerate(parts))  # fmt: skip
        for _ in tasks.run(retrain_some, calls):
            pass
    on_jobs(len(todo), [])


def retrain_some(bench: Bench, part: Sequence[tuple[Retraining, str]], folder: str, gpus: float, threads: int) -> None:
    """Carry out some retrainings in a task, on the base that this process may have from the one before.

    Of each, where it tells how far it is.
    """
    with working_in(folder):
        retrainer = once(token_of(bench), Retrainer, bench, "cuda" if gpus else "cpu", threads)
        for one, address in part:
            with telling(address, f"number {int(address.rpartition('/')[2])}") as tell:
                retrainer.carry_out(one, tell)
