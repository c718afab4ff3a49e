"""What runs inside the actors that make a catalogue: rows read, rendered and tokenised, and parts put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from influray.config import Config, parse_config
from influray.data.chat import ChatEncoder, split_encoder
from influray.data.jobs import DraftJob, Faults, PartJob, Unfit, run_job
from influray.protocols import USER_ERRORS
from influray.runtime.cluster import ResolvedResources
from influray.runtime.process import logged, prepare_process
from influray.runtime.shards import ShardPool
from influray.runtime.tasks import Attempt, PoolEvent, ShardTask, WorkerInfo
from influray.store.artifact import Receipt
from influray.store.run_directory import RunDirectory


@dataclass(frozen=True, slots=True)
class JobTask(ShardTask):
    """A job of a catalogue."""

    job: DraftJob | PartJob = field(kw_only=True)


class DataCrew:
    """Actors that run the jobs of catalogues (see data.jobs.Crew), kept until `close`.

    `expect` is told how many drafts there are before they are made, `on_receipt` each that is. `pool_at` is where in
    the run directory the pool lies.
    """

    def __init__(
        self,
        config: dict[str, Any],
        run_dir: str,
        resources: ResolvedResources,
        expect: Callable[[int, str], None] = lambda count, unit: None,
        on_event: Callable[[PoolEvent], None] = lambda event: None,
        on_receipt: Callable[[ShardTask, Receipt], None] = lambda task, receipt: None,
        *,
        pool_at: str = "",
    ) -> None:
        self.workers = resources.room(0.0) if resources.follows else resources.workers
        self._pool = ShardPool(DataWorker, (config, run_dir, pool_at), resources, lower="data.max_tokens")
        self._expect = expect
        self._on_event = on_event
        self._on_receipt = on_receipt

    def __call__(self, jobs: Sequence[DraftJob | PartJob]) -> list[Receipt]:
        """Carry out jobs and return the receipts in their order. Raises as `Crew` and `ShardPool.run`."""
        tasks = [JobTask(job.key, job.split, 0, 0, 0, "", job.label, job=job) for job in jobs]
        faults = Faults(jobs)
        if jobs and isinstance(jobs[0], DraftJob):
            self._expect(len(jobs), "drafts")

        def receive(task: ShardTask, receipt: Receipt) -> None:
            assert isinstance(task, JobTask)
            faults.note(task.job, receipt)
            if isinstance(task.job, DraftJob):
                self._on_receipt(task, receipt)

        return list(self._pool.run(tasks, receive, self._on_event).receipts)

    def close(self) -> None:
        """Kill the actors."""
        self._pool.close()


class DataWorker:
    """Carries out jobs of the catalogues of a run.

    The constructor only keeps its arguments: Ray rewraps what it raises, while errors of `ready` arrive as they are.
    """

    def __init__(self, config: dict[str, Any], run_dir: str, pool_at: str = "", threads: int = 1) -> None:
        self._plain_config = config
        self._directory = RunDirectory(run_dir, pool_at=pool_at)
        self._threads = threads
        self._encoders: dict[str, ChatEncoder] = {}

    def ready(self) -> WorkerInfo:
        """Load the tokenizer and return what this worker is. Raises Unfit where it, or the template, is not here."""
        name = prepare_process(self._directory.logs, self._threads)
        self._config: Config = parse_config(self._plain_config)
        from influray.model.loading import load_tokenizer

        try:
            self._tokenizer = load_tokenizer(self._config.model)
            self._encoder("pool")
        except USER_ERRORS as error:
            raise Unfit(f"{name}: {error}") from error
        return WorkerInfo(name)

    def compute(self, task: JobTask, attempt: Attempt) -> Receipt:
        """Carry out a job, commit what it makes and return its receipt; where it has one already, that."""
        job = task.job
        with logged((job.label, attempt)):
            return run_job(self._directory.data(job.split), job, self._encoder(job.split), self._config.data)

    def _encoder(self, split: str) -> ChatEncoder:
        if split not in self._encoders:
            self._encoders[split] = split_encoder(self._config, self._tokenizer, split)
        return self._encoders[split]
