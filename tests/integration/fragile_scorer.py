"""A plug-in scorer that writes down which sums it takes, and dies once while it takes those that it is told."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from influray.protocols import Arrays, FeatureRows, Stores
from influray.scorers.dsir import DSIR


class FragileDSIR(DSIR):
    """DSIR. Each sum over rows adds their first to the file `notes`; the first time, that of row `die_at` kills."""

    def __init__(self, stores: Stores, notes: str, die_at: int = -1) -> None:
        super().__init__(stores)
        self._notes = Path(notes)
        self._die_at = die_at

    def sums(self, number: int, pool: FeatureRows, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        first = int(pool.row_B[0])
        again = first in taken(self._notes)
        with open(self._notes, "a") as file:
            file.write(f"{first}\n")
        if first == self._die_at and not again:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sums(number, pool, target, state)


def taken(notes: Path) -> list[int]:
    """Return the first row of every sum that was taken, in the order of time."""
    return [int(line) for line in notes.read_text().splitlines()] if notes.exists() else []
