"""The one reader of feature rows: those of a split that are in the datastores of all K checkpoints.

Rows are asked for by position, the ordinal among them. A part is mapped and checked when it is first read.

Shape suffixes: N rows of the split, B rows asked for, b rows of one part, D feature, K checkpoints, F numbers of a
vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from influray.protocols import ArtifactMismatch, DataError, SparseRows
from influray.store.datastore import Datastore, common_rows, counts_of, joined_counts, plain_of
from influray.store.encodings import decoded, widen

OPEN_PARTS = 1024  # mapped at a time of each checkpoint: those that are read again and again stay

Where = slice | np.ndarray  # lines of a part


class StoredRows:
    """The feature rows of one committed datastore, by line. `open_parts` of its files stay mapped."""

    def __init__(self, folder: str | Path, open_parts: int = OPEN_PARTS) -> None:
        self.store = Datastore(folder)
        self.dimension = self.store.dimension
        self._starts = np.cumsum([0, *self.store.part_lengths])
        self._part = lru_cache(maxsize=open_parts)(self.store.part)

    @cached_property
    def rows(self) -> np.ndarray:
        """The catalogue rows, int64, ascending. Raises ArtifactMismatch where they are not."""
        rows = self.store.column("row")
        if (wrong := np.flatnonzero(np.diff(rows) <= 0)).size:
            number = int(np.searchsorted(self._starts, wrong[0] + 1, side="right")) - 1
            raise ArtifactMismatch(f"{self.store.folder}: rows of part {number} do not come after those before it")
        return rows

    def require_vectors(self, use: str) -> None:
        """Raise ArtifactMismatch where the rows have no feature vectors; `use` says what needs them."""
        if self.store.part_lengths and "feature" not in self._part(0).column_names:
            raise ArtifactMismatch(
                f"{self.store.folder}: holds no feature vectors, {use}; "
                "take features.featurizer: gradient or representation"
            )

    def pieces(self, line_B: np.ndarray) -> Iterator[tuple[slice, pa.Table, Where]]:
        """Yield for ascending lines, none twice: which of them, the part that holds these, and where in it."""
        done = 0
        while done < len(line_B):
            number = int(np.searchsorted(self._starts, line_B[done], side="right")) - 1
            stop = int(np.searchsorted(line_B, self._starts[number + 1]))
            at_b = line_B[done:stop] - self._starts[number]
            low, high = int(at_b[0]), int(at_b[-1]) + 1
            yield slice(done, stop), self._part(number), slice(low, high) if high - low == len(at_b) else at_b
            done = stop

    def columns(self, line_B: np.ndarray) -> tuple[np.ndarray | None, dict[str, np.ndarray], SparseRows | None]:
        """Return (feature_BD float16, plain columns by name, counts) of ascending lines; None where there are none.

        Arrays are views of the file where they are neighbours in one part and nothing is to decode.
        """
        features, counts, plain = [], [], {}
        for _, table, where in self.pieces(line_B):
            for field in table.schema:
                if not pa.types.is_nested(field.type):
                    plain.setdefault(field.name, []).append(table[field.name].to_numpy()[where])
            if "feature" in table.column_names:
                features.append(decoded(table, self.dimension, where))
            if "bucket" in table.column_names:
                part = table[where] if isinstance(where, slice) else table.take(where)
                counts.append(counts_of(part, self.store.folder))
        return (
            _joined(features) if features else None,
            {name: _joined(found) for name, found in plain.items()},
            joined_counts(counts) if counts else None,
        )

    def write(self, line_B: np.ndarray, scale: np.float32, out_BD: np.ndarray, with_norm: bool = False) -> None:
        """Write the features of ascending lines, times `scale` and, if asked, their norms, to `out_BD`, float32."""
        for here, table, where in self.pieces(line_B):
            widen(decoded(table, self.dimension, where), out_BD[here])
            if scale != 1:
                out_BD[here] *= scale
            if with_norm:
                out_BD[here] *= plain_of(table, "norm", self.store.folder)[where][:, None]


class SplitFeatures:
    """The rows of a split that have a feature at each of K checkpoints, whatever parts hold them."""

    def __init__(self, folders: Sequence[Path], open_parts: int = OPEN_PARTS) -> None:
        self.stores = [StoredRows(folder, open_parts) for folder in folders]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> np.ndarray:
        """The catalogue rows, int64 [N], ascending; read from the datastores when first asked for."""
        return self._rows

    @cached_property
    def _rows(self) -> np.ndarray:
        return common_rows([store.rows for store in self.stores])

    @cached_property
    def _lines(self) -> list[np.ndarray | None]:
        """Per checkpoint: the line of each row in its datastore; None where line i is row i."""
        return [
            None if len(store.rows) == len(self.rows) else np.searchsorted(store.rows, self.rows)
            for store in self.stores
        ]

    def each(self, position_B: np.ndarray) -> Iterator[tuple[StoredRows, np.ndarray]]:
        """Yield for every checkpoint (its rows, the lines of these positions in it)."""
        for store, line_N in zip(self.stores, self._lines, strict=True):
            yield store, position_B if line_N is None else line_N[position_B]

    def columns(
        self, start: int, stop: int
    ) -> tuple[np.ndarray, list[np.ndarray], Sequence[Mapping[str, np.ndarray]], SparseRows | None]:
        """Return (row_B, feature_KBD, plain columns per checkpoint, counts) of the catalogue rows in [start, stop).

        Features are float16, and none where there are no vectors; counts are those of a single checkpoint.
        """
        position_B = np.arange(*np.searchsorted(self.rows, (start, stop)))
        found = [store.columns(line_B) for store, line_B in self.each(position_B)]
        features = [feature_BD for feature_BD, _, _ in found if feature_BD is not None]
        facts = [{name: value for name, value in plain.items() if name != "row"} for _, plain, _ in found]
        return self.rows[position_B], features, facts, found[0][2] if len(found) == 1 else None


class JoinedRows(SplitFeatures):
    """The rows of all checkpoints side by side, each times the root of its weight, float32 [N, F].

    A product of two such rows is the weighted sum of the checkpoints' products. `with_norm` gives the stored unit rows
    the norms they had.
    """

    def __init__(self, folders: Sequence[Path], weights: Sequence[float] | np.ndarray, with_norm: bool = False) -> None:
        super().__init__(folders)
        self.weights = np.array(weights, np.float64)  # [K]
        self._with_norm = with_norm
        self.dimension = sum(store.dimension for store in self.stores)

    def read_at(self, position_B: np.ndarray, out_BF: np.ndarray) -> None:
        """Write the rows at ascending positions, none twice, to `out_BF`, float32."""
        column = 0
        for (store, line_B), weight in zip(self.each(position_B), self.weights.tolist(), strict=True):
            here = slice(column, column + store.dimension)
            store.write(line_B, np.float32(math.sqrt(weight)), out_BF[:, here], self._with_norm)
            column = here.stop

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (position of the first row, float32 [B, F]) over the positions [start, stop), B = `size` but the last.

        A block is read into fresh memory; nothing else is held.
        """
        end = len(self.rows) if stop is None else min(stop, len(self.rows))
        for low in range(start, end, size):
            yield low, self.block(low, np.empty((min(low + size, end) - low, self.dimension), np.float32))

    def block(self, start: int, space_BF: np.ndarray) -> np.ndarray:
        """Return the rows at the positions from `start`, written to `space_BF`."""
        self.read_at(np.arange(start, start + len(space_BF)), space_BF)
        return space_BF

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the rows at these positions, in the order given, float32 [len(positions), F]."""
        position_B, back_B = np.unique(np.asarray(positions, np.int64), return_inverse=True)
        out_BF = np.empty((len(position_B), self.dimension), np.float32)
        self.read_at(position_B, out_BF)
        return out_BF if np.array_equal(back_B, np.arange(len(position_B))) else out_BF[back_B]

    def positions_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the positions of catalogue rows, int64, in the order given.

        Raises:
            DataError: one has no feature at a checkpoint; it names the row.
        """
        rows = np.asarray(rows, np.int64)
        place_B = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        missing_B = self.rows[place_B] != rows if len(self.rows) else np.ones(len(rows), bool)
        if missing_B.any():
            row = int(rows[missing_B][0])
            raise DataError(f"row {row}: has no feature at every checkpoint; the quarantine says why")
        return place_B

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return these catalogue rows, made units, in the order given, [B, F] float32; products are cosines.

        A row of zeros stays zero. Raises as `positions_of`.
        """
        out_BF = self.take(self.positions_of(rows))
        norm_B = np.sqrt(np.einsum("bf,bf->b", out_BF, out_BF))
        out_BF /= np.where(norm_B > 0, norm_B, 1)[:, None]
        return out_BF


def run_features(pool: Path, weights: Sequence[float]) -> JoinedRows:
    """Return the features that near-duplicates are told by, of the datastores in `pool`, with checkpoint weights.

    Raises:
        ArtifactMismatch: the datastores are not there, or hold no vectors; or there is no checkpoint.
    """
    if not len(weights):
        raise ArtifactMismatch(f"{pool}: the matrix names no checkpoint; run `influray score` again")
    found = JoinedRows([pool / f"checkpoint-{k}" for k in range(1, len(weights) + 1)], weights)
    for store in found.stores:
        store.require_vectors("which near-duplicates and densities are told by")
    return found


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
