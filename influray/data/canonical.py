"""A row of a table as a line of JSON, which stands for it from then on."""

from __future__ import annotations

import json
import math
from typing import Any

from influray.data.records import BadRow


def canonical_line(tree: Any, max_line_bytes: int) -> bytes | BadRow:
    """Return a row as one line of JSON: UTF-8, keys in the order of the columns, no spaces, NaN and Infinity null."""
    try:
        try:
            text = json.dumps(tree, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        except ValueError:
            text = json.dumps(_finite(tree), ensure_ascii=False, separators=(",", ":"))
        row = text.encode("utf-8")
    except (ValueError, RecursionError) as error:
        return BadRow(f"a value has no JSON form: {error}")
    if len(row) > max_line_bytes:
        return BadRow(f"the row has {len(row)} bytes as JSON, data.max_line_bytes is {max_line_bytes}")
    return row


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
