"""Named arrays as an Arrow table of one line, so that they are committed and mapped as any shard is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from influray.store.artifact import checked_table
from influray.store.mirror import local


@dataclass(frozen=True)
class ArraysFile:
    """Where named arrays were committed, on any machine, and the content of the file."""

    address: str
    sha256: str

    def read(self) -> dict[str, np.ndarray]:
        """Return the arrays, read-only views of the file. Raises DamagedArtifact."""
        return arrays_of(checked_table(local(self.address), self.sha256))


def arrays_table(arrays: Mapping[str, np.ndarray]) -> pa.Table:
    """Return the table of the arrays, none of them empty; names in the order of the mapping."""
    columns, fields = [], []
    for name, array in arrays.items():
        assert array.size, f"{name}: an empty array"
        values = pa.array(np.ascontiguousarray(array).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(values, array.size))
        fields.append(pa.field(name, columns[-1].type, metadata={"shape": json.dumps(array.shape)}))
    return pa.table(columns, schema=pa.schema(fields))


def arrays_of(table: pa.Table) -> dict[str, np.ndarray]:
    """Return the arrays of a mapped table, read-only views of the file."""
    found = {}
    for field in table.schema:
        column = table[field.name].chunk(0)
        shape = json.loads((field.metadata or {})[b"shape"])
        found[field.name] = column.flatten().to_numpy(zero_copy_only=True).reshape(shape)
    return found


def add_arrays(total: dict[str, np.ndarray], part: Mapping[str, np.ndarray]) -> None:
    """Add the arrays of `part` to those of `total` in place, float64; a name that is new there begins with it."""
    for name, array in part.items():
        if name in total:
            total[name] += array
        else:
            total[name] = np.array(array, np.float64)
