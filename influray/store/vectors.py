"""The vectors whose inner products are the attribution matrix, read from the datastores of a run.

A pool row's vector holds its stored rows of all K checkpoints one after the other, each times the square root of the
checkpoint's weight; a query's likewise. Then one inner product is A[i, j] = sum_k w_k <g_ki, v_kj>. Where the scorer
compares rows with their norms (`similarity: dot`), both sides carry theirs.

Shape suffixes: N pool rows, B rows of a block, T targets, Q queries, D feature, F = K * D numbers of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influray.protocols import ArtifactMismatch, DataError
from influray.store.artifact import fingerprint, require_manifest
from influray.store.datastore import Datastore, common_rows, features_digest, plain_of
from influray.store.encodings import decoded, decoded_at, widen
from influray.store.run_directory import RunDirectory

ASKABLE = "inner_product"  # the scorer whose lines are inner products of stored rows


class SplitVectors:
    """The vectors of the rows of a split that are valid at all K checkpoints.

    `rows` int64 [N]: their catalogue rows, ascending. `weights` float64 [K]. `similarity` is that of the matrix,
    cosine or dot. `digest` changes whenever a vector does.

    Raises:
        ArtifactMismatch: the matrix is not there or of another scorer, or the datastores are not those it was made of.
    """

    block_bytes = 2**23  # stay in the cache between conversion and product

    def __init__(self, directory: RunDirectory, split: str = "pool") -> None:
        self.directory = directory
        matrix = _askable_matrix(directory)
        self.similarity: str = matrix["options"].get("similarity", "cosine")
        self.weights = np.array(matrix["weights"], np.float64)
        numbers = range(1, len(self.weights) + 1)
        self._stores = [_StoredRows(directory.features(split, k), self.similarity == "dot") for k in numbers]
        self.dimension = sum(store.dimension for store in self._stores)
        parts = features_digest([store.content for store in self._stores])
        if split == "pool" and parts != matrix["pool_features"]:
            raise ArtifactMismatch(
                f"{directory.attribution}: was made of other features than those in {directory.features('pool', 1)}; "
                "run `influray score` again"
            )
        self.digest = fingerprint([parts, matrix["weights"], self.similarity])

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> np.ndarray:
        """The catalogue rows, int64 [N], ascending; read from the datastores when first asked for."""
        return self._rows

    @cached_property
    def _rows(self) -> np.ndarray:
        return common_rows([store.rows for store in self._stores])

    def check_ahead(self) -> None:
        """Begin to check all datastores in the background, for who is about to read all of them."""
        for store in self._stores:
            store.check_ahead()

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (position of the first row, float32 [B, F]) over the positions [start, stop), B = `size` but the last.

        A block is read into fresh memory; nothing else is held.
        """
        end = len(self.rows) if stop is None else min(stop, len(self.rows))
        for low in range(start, end, size):
            block_BF = np.empty((min(low + size, end) - low, self.dimension), np.float32)
            self.read(low, block_BF)
            yield low, block_BF

    def read(self, start: int, out_BF: np.ndarray) -> None:
        """Write the vectors at the positions from `start` to `out_BF`, float32."""
        self.read_at(np.arange(start, start + len(out_BF)), out_BF)

    def block(self, start: int, space_BF: np.ndarray) -> np.ndarray:
        """Return the vectors at the positions from `start`, written to `space_BF`."""
        self.read(start, space_BF)
        return space_BF

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the vectors at these positions in `rows`, in the order given, float32 [len(positions), F]."""
        position_B, back_B = np.unique(np.asarray(positions, np.int64), return_inverse=True)
        out_BF = np.empty((len(position_B), self.dimension), np.float32)
        self.read_at(position_B, out_BF)
        return out_BF[back_B]

    def positions_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the positions of catalogue rows, int64, in the order given.

        Raises:
            DataError: a row has no vector; it names the row.
        """
        rows = np.asarray(rows, np.int64)
        place_B = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        missing_B = self.rows[place_B] != rows if len(self.rows) else np.ones(len(rows), bool)
        if missing_B.any():
            row = int(rows[missing_B][0])
            raise DataError(f"row {row}: has no feature at every checkpoint; the quarantine says why")
        return place_B

    def query(self, unit_KQD: Sequence[np.ndarray], norm_KQ: Sequence[np.ndarray]) -> np.ndarray:
        """Return the vectors of new rows, float32 [Q, F], from unit rows and the norms they had, per checkpoint."""
        if self.similarity == "dot":
            unit_KQD = [unit * np.asarray(norm)[:, None] for unit, norm in zip(unit_KQD, norm_KQ, strict=True)]
        return join_checkpoints(unit_KQD, self.weights)

    def read_at(self, position_B: np.ndarray, out_BF: np.ndarray) -> None:
        """Write the vectors at ascending positions, none twice, to `out_BF`, float32."""
        column = 0
        for store, line_N, weight in zip(self._stores, self._lines, self.weights.tolist(), strict=True):
            line_B = position_B if line_N is None else line_N[position_B]
            store.read(line_B, np.float32(math.sqrt(weight)), out_BF[:, column : column + store.dimension])
            column += store.dimension

    @cached_property
    def _lines(self) -> list[np.ndarray | None]:
        """Per checkpoint: the line of each row in its datastore; None where line i is row i."""
        same = [len(store.rows) == len(self.rows) for store in self._stores]
        return [
            None if all_there else np.searchsorted(store.rows, self.rows)
            for store, all_there in zip(self._stores, same, strict=True)
        ]


