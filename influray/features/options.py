"""Reading `features.options`: a wrong one is a ConfigError that says what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from influray.protocols import ConfigError

KEY = "features.options"


@dataclass(frozen=True, slots=True)
class Option:
    """An option's default, and the check that returns a value or raises ConfigError at its key."""

    default: Any
    check: Callable[[Any, str], Any]


def read_options(name: str, given: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """Return the options of the featurizer `name` with their defaults.

    Raises:
        ConfigError: it has no such option, or not with this value; it names the key.
    """
    for option in given:
        if option not in known:
            near = difflib.get_close_matches(str(option), list(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            there = f"known: {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{KEY}.{option}: {name!r} has no such option{hint} ({there})")
    return {
        option: found.check(given[option], f"{KEY}.{option}") if option in given else found.default
        for option, found in known.items()
    }


def whole_number(low: int, high: int) -> Callable[[Any, str], int]:
    """Return the check of an integer in [low, high]."""

    def check(value: Any, key: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{key}: found {value!r}, expected an integer from {low} to {high}")
        return value

    return check


def one_of(*names: str) -> Callable[[Any, str], str]:
    """Return the check of a name."""

    def check(value: Any, key: str) -> str:
        if value not in names:
            raise ConfigError(f"{key}: found {value!r}, expected {', '.join(names[:-1])} or {names[-1]}")
        return value

    return check
