"""An index whose shards lie in several actors, for a pool that is larger than one machine's share of memory.

Every shard is a copy of one trained index, an actor ranks what its shards find by exact scores, and the driver merges
by (-score, position): the answers are those of any number of actors.

Shape suffixes: Q queries, E candidates, F numbers of a vector.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from influray.ask.index import IndexShards, Shard, build_shard
from influray.ask.index_kinds import Setting
from influray.runtime.process import prepare_process
from influray.runtime.retries import RayError, SideBySide, loss_of, need_memory
from influray.runtime.watch import end_actor
from influray.store.exact_query import BestRows
from influray.store.mirror import address_of, local
from influray.store.run_directory import RunDirectory
from influray.store.vectors import PoolVectors

logger = logging.getLogger(__name__)

LOWER = "index --kind (short codes such as IVF4096,PQ64 take the least)"  # what the memory of a shard goes with


class SpreadIndex:
    """Actors that build and search the shards of an index; shard i belongs to actor i modulo their number.

    A lost actor is replaced and its part of the question asked again; after a kill for memory there are fewer actors.
    """

    def __init__(
        self, directory: RunDirectory, actors: int, cpus: float = 1.0, threads: int = 1, max_attempts: int = 3
    ) -> None:
        kind: Any = ray.remote(ShardHolder).options(num_cpus=cpus, max_restarts=0, max_task_retries=0)
        self._start = lambda: kind.remote(directory.address, threads)
        self._wanted = actors
        self._max_attempts = max_attempts
        self._side_by_side = SideBySide()
        self._opened: Sequence[Shard] = ()
        self._actors: list[Any] = []
        self._staff()

    def build(self, trained: Path, shards: Sequence[Shard]) -> list[Shard]:
        """Build the shards and return them as they are then, in order. Raises as `_answers`."""
        made: dict[int, Shard] = {}

        def ask() -> dict[int, Any]:
            todo = [i for i in range(len(shards)) if i not in made]
            return {i: self._of(i).build.remote(address_of(trained), shards[i]) for i in todo}

        self._answers(ask, made)
        return [made[i] for i in range(len(shards))]

    def open(self, shards: Sequence[Shard]) -> SpreadIndex:
        """Load the shards into the actors' memory and return this. Raises as `_answers`."""
        self._opened = shards
        self._answers(lambda: {i: actor.open.remote(self._held(i)) for i, actor in enumerate(self._actors)}, {})
        return self

    def candidates(self, query_QF: np.ndarray, count: int, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows of all shards, as `IndexShards.candidates`. Raises as `_answers`."""
        queries = ray.put(query_QF)

        def ask() -> dict[int, Any]:
            # The shards go with the question: an actor that is new has none yet.
            return {
                i: actor.candidates.remote(queries, count, setting, self._held(i))
                for i, actor in enumerate(self._actors)
            }

        found: dict[int, Any] = {}
        self._answers(ask, found, anew=True)
        best = BestRows(len(query_QF), count)
        for _, (position_QE, score_QE) in sorted(found.items()):
            best.merge(position_QE, score_QE)
        return best.sorted()

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            end_actor(actor)
        self._actors = []

    def _answers(self, ask: Callable[[], dict[int, Any]], into: dict[int, Any], anew: bool = False) -> None:
        """Put what is answered into `into`; ask again for what was lost, with `anew` for everything.

        Raises:
            TooLittleMemory: an actor was killed for memory in every attempt, alone.
            RuntimeError: actors were lost in every attempt.
            What else an actor raises is raised here.
        """
        charged = 0
        while True:
            since, lost = time.monotonic(), []
            for i, waiting in (asked := ask()).items():
                try:
                    into[i] = ray.get(waiting)
                except RayError as error:
                    loss = loss_of(error)
                    if loss.cause is not None:
                        raise
                    lost.append(loss)
            if not lost:
                return
            others = len(self._actors) - 1
            memory = next((loss for loss in lost if loss.memory), None)
            charged += memory is None or self._side_by_side.killed(since, others)
            told = "" if memory is None else f"; {self._side_by_side.told()}"
            logger.warning("index: %d of %d answers lost: %s%s", len(lost), len(asked), lost[0].reason, told)
            if charged >= self._max_attempts:
                if memory is not None:
                    raise need_memory("a shard of the index", self._side_by_side.kills, LOWER, memory.reason)
                raise RuntimeError(f"the index: actors were lost {charged} times: {lost[0].reason}")
            self.close()
            self._staff()
            if anew:
                into.clear()

    def _staff(self) -> None:
        self._actors = [self._start() for _ in range(self._side_by_side.limit(self._wanted))]

    def _held(self, actor: int) -> list[Shard]:
        return list(self._opened[actor :: len(self._actors)])

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

    def candidates(
        self, query_QF: np.ndarray, count: int, setting: Setting, shards: Sequence[Shard]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the shards find, as `IndexShards.candidates`; they are loaded where they are not held."""
        if self._shards is None:
            self.open(shards)
        assert self._shards is not None
        return self._shards.candidates(query_QF, count, setting)
