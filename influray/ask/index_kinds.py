"""The kinds of faiss indexes: which fits, how one is trained, and what is turned until it finds enough.

All but flat and fp16 work in the eigenbasis of the vectors' second moments, cut where what is left out would change
the products of two rows least: gradient features have a falling spectrum, and nearly all of an inner product lies in
few directions. What an index finds is ranked again by exact products, so a short code costs candidates, not scores.

Shape suffixes: S rows of the sample, F numbers of a vector, R numbers in the eigenbasis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from influray.protocols import ConfigError

KINDS = ("exact", "flat", "fp16", "sq8", "ivf", "hnsw", "pq")  # exact: no index, a query reads the datastore
KEPT = 0.995  # of the sum of squared eigenvalues, which is what products of two random rows are made of
ROUND = 16  # numbers: what a code is padded to
SCAN_BYTES = 2**31  # read by a query of a flat index; 2^28 took 10 ms on two cores
SCAN_CODES = 2**26  # bytes of codes that a query may look through one by one: about 20 ms on one core
NEIGHBOURS = 32  # of a node of the graph
BUILD_BREADTH = 80  # efConstruction: below this recall suffers, above it only time
PQ_BITS = 8
PQ_NUMBERS = 4  # of the eigenbasis in a byte
CLUSTER_ROWS = 39  # the least per list or code word that faiss asks for when it trains
LIST_FACTOR = 4  # lists of an IVF index, times the square root of the rows
LIST_ROUNDS = 10  # of k-means
LEAST_PROBED = 64  # one list in so many is looked into at first
PROBE_DEPTH = 4  # candidates for each answer while the number of lists, or the breadth of the search, grows
LEAST_BREADTH = 400  # efSearch that is tried first
SHORT_DEPTH, SHORT_BREADTH = 32, 3200  # where auto gives a kind up; for lists it is half of them
SEED = 7
# What the constants do not tell of how an index is made: raise it where code changes what one of equal constants finds.
FORM = 3


@dataclass(frozen=True)
class Choice:
    """A kind, why, and what follows in turn where it finds too little."""

    kind: str
    reason: str
    then: tuple[str, ...] = ()


def recipe() -> dict[str, Any]:
    """Return every constant here: a kind, what it is trained with and its ladder of settings follow from them."""
    return {name: value for name, value in globals().items() if name.isupper() and name != "ALL"}


def faiss_module() -> Any:
    """Return faiss. Raises ConfigError naming the extra where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "index: faiss is not installed; pip install influray[cpu], or influray[gpu] on a machine with CUDA"
        ) from error
    except RuntimeError as error:  # faiss for GPUs, without the libraries of CUDA that it names
        raise ConfigError(f"index: {error}") from error
    return faiss


def choose_kind(asked: str, rows: int, dimension: int, memory: int) -> Choice:
    """Return what is built for `rows` vectors of `dimension` numbers where `memory` bytes may be used.

    Raises:
        ConfigError: no such kind, or too few rows to train it.
    """
    if asked == "pq" and rows < 2**PQ_BITS:
        raise ConfigError(f"--kind pq: needs {2**PQ_BITS} rows to train its code words, the pool has {rows}; take flat")
    if asked in KINDS:
        return Choice(asked, "asked for")
    if asked != "auto":
        raise ConfigError(f"--kind: found {asked!r}, expected auto or one of {', '.join(KINDS)}")
    whole = 4 * rows * dimension
    last = "flat" if whole <= memory else "exact"
    text = f"{rows} vectors of {dimension} numbers, {_size(whole)} as float32, {_size(memory)} of memory to use"
    if whole <= min(memory, SCAN_BYTES):
        return Choice("flat", f"{text}: they fit, and a query may read them all")
    if rows * min(dimension, 256) <= min(memory, SCAN_CODES):
        return Choice("sq8", f"{text}: too many to read for a query; one byte for each leading number", (last,))
    if rows * 512 <= memory:
        return Choice("ivf", f"{text}: too many to look through one by one; lists of near ones", ("sq8", last))
    return Choice("pq", f"{text}: only codes of some bytes a row fit", (last,))


