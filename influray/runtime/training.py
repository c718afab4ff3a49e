"""Fine-tunings and evaluations on Ray: one job over many ranks, or many jobs at a time.

A training over several ranks, such as the warmup where there are GPUs, is one Ray Train run, data-parallel. Jobs of
one process are plain tasks: a Train run starts six processes beside its workers (13 s of CPU), and nothing of them is
needed by one rank. Where there are fewer jobs than GPUs they share one Train run, one after the other over all ranks.
Either way a lost process costs the time since its last checkpoint.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from influray.job_status import OnJobs, not_shown
from influray.protocols import USER_ERRORS
from influray.runtime.cluster import ResolvedResources
from influray.runtime.job_progress import JobBoard, telling
from influray.runtime.plain_tasks import Call, PlainTasks
from influray.runtime.replaced import replaced
from influray.runtime.retries import RayError, loss_of, need_memory
from influray.runtime.tasks import PoolEvent
from influray.runtime.training_worker import EvaluationJob, Job, carry_out, committed, working_in
from influray.store.mirror import local, location_of, remove_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layout:
    """How jobs share the cluster: `ranks` processes a job, `slots` jobs at a time, `gpus` for each process."""

    ranks: int
    slots: int
    gpus: float


def plan_layout(jobs: int, resources: ResolvedResources, cluster_gpus: float, alone: bool = False) -> Layout:
    """Return the layout of so many jobs; `alone`: each takes a single process.

    It follows from all jobs of a step, also those that are done already, so that a resumed step trains the rest with as
    many ranks.
    """
    # A process that trains takes whole GPUs, also where several feature workers share one.
    gpus = max(1.0, resources.gpus_per_worker) if resources.gpus_per_worker else 0.0
    # A process of several GPUs spreads its model over them by device_map; ranks of a node would see each other's.
    ranks = resources.training_workers if gpus <= 1 and not alone else 1
    if 1 < ranks >= jobs:
        return Layout(ranks, 1, gpus)
    room = max(1, int(cluster_gpus // gpus)) if gpus else resources.workers
    return Layout(1, min(jobs, room), gpus)


def run_jobs(
    jobs: Sequence[Job],
    resources: ResolvedResources,
    on_event: Callable[[PoolEvent], None] = lambda event: None,
    on_jobs: OnJobs = not_shown,
) -> list[dict[str, Any]]:
    """Carry out trainings, or evaluations, and return their manifests, in order; what is committed is not repeated.

    Ray must be initialised. `on_jobs` hears every two seconds how many more are finished, and how far others are.

    Raises:
        ConfigError, DataError, ArtifactMismatch: what the user can mend, as it was raised in the worker.
        TooLittleMemory: a job's worker was killed for memory `max_attempts` times, with no other beside it.
        RuntimeError: a job's process was lost `max_attempts` times.
    """
    assert len({str(local(job.out).resolve()) for job in jobs}) == len(jobs), "two jobs write to one place"
    alone = all(isinstance(job, EvaluationJob) or job.imports for job in jobs)
    layout = plan_layout(len(jobs), resources, ray.cluster_resources().get("GPU", 0.0), alone)
    manifests = [committed(job) for job in jobs]
    todo = [job for job, manifest in zip(jobs, manifests, strict=True) if manifest is None]
    logger.info("%d of %d jobs to do, %d at a time", len(todo), len(jobs), layout.slots)
    run = _over_ranks if layout.ranks > 1 else partial(_by_tasks, on_event=on_event)
    if not todo:
        return [manifest for manifest in manifests if manifest is not None]
    with JobBoard(on_jobs) as board:
        new = iter(run(todo, resources, layout, board))
    on_jobs(len(todo), [])
    return [next(new) if manifest is None else manifest for manifest in manifests]


def _by_tasks(
    jobs: Sequence[Job],
    resources: ResolvedResources,
    layout: Layout,
    board: JobBoard,
    on_event: Callable[[PoolEvent], None],
) -> list[dict[str, Any]]:
    limits = {"lower": _lower(jobs), "max_attempts": resources.max_attempts}
    tasks = PlainTasks(layout.slots, resources.cpus_per_worker, layout.gpus, **limits, on_event=on_event)
    place = os.getcwd(), layout.gpus, resources.threads_per_worker
    calls = (Call(str(job.out), (job, *place, board.address(n))) for n, job in enumerate(jobs))
    return list(tasks.run(train_one, calls))


def train_one(job: Job, folder: str, gpus: float, threads: int, address: str) -> dict[str, Any]:
    """Carry out a job in a task, tell at `address` how far it is, and return its manifest."""
    try:
        with working_in(folder), telling(address, _name(job)) as tell:
            return carry_out(job, "cuda" if gpus else "cpu", job.parsed.resources.device_map, threads, tell)
    finally:
        gc.collect()  # a model that waits in this process for its next task would take the memory of others


def _over_ranks(
    jobs: Sequence[Job], resources: ResolvedResources, layout: Layout, board: JobBoard
) -> list[dict[str, Any]]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchTrainer

    class InterruptibleTrainer(TorchTrainer):
        """Leaves Ctrl-C to the driver: Ray's handler stays installed after the run and may end it as a success."""

        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

    storage = local(jobs[0].out).resolve().parent / f".ray-train-{uuid.uuid4().hex[:8]}"
    per_rank = {"CPU": resources.cpus_per_worker, **({"GPU": layout.gpus} if layout.gpus else {})}
    # Ray Train would move its workers into a folder of its own, where relative paths mean others.
    with replaced(os.environ, "RAY_CHDIR_TO_TRIAL_DIR", "0"):
        trainer = InterruptibleTrainer(
            _train_loop,
            train_loop_config={
                "jobs": [(job, board.address(n)) for n, job in enumerate(jobs)],
                "threads": resources.threads_per_worker,
                "folder": os.getcwd(),
            },
            scaling_config=ScalingConfig(
                num_workers=layout.ranks, use_gpu=layout.gpus > 0, resources_per_worker=per_rank
            ),
            run_config=RunConfig(
                name="train",
                **_storage(storage),
                failure_config=FailureConfig(max_failures=resources.max_attempts - 1),
            ),
        )
        try:
            outcomes: Any = trainer.fit().return_value
        except KeyboardInterrupt:
            if trainer.controller is not None:
                # Aborting ends the controller itself, in the middle of this call.
                with contextlib.suppress(RayError):
                    ray.get(trainer.controller.abort.remote(), timeout=30)
            raise
        except WorkerGroupError as error:
            given_up = _given_up(jobs, error, error.worker_failures.values(), resources.max_attempts)
            if given_up is error:
                raise
            raise given_up from error
        finally:
            remove_folder(storage)
    if isinstance(outcomes[-1], Exception):
        raise outcomes[-1]
    assert len(outcomes) == len(jobs)
    return outcomes


