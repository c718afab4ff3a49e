"""Functions that the selection driver is given in its tests."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from influray.protocols import DataError


def write(folder: str, name: str, seconds: float = 0.0) -> dict[str, str]:
    """Add a line to a file, after some time."""
    time.sleep(seconds)
    with open(Path(folder) / name, "a") as file:
        file.write(f"{os.getpid()}\n")
    return {"name": name}


def die_once(folder: str, name: str) -> dict[str, str]:
    """Kill this process the first time."""
    mark = Path(folder) / f"{name}.died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return write(folder, name)


def die(folder: str) -> None:
    """Kill this process every time."""
    with open(Path(folder) / "deaths", "a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    raise DataError("attribution: the matrix has no rows")
