"""Which rows of the low end of a ranking harm: the one rule of the report, of `influray query` and of the service."""

from __future__ import annotations

import numpy as np

NO_HARM = "No row of the pool harms it: none has an influence below zero that is also below the pool's mean."


def harm_limit(mean: float | np.ndarray, std: float | np.ndarray) -> float:
    """Return the standardised influence below which a row harms, at most 0; -inf where nothing can be standardised.

    A row harms where its influence is negative, and stays so when it is standardised. The second alone always holds
    for some: where all gradients point one way, the row that helps least is far below the mean and harms nothing.

    Args:
        mean, std: of the influence over the pool; of several columns, whose standardised influence is averaged, one
            entry each. An influence of zero is then the mean over the columns of -mean / std.
    """
    mean, std = np.atleast_1d(mean), np.atleast_1d(std)
    if not mean.size or not (std > 0).all():
        return -np.inf
    return min(0.0, -float((mean / std).mean()))
