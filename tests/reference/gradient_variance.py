"""VoG by its definition, number by number, float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def variance_of_gradients(g_KND: Sequence[np.ndarray], class_N: Sequence[str]) -> np.ndarray:
    """Return the z-score within its class of each row's mean standard deviation over checkpoints, [N]."""
    rows = len(class_N)
    vog = np.zeros(rows)
    for i in range(rows):
        vog[i] = np.mean([np.std([g[i, d] for g in g_KND]) for d in range(g_KND[0].shape[1])])
    score = np.zeros(rows)
    for i in range(rows):
        mine = vog[[name == class_N[i] for name in class_N]]
        score[i] = 0 if mine.std() == 0 else (vog[i] - mine.mean()) / mine.std()
    return score
