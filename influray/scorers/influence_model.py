"""Influence foretold by a linear head on features: MATES, arXiv 2406.06046, with a base that stays as it is.

Shape suffixes: B pool rows, L landmarks, T target columns, D numbers of a vector over all checkpoints.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from influray.protocols import Arrays, DataError, FeatureRows, Stores
from influray.scorers.kernel_ridge import RidgeFits
from influray.scorers.propagation import Propagating, folds

ROUNDING = 1e-12  # of squares, beside those of the rows that the mean is taken from


class InfluenceModel(Propagating):
    """A(x) = b + w'x, ridge regression of the exact scores of some rows on their vectors, a head for every column.

    The exact rows are those of the run `exact`; x are the stored rows of this run, those of several checkpoints joined
    with the roots of their weights. `ridge` is in units of the mean squared distance of the exact rows from their mean;
    auto takes of 1e-4, 3e-4 ... 1e3 the one by which rows that are left out are foretold best, the same for all
    columns. Rows that have exact scores keep them, unless `keep_exact` is off. As for `landmarks`, columns are
    standardised by the moments of the exact rows, which should be drawn at random.

    Source: MATES, section 4.2: a regression head on pooled hidden states, by squared error. Differences: there an
    encoder of its own (BERT) is trained along with the head, and the head foretells one number, the loss on all
    targets; here the vectors are any featurizer's, and the least squares are solved, not descended to.

    Cost: D T operations a row, and once, in one process, 9 L^3 or so for the fit and its folds, as `landmarks`.

    Raises:
        ArtifactMismatch: the stores hold no vectors.
    """

    name = "influence_model"

    def __init__(
        self,
        stores: Stores,
        exact: str = "",
        ridge: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto",
        keep_exact: bool = True,
    ) -> None:
        super().__init__(stores, exact, keep_exact)
        self._ridge = ridge

    def learn(
        self, vector_LD: np.ndarray, score_LT: np.ndarray, used_T: np.ndarray, target: FeatureRows
    ) -> dict[str, np.ndarray]:
        """Return "weight" [D, T], "constant" [T] and "ridge" [1], and what is foretold.

        Raises DataError where all exact rows have one and the same vector.
        """
        mean_D = vector_LD.mean(axis=0)
        centred_LD = vector_LD - mean_D
        scale = float(np.square(centred_LD).sum(axis=1).mean())
        if scale <= ROUNDING * np.square(vector_LD).sum(axis=1).mean():
            raise DataError(
                f"attribution.options.exact: the {len(vector_LD)} exact rows have the same feature, which tells "
                "nothing apart; take another features.featurizer"
            )
        fits = RidgeFits(centred_LD @ centred_LD.T / scale, score_LT)
        ridge = fits.best_ridge(used_T) if isinstance(self._ridge, str) else self._ridge
        dual_LT, constant_T = fits.at(ridge)
        weight_DT = centred_LD.T @ dual_LT / scale
        return {
            "weight": weight_DT,
            "constant": constant_T - mean_D @ weight_DT,
            "ridge": np.array([ridge]),
            "foretold": fits.foretold(ridge, folds(len(vector_LD))),
        }

    def foretell(self, vector_BD: np.ndarray, state: Arrays) -> np.ndarray:
        """Return b + x w, [B, T] float64."""
        return vector_BD @ state["weight"] + state["constant"]

    def operations(self, L: int, D: int, T: int) -> tuple[float, float]:
        """Return those of the eigendecomposition and the fits without a fold, and of a row."""
        return 10.0 * L**3, 2.0 * D * T

    def settings(self, state: Arrays) -> dict[str, float]:
        """Return the ridge."""
        return {"ridge": float(state["ridge"][0])}
