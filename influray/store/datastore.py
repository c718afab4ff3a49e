"""The datastore: what a featurizer makes of one split at one checkpoint, in row order, memory-mapped.

Which columns a row has depends on the featurizer: a feature vector, plain numbers, or counts over buckets.

Shape suffixes: N rows of the split, B rows of one part, D feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from influray.protocols import ArtifactMismatch, FeatureBlock, SparseRows
from influray.store.artifact import checked_table, column_digest, fingerprint, map_table, require_manifest
from influray.store.checks import check_ahead, damage
from influray.store.encodings import as_column, decoded, encoded_rows
from influray.store.mirror import local

# One number a row; what a block has beside them follows.
PLAIN: dict[str, type] = {"norm": np.float32, "grad_norm": np.float32, "loss": np.float32, "loss_tokens": np.int32}


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """The rows of a block as a part keeps them: one value a row in every column, or a fixed number of them."""

    row_B: np.ndarray  # int64
    columns: dict[str, np.ndarray]
    counts: SparseRows | None


def encoded_block(block: FeatureBlock, dimension: int, encoding: str) -> EncodedBlock:
    """Return the rows of a block in the columns that it has, in its order; vectors are kept as `encoding` says."""
    columns: dict[str, np.ndarray] = {}
    if block.feature_BD is not None:
        width = block.feature_BD.shape[1]
        assert width == dimension, f"the featurizer's rows have {width} numbers, its dimension is {dimension}"
        columns |= encoded_rows(block.feature_BD.astype(np.float16, copy=False), encoding)
    for name, dtype in PLAIN.items():
        value_B = getattr(block, f"{name}_B")
        if value_B is not None:
            columns[name] = value_B.astype(dtype, copy=False)
    return EncodedBlock(block.row_B.astype(np.int64, copy=False), columns | dict(block.extra), block.counts)


def part_table(blocks: Sequence[EncodedBlock]) -> pa.Table:
    """Return the Arrow table of a shard: the rows of all blocks, one at least, ascending.

    Counts become two columns of lists, `bucket` and `count`, of equal lengths.
    """
    row_B = np.concatenate([block.row_B for block in blocks])
    order_B = np.argsort(row_B, kind="stable")
    columns: dict[str, pa.Array] = {"row": pa.array(row_B[order_B])}
    for name in blocks[0].columns:
        columns[name] = as_column(np.concatenate([block.columns[name] for block in blocks])[order_B])
    counts = [block.counts for block in blocks if block.counts is not None]
    for name in ("bucket", "count") if counts else ():
        lists = [pa.ListArray.from_arrays(pa.array(c.offset), pa.array(getattr(c, name))) for c in counts]
        columns[name] = pa.concat_arrays(lists).take(pa.array(order_B))
    return pa.table(columns)


def feature_table(blocks: Sequence[FeatureBlock], dimension: int, encoding: str = "float16") -> pa.Table:
    """Return the Arrow table of a shard of these blocks, one at least, as `part_table` has it."""
    return part_table([encoded_block(block, dimension, encoding) for block in blocks])


class PartBuilder:
    """Blocks of a shard, encoded by a thread while the next ones are computed. Leaving it ends the thread."""

    def __init__(self, dimension: int, encoding: str) -> None:
        self._dimension, self._encoding = dimension, encoding
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="part")
        self._blocks: list[Future[EncodedBlock]] = []

    def __enter__(self) -> PartBuilder:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, block: FeatureBlock) -> None:
        self._blocks.append(self._thread.submit(encoded_block, block, self._dimension, self._encoding))

    def table(self) -> pa.Table | None:
        """Return the table of all blocks so far; None of none. What encoding them raised is raised here, unchanged."""
        blocks = [block.result() for block in self._blocks]
        return part_table(blocks) if blocks else None


class Datastore:
    """A committed datastore. `manifest` tells how it was made; rows that failed are not in it.

    A part is checked as a whole when its features are first read; a plain column that is read alone, by its own digest.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = local(folder)
        self.manifest = require_manifest(self.folder, "featurize")
        self.dimension: int = self.manifest["dimension"]
        self._parts = [part for part in self.manifest["parts"] if part["file"]]

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    @property
    def part_lengths(self) -> list[int]:
        """Rows of each part that has a file."""
        return [part["rows"] for part in self._parts]

    @property
    def content(self) -> list[str]:
        """The sha256 of each shard's part, "" where it left none."""
        return [part["sha256"] for part in self.manifest["parts"]]

    def check_ahead(self) -> None:
        """Begin to check all parts in the background."""
        check_ahead((self.folder / part["file"], part["sha256"]) for part in self._parts)

    def part(self, number: int) -> pa.Table:
        """Return the mapped table of a part that has a file. Raises DamagedArtifact."""
        return checked_table(self.folder / self._parts[number]["file"], self._parts[number]["sha256"])

    def parts(self) -> Iterator[pa.Table]:
        """Yield the mapped table of each part, rows ascending. Raises DamagedArtifact."""
        return map(self.part, range(len(self._parts)))

    def plain(self, number: int, name: str) -> np.ndarray:
        """Return a plain column of a part, a view of the file, of which nothing else is read.

        Raises:
            ArtifactMismatch: it has no such column.
            DamagedArtifact: it is not what was committed.
        """
        part = self._parts[number]
        if name not in part["columns"]:
            _require(self.part(number), name, self.folder)
        path = self.folder / part["file"]
        table = map_table(path)
        try:
            table[name].validate()
            right = len(table) == part["rows"] and column_digest(table, name) == part["columns"][name]
        except (KeyError, ValueError, TypeError, pa.ArrowException):
            right = False
        if not right:
            raise damage(path, f"not what was committed (its column {name})")
        return table[name].to_numpy()

    def column(self, name: str) -> np.ndarray:
        """Return a plain column (row, norm, loss_tokens ...; which there are depends on the featurizer), [N].

        Raises:
            ArtifactMismatch: a datastore of this featurizer has no such column.
        """
        found = [self.plain(number, name) for number in range(len(self._parts))]
        return np.concatenate(found or [np.zeros(0, np.int64 if name == "row" else np.float32)])

    def features(self) -> np.ndarray:
        """Return all feature rows, [N, D] float16, copied into memory."""
        blocks = [decoded(table, self.dimension) for table in self.parts()]
        return np.concatenate([np.zeros((0, self.dimension), np.float16), *blocks])

    def counts(self) -> SparseRows:
        """Return the counts of all rows, copied into memory.

        Raises:
            ArtifactMismatch: a datastore of this featurizer has none.
        """
        return joined_counts([counts_of(table, self.folder) for table in self.parts()])


