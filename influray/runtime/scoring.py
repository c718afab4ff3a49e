"""What runs inside the actors that read datastores: sums over groups of pool rows, and lines of the attribution matrix.

What a worker computes depends on the rows of its task alone, so neither the number of workers nor who did what shows
in a byte.

Shape suffixes: B rows of a block, T target columns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influray.config import parse_config
from influray.protocols import Arrays, ArtifactMismatch, Stores
from influray.runtime.cluster import ResolvedResources
from influray.runtime.process import logged, prepare_process, process_name
from influray.runtime.shards import ShardPool
from influray.runtime.tasks import Attempt, PoolEvent, PoolReport, ShardTask, WorkerInfo
from influray.scorers.options import make_scorer
from influray.scorers.rows import SplitRows
from influray.store.arrays import ArraysFile, add_arrays, arrays_table
from influray.store.artifact import Receipt, ShardStore
from influray.store.attribution import attribution_table
from influray.store.run_directory import FEATURES, RunDirectory

logger = logging.getLogger(__name__)

SCORE = 0  # in the place of a pass's number: the lines of the matrix
BLOCK_ROWS = 1024  # of a group that are in memory at once


def score(
    config: dict[str, Any],
    run_dir: str | Path,
    todo: Sequence[ShardTask],
    resources: ResolvedResources,
    on_event: Callable[[PoolEvent], None] = lambda event: None,
    on_receipt: Callable[[ShardTask, Receipt], None] = lambda task, receipt: None,
    *,
    stores: Stores,
    number: int = SCORE,
    state: ArraysFile | None = None,
    features_at: str = FEATURES,
    pool_at: str = "",
) -> PoolReport:
    """Compute the sums of a scorer's pass, or the lines of the matrix, for the pool rows of `todo`.

    The datastores of the K checkpoints of `stores` stand committed in `run_dir`, at `features_at`, those of the pool
    under `pool_at`. `number` is that of the pass, 0 for the matrix; `state` the file that the pass before has left,
    None where there was none. Only rows that have a feature at all K count. The receipts are in the order of rows;
    where a task has no row, no file. Raises as `ShardPool.run`.
    """
    arguments = (config, str(run_dir), stores, number, state, features_at, pool_at)
    ordered = sorted(todo, key=lambda task: task.start)
    # Bound by reading the datastores, so it takes no GPU away from anyone.
    lower = "features.rows_per_shard, or features.projector.dimension"
    with ShardPool(ScoreWorker, arguments, resources, lower=lower) as pool:
        return pool.run(ordered, on_receipt, on_event)


@dataclass
class ScoreWorker:
    """One pass of a scorer over the pool, or the lines of the matrix."""

    config: dict[str, Any]
    run_dir: str
    stores: Stores
    number: int
    state: ArraysFile | None
    features_at: str = FEATURES
    pool_at: str = ""
    threads: int = 1

    def ready(self) -> WorkerInfo:
        """Load the target features and the state, and return what this worker is."""
        directory = RunDirectory(self.run_dir, self.features_at, pool_at=self.pool_at)
        name = prepare_process(directory.logs, self.threads)
        settings = parse_config(self.config).attribution
        self._scorer = make_scorer(settings.scorer, self.stores, settings.options)
        count = len(self.stores.weights)
        self._target = SplitRows(directory, "target", count).all()
        if not len(self._target):
            folder = directory.features("target", 1)
            raise ArtifactMismatch(f"{folder}: no target row has a feature at every checkpoint")
        self._pool = SplitRows(directory, "pool", count)
        self._state: Arrays = {} if self.state is None else self.state.read()
        return WorkerInfo(name)

    def compute(self, task: ShardTask, attempt: Attempt) -> Receipt:
        """Compute and commit a task and return its receipt; where it has one already, that."""
        store = ShardStore(task.folder)
        committed = store.receipt(task.key)
        if committed is not None:
            return committed
        with logged((task, attempt)):
            started = time.perf_counter()
            make = self._lines if self.number == SCORE else self._sums
            table, rows = make(task.start, task.stop)
            seconds = round(time.perf_counter() - started, 4)
            return store.commit(task.key, table, {"seconds": seconds, "rows": rows, "worker": process_name()})

    def _lines(self, start: int, stop: int) -> tuple[Any, int]:
        pool = self._pool.read(start, stop)
        if not len(pool):
            return None, 0
        score_BT = self._scorer.score(pool, self._target, self._state)
        return attribution_table(pool.row_B, score_BT), len(pool)

    def _sums(self, start: int, stop: int) -> tuple[Any, int]:
        total: dict[str, np.ndarray] = {}
        rows = 0
        for first in range(start, stop, BLOCK_ROWS):
            pool = self._pool.read(first, min(first + BLOCK_ROWS, stop))
            rows += len(pool)
            if len(pool):
                add_arrays(total, self._scorer.sums(self.number, pool, self._target, self._state))
        return (arrays_table(total) if total else None), rows