def _train_loop(config: dict[str, Any]) -> list[dict[str, Any] | Exception]:
    """What every rank of a Train run does: return the manifests, and after them an error that the user can mend.

    Such an error is a result, which is not tried again. It is the same on every rank, for finetune agrees on its errors
    before it raises them.
    """
    from ray.train import get_context
    from ray.train.torch import get_device

    outcomes = []
    with working_in(config["folder"]):
        for job, address in config["jobs"]:
            first = get_context().get_world_rank() == 0
            try:
                with telling(address, _name(job)) if first else contextlib.nullcontext() as tell:
                    more = {} if tell is None else {"tell": tell}
                    device_map, threads = job.parsed.resources.device_map, config["threads"]
                    outcomes.append(carry_out(job, get_device(), device_map, threads, **more))
            except USER_ERRORS as error:
                return [*outcomes, error]
    return outcomes


def _given_up(jobs: Sequence[Job], error: Exception, failures: Iterable[Exception], attempts: int) -> Exception:
    """Return what to raise where the ranks of a Train run were lost in every attempt; a bug stays what it is."""
    losses = [loss_of(failure) for failure in failures if isinstance(failure, RayError)]
    if not losses or any(loss.cause for loss in losses):
        return error
    what, reason = str(jobs[0].out), "; ".join(loss.reason for loss in losses)
    if any(loss.memory for loss in losses):
        return need_memory(what, attempts, _lower(jobs), reason)
    return RuntimeError(f"{what}: its workers were lost {attempts} times: {reason}")


def _name(job: Job) -> str:
    """Return what people call a job: warmup, bids/seed-0."""
    parts = local(job.out).with_suffix("").parts
    return "warmup" if job.kind == "warmup" else "/".join(parts[-2:])


def _lower(jobs: Sequence[Job]) -> str:
    """Return what of the config makes a job need less memory."""
    job = jobs[0]
    if isinstance(job, EvaluationJob):
        return f"evaluation.token_budget (now {job.parsed.evaluation.token_budget})"
    return f"{job.kind}.device_batch_size (now {job.section.device_batch_size})"


def _storage(folder: Path) -> dict[str, Any]:
    """Return where Ray Train keeps its books: a folder, or a file system and a place on it."""
    location = location_of(folder)
    if location is None:
        return {"storage_path": str(folder)}
    # Sent to the workers without credentials, which each takes from its own environment.
    return {"storage_filesystem": location.filesystem, "storage_path": location.key(folder)}
