"""The kinds of indexes: which fits, how one is trained, and what is turned until it finds enough.

`exact` is none, a query reads the datastore; `flat` holds all vectors; `ivf` lists near ones. Any other name is a
description for faiss' index_factory. An ivf works in the eigenbasis of the vectors' second moments, cut where what is
left out would change the products of two rows least: gradient features have a falling spectrum, and nearly all of an
inner product lies in few directions. What an index finds is ranked again by exact products, so a short code costs
candidates, not scores.

Shape suffixes: S rows of the sample, F numbers of a vector, R numbers in the eigenbasis.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from influray.extras import install_command
from influray.protocols import ConfigError

OURS = ("exact", "flat", "ivf")
KEPT = 0.995  # of the sum of squared eigenvalues, which is what products of two random rows are made of
ROUND = 16  # numbers: what a code is padded to
SCAN_BYTES = 2**31  # read by a query of a flat index; 2^28 took 10 ms on two cores
IVF_BYTES = 512  # of a row in the lists
CLUSTER_ROWS = 39  # the least per list that faiss asks for when it trains
LIST_FACTOR = 4  # lists of an IVF index, times the square root of the rows
LIST_ROUNDS = 10  # of k-means
LEAST_PROBED = 64  # one list in so many is looked into at first
PROBE_DEPTH = 4  # candidates for each answer while the number of lists, or the breadth of the search, grows
LEAST_BREADTH = 400  # efSearch that is tried first
SEED = 7
# What the constants do not tell of how an index is made: raise it where code changes what one of equal constants finds.
FORM = 4


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
            f"index: faiss is not installed: {install_command('cpu')}, or gpu in place of cpu on a machine with CUDA"
        ) from error
    except RuntimeError as error:  # faiss for GPUs, without the libraries of CUDA that it names
        raise ConfigError(f"index: {error}") from error
    return faiss


def choose_kind(asked: str, rows: int, dimension: int, memory: int) -> Choice:
    """Return what is built for `rows` vectors of `dimension` numbers where `memory` bytes may be used.

    Raises:
        ConfigError: faiss does not know the kind.
    """
    if asked in OURS:
        return Choice(asked, "asked for")
    if asked != "auto":
        try:
            _factory(asked, dimension)
        except RuntimeError as error:
            raise ConfigError(
                f"--kind: found {asked!r}, expected auto, {', '.join(OURS)}, or what faiss' index_factory takes for "
                f"vectors of {dimension} numbers, such as IVF4096,PQ64 or HNSW32 ({_line(error)})"
            ) from None
        return Choice(asked, "asked for")
    whole = 4 * rows * dimension
    last = "flat" if whole <= memory else "exact"
    text = f"{rows} vectors of {dimension} numbers, {_size(whole)} as float32, {_size(memory)} of memory to use"
    if whole <= min(memory, SCAN_BYTES):
        return Choice("flat", f"{text}: they fit, and a query may read them all")
    if rows * IVF_BYTES <= memory:
        return Choice("ivf", f"{text}: too many to read for a query; lists of near ones", (last,))
    return Choice("exact", f"{text}: not even lists of short codes fit")


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
    S, F = sample_SF.shape
    if kind == "flat":
        return faiss.IndexFlatIP(F)
    if kind != "ivf":
        return _trained(kind, sample_SF)
    basis_RF = eigenbasis(sample_SF, KEPT)
    R = len(basis_RF)
    lists = max(1, min(int(LIST_FACTOR * math.sqrt(rows)), S // CLUSTER_ROWS))
    metric, codes = faiss.METRIC_INNER_PRODUCT, faiss.ScalarQuantizer.QT_fp16
    core = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(R), R, lists, codes, metric, False)
    core.cp.seed, core.cp.niter = SEED, LIST_ROUNDS
    turn = faiss.LinearTransform(F, R, False)
    faiss.copy_array_to_vector(basis_RF.reshape(-1), turn.A)
    turn.is_trained, turn.is_orthonormal = True, True
    core.train(sample_SF @ basis_RF.T)
    return faiss.IndexPreTransform(turn, core)


def _factory(kind: str, dimension: int) -> Any:
    faiss = faiss_module()
    return faiss.index_factory(dimension, kind, faiss.METRIC_INNER_PRODUCT)


def _trained(kind: str, sample_SF: np.ndarray) -> Any:
    """Return the empty index of a description, trained and seen to take a row and find it.

    Raises:
        ConfigError: the sample is too small for it, or vectors cannot be added to such an index.
    """
    faiss = faiss_module()
    try:
        with one_thread_for_graphs(kind):
            index = _factory(kind, sample_SF.shape[1])
            lists = faiss.try_extract_index_ivf(index)
            for part in (core_of(index), *([] if lists is None else [faiss.downcast_index(lists)])):
                if hasattr(part, "do_polysemous_training"):
                    part.do_polysemous_training = False  # minutes of annealing for a filter that is not used here
            index.train(sample_SF)
        tried = faiss.clone_index(index)
        tried.add(sample_SF[:1])
        tried.search(sample_SF[:1], 1)
    except RuntimeError as error:
        raise ConfigError(
            f"--kind: faiss cannot make {kind!r} of this pool ({_line(error)}); it is trained on {len(sample_SF)} rows"
        ) from None
    return index


@contextlib.contextmanager
def one_thread_for_graphs(kind: str) -> Iterator[None]:
    """Let faiss work with one thread where an index has a graph: threads that insert at once make another each time."""
    faiss = faiss_module()
    threads = faiss.omp_get_max_threads()
    try:
        if "HNSW" in kind or "NSG" in kind:
            faiss.omp_set_num_threads(1)
        yield
    finally:
        faiss.omp_set_num_threads(threads)


@dataclass(frozen=True)
class Setting:
    """What a search is done with: `depth` candidates for each answer asked for; nprobe and efSearch, 0 where unused."""

    depth: int
    nprobe: int = 0
    efSearch: int = 0

    def plain(self) -> dict[str, int]:
        return {name: value for name, value in self.__dict__.items() if value}


ALL = Setting(1)  # of a kind that finds all


def settings(index: Any, rows: int, k: int, far: bool) -> list[Setting]:
    """Return what is tried in turn until enough of the k best is found, the cheapest first.

    `far` goes on until every row is a candidate, which a search of all lists or codes cannot fail to find; without it
    the ladder ends where reading every row is quicker.
    """
    end, lists = -(-rows // k), list_count(index)
    if lists:
        ladder = [Setting(PROBE_DEPTH, nprobe=n) for n in _doubled(max(1, lists // LEAST_PROBED), lists)]
        ladder += [Setting(depth, nprobe=lists) for depth in _doubled(2 * PROBE_DEPTH, end)]
    elif _has_graph(index):
        ladder = [Setting(max(PROBE_DEPTH, b // (2 * k)), efSearch=b) for b in _doubled(LEAST_BREADTH, 2 * k * end)]
    else:
        ladder = [Setting(depth) for depth in _doubled(2, end)]
    return ladder if far else [setting for setting in ladder if 2 * setting.nprobe <= lists]


def _doubled(start: int, end: int) -> list[int]:
    """Return start, twice start, and so on below `end`, and `end`."""
    found = []
    while start < end:
        found.append(start)
        start *= 2
    return [*found, end]


def list_count(index: Any) -> int:
    """Return the number of lists of an IVF index, 0 of another."""
    lists = faiss_module().try_extract_index_ivf(index)
    return 0 if lists is None else int(lists.nlist)


def _has_graph(index: Any) -> bool:
    return isinstance(core_of(index), faiss_module().IndexHNSW)


def apply_setting(index: Any, setting: Setting) -> None:
    """Set what an index searches with."""
    core = core_of(index)
    if hasattr(core, "nprobe"):
        core.nprobe = max(1, setting.nprobe)  # also of one on a GPU, which ParameterSpace does not know
    elif setting.nprobe:
        faiss_module().ParameterSpace().set_index_parameter(index, "nprobe", setting.nprobe)
    if setting.efSearch:
        core.hnsw.efSearch = setting.efSearch


def core_of(index: Any) -> Any:
    """Return the index that is searched, without a transform before it."""
    faiss = faiss_module()
    index = faiss.downcast_index(index)
    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def _line(error: Exception) -> str:
    """Return what faiss has to say, without the place in its source."""
    return str(error).rpartition(": ")[2].strip() or str(error)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
