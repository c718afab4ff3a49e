"""Functions that the selection driver is given in its tests."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from influray.protocols import DataError
from influray.selectors import candidates, journal, output
from influray.store import ranges


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


def select(run_dir: str, selector: dict, die_at: int | None = None, mapper=None, on_progress=None) -> dict:
    """Carry out a selector over ranges of few rows and candidates of few rows; the first time, die at that pick."""
    ranges.RANGE_ROWS, ranges.SMALL = 256, 0
    candidates.SAMPLE_ROWS, candidates.MAX_HELD = 64, 8 * 12 * 150
    journal.SECONDS, journal.SHARE, journal.LOOK_EVERY = 0.0, 0, 8
    heard = Path(run_dir) / "heard"

    def note(chosen: int, budget: int) -> None:
        with open(heard, "a") as file:
            file.write(f"{os.getpid()} {chosen}\n")
        on_progress(chosen, budget)
        if chosen == die_at and len({line.split()[0] for line in heard.read_text().splitlines()}) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return output.select_and_write(run_dir, selector, "f" * 64, mapper=mapper, on_progress=note)


def total(blocks, start: int, mark: str = "") -> tuple[int, float, int]:
    """A range call: its start, the sum of its scores and who summed; the first that finds no mark kills its process."""
    if mark and start >= 512:
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return start, float(sum(block.sum(dtype="float64") for _, block in blocks)), os.getpid()


def refuse_range(blocks, start: int) -> None:
    raise DataError(f"attribution: row {start} is bad")
