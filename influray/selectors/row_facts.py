"""Per-row facts that a caller gives as columns of any kind: lists, arrays, tensors, data frames, Arrow tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from influray.protocols import ConfigError


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
