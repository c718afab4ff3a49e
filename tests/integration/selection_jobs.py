"""Functions that the selection driver is given in its tests."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from influray.protocols import DataError
from influray.runtime import selecting
from influray.selectors import balanced, heads
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
    heads.SAMPLE_ROWS, heads.MAX_HELD = 64, 8 * 12 * 150
    balanced.PROGRESS_ROWS = 8
    heard = Path(run_dir) / "heard"

    def note(chosen: int, budget: int) -> None:
        with open(heard, "a") as file:
            file.write(f"{os.getpid()} {chosen}\n")
        on_progress(chosen, budget)
        if chosen == die_at and len({line.split()[0] for line in heard.read_text().splitlines()}) == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return selecting.select_and_write(run_dir, selector, "f" * 64, mapper=mapper, on_progress=note)


class Fatal:
    """A Mapper that kills the worker of one range, in the middle of the pass that comes after `passes` others."""

    def __init__(self, mapper: ranges.Mapper, mark: str, passes: int) -> None:
        self.threads = mapper.threads
        self._mapper = mapper
        self._mark = mark
        self._left = passes

    def map(self, source: Any, calls: Iterable[ranges.RangeCall]) -> Iterator[Any]:
        self._left -= 1
        return self._mapper.map(source, (self._of(call) for call in calls) if self._left == -1 else calls)

    def _of(self, call: ranges.RangeCall) -> ranges.RangeCall:
        return ranges.RangeCall(fatal, call.start, call.stop, (self._mark, call)) if call.start == 512 else call


def fatal(blocks, start: int, mark: str, call: ranges.RangeCall) -> Any:
    """A range call that reads a block and kills its process the first time, and else is the call it is given."""
    found = list(blocks)
    kill_once(mark)
    return call.function(iter(found), start, *call.arguments)


def select_without_a_worker(run_dir: str, selector: dict, passes: int, mapper=None, on_progress=None) -> dict:
    """As `select`, with a worker that is killed in the middle of a pass."""
    return select(run_dir, selector, mapper=Fatal(mapper, f"{run_dir}/killed", passes), on_progress=on_progress)


def total(blocks, start: int, mark: str = "") -> tuple[int, float, int]:
    """A range call: its start, the sum of its scores and who summed; the first that finds no mark kills its process."""
    if mark and start >= 512:
        kill_once(mark)
    return start, float(sum(block.sum(dtype="float64") for _, block in blocks)), os.getpid()


def kill_once(mark: str) -> None:
    """Kill this process if it is the first to make the file `mark`, which then says who it was."""
    with contextlib.suppress(FileExistsError), open(mark, "x") as file:
        file.write(str(os.getpid()))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def refuse_range(blocks, start: int) -> None:
    raise DataError(f"attribution: row {start} is bad")
