"""Short sketches of unit rows: a random projection in which rows that are far apart stay apart.

For unit rows u, v and a Gaussian projection S to m numbers, |S(u - v)|^2 is |u - v|^2 times chi-squared of m over m. By
Chernoff's bound it exceeds c |u - v|^2 with a chance below exp(-m (c - 1 - ln c) / 2): with c where that is 1e-12, a
pair within a distance is hardly ever beyond c times it in the sketch, and pairs beyond are ruled out.

Shape suffixes: B rows, D feature, m numbers of a sketch.
"""

from __future__ import annotations

import math
import weakref

import numpy as np

from influray.protocols import UnitRows

MISS = 1e-12  # the chance that a pair within the distance is ruled out
SIZES = (32, 64, 128, 256, 512, 1024)
SEED = 14
ROUNDING = 1e-5  # of a squared distance of sketches in float32
READ_ROWS = 256
MOST_BYTES = 2**30  # of sketches that are kept
SAMPLE = 512  # rows of which every two are tried, so that sketches are long enough
CROWDED = 1e-4  # share of the pairs of the sample that sketches may leave to be compared


class Sketches:
    """The sketch of m numbers of rows of D, and from which half squared distance on a pair is ruled out.

    m = D keeps the rows themselves, and nothing is left to chance.
    """

    def __init__(self, dimension: int, size: int, cosine: float) -> None:
        self.size = min(size, dimension)
        self._plane_Dm: np.ndarray | None = None
        factor = 1.0
        if self.size < dimension:
            generator = np.random.default_rng(SEED)
            self._plane_Dm = generator.standard_normal((dimension, self.size), np.float32)
            self._plane_Dm /= np.float32(math.sqrt(self.size))
            factor = stretch(self.size)
        self.bound = -(factor * (1 - cosine) + ROUNDING)

    def of(self, unit_BD: np.ndarray) -> np.ndarray:
        """Return the sketches of unit rows, with two more numbers, so that `close` is a product: float32 [B, m + 2]."""
        short_Bm = unit_BD if self._plane_Dm is None else unit_BD @ self._plane_Dm
        half_B = np.einsum("bm,bm->b", short_Bm, short_Bm) / 2
        return np.concatenate([short_Bm, -half_B[:, None], np.ones((len(short_Bm), 1), np.float32)], axis=1)

    @staticmethod
    def other(sketch_Bm: np.ndarray) -> np.ndarray:
        """Return sketches as the other side of the product, which is minus half of the squared distance."""
        return np.concatenate([sketch_Bm[:, :-2], sketch_Bm[:, -1:], sketch_Bm[:, -2:-1]], axis=1)


def stretch(size: int) -> float:
    """Return the c at which the chance of the module's text is MISS."""
    wanted, low, high = -2 * math.log(MISS) / size, 1.0, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if middle - 1 - math.log(middle) < wanted else (low, middle)
    return high


def first_size(cosine: float) -> int:
    """Return the least size that rules out rows of cosine 0 and, about, 0.3; 0 where none does: keep the rows."""
    return next((size for size in SIZES if stretch(size) * (1 - cosine) <= 0.5), 0)


class KnownSketches:
    """The sketches of feature rows, each made once however many selections ask for it, up to MOST_BYTES of them.

    They are long enough for the rows `row_N`: where these are much alike, longer ones tell them apart.
    """

    def __init__(self, features: UnitRows, threshold: float, row_N: np.ndarray) -> None:
        self.sketches = _long_enough(features, threshold, row_N)
        self._row_U = np.zeros(0, np.int64)  # ascending
        self._sketch_Um = np.zeros((0, self.sketches.size + 2), np.float32)

    def of(self, features: UnitRows, rows: np.ndarray) -> np.ndarray:
        """Return the sketches of rows of the features, ascending and none twice, float32 [len(rows), m + 2]."""
        sketch_Bm = np.empty((len(rows), self.sketches.size + 2), np.float32)
        known_B = np.isin(rows, self._row_U, assume_unique=True)
        sketch_Bm[known_B] = self._sketch_Um[np.searchsorted(self._row_U, rows[known_B])]
        new = np.flatnonzero(~known_B)
        for start in range(0, len(new), READ_ROWS):
            here = new[start : start + READ_ROWS]
            sketch_Bm[here] = self.sketches.of(features.gather(rows[here]))
        if len(new) and self._sketch_Um.nbytes + sketch_Bm[new].nbytes <= MOST_BYTES:
            row_U = np.concatenate([self._row_U, rows[new].astype(np.int64)])
            order = np.argsort(row_U)
            self._row_U, self._sketch_Um = row_U[order], np.concatenate([self._sketch_Um, sketch_Bm[new]])[order]
        return sketch_Bm


_KNOWN: weakref.WeakKeyDictionary[UnitRows, dict[float, KnownSketches]] = weakref.WeakKeyDictionary()


def known_sketches(features: UnitRows, threshold: float, row_N: np.ndarray) -> KnownSketches:
    """Return the sketches of these features for this cosine, those of an earlier selection where there was one."""
    try:
        of_features = _KNOWN.setdefault(features, {})
    except TypeError:  # features of a user's own class that cannot be a key
        of_features = {}
    if threshold not in of_features:
        of_features[threshold] = KnownSketches(features, threshold, row_N)
    return of_features[threshold]


def _long_enough(features: UnitRows, threshold: float, row_N: np.ndarray) -> Sketches:
    drawn = row_N[np.unique(np.linspace(0, len(row_N) - 1, SAMPLE).astype(np.int64))]
    unit_BD = features.gather(drawn)
    dimension = unit_BD.shape[1]
    near = int((unit_BD @ unit_BD.T >= threshold - 1e-3).sum())
    size = first_size(threshold) or dimension
    while size < dimension:
        sketches = Sketches(dimension, size, threshold)
        sketch_Bm = sketches.of(unit_BD)
        close = int((sketch_Bm @ Sketches.other(sketch_Bm).T >= sketches.bound).sum())
        if close - near <= max(2, CROWDED * len(drawn) ** 2):
            return sketches
        size = 2 * size if 2 * size <= SIZES[-1] else dimension
    return Sketches(dimension, dimension, threshold)
