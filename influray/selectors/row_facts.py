"""What a caller gives beside the matrix: facts of its rows, as columns of any kind, and their feature rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from influray.protocols import ConfigError, DataError, SelectionProblem, UnitRows
from influray.store.attribution import as_array


def given_facts(rows: Any, total: int) -> dict[str, Any]:
    """Return the columns of `rows` by name, each a list of `total` plain Python values; tokens as int64.

    `rows` is a mapping of columns, a data frame or an Arrow table.

    Raises:
        ConfigError: no columns by name, a column of another length or of more than one dimension, or tokens that are
            not counts.
    """
    if rows is None:
        return {}
    names = getattr(rows, "column_names", None)  # of Arrow, whose own keys() some versions lack
    if names is None:
        if not hasattr(rows, "keys"):
            raise ConfigError(
                f"rows: found {type(rows).__name__}, expected columns by name, such as {{'tokens': [...]}}"
            )
        names = list(rows.keys())
    return {str(name): _column(str(name), rows[name], total) for name in names}


def _column(name: str, given: Any, total: int) -> Any:
    if isinstance(given, str | bytes | Mapping) or not (hasattr(given, "__len__") and hasattr(given, "__iter__")):
        raise ConfigError(f"rows.{name}: found {type(given).__name__}, expected one value per row")
    if hasattr(given, "to_pylist"):
        values = given.to_pylist()
    elif hasattr(given, "tolist"):  # numpy, torch, pandas
        values = given.tolist()
    else:
        values = [value.item() if isinstance(value, np.generic) else value for value in given]
    if not isinstance(values, list) or len(values) != total:
        count = len(values) if isinstance(values, list) else 1
        raise ConfigError(f"rows.{name}: {count} values for {total} rows of the attribution matrix")
    for place, value in enumerate(values):
        if isinstance(value, list | tuple | dict | set):
            raise ConfigError(f"rows.{name}: found {type(value).__name__} at row {place}, expected one value per row")
    return _counts(name, values) if name == "tokens" else values


def _counts(name: str, values: list[Any]) -> np.ndarray:
    for place, value in enumerate(values):
        whole = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**63
        if not whole or value != int(value):
            raise ConfigError(f"rows.{name}: found {value!r} at row {place}, expected a number of tokens, 0 or more")
    return np.array([int(value) for value in values], np.int64)


def features_of(problem: SelectionProblem, method: str) -> UnitRows:
    """Return the features of the rows that a method compares. Raises ConfigError where there are none."""
    if problem.features is None:
        raise ConfigError(f"features: {method!r} compares the rows of the pool; give their features, [N, D]")
    return problem.features


class ArrayFeatures:
    """Feature rows in memory: one array [N, D], or one per checkpoint, all checkpoints with the same weight.

    Raises:
        DataError: not two-dimensional numbers, or not of N rows.
    """

    def __init__(self, features: Any, rows: int) -> None:
        several = isinstance(features, list | tuple) and bool(features) and np.ndim(as_array(features[0])) == 2
        self._arrays = [as_array(array) for array in (features if several else [features])]
        for array in self._arrays:
            if array.ndim != 2 or array.dtype.kind not in "fiu" or len(array) != rows:
                raise DataError(f"features: found {array.dtype} of shape {array.shape}, expected numbers [{rows}, D]")

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the unit rows of these positions in the order given, [B, D] float32; a zero row stays zero."""
        whole_BD = np.concatenate([array[rows].astype(np.float64) for array in self._arrays], axis=1)
        norm_B = np.linalg.norm(whole_BD, axis=1, keepdims=True)
        return (whole_BD / np.where(norm_B > 0, norm_B, 1.0)).astype(np.float32)
