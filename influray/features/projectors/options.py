"""Reading `features.projector.options`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influray.protocols import ConfigError

KEY = "features.projector"


def read_options(name: str, given: Mapping[str, Any], known: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Return integer options with their defaults; `known` has (default, lowest value).

    Raises:
        ConfigError: an option that is not known, not an integer, or too low.
    """
    for key, value in given.items():
        if key not in known:
            there = f"it knows {', '.join(sorted(known))}" if known else "it has no options"
            raise ConfigError(f"{KEY}.options.{key}: {name} has no such option; {there}")
        if isinstance(value, bool) or not isinstance(value, int) or value < known[key][1]:
            raise ConfigError(f"{KEY}.options.{key}: found {value!r}; it must be an integer >= {known[key][1]}")
    return {key: given.get(key, default) for key, (default, _) in known.items()}
