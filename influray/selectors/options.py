"""Reading the options of a selector: a wrong one is a ConfigError that lists what would be right."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from influray.protocols import ConfigError

Value = TypeVar("Value")


def look_up(table: Mapping[str, Value], name: Any, key: str, kind: str) -> Value:
    """Return the entry of `table`. Raises ConfigError at `key` with the nearest name."""
    if isinstance(name, str) and name in table:
        return table[name]
    raise ConfigError(f"{key}: no {kind} is called {name!r}{near(str(name), table)} (known: {', '.join(table)})")


def near(name: str, known: Mapping[str, Any]) -> str:
    """Return "; did you mean ...?" where a known name is like this one, else an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def boolean(value: Any, key: str) -> bool:
    """Return `value` if it is true or false. Raises ConfigError at `key`."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: found {value!r}, expected true or false")
    return value


def positive_weights(value: Any, key: str) -> dict[str, float]:
    """Return name -> weight, every weight a finite number above 0. Raises ConfigError at `key`."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: found {value!r}, expected a mapping of task to weight")
    weights = {}
    for name, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ConfigError(f"{key}.{name}: found {weight!r}, expected a number above 0")
        weights[str(name)] = float(weight)
    return weights


def number(value: Any, key: str, low: float, high: float, *, open_low: bool = False) -> float:
    """Return a number from `low` to `high`, without the former where `open_low`. Raises ConfigError at `key`."""
    right = not isinstance(value, bool) and isinstance(value, int | float) and low <= value <= high
    if not right or not math.isfinite(value) or (open_low and value == low):
        reach = f" to {high:g}" if math.isfinite(high) else " or more"
        expected = f"a number above {low:g}{'' if high == math.inf else f', at most {high:g}'}"
        raise ConfigError(f"{key}: found {value!r}, expected {expected if open_low else f'a number of {low:g}{reach}'}")
    return float(value)


def whole_number(value: Any, key: str, low: int) -> int:
    """Return an integer of `low` or more. Raises ConfigError at `key`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{key}: found {value!r}, expected an integer of {low} or more")
    return value


def generator(seed: int) -> np.random.Generator:
    """Return the generator of a seed, the same on every machine. Raises ConfigError where it is negative."""
    if seed < 0:
        raise ConfigError(f"seed: found {seed}, expected an integer of 0 or more")
    return np.random.Generator(np.random.PCG64(seed))
