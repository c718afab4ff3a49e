"""An index whose shards lie in several actors, for a pool that is larger than one machine's share of memory.

Every shard is a copy of one trained index, an actor ranks what its shards find by exact scores, and the driver merges
by (-score, position): the answers are those of any number of actors.

Shape suffixes: Q queries, E candidates, F numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from influray.runtime.process import prepare_process
from influray.store.exact_query import BestRows
from influray.store.index import IndexShards, Shard, build_shard
from influray.store.index_kinds import Setting
from influray.store.mirror import address_of, local
from influray.store.run_directory import RunDirectory
from influray.store.vectors import PoolVectors


class SpreadIndex:
    """Actors that build and search the shards of an index; shard i belongs to actor i modulo their number."""

    def __init__(self, directory: RunDirectory, actors: int, cpus: float = 1.0, threads: int = 1) -> None:
        kind: Any = ray.remote(ShardHolder).options(num_cpus=cpus)
        self._actors = [kind.remote(directory.address, threads) for _ in range(actors)]

    def build(self, trained: Path, shards: Sequence[Shard]) -> list[Shard]:
        """Build the shards and return them as they are then, in order; what an actor raises is raised here."""
        waiting = [self._of(i).build.remote(address_of(trained), shard) for i, shard in enumerate(shards)]
        return ray.get(waiting)

    def open(self, shards: Sequence[Shard]) -> SpreadIndex:
        """Load the shards into the actors' memory and return this."""
        held = [list(shards[i :: len(self._actors)]) for i in range(len(self._actors))]
        ray.get([actor.open.remote(own) for actor, own in zip(self._actors, held, strict=True)])
        return self

    def candidates(self, query_QF: np.ndarray, count: int, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows of all shards, as `IndexShards.candidates`."""
        queries = ray.put(query_QF)
        best = BestRows(len(query_QF), count)
        for position_QE, score_QE in ray.get(
            [actor.candidates.remote(queries, count, setting) for actor in self._actors]
        ):
            best.merge(position_QE, score_QE)
        return best.sorted()

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _of(self, shard: int) -> Any:
        return self._actors[shard % len(self._actors)]


class ShardHolder:
    """What runs in an actor: some shards of an index over a run's vectors."""

    def __init__(self, run_dir: str, threads: int) -> None:
        self._directory = RunDirectory(run_dir)
        prepare_process(self._directory.logs, threads)
        self._vectors = PoolVectors(self._directory)
        self._shards: IndexShards | None = None

    def build(self, trained: str, shard: Shard) -> Shard:
        """Build a shard and return it as `build_shard`."""
        return build_shard(self._vectors, self._directory.index, local(trained), shard)

    def open(self, shards: Sequence[Shard]) -> None:
        """Load shards in place of those held before."""
        self._shards = IndexShards(self._vectors, self._directory.index, shards)

    def candidates(self, query_QF: np.ndarray, count: int, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
        """Return what the held shards find, as `IndexShards.candidates`."""
        assert self._shards is not None, "open comes first"
        return self._shards.candidates(query_QF, count, setting)
