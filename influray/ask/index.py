"""The index of a run: faiss indexes over the pool's vectors, in shards, with what they find measured and written down.

A shard holds a range of positions; all shards are copies of one trained index, so that what is found depends neither
on who holds them nor on how many hold them. Candidates are ranked again by exact products with the datastore's rows.

Shape suffixes: N pool rows, Q queries, k answers, E candidates, F numbers of a vector.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from influray.ask.index_gpu import GPU_MOST, device_for, to_gpu
from influray.ask.index_kinds import Setting, apply_setting, core_of, faiss_module, one_thread_for_graphs
from influray.ask.query_moments import QueryMoments, moments_from
from influray.protocols import ArtifactMismatch
from influray.store.arrays import arrays_of, arrays_table
from influray.store.artifact import checked_table, describe, fingerprint, hash_file, require_manifest, write_table
from influray.store.checks import check_ahead, check_file, damage, damaged
from influray.store.exact_query import Answers, BestRows, Vectors, check_queries, exact_query
from influray.store.mirror import present, publish
from influray.store.run_directory import RunDirectory
from influray.store.vectors import PoolVectors

MOMENTS = "moments.arrow"
FLAT = ".npy"  # how files of a flat index end
BLOCK_BYTES = 2**25  # of vectors that are added at a time
CANDIDATES = 2**22  # that are in memory at a time
RERANK_BYTES = 2**26  # of candidates' vectors that are in memory at a time

# (queries [Q, F], candidates for each, with what) -> (positions [Q, E], exact scores [Q, E]), best first
Candidates = Callable[[np.ndarray, int, Setting], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Shard:
    """A file of the index: the positions [start, stop) of the pool's vectors. `sha256` is "" until it is made."""

    file: str
    start: int
    stop: int
    sha256: str = ""
    bytes: int = 0


class _OpenShard:
    """The faiss index of a shard, on a GPU where it goes there; what a GPU cannot search the CPU does."""

    def __init__(self, shard: Shard, folder: Path, device: str) -> None:
        self.shard = shard
        self._path = folder / shard.file
        opened = open_file(self._path, shard.sha256)
        self._gpu, self._cpu = (to_gpu(opened), None) if device == "gpu" else (None, opened)

    def prepared(self, count: int, setting: Setting) -> tuple[Any, int]:
        """Return (an index set as `setting` says, how many candidates it gives for `count` answers)."""
        rows = self.shard.stop - self.shard.start
        wide, index = min(count * setting.depth, rows), self._gpu
        if index is None or max(wide, setting.nprobe) > GPU_MOST:
            index = self._cpu = self._cpu or open_file(self._path, self.shard.sha256)
        else:
            # A GPU rounds otherwise than what ranks its candidates: the last answer may not be its last one.
            wide = max(wide, min(2 * count, GPU_MOST, rows))
        apply_setting(index, setting)
        return index, wide


