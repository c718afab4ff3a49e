"""The task of a pool row: that of its highest standardised column, as THI by instance counts it (BIDS)."""

from __future__ import annotations

from collections.abc import Sequence

from influray.protocols import AttributionSource
from influray.selectors.normalisers import normalise


def row_tasks(source: AttributionSource, groups: Sequence[str]) -> list[str]:
    """Return the task of every row of the matrix, in its order; ties go to the lowest column. One pass.

    Raises:
        DataError: no column can be standardised.
    """
    normalised = normalise("zscore", source, groups, {})
    tasks = [groups[j] for j in normalised.column_C]
    return [tasks[place] for _, block in source.blocks() for place in normalised.lines(block).argmax(axis=1).tolist()]
