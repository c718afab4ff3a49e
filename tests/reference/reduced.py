"""Row reductions over a whole matrix Z, as their papers put them: (merit, tie-break or None) of all rows."""

from __future__ import annotations

import numpy as np

from tests.reference.normalised import mean_rank


def means(z_NC, groups):
    return np.array([z_NC[:, [g == task for g in groups]].mean(axis=1) for task in dict.fromkeys(groups)]).T


def votes(z_NC, groups, weight_G, top_share=0.2):
    mean_NG = means(z_NC, groups)
    vote_NG = mean_NG >= np.percentile(mean_NG, 100 * (1 - top_share), axis=0)
    spread_G = mean_NG.std(axis=0)
    live_G = spread_G > 2.0**-22 * np.abs(mean_NG).max(axis=0)
    z_NG = np.where(live_G, (mean_NG - mean_NG.mean(axis=0)) / np.where(live_G, spread_G, 1), 0)
    return vote_NG @ weight_G, z_NG @ weight_G / len(weight_G)


def reciprocal_rank(z_NC, groups, weight_G):
    mean_NG = means(z_NC, groups)
    place_NG = np.array([[mean_rank(-mean_NG[:, g], -m) for g, m in enumerate(row)] for row in mean_NG])
    return (weight_G / place_NG).sum(axis=1), None


def column_values(z_NC, weight_C):
    """Weight over place of every score in its column; the best rank is the largest of a row, its tie-break the sum."""
    return weight_C / np.array([[mean_rank(-z_NC[:, c], -z) for c, z in enumerate(row)] for row in z_NC])
