"""index: the faiss index over the pool's vectors; in this process, or by Ray tasks where it is of several shards."""

from __future__ import annotations

from influray.steps.context import StepContext, StepResult
from influray.steps.step import Step
from influray.store.artifact import read_manifest
from influray.store.checks import broken
from influray.store.mirror import present
from influray.store.run_directory import RunDirectory

MADE = "index/manifest.json"


def index(context: StepContext, kind: str = "auto") -> StepResult:
    """Build RUN/index unless it is there. Raises as `build_index`."""
    from influray.ask.index_build import SHARD_BYTES, build_index
    from influray.store.vectors import PoolVectors

    vectors = PoolVectors(context.directory)
    spread = None
    if 4 * len(vectors) * vectors.dimension > SHARD_BYTES:
        from influray.ask.spread_index import SpreadIndex

        resources = context.resources
        spread = SpreadIndex(
            *(context.directory, resources.workers, resources.cpus_per_worker),
            *(resources.threads_per_worker, resources.max_attempts),
        )
    builder, finder = (spread.build, spread.finder) if spread else (None, None)
    manifest, there = build_index(context.directory, kind, builder=builder, finder=finder)
    facts = {name: manifest[name] for name in ("asked", "kind", "reason", "rows", "dimension", "setting", "recall")}
    size = sum(part["bytes"] for part in manifest["parts"])
    return StepResult(manifest["fingerprint"], there, {**facts, "bytes": size}, [MADE])


def renew(context: StepContext) -> StepResult:
    """Build RUN/index again where a file of it is damaged or gone, as it was asked for. Raises as `build_index`.

    One that is whole stays as it is, also where features are others now: a query says so.
    """
    manifest = read_manifest(context.directory.index)
    recorded = context.directory.read()["steps"].get("index", {})
    if manifest is None or broken(context.directory.index, manifest):
        return index(context, (manifest or recorded).get("asked", "auto"))
    facts = {name: value for name, value in recorded.items() if name not in ("fingerprint", "status", "artifacts")}
    return StepResult(manifest["fingerprint"], True, facts, [MADE])


def was_built(directory: RunDirectory) -> bool:
    """Return whether the run has an index, or had one that is gone."""
    if present(directory.path / MADE).exists():
        return True
    return directory.read()["steps"].get("index", {}).get("status") == "done"


INDEX = Step("index", renew)  # none of a run's: it is built when it is asked for, and kept whole from then on
