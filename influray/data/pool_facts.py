"""What methods, constraints and reports may know of pool rows, read when it is first asked for.

Most selectors read none, and the ids of a million rows take 100 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from influray.data.catalogue import Catalogue

FACTS = ("id", "source", "tokens")  # of the catalogue


class PoolFacts(Mapping[str, Sequence[Any]]):
    """Columns FACTS by name, each of the rows `row_N`, in the order given."""

    def __init__(self, catalogue: Catalogue | Path, row_N: np.ndarray) -> None:
        self._catalogue = catalogue if isinstance(catalogue, Catalogue) else Catalogue(catalogue)
        self._row_N = row_N
        self._made: dict[str, Sequence[Any]] = {}

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in FACTS:
            raise KeyError(name)
        if name not in self._made:
            column_N = self._catalogue.facts(name)[name]
            self._made[name] = np.asarray(column_N, dtype=object)[self._row_N].tolist()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(FACTS)

    def __len__(self) -> int:
        return len(FACTS)