class IndexShards:
    """Some shards of an index in this process, on `device` (`index_gpu.device_for`)."""

    def __init__(self, vectors: PoolVectors, folder: Path, shards: Sequence[Shard], device: str = "cpu") -> None:
        self._vectors = vectors
        self._shards = [_OpenShard(shard, folder, device) for shard in shards]

    def candidates(self, query_QF: np.ndarray, count: int, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
        """Return the `count` best rows that these shards find for each query: positions and exact scores, best first.

        Each shard gives `count` times the setting's depth to be ranked. Where fewer are found, position -1 and score
        -inf follow.
        """
        best = BestRows(len(query_QF), count)
        for opened in self._shards:
            index, wide = opened.prepared(count, setting)
            step = max(1, CANDIDATES // wide)
            parts = [
                self._of_shard(opened.shard, index, query_QF[first : first + step], count, wide)
                for first in range(0, len(query_QF), step)
            ]
            position_QE, score_QE = (np.concatenate(part) for part in zip(*parts, strict=True))
            best.merge(position_QE, score_QE)
        return best.sorted()

    def _of_shard(
        self, shard: Shard, index: Any, query_qF: np.ndarray, count: int, wide: int
    ) -> tuple[np.ndarray, np.ndarray]:
        _, place_qE = index.search(np.ascontiguousarray(query_qF), wide)
        position_qE = np.where(place_qE >= 0, place_qE + shard.start, -1)
        best = BestRows(len(query_qF), count)
        best.merge(position_qE, exact_scores(self._vectors, query_qF, position_qE))
        return best.sorted()


class FlatVectors:
    """The vectors of the pool as the files of a flat index hold them: float32, mapped into memory and read in place.

    The files are checked in the background meanwhile: what they say counts only once `check` has returned.
    """

    block_bytes = 2**30  # nothing is copied

    def __init__(self, vectors: PoolVectors, folder: Path, shards: Sequence[Shard]) -> None:
        self.rows, self.dimension = vectors.rows, vectors.dimension
        self._starts = np.array([shard.start for shard in shards])
        self._files = [(folder / shard.file, shard.sha256) for shard in shards]
        check_ahead(self._files)
        self._parts_BF = [map_flat(path) for path, _ in self._files]

    def check(self) -> None:
        """Return once every file is found to be what was committed. Raises DamagedArtifact."""
        for path, sha256 in self._files:
            check_file(path, sha256)

    def block(self, start: int, space_BF: np.ndarray) -> np.ndarray:
        """Return the vectors at the positions from `start`; `space_BF` is used where they are of two files."""
        part = int(np.searchsorted(self._starts, start, side="right")) - 1
        here_BF = self._parts_BF[part][start - self._starts[part] :][: len(space_BF)]
        if len(here_BF) == len(space_BF):
            return here_BF
        space_BF[: len(here_BF)] = here_BF
        rest_BF = space_BF[len(here_BF) :]
        rest_BF[:] = self.block(start + len(here_BF), rest_BF)
        return space_BF


class PoolIndex:
    """The committed index of a run, opened in this process.

    `candidates` finds rows in shards that are elsewhere; by default all shards are opened here.

    Raises:
        ArtifactMismatch: there is none, or it was built of other vectors than the run has now.
        ConfigError: faiss is not installed.
    """

    def __init__(self, directory: RunDirectory, candidates: Candidates | None = None) -> None:
        self.vectors = PoolVectors(directory)
        self.manifest = index_manifest(directory, self.vectors)
        self.kind: str = self.manifest["kind"]
        self.setting = Setting(**self.manifest["setting"])
        shards = shards_of(self.manifest)
        self._flat: FlatVectors | None = None
        self._all: Vectors | None = None
        if self.kind == "exact":
            self._all = self.vectors
            return
        device = "cpu" if candidates else device_for(self.kind, sum(shard.bytes for shard in shards))
        if self.kind == "flat" and candidates is None and device == "cpu":
            self._all = self._flat = FlatVectors(self.vectors, directory.index, shards)
        else:
            self._candidates = candidates or IndexShards(self.vectors, directory.index, shards, device).candidates
            sha256 = self.manifest["beside"][0]["sha256"]
            self._moments = moments_from(arrays_of(checked_table(directory.index / MOMENTS, sha256)))

    def search(self, query_QF: np.ndarray, k: int) -> Answers:
        """Return the answers to queries [Q, F]. True `exact`: kinds flat and exact. Raises as `exact_query`."""
        if self._all is not None:
            answers = exact_query(self._all, query_QF, k)
            if self._flat is not None:
                self._flat.check()
            return answers
        query_QF = check_queries(query_QF, self.vectors.dimension, len(self.vectors.rows))
        return answers_of(self.vectors, self._moments, self._candidates, query_QF, k, self.setting, self.kind == "flat")


def answers_of(
    vectors: PoolVectors,
    moments: QueryMoments,
    candidates: Candidates,
    query_QF: np.ndarray,
    k: int,
    setting: Setting,
    exact: bool,
) -> Answers:
    """Return the answers that candidates give; harmful rows are those that help -q."""
    k = min(k, len(vectors.rows))
    Q = len(query_QF)
    position_QE, score_QE = candidates(np.concatenate([query_QF, -query_QF]), k, setting)
    row_QE = np.where(position_QE >= 0, vectors.rows[position_QE], -1)
    mean_Q, std_Q = moments.of(query_QF)
    return Answers(row_QE[:Q], score_QE[:Q], row_QE[Q:], -score_QE[Q:], mean_Q, std_Q, exact)


def exact_scores(vectors: PoolVectors, query_QF: np.ndarray, position_QE: np.ndarray) -> np.ndarray:
    """Return the products of queries with the rows at positions, float32 [Q, E]; -inf at position -1."""
    score_QE = np.full(position_QE.shape, -np.inf, np.float32)
    step = max(1, RERANK_BYTES // (4 * vectors.dimension * max(1, position_QE.shape[1])))
    for first in range(0, len(query_QF), step):
        here_qE = position_QE[first : first + step]
        found = here_qE >= 0
        known, back = np.unique(here_qE[found], return_inverse=True)
        query_E = np.nonzero(found)[0]
        row_UF = vectors.take(known)
        if len(here_qE) == 1:
            score_QE[first, found[0]] = (row_UF @ query_QF[first])[back]
        else:
            product_Uq = row_UF @ query_QF[first : first + step].T
            score_QE[first : first + step][found] = product_Uq[back, query_E]
    return score_QE


def index_manifest(directory: RunDirectory, vectors: PoolVectors) -> dict[str, Any]:
    """Return the manifest of the index of these vectors.

    Raises:
        ArtifactMismatch: there is none, it is of other vectors, or a file of it is not there whole.
    """
    manifest = require_manifest(directory.index, "index")
    if manifest["vectors"] != vectors.digest:
        raise ArtifactMismatch(
            f"{directory.index}: was built of other features or weights than the run has; run `influray index` again"
        )
    torn = damaged(directory.index, manifest)
    if torn:
        raise damage(directory.index / torn[0], "not there or not whole")
    return manifest


def shards_of(manifest: Mapping[str, Any]) -> list[Shard]:
    """Return the shards that the manifest of an index tells of."""
    return [Shard(**shard) for shard in manifest["parts"]]


def index_fingerprint(vectors: PoolVectors, asked: str, recipe: Mapping[str, object]) -> str:
    """Return what an index is made from; `recipe` holds the constants that it is built and measured with."""
    return fingerprint(["index", vectors.digest, asked, faiss_module().__version__, dict(recipe)])


def build_shard(
    vectors: PoolVectors, folder: Path, trained: Path, shard: Shard, block_bytes: int = BLOCK_BYTES
) -> Shard:
    """Fill a copy of the trained index with the vectors of a shard, block by block, and write it.

    Return the shard with the content and the bytes of its file.
    """
    if shard.file.endswith(FLAT):
        write_flat(folder / shard.file, vectors, shard, block_bytes)
        return _made(folder, shard)
    index = open_file(trained)
    with one_thread_for_graphs(type(core_of(index)).__name__):
        for _, block_BF in vectors.blocks(max(1, block_bytes // (4 * vectors.dimension)), shard.start, shard.stop):
            index.add(block_BF)
    write_file(folder / shard.file, index)
    return _made(folder, shard)


def _made(folder: Path, shard: Shard) -> Shard:
    path = folder / shard.file
    return replace(shard, sha256=hash_file(path), bytes=path.stat().st_size)


def write_file(path: Path, index: Any) -> None:
    """Write a faiss index so that `path` holds all of it or nothing new."""
    faiss = faiss_module()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    faiss.write_index(index, str(temporary))
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    publish(temporary, path)
    os.replace(temporary, path)


def write_flat(path: Path, vectors: PoolVectors, shard: Shard, block_bytes: int) -> None:
    """Write the vectors of a shard as a float32 array of numpy.

    Not as faiss writes them, from byte 45 on: mapped into memory, no number would be aligned.
    """
    shape = (shard.stop - shard.start, vectors.dimension)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for _, block_BF in vectors.blocks(max(1, block_bytes // (4 * vectors.dimension)), shard.start, shard.stop):
            file.write(block_BF.data)
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, path)
    os.replace(temporary, path)


def map_flat(path: Path) -> np.ndarray:
    """Return the vectors of a file of a flat index, mapped into memory. Raises DamagedArtifact where it is torn."""
    try:
        # What is written to it, if anything, stays here; of "r" torch warns.
        return np.load(present(path), mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError) as error:
        raise damage(path, "not a readable index") from error


def open_file(path: Path, sha256: str = "") -> Any:
    """Return the faiss index of a file, of the content `sha256` where that is known. Raises DamagedArtifact."""
    faiss = faiss_module()
    if sha256:
        check_file(path, sha256)
    if path.name.endswith(FLAT):
        row_BF = map_flat(path)
        index = faiss.IndexFlatIP(row_BF.shape[1])
        index.add(row_BF)
        return index
    try:
        return faiss.read_index(str(present(path)))
    except RuntimeError as error:
        raise damage(path, "not a readable index") from error


def write_moments(folder: Path, moments: QueryMoments) -> list[dict[str, Any]]:
    """Write the moments beside the index and return what its manifest says of them."""
    write_table(folder / MOMENTS, arrays_table(moments.arrays()))
    return describe(folder, [MOMENTS])
