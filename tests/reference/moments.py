"""Column moments in two plain passes, in extended precision."""

from __future__ import annotations

import numpy as np


def moments(score_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean, std) of each column, ddof 0, as longdouble."""
    wide_NT = score_NT.astype(np.longdouble)
    mean_T = wide_NT.sum(axis=0) / len(wide_NT)
    return mean_T, np.sqrt(((wide_NT - mean_T) ** 2).sum(axis=0) / len(wide_NT))
