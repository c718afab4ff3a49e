"""Building the index of a run block by block, and measuring what it finds.

Shape suffixes: S rows of a sample, Q queries, F numbers of a vector.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influray.ask import index_kinds
from influray.ask.index import (
    BLOCK_BYTES,
    FLAT,
    Candidates,
    IndexShards,
    Shard,
    answers_of,
    build_shard,
    index_fingerprint,
    write_file,
    write_moments,
)
from influray.ask.index_gpu import device_for
from influray.ask.index_kinds import (
    ALL,
    SEED,
    Choice,
    Setting,
    choose_kind,
    faiss_module,
    settings,
    train,
)
from influray.ask.query_moments import SAMPLE, WIDEST, MomentSums, QueryMoments
from influray.store.artifact import read_manifest, write_manifest
from influray.store.checks import broken
from influray.store.exact_query import Answers, exact_query
from influray.store.mirror import children, remove
from influray.store.run_directory import RunDirectory
from influray.store.vectors import PoolVectors, target_vectors

logger = logging.getLogger(__name__)

MEMORY_SHARE = 4  # the index may take one part in so many of a machine's memory
TRAINING_BYTES = 2**28  # of the sample that an index is trained on
SHARD_BYTES = 2**32  # of the vectors of a shard as float32
HELD_OUT = 32  # queries of each kind that are asked to measure: targets, and pool rows that trained nothing
RECALL_AT = 100
WANTED = 0.95
ROUNDING = 2.0**-20  # of the largest score: what two float32 products of equal vectors may differ by

# Builds shards from (the trained index' file, the shards) and returns them as they are then, in order.
Builder = Callable[[Path, Sequence[Shard]], list[Shard]]


def build_index(
    directory: RunDirectory,
    asked: str = "auto",
    *,
    memory: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    builder: Builder | None = None,
    finder: Callable[[Sequence[Shard]], Candidates] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Build the index of a run; return (its manifest, whether it was there already).

    Args:
        asked: auto, exact, flat, ivf, or a description for faiss' index_factory.
        memory: bytes that the index may take; by default a quarter of this machine's.
        shard_bytes: of float32 vectors that make a shard.
        builder, finder: who builds and searches the shards; by default this process.

    Raises:
        ConfigError: a kind that faiss does not know, or cannot make of these rows; or faiss is not installed.
        ArtifactMismatch: as `PoolVectors`.
    """
    vectors = PoolVectors(directory)
    memory = memory or machine_memory() // MEMORY_SHARE
    choice = choose_kind(asked, len(vectors), vectors.dimension, memory)
    made = index_fingerprint(vectors, asked if asked != "auto" else f"auto {choice.kind}", recipe())
    before = read_manifest(directory.index)
    if before is not None and before["fingerprint"] == made and not broken(directory.index, before):
        return before, True
    logger.info("index: %s (%s)", choice.kind, choice.reason)
    sample = training_positions(len(vectors), vectors.dimension)
    sample_SF = vectors.take(sample)
    moments = pool_moments(vectors, sample_SF[:SAMPLE])
    build = builder or (lambda path, todo: [build_shard(vectors, directory.index, path, shard) for shard in todo])
    query_QF = held_out_queries(directory, vectors, sample)
    trained = directory.index / f"trained-{made[:16]}.faiss"

    def build_kind(kind: str) -> _Built:
        if kind == "exact":
            return _Built(kind, [])
        shards = plan_shards(len(vectors), vectors.dimension, shard_bytes, made, FLAT if kind == "flat" else ".faiss")
        index = train(kind, sample_SF, len(vectors))
        write_file(trained, index)
        shards = build(trained, shards)
        remove(trained)
        if kind == "flat":
            return _Built(kind, shards)
        k = min(RECALL_AT, len(vectors))
        tried = settings(index, len(vectors), k, far=kind == asked)
        found = (
            finder(shards)
            if finder
            else _found_here(vectors, directory, shards, device_for(kind, sum(shard.bytes for shard in shards)))
        )
        return _Built(kind, shards, *tune(vectors, moments, found, query_QF, tried))

    built, reason = _first_that_finds_enough(choice, build_kind)
    facts = {
        "fingerprint": made,
        "vectors": vectors.digest,
        "asked": asked,
        "kind": built.kind,
        "reason": reason,
        "rows": len(vectors),
        "dimension": vectors.dimension,
        "setting": dict(built.setting.__dict__),
        "recall": built.recall,
        "std": "exact" if moments.sample_SF is None else f"of a sample of {len(moments.sample_SF)} rows",
        "parts": [shard.__dict__ for shard in built.shards],
        "beside": write_moments(directory.index, moments),
        "faiss": faiss_module().__version__,
    }
    write_manifest(directory.index, facts)
    _sweep(directory.index, {shard.file for shard in built.shards})
    return read_manifest(directory.index) or {}, False


@dataclass(frozen=True)
class _Built:
    kind: str
    shards: list[Shard]
    setting: Setting = ALL
    recall: dict[str, Any] | None = None  # None: it finds all


