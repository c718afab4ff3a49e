"""Kernel ridge regression with a free constant: fits for every ridge, and what they say of rows held out.

Shape suffixes: B rows, L landmarks, T target columns, D numbers of a vector, F landmarks of a fold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RIDGES = 10.0 ** np.arange(-4, 3.5, 0.5)  # of a kernel whose diagonal is 1


def squared_distances(one_BD: np.ndarray, other_LD: np.ndarray) -> np.ndarray:
    """Return the squared distances of float64 rows, [B, L]."""
    square_BL = one_BD @ other_LD.T
    square_BL *= -2
    square_BL += np.einsum("bd,bd->b", one_BD, one_BD)[:, None]
    square_BL += np.einsum("ld,ld->l", other_LD, other_LD)
    return np.maximum(square_BL, 0, out=square_BL)


def median_distance(square_LL: np.ndarray) -> float:
    """Return the median of the distances of two different landmarks, from the squares."""
    return float(np.median(np.sqrt(square_LL[np.triu_indices(len(square_LL), 1)])))


def gaussian(square_BL: np.ndarray, width: float) -> np.ndarray:
    """Return exp(-distance^2 / (2 width^2)), in the place of the squared distances."""
    square_BL /= -2 * width**2
    return np.exp(square_BL, out=square_BL)


class RidgeFits:
    """The fits f(x) = b + sum_l k(x, l) a_l that make sum (y - f)^2 + ridge * a'Ka least, b free, for any ridge.

    With M = (K + ridge I)^-1 they are b = 1'MY / 1'M1 and a = M (Y - 1 b'). One eigendecomposition of K serves every
    ridge, and every fit without some of the rows: (a; b) = C^-1 (y; 0), where C is K + ridge I bordered by ones, and
    P = M - M1 1'M / 1'M1 is the first block of C^-1. Let the rows F be held out, and put in their place of y what the
    fit without them foretells. That changes y by the errors e_F, and the new fit is the old one without F, whose a_F
    are 0: so a_F = P_FF e_F, or e_F = P_FF^-1 a_F. For one row that is a_i / P_ii (Cawley and Talbot, 2004,
    doi:10.1016/j.neunet.2004.07.002, of least-squares support vector machines). The constant is fitted without F too.

    Cost: 9 L^3 operations or so, then 2 L^2 T for each ridge; in bytes 8 L^2, six times at once.
    """

    def __init__(self, kernel_LL: np.ndarray, score_LT: np.ndarray) -> None:
        value_L, self._vector_LL = np.linalg.eigh(kernel_LL)
        self._value_L = np.maximum(value_L, 0)
        self._score_LT = score_LT
        self._turned_LT = self._vector_LL.T @ score_LT
        self._ones_L = self._vector_LL.sum(axis=0)

    def at(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (a_LT, b_T), float64."""
        _, weight_LT, constant_T = self._solved(ridge)
        return weight_LT, constant_T

    def left_out(self, ridge: float) -> np.ndarray:
        """Return by how much each row is above what the fit without it alone foretells, [L, T]."""
        one_L, weight_LT, _ = self._solved(ridge)
        diagonal_L = np.square(self._vector_LL) @ (1 / (self._value_L + ridge)) - one_L**2 / one_L.sum()
        return weight_LT / diagonal_L[:, None]

    def foretold(self, ridge: float, folds: Sequence[np.ndarray]) -> np.ndarray:
        """Return what the fit without its fold foretells of each row, [L, T]; folds are positions, each row in one."""
        one_L, weight_LT, _ = self._solved(ridge)
        found_LT = np.empty_like(self._score_LT)
        for fold_F in folds:
            vector_FL, one_F = self._vector_LL[fold_F], one_L[fold_F]
            block_FF = (vector_FL / (self._value_L + ridge)) @ vector_FL.T - np.outer(one_F, one_F) / one_L.sum()
            found_LT[fold_F] = self._score_LT[fold_F] - np.linalg.solve(block_FF, weight_LT[fold_F])
        return found_LT

    def best_ridge(self, used_T: np.ndarray, ridges: Sequence[float] | np.ndarray = RIDGES) -> float:
        """Return the ridge of least squared error of rows left out, over the variance of the column; mean over columns.

        `used_T` are the columns that count. Of equal ones the larger; the largest where no column counts.
        """
        spread_T = np.square(self._score_LT - self._score_LT.mean(axis=0)).sum(axis=0)[used_T]
        best, least = float(max(ridges)), np.inf
        for ridge in sorted(map(float, ridges), reverse=True):
            error = (np.square(self.left_out(ridge)).sum(axis=0)[used_T] / spread_T).sum()
            if error < least:
                best, least = ridge, error
        return best

    def _solved(self, ridge: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (M1 [L], a [L, T], b [T])."""
        inverse_L = 1 / (self._value_L + ridge)
        one_L = self._vector_LL @ (inverse_L * self._ones_L)
        solved_LT = self._vector_LL @ (inverse_L[:, None] * self._turned_LT)
        constant_T = solved_LT.sum(axis=0) / one_L.sum()
        return one_L, solved_LT - np.outer(one_L, constant_T), constant_T
