"""Short sketches of unit rows: a random projection in which rows that are far apart stay apart.

For unit rows u, v and a Gaussian projection S to m numbers, |S(u - v)|^2 is |u - v|^2 times chi-squared of m over m. By
Chernoff's bound it exceeds c |u - v|^2 with a chance below exp(-m (c - 1 - ln c) / 2): with c where that is 1e-12, a
pair within a distance is hardly ever beyond c times it in the sketch, and pairs beyond are ruled out.

Shape suffixes: B rows, D feature, m numbers of a sketch.
"""

from __future__ import annotations

import math

import numpy as np

MISS = 1e-12  # the chance that a pair within the distance is ruled out
SIZES = (32, 64, 128, 256, 512, 1024)
SEED = 14
ROUNDING = 1e-5  # of a squared distance of sketches in float32


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
