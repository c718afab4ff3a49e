"""The datastore: feature rows of one split at one checkpoint, in row order, memory-mapped.

Shape suffixes: N rows of the split, B rows of one part, D feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from influray.protocols import FeatureBlock
from influray.store.artifact import map_table, part_paths, require_manifest
from influray.store.encodings import decoded, encoded


def feature_table(blocks: Sequence[FeatureBlock], dimension: int, encoding: str = "float16") -> pa.Table:
    """Return the Arrow table of a shard: the rows of all blocks, ascending, features kept as `encoding` says."""

    def joined(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *(getattr(block, name) for block in blocks)]).astype(
            dtype, copy=False
        )

    row_B = joined("row_B", np.int64)
    order_B = np.argsort(row_B, kind="stable")
    feature_BD = np.concatenate([np.zeros((0, dimension), np.float16), *(block.feature_BD for block in blocks)])[
        order_B
    ]
    columns = {
        "row": pa.array(row_B[order_B]),
        **encoded(feature_BD, encoding),
        "norm": pa.array(joined("norm_B", np.float32)[order_B]),
        "grad_norm": pa.array(joined("grad_norm_B", np.float32)[order_B]),
        "loss": pa.array(joined("loss_B", np.float32)[order_B]),
        "loss_tokens": pa.array(joined("loss_tokens_B", np.int32)[order_B]),
    }
    return pa.table(columns)


class Datastore:
    """A committed datastore. `manifest` tells how it was made; rows that failed are not in it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = require_manifest(self.folder, "featurize")
        self.dimension: int = self.manifest["dimension"]

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    def parts(self) -> Iterator[pa.Table]:
        """Yield the mapped table of each part, rows ascending."""
        for path in part_paths(self.folder, self.manifest):
            yield map_table(path)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (row_B int64, feature_BD float16), rows ascending; views of the files where nothing is to decode."""
        for table in self.parts():
            yield table["row"].to_numpy(), decoded(table, self.dimension)

    def column(self, name: str) -> np.ndarray:
        """Return a plain column (row, norm, grad_norm, loss, loss_tokens) of all rows, [N]."""
        return np.concatenate(
            [np.zeros(0, np.int64 if name == "row" else np.float32)] + [t[name].to_numpy() for t in self.parts()]
        )

    def features(self) -> np.ndarray:
        """Return all feature rows, [N, D] float16, copied into memory."""
        return np.concatenate([np.zeros((0, self.dimension), np.float16)] + [block for _, block in self.blocks()])
