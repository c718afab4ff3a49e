"""The feature rows of a split, read from the datastores of all checkpoints.

Shape suffixes: N rows of the split, B rows of a range, D feature, K checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa

from influray.data.catalogue import Catalogue
from influray.protocols import ArtifactMismatch, FeatureRows, SparseRows
from influray.store.datastore import Datastore, common_rows, counts_of, joined_counts
from influray.store.encodings import decoded
from influray.store.run_directory import RunDirectory

GROUP = {"pool": "source", "target": "group"}  # the catalogue's column that a scorer sees as `group_B`


class SplitRows:
    """The rows of a split that have a feature at each of the checkpoints 1..K, whatever parts hold them."""

    def __init__(self, directory: RunDirectory, split: Literal["pool", "target"], checkpoints: int) -> None:
        self._stores = [Datastore(directory.features(split, number)) for number in range(1, checkpoints + 1)]
        self._catalogue = Catalogue(directory.data(split))
        self._split = split

    @cached_property
    def rows(self) -> np.ndarray:
        """The catalogue rows, int64, ascending."""
        return common_rows([store.column("row") for store in self._stores])

    def all(self) -> FeatureRows:
        """Return every row, copied into memory."""
        return self.read(0, len(self._catalogue))

    def read(self, start: int, stop: int) -> FeatureRows:
        """Return the catalogue rows in [start, stop)."""
        found = [reader.read(start, stop) for reader in self._readers]
        row_B = common_rows([columns["row"] for columns, _, _ in found])
        features, facts = [], []
        for columns, feature_BD, _ in found:
            if len(columns["row"]) == len(row_B):
                keep_B: slice | np.ndarray = slice(None)
            else:
                keep_B = np.isin(columns["row"], row_B)
            if feature_BD is not None:
                features.append(feature_BD[keep_B])
            facts.append({name: column_B[keep_B] for name, column_B in columns.items() if name != "row"})
        groups = self._catalogue.values(GROUP[self._split], start, stop)
        counts = found[0][2] if len(found) == 1 else None  # what counts depends on no checkpoint
        return FeatureRows(row_B, [groups[row - start] for row in row_B.tolist()], features, facts, counts)

    @cached_property
    def _readers(self) -> list[RangeReader]:
        return [RangeReader(store) for store in self._stores]


class RangeReader:
    """Ranges of rows of one datastore."""

    def __init__(self, store: Datastore) -> None:
        self._store = store
        last = [-1]  # rows ascend over the parts, so the last row of each is enough to find a range
        for number in range(len(store.part_lengths)):
            last.append(int(store.plain(number, "row")[-1]))
            if last[-1] <= last[-2]:
                raise ArtifactMismatch(f"{store.folder}: rows of part {number} do not come after those before it")
        names = store.part(0).column_names if len(last) > 1 else []
        self._vectors, self._counts = "feature" in names, "bucket" in names
        self._last = np.array(last[1:], dtype=np.int64)

    def read(self, start: int, stop: int) -> tuple[Mapping[str, np.ndarray], np.ndarray | None, SparseRows | None]:
        """Return the plain columns (row among them), feature_BD and counts of the rows in [start, stop), ascending.

        None stands for what the datastore does not hold.
        """
        columns: dict[str, list[np.ndarray]] = {"row": [np.zeros(0, np.int64)]}
        features, counts = [np.zeros((0, self._store.dimension), np.float16)] if self._vectors else [], []
        for number in range(int(np.searchsorted(self._last, start)), len(self._last)):
            table = self._store.part(number)
            row_B = table["row"].to_numpy()
            low, high = np.searchsorted(row_B, (start, stop))
            for field in table.schema:
                if not pa.types.is_nested(field.type):
                    columns.setdefault(field.name, []).append(table[field.name].to_numpy()[low:high])
            if self._vectors:
                features.append(decoded(table, self._store.dimension, int(low), int(high)))
            if self._counts:
                counts.append(counts_of(table.slice(low, high - low), self._store.folder))
            if row_B[-1] >= stop - 1:
                break
        plain = {name: np.concatenate(found) for name, found in columns.items()}
        return (
            plain,
            np.concatenate(features) if self._vectors else None,
            joined_counts(counts) if self._counts else None,
        )
