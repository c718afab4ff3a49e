"""influray chooses training data for instruction tuning by influence, evenly over the tasks.

Importing it is cheap: everything heavy is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from influray.protocols import ArtifactMismatch, ConfigError, DataError, Selection

__version__ = "0.1.0"

_LAZY = {"select": "influray.selectors.api", "run": "influray.pipeline", "load_config": "influray.config"}

__all__ = ["ArtifactMismatch", "ConfigError", "DataError", "Selection", "load_config", "run", "select"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'influray' has no attribute {name!r}")
