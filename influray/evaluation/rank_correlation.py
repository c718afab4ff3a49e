"""Spearman's rank correlation, over whole matrices and over bootstrap samples of their rows.

Shape suffixes: M rows (subsets, groups), T columns (targets), R bootstrap samples.
"""

from __future__ import annotations

import numpy as np


def mid_ranks(values_MT: np.ndarray) -> np.ndarray:
    """Return the rank of each entry in its column, from 1, equal ones at the mean of their places; float64 [M, T]."""
    values_MT = np.asarray(values_MT)
    ranks_MT = np.empty(values_MT.shape)
    for t, column_M in enumerate(values_MT.T):
        _, place_M, count = np.unique(column_M, return_inverse=True, return_counts=True)
        ranks_MT[:, t] = (np.cumsum(count) - (count - 1) / 2)[place_M]
    return ranks_MT


def spearman(one_MT: np.ndarray, other_MT: np.ndarray) -> np.ndarray:
    """Return Spearman's rho of each pair of columns, float64 [T]: the Pearson correlation of their mid-ranks.

    Where a column is constant, or holds what is not finite, there is no order to agree with: 0. (Others give NaN, which
    a mean over columns would leave out, to the good of whoever failed.)

    Source: Spearman 1904; ties as in Kendall, Rank Correlation Methods, chapter 3.
    """
    one_MT, other_MT = (np.asarray(values, np.float64) for values in (one_MT, other_MT))
    if one_MT.shape != other_MT.shape or one_MT.ndim != 2:
        raise ValueError(f"matrices of one shape are compared, found {one_MT.shape} and {other_MT.shape}")
    known_T = np.isfinite(one_MT).all(axis=0) & np.isfinite(other_MT).all(axis=0)
    rho_T = np.zeros(one_MT.shape[1])
    ranks = [mid_ranks(values[:, known_T]) for values in (one_MT, other_MT)]
    rho_T[known_T] = _pearson(*ranks)
    return rho_T


def resampled_spearman(one_MT: np.ndarray, other_MT: np.ndarray, count_RM: np.ndarray) -> np.ndarray:
    """Return Spearman's rho of each pair of columns in samples of their rows, float64 [R, T].

    `count_RM` says how often each row is in a sample. Ranks are those within the sample, copies being ties.
    """
    one_MT, other_MT = (np.asarray(values, np.float64) for values in (one_MT, other_MT))
    known_T = np.isfinite(one_MT).all(axis=0) & np.isfinite(other_MT).all(axis=0)
    rho_RT = np.zeros((len(count_RM), one_MT.shape[1]))
    count_RM = count_RM.astype(np.float64)
    for t in np.flatnonzero(known_T).tolist():
        rank_RM = _ranks_in_samples(one_MT[:, t], count_RM)
        rho_RT[:, t] = _weighted_pearson(rank_RM, _ranks_in_samples(other_MT[:, t], count_RM), count_RM)
    return rho_RT


def bootstrap_counts(rows: int, samples: int, seed: int) -> np.ndarray:
    """Return how often each row is in each of so many samples with replacement, int64 [R, M]; by `seed` alone."""
    # Raw outputs of PCG64, which numpy keeps the same in all versions.
    raw = np.random.PCG64(np.random.SeedSequence((seed, rows))).random_raw(samples * rows).reshape(samples, rows)
    drawn_RM = ((raw >> 11).astype(np.float64) * 2.0**-53 * rows).astype(np.int64)
    count_RM = np.zeros((samples, rows), np.int64)
    np.add.at(count_RM, (np.arange(samples)[:, None], drawn_RM), 1)
    return count_RM


def percentile_interval(values_R: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap values (Efron and Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ranks_in_samples(column_M: np.ndarray, count_RM: np.ndarray) -> np.ndarray:
    """Return, less their mean in the sample, the mid-rank of each row's value in each sample, [R, M]."""
    below_MM = (column_M[:, None] < column_M).astype(np.float64)  # [of whom, who is above it]
    below_MM += 0.5 * (column_M[:, None] == column_M)
    # Of two rows drawn from a sample each is the lower one as often: up to a constant the mean is half its size.
    return count_RM @ below_MM - 0.5 * len(column_M)


def _weighted_pearson(one_RM: np.ndarray, other_RM: np.ndarray, weight_RM: np.ndarray) -> np.ndarray:
    """Return the correlation of values whose weighted means are 0, [R]."""
    weighted_RM = weight_RM * one_RM
    return _ratio(
        np.einsum("rm,rm->r", weighted_RM, other_RM),
        np.einsum("rm,rm->r", weighted_RM, one_RM),
        np.einsum("rm,rm,rm->r", weight_RM, other_RM, other_RM),
    )


def _pearson(one_MT: np.ndarray, other_MT: np.ndarray) -> np.ndarray:
    one_MT, other_MT = (values - values.mean(axis=0) for values in (one_MT, other_MT))
    return _ratio((one_MT * other_MT).sum(axis=0), (one_MT**2).sum(axis=0), (other_MT**2).sum(axis=0))


def _ratio(product: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    scale = np.sqrt(one * other)
    # Ranks that all are equal leave rounding at most, some 1e-12 of squares of M.
    return np.where(scale > 1e-9, product / np.where(scale > 1e-9, scale, 1.0), 0.0)
