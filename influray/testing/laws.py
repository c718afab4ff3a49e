"""How a law that is broken is told."""

from __future__ import annotations

import numpy as np


def law(holds: bool | np.bool_, otherwise: str) -> None:
    """Raise AssertionError with what is wrong, also where Python leaves out assertions."""
    if not holds:
        raise AssertionError(otherwise)
