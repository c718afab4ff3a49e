"""influray chooses training data for instruction tuning by influence, evenly over the tasks.

Importing it is cheap: everything heavy is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from influray.protocols import ArtifactMismatch, ConfigError, DataError, Selection

if TYPE_CHECKING:
    from influray.config import load_config
    from influray.pipeline import blame, pilot, run, validate, value
    from influray.plugins import allow_plugins
    from influray.runs import open_run
    from influray.selectors.api import select

    __version__: str

_LAZY = {
    "select": "influray.selectors.api",
    "run": "influray.pipeline",
    "validate": "influray.pipeline",
    "blame": "influray.pipeline",
    "pilot": "influray.pipeline",
    "value": "influray.pipeline",
    "open_run": "influray.runs",
    "load_config": "influray.config",
    "allow_plugins": "influray.plugins",
}

__all__ = [
    "ArtifactMismatch",
    "ConfigError",
    "DataError",
    "Selection",
    "allow_plugins",
    "blame",
    "load_config",
    "open_run",
    "pilot",
    "run",
    "select",
    "validate",
    "value",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("influray")
    raise AttributeError(f"module 'influray' has no attribute {name!r}")
