"""A value with its interval, as tables show it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influray import formatting


def interval(one: Mapping[str, Any], signed: bool = False, digits: int = 2) -> str:
    """Return "0.44 [0.30, 0.54]"."""
    value = formatting.signed(one["value"], digits) if signed else formatting.number(one["value"], digits)
    low, high = (formatting.number(end, digits) for end in one["interval"])
    return f"{value} [{low}, {high}]"
