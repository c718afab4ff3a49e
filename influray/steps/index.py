"""index: the faiss index over the pool's vectors; in this process, or in Ray actors where it is of several shards."""

from __future__ import annotations

from influray.steps.context import StepContext, StepResult


def index(context: StepContext, kind: str = "auto") -> StepResult:
    """Build RUN/index unless it is there. Raises as `build_index`."""
    from influray.store.index_build import SHARD_BYTES, build_index
    from influray.store.vectors import PoolVectors

    vectors = PoolVectors(context.directory)
    spread = None
    if 4 * len(vectors) * vectors.dimension > SHARD_BYTES:
        from influray.runtime.index import SpreadIndex

        resources = context.resources
        spread = SpreadIndex(
            *(context.directory, resources.workers, resources.cpus_per_worker),
            *(resources.threads_per_worker, resources.max_attempts),
        )
    try:
        manifest, there = build_index(
            context.directory,
            kind,
            builder=spread.build if spread else None,
            finder=(lambda shards: spread.open(shards).candidates) if spread else None,
        )
    finally:
        if spread:
            spread.close()
    facts = {name: manifest[name] for name in ("kind", "reason", "rows", "dimension", "setting", "recall")}
    return StepResult(manifest["fingerprint"], skipped=there, facts={**facts, "bytes": sum(manifest["bytes"])})