def _first_that_finds_enough(choice: Choice, build: Callable[[str], _Built]) -> tuple[_Built, str]:
    """Return the first kind of a choice that finds enough, or its last one, and why it was taken."""
    built, reason = build(choice.kind), choice.reason
    for kind in choice.then:
        if built.recall is None or built.recall["value"] >= WANTED:
            break
        reason += f"; {built.kind} found {built.recall['value']:.3f} of the {built.recall['k']} best and gave way"
        logger.info("index: %s takes the place of %s", kind, built.kind)
        built = build(kind)
    if built.recall is not None and built.recall["value"] < WANTED:
        found, k = built.recall["value"], built.recall["k"]
        logger.warning("index: finds %.3f of the %d best rows, less than %.2f; take another --kind", found, k, WANTED)
    return built, reason


def _found_here(vectors: PoolVectors, directory: RunDirectory, shards: Sequence[Shard], device: str) -> Candidates:
    return IndexShards(vectors, directory.index, shards, device).candidates


def recipe() -> dict[str, object]:
    """Return the constants that an index is built and measured with: one of others is not taken as current."""
    return {
        "kinds": index_kinds.recipe(),
        "training": [SAMPLE, TRAINING_BYTES],
        "moments": [SAMPLE, WIDEST, BLOCK_BYTES],
        "recall": [HELD_OUT, RECALL_AT, WANTED, ROUNDING],
    }


def training_positions(rows: int, dimension: int) -> np.ndarray:
    """Return the positions that an index is trained on, in a drawn order that the seed and the pool alone decide."""
    count = min(rows, max(SAMPLE, TRAINING_BYTES // (4 * dimension)))
    return np.random.default_rng(SEED).permutation(rows)[:count]


def plan_shards(rows: int, dimension: int, shard_bytes: int, made: str, ending: str = ".faiss") -> list[Shard]:
    """Return shards of as equal a size as they can be, of at most `shard_bytes` of float32 vectors."""
    count = max(1, -(-4 * rows * dimension // shard_bytes))
    bounds = [rows * i // count for i in range(count + 1)]
    return [
        Shard(f"shard-{i}-{made[:16]}{ending}", low, high) for i, (low, high) in enumerate(itertools.pairwise(bounds))
    ]


def pool_moments(vectors: PoolVectors, sample_SF: np.ndarray, widest: int = WIDEST) -> QueryMoments:
    """Return what standardises any query; one pass, in blocks of a fixed size."""
    sums = MomentSums(sample_SF.mean(axis=0, dtype=np.float64), exact=vectors.dimension <= widest)
    for _, block_BF in vectors.blocks(max(1, BLOCK_BYTES // (4 * vectors.dimension))):
        sums.add(block_BF)
    return sums.finish(sample_SF)


def held_out_queries(directory: RunDirectory, vectors: PoolVectors, trained: np.ndarray) -> np.ndarray:
    """Return the queries that measure, float32 [Q, F]: targets drawn by seed, and pool rows that trained nothing.

    Where every pool row trained it, any are drawn.
    """
    generator = np.random.default_rng(SEED + 1)
    _, target_TF = target_vectors(directory)
    of_targets = generator.permutation(len(target_TF))[:HELD_OUT]
    free = np.setdiff1d(np.arange(len(vectors)), trained)
    free = free if len(free) else np.arange(len(vectors))
    of_pool = vectors.take(generator.permutation(free)[:HELD_OUT])
    return np.concatenate([target_TF[of_targets], of_pool])


def tune(
    vectors: PoolVectors,
    moments: QueryMoments,
    candidates: Candidates,
    query_QF: np.ndarray,
    tried: Sequence[Setting],
) -> tuple[Setting, dict[str, Any]]:
    """Return the first setting that finds 95% of the exact 100 best and worst rows of the queries, and what it found.

    Where none does, it is the last.
    """
    k = min(RECALL_AT, len(vectors))
    truth = exact_query(vectors, query_QF, k)
    setting, value = ALL, 0.0
    for setting in tried:
        value = recall_of(answers_of(vectors, moments, candidates, query_QF, k, setting, False), truth)
        logger.info("index: %s finds %.3f of the %d best", setting.plain(), value, k)
        if value >= WANTED:
            break
    return setting, {"k": k, "value": value, "queries": len(query_QF)}


def recall_of(found: Answers, truth: Answers) -> float:
    """Return the share of true answers that were found; a row that scores as the last of them counts for one.

    Copies in the pool have equal scores but for rounding, which takes another of them each time.
    """
    sides = (
        (found.helpful_rows, truth.helpful_rows, found.helpful_scores, truth.helpful_scores),
        (found.harmful_rows, truth.harmful_rows, -found.harmful_scores, -truth.harmful_scores),
    )
    hits = total = 0
    for side in sides:
        for row_k, true_k, score_k, true_score_k in zip(*side, strict=True):
            slack = ROUNDING * np.abs(true_score_k).max()
            hit_k = np.isin(row_k, true_k) | (score_k >= true_score_k[-1] - slack)
            hits, total = hits + min(int(hit_k.sum()), len(true_k)), total + len(true_k)
    return hits / total


def machine_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _sweep(folder: Path, keep: set[str]) -> None:
    """Delete the files of earlier indexes."""
    for path in (*children(folder, "*.faiss"), *children(folder, f"*{FLAT}")):
        if path.name not in keep:
            remove(path)