def common_rows(rows_K: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rows that are in every one of the ascending arrays, ascending."""
    common = rows_K[0]
    for other in rows_K[1:]:
        common = np.intersect1d(common, other, assume_unique=True)
    return common


def features_digest(parts_K: Sequence[Sequence[str]]) -> str:
    """Return what identifies the datastores of a split: the content of their parts, checkpoint by checkpoint."""
    return fingerprint([list(parts) for parts in parts_K])


def plain_of(table: pa.Table, name: str, folder: str | Path) -> np.ndarray:
    """Return a plain column of a part. Raises ArtifactMismatch, naming `folder`, where there is none."""
    _require(table, name, folder)
    return table[name].to_numpy()


def counts_of(table: pa.Table, folder: str | Path) -> SparseRows:
    """Return the counts of a part, or of a slice of one. Raises ArtifactMismatch where there are none."""
    _require(table, "bucket", folder)
    bucket, count = (_one_chunk(table[name]) for name in ("bucket", "count"))
    offset = bucket.offsets.to_numpy()  # of a slice too: they begin where it does
    return SparseRows(offset - offset[0], bucket.flatten().to_numpy(), count.flatten().to_numpy())


def joined_counts(parts: Sequence[SparseRows]) -> SparseRows:
    """Return the rows of all parts, one after the other."""
    empty = np.zeros(0, np.int32)
    length = np.concatenate([empty, *(np.diff(part.offset) for part in parts)])
    return SparseRows(
        offset=np.concatenate([[0], np.cumsum(length, dtype=np.int64)]),
        bucket=np.concatenate([empty, *(part.bucket for part in parts)]),
        count=np.concatenate([empty, *(part.count for part in parts)]),
    )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    chunk = column.combine_chunks()
    return chunk.chunk(0) if isinstance(chunk, pa.ChunkedArray) else chunk


def _require(table: pa.Table, name: str, folder: str | Path) -> None:
    if name not in table.column_names:
        there = ", ".join(table.column_names)
        raise ArtifactMismatch(
            f"{folder}: has no column {name!r}, only {there}; choose the features.featurizer that makes it, "
            "and run `influray featurize` again"
        )
