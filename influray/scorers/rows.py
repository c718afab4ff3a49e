"""The feature rows of a split, read from the datastores of all checkpoints.

Shape suffixes: N rows of the split, B rows of a range, D feature, K checkpoints.
"""

from __future__ import annotations

from typing import Literal

from influray.data.catalogue import Catalogue
from influray.protocols import FeatureRows
from influray.store.features import SplitFeatures
from influray.store.run_directory import RunDirectory

GROUP = {"pool": "source", "target": "group"}  # the catalogue's column that a scorer sees as `group_B`


class SplitRows(SplitFeatures):
    """The rows of a split that have a feature at each of the checkpoints 1..K, as scorers take them.

    One part of each checkpoint is mapped at a time: what is mapped counts against the memory of a worker.
    """

    def __init__(self, directory: RunDirectory, split: Literal["pool", "target"], checkpoints: int) -> None:
        super().__init__([directory.features(split, number) for number in range(1, checkpoints + 1)], open_parts=1)
        self._catalogue = Catalogue(directory.data(split))
        self._split = split

    def all(self) -> FeatureRows:
        """Return every row."""
        return self.read(0, len(self._catalogue))

    def read(self, start: int, stop: int) -> FeatureRows:
        """Return the catalogue rows in [start, stop); features may be views of the files."""
        row_B, features, facts, counts = self.columns(start, stop)
        groups = self._catalogue.values(GROUP[self._split], start, stop)
        return FeatureRows(row_B, [groups[row - start] for row in row_B.tolist()], features, facts, counts)