def eigenbasis(sample_SF: np.ndarray, kept: float) -> np.ndarray:
    """Return orthonormal directions, float32 [R, F], of the largest second moments of a sample, about no mean.

    R is the least multiple of 16 that keeps `kept` of the sum of squared eigenvalues.
    """
    S, F = sample_SF.shape
    wide_SF = sample_SF.astype(np.float64)
    if F <= S:
        value_F, vector_FF = np.linalg.eigh(wide_SF.T @ wide_SF / S)
        value, basis = value_F[::-1], vector_FF[:, ::-1].T
    else:
        value_S, vector_SS = np.linalg.eigh(wide_SF @ wide_SF.T / S)
        value = np.maximum(value_S[::-1], 0.0)
        alive = value > 1e-12 * value[0]
        value = value[alive]
        basis = (vector_SS[:, ::-1].T[alive] @ wide_SF) / np.sqrt(value * S)[:, None]
    share = np.cumsum(np.maximum(value, 0.0) ** 2)
    rank = int(np.searchsorted(share, kept * share[-1])) + 1
    basis = basis[: min(len(basis), -(-rank // ROUND) * ROUND)]
    leading = basis[np.arange(len(basis)), np.abs(basis).argmax(axis=1)]
    return np.ascontiguousarray(basis * np.sign(leading)[:, None], dtype=np.float32)  # one sign, whatever LAPACK says


def train(kind: str, sample_SF: np.ndarray, rows: int) -> Any:
    """Return an empty, trained faiss index of a kind for `rows` vectors like those of the sample."""
    faiss = faiss_module()
    F = sample_SF.shape[1]
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        return faiss.IndexFlatIP(F)
    if kind == "fp16":
        index = faiss.IndexScalarQuantizer(F, faiss.ScalarQuantizer.QT_fp16, metric)
        index.train(sample_SF)
        return index
    basis_RF = eigenbasis(sample_SF, KEPT)
    R = len(basis_RF)
    if kind == "sq8":
        core = faiss.IndexScalarQuantizer(R, faiss.ScalarQuantizer.QT_8bit, metric)
    elif kind == "hnsw":
        core = faiss.IndexHNSWFlat(R, NEIGHBOURS, metric)
        core.hnsw.efConstruction = BUILD_BREADTH
    elif kind == "ivf":
        lists = max(1, min(int(LIST_FACTOR * math.sqrt(rows)), len(sample_SF) // CLUSTER_ROWS))
        core = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(R), R, lists, faiss.ScalarQuantizer.QT_fp16, metric, False
        )
        core.cp.seed, core.cp.niter = SEED, LIST_ROUNDS
    else:
        assert kind == "pq", kind
        codes = next(m for m in range(max(1, R // PQ_NUMBERS), 0, -1) if R % m == 0)
        core = faiss.IndexPQ(R, codes, PQ_BITS, metric)
        core.pq.cp.seed = SEED
        core.pq.cp.min_points_per_centroid = 1
    turn = faiss.LinearTransform(F, R, False)
    faiss.copy_array_to_vector(basis_RF.reshape(-1), turn.A)
    turn.is_trained, turn.is_orthonormal = True, True
    core.train(sample_SF @ basis_RF.T)
    return faiss.IndexPreTransform(turn, core)


@dataclass(frozen=True)
class Setting:
    """What a search is done with: `depth` candidates for each answer asked for; nprobe and efSearch, 0 where unused."""

    depth: int
    nprobe: int = 0
    efSearch: int = 0

    def plain(self) -> dict[str, int]:
        return {name: value for name, value in self.__dict__.items() if value}


ALL = Setting(1)  # of a kind that finds all


def settings(kind: str, rows: int, lists: int, k: int, far: bool) -> list[Setting]:
    """Return what is tried in turn until enough of the k best is found, the cheapest first.

    `far` goes on until every row is a candidate, which a search of all lists or codes cannot fail to find; without it
    the ladder ends where another kind is quicker.
    """
    if kind == "flat":
        return [ALL]
    end = -(-rows // k)
    if kind == "hnsw":
        ladder = [Setting(max(PROBE_DEPTH, b // (2 * k)), efSearch=b) for b in _doubled(LEAST_BREADTH, 2 * k * end)]
    elif kind == "ivf":
        ladder = [Setting(PROBE_DEPTH, nprobe=n) for n in _doubled(max(1, lists // LEAST_PROBED), lists)]
        ladder += [Setting(depth, nprobe=lists) for depth in _doubled(2 * PROBE_DEPTH, end)]
    else:
        ladder = [Setting(depth) for depth in _doubled(2, end)]
    if far:
        return ladder
    return [s for s in ladder if s.depth <= SHORT_DEPTH and s.efSearch <= SHORT_BREADTH and 2 * s.nprobe <= lists]


def _doubled(start: int, end: int) -> list[int]:
    """Return start, twice start, and so on below `end`, and `end`."""
    found = []
    while start < end:
        found.append(start)
        start *= 2
    return [*found, end]


def list_count(index: Any) -> int:
    """Return the number of lists of an IVF index, 0 of another."""
    core = _core(index)
    return int(core.nlist) if hasattr(core, "nlist") else 0


def apply_setting(index: Any, setting: Setting) -> None:
    """Set what the core of an index searches with."""
    core = _core(index)
    if setting.nprobe:
        core.nprobe = setting.nprobe
    if setting.efSearch:
        core.hnsw.efSearch = setting.efSearch


def _core(index: Any) -> Any:
    faiss = faiss_module()
    index = faiss.downcast_index(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
