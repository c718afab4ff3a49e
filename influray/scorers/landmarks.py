"""Influence carried from a few rows to all by kernel ridge regression: Influence Distillation, arXiv 2505.19051.

Shape suffixes: B pool rows, L landmarks, T target columns, D numbers of a vector over all checkpoints.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from influray.protocols import Arrays, DataError, FeatureRows, Stores
from influray.scorers.kernel_ridge import RidgeFits, gaussian, median_distance, squared_distances
from influray.scorers.propagation import Propagating, folds

ROUNDING = 1e-12  # of a squared distance, beside the squared norms that it is the difference of


class Landmarks(Propagating):
    """A(x) = b + sum over landmarks of exp(-|x - l|^2 / (2 s^2)) a_l, fitted to their exact scores with a ridge.

    Landmarks are the rows of the run `exact`, a scored one over a part of the same pool with the same targets. x and l
    are the stored rows of this run, those of several checkpoints joined with the roots of their weights. s is `width`
    times the median distance of two landmarks. `ridge` is what is added to the kernel's diagonal of ones; auto takes of
    1e-4, 3e-4 ... 1e3 the one by which landmarks that are left out are foretold best (kernel_ridge.RidgeFits), the same
    for all columns. Rows that have exact scores keep them, unless `keep_exact` is off.

    Columns are standardised by the moments of the exact rows: what is foretold varies less than what is exact, the more
    so the less of a column can be foretold, and its own moments would blow up the noise. So the exact rows should be
    drawn at random.

    The held-out correlation is that of folds which the choice of the ridge, one number for all, has seen.

    Source: section 4 and the published code, with differences: a free constant, so that rows far from all landmarks get
    the mean of the column and not 0; the median is over all pairs; the ridge (0.01 there) is chosen; the embedding is
    any featurizer's; the landmarks' scores are any scorer's.

    Cost: L (D + T) operations a row, and once, in one process, about 10 L^3 for the fit and its folds. L = 2,048 took
    23 s of a core and 0.2 GB; it grows with the cube and the square of L.

    Raises:
        ArtifactMismatch: the stores hold no vectors.
    """

    name = "landmarks"

    def __init__(
        self,
        stores: Stores,
        exact: str = "",
        ridge: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto",
        width: Annotated[float, Field(gt=0)] = 1.0,
        keep_exact: bool = True,
    ) -> None:
        super().__init__(stores, exact, keep_exact)
        self._ridge, self._width = ridge, width

    def learn(
        self, vector_LD: np.ndarray, score_LT: np.ndarray, used_T: np.ndarray, target: FeatureRows
    ) -> dict[str, np.ndarray]:
        """Return "vector" [L, D], "weight" [L, T], "constant" [T], "width" and "ridge" [1], and what is foretold.

        Raises DataError where half of the landmarks are one and the same.
        """
        square_LL = squared_distances(vector_LD, vector_LD)
        np.fill_diagonal(square_LL, 0)
        median = median_distance(square_LL)
        if median**2 <= ROUNDING * np.square(vector_LD).sum(axis=1).mean():
            raise DataError(
                f"attribution.options.exact: most of the {len(vector_LD)} exact rows have the same feature, which "
                "tells nothing apart; take another features.featurizer"
            )
        width = self._width * median
        fits = RidgeFits(gaussian(square_LL, width), score_LT)
        ridge = fits.best_ridge(used_T) if isinstance(self._ridge, str) else self._ridge
        weight_LT, constant_T = fits.at(ridge)
        return {
            "vector": vector_LD,
            "weight": weight_LT,
            "constant": constant_T,
            "width": np.array([width]),
            "ridge": np.array([ridge]),
            "foretold": fits.foretold(ridge, folds(len(vector_LD))),
        }

    def foretell(self, vector_BD: np.ndarray, state: Arrays) -> np.ndarray:
        """Return b + K a, [B, T] float64: at a small ridge the weights are large and cancel."""
        kernel_BL = gaussian(squared_distances(vector_BD, state["vector"]), float(state["width"][0]))
        return kernel_BL @ state["weight"] + state["constant"]

    def operations(self, L: int, D: int, T: int) -> tuple[float, float]:
        """Return those of the eigendecomposition and the fits without a fold, and of a row."""
        return 10.0 * L**3, 2.0 * L * (D + T)

    def settings(self, state: Arrays) -> dict[str, float]:
        """Return the width and the ridge."""
        return {"width": float(state["width"][0]), "ridge": float(state["ridge"][0])}
