"""An index of several shards, built and searched by plain tasks, a shard each.

Every shard is a copy of one trained index, a task ranks what its shard finds by exact scores, and the driver merges by
(-score, position): the answers are those of one process.

Shape suffixes: Q queries, E candidates, F numbers of a vector.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from influray.ask.index import Candidates, IndexShards, Shard, build_shard
from influray.ask.index_kinds import Setting
from influray.runtime.plain_tasks import Call, PlainTasks
from influray.runtime.process import once, prepare_process
from influray.store.exact_query import BestRows
from influray.store.mirror import address_of, local
from influray.store.run_directory import RunDirectory
from influray.store.vectors import PoolVectors

LOWER = "index --kind (short codes such as IVF4096,PQ64 take the least)"  # what the memory of a shard goes with


class SpreadIndex:
    """Tasks that build and search the shards of an index, `workers` at a time."""

    def __init__(
        self, directory: RunDirectory, workers: int, cpus: float = 1.0, threads: int = 1, max_attempts: int = 3
    ) -> None:
        self._tasks = PlainTasks(workers, cpus, lower=LOWER, max_attempts=max_attempts)
        self._opened = (uuid.uuid4().hex, directory.address, threads)

    def build(self, trained: Path, shards: Sequence[Shard]) -> list[Shard]:
        """Build the shards and return them as they are then, in order. Raises as `PlainTasks.run`."""
        return list(self._tasks.run(build_one, self._calls(shards, address_of(trained))))

    def finder(self, shards: Sequence[Shard]) -> Candidates:
        """Return a function for the best rows of all shards, as `IndexShards.candidates`; raises as `PlainTasks.run`.

        A task reads its shard anew for each call.
        """

        def candidates(query_QF: np.ndarray, count: int, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
            best = BestRows(len(query_QF), count)
            calls = self._calls(shards, ray.put(query_QF), count, setting)
            for position_QE, score_QE in self._tasks.run(search_one, calls):
                best.merge(position_QE, score_QE)
            return best.sorted()

        return candidates

    def _calls(self, shards: Sequence[Shard], *arguments: Any) -> Iterable[Call]:
        return (Call(f"shard {shard.file} of the index", (*self._opened, shard, *arguments)) for shard in shards)


def build_one(token: str, address: str, threads: int, shard: Shard, trained: str) -> Shard:
    """Build a shard and return it as `build_shard`."""
    return build_shard(once(token, _open, address, threads), RunDirectory(address).index, local(trained), shard)


def search_one(
    token: str, address: str, threads: int, shard: Shard, query_QF: np.ndarray, count: int, setting: Setting
) -> tuple[np.ndarray, np.ndarray]:
    """Return what a shard finds, as `IndexShards.candidates`."""
    vectors = once(token, _open, address, threads)
    return IndexShards(vectors, RunDirectory(address).index, [shard]).candidates(query_QF, count, setting)


def _open(address: str, threads: int) -> PoolVectors:
    directory = RunDirectory(address)
    prepare_process(directory.logs, threads)
    return PoolVectors(directory)