class PoolVectors(SplitVectors):
    """The vectors of the pool. `rows` are those of the attribution matrix. Raises as `SplitVectors`."""

    def __init__(self, directory: RunDirectory) -> None:
        super().__init__(directory, "pool")


def target_vectors(directory: RunDirectory) -> tuple[np.ndarray, np.ndarray]:
    """Return (catalogue rows int64 [T], vectors float32 [T, F]) of the targets, in the order of the columns of A."""
    targets = SplitVectors(directory, "target")
    return targets.rows, targets.take(np.arange(len(targets.rows)))


def join_checkpoints(row_KQD: Sequence[np.ndarray], weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return float32 [Q, F]: the rows of each checkpoint times the square root of its weight, side by side.

    Raises:
        DataError: a number is not finite.
    """
    parts = [
        np.asarray(row_QD, np.float32) * np.float32(math.sqrt(weight))
        for row_QD, weight in zip(row_KQD, weights, strict=True)
    ]
    joined_QF = np.concatenate(parts, axis=1)
    if not np.isfinite(joined_QF).all():
        raise DataError("query: its features are not finite")
    return joined_QF


class _StoredRows:
    """The feature rows of one committed datastore, by line."""

    def __init__(self, folder: Path, with_norm: bool) -> None:
        self._store = Datastore(folder)
        self._with_norm = with_norm
        self.dimension = self._store.dimension
        self._starts = np.cumsum([0, *self._store.part_lengths])
        self.check_ahead = self._store.check_ahead
        self._open: dict[int, pa.Table] = {}
        if self._store.part_lengths and "feature" not in self._part(0).column_names:
            raise ArtifactMismatch(
                f"{folder}: holds no feature vectors, and so none to ask; "
                "take features.featurizer: gradient or representation"
            )

    @property
    def content(self) -> list[str]:
        """The content of each part."""
        return self._store.content

    @cached_property
    def rows(self) -> np.ndarray:
        return self._store.column("row")

    def read(self, line_B: np.ndarray, scale: np.float32, out_BD: np.ndarray) -> None:
        """Write the rows at ascending lines, times `scale` and their norms where they count, to `out_BD` float32."""
        done = 0
        while done < len(line_B):
            number = int(np.searchsorted(self._starts, line_B[done], side="right")) - 1
            stop = int(np.searchsorted(line_B, self._starts[number + 1]))
            table = self._part(number)
            feature_bD, norm_b = self._lines(table, line_B[done:stop] - self._starts[number])
            widen(feature_bD, out_BD[done:stop])
            if scale != 1:
                out_BD[done:stop] *= scale
            if norm_b is not None:
                out_BD[done:stop] *= norm_b[:, None]
            done = stop

    def _lines(self, table: pa.Table, line_b: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        low, high = int(line_b[0]), int(line_b[-1]) + 1
        norm_b = plain_of(table, "norm", self._store.folder)[line_b] if self._with_norm else None
        if high - low == len(line_b):
            return decoded(table, self.dimension, low, high), norm_b
        return decoded_at(table, self.dimension, line_b), norm_b

    def _part(self, number: int) -> pa.Table:
        if number not in self._open:
            self._open[number] = self._store.part(number)
        return self._open[number]


def _askable_matrix(directory: RunDirectory) -> dict[str, Any]:
    """Return the manifest of a matrix whose lines are inner products of stored rows. Raises ArtifactMismatch."""
    matrix = require_manifest(directory.attribution, "score")
    if not {"scorer", "options", "pool_features"} <= matrix.keys():
        raise ArtifactMismatch(f"{directory.attribution}: does not say of what it was made; run `influray score` again")
    if matrix["scorer"] != ASKABLE:
        raise ArtifactMismatch(
            f"{directory.attribution}: made by the scorer {matrix['scorer']}, whose lines are no inner products of "
            f"stored rows and cannot be asked again; attribution.scorer: {ASKABLE} can (similarity cosine or dot)"
        )
    return matrix
