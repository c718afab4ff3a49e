"""Plain tasks: results in the order of the calls, each call until it has one, whoever dies."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from influray.protocols import DataError, StorageError
from influray.runtime.plain_tasks import Call, PlainTasks
from tests.cluster.local_cluster import ended

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def suffer(folder: str, number: int, fate: str = "") -> int:
    """Note the call and meet its fate: kill, kill-once, a kind of error, or until NAME, a file that is awaited."""
    mark = Path(folder) / f"call-{number}"
    first = not mark.exists()
    with open(mark, "a") as file:
        file.write(f"{os.getpid()}\n")
    if fate == "kill" or (fate == "kill-once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if fate in ("DataError", "StorageError", "ZeroDivisionError"):
        raise {"DataError": DataError, "StorageError": StorageError}.get(fate, ZeroDivisionError)(f"call {number}")
    if fate.startswith("until "):
        deadline = time.monotonic() + 120
        while not (Path(folder) / fate.removeprefix("until ")).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    return number


def calls(folder: Path, count: int, fates: dict[int, str] | None = None) -> list[Call]:
    return [Call(f"call {i}", (str(folder), i, (fates or {}).get(i, ""))) for i in range(count)]


def tasks(side_by_side: int = 2, **options: Any) -> PlainTasks:
    return PlainTasks(side_by_side, 0.1, lower="batches", **options)


def attempts(folder: Path, number: int) -> int:
    mark = folder / f"call-{number}"
    return len(mark.read_text().splitlines()) if mark.exists() else 0


def test_results_come_in_order_whoever_is_first_and_a_lost_process_is_replaced(tmp_path):
    events = []
    made = tasks(on_event=events.append)
    found = made.run(suffer, calls(tmp_path, 6, {0: "until call-3", 2: "kill-once"}))
    assert list(found) == list(range(6))
    assert [attempts(tmp_path, i) for i in range(6)] == [1, 1, 2, 1, 1, 1]
    assert [event.kind for event in events] == ["retry"]
    assert made.beside.kills == 0


def test_no_more_calls_are_begun_than_may_be_ahead_of_what_is_taken(tmp_path):
    found = tasks().run(suffer, calls(tmp_path, 6), ahead=2)
    assert next(found) == 0
    assert not attempts(tmp_path, 2)
    assert list(found) == list(range(1, 6))


def test_a_call_that_always_loses_its_process_ends_the_run_and_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="call 1: its process was lost 2 times"):
        list(tasks(max_attempts=2).run(suffer, calls(tmp_path, 4, {1: "kill"})))
    assert attempts(tmp_path, 1) == 2


@pytest.mark.parametrize("kind", [DataError, StorageError, ZeroDivisionError])
def test_of_several_errors_the_first_calls_is_raised_and_nothing_is_begun_after_it(tmp_path, kind):
    fates = {1: "until call-2", 2: kind.__name__}
    found = tasks().run(suffer, calls(tmp_path, 60, fates))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(kind, match="call 2") as caught:
        next(found)
    assert kind is ZeroDivisionError or type(caught.value) is kind
    assert not attempts(tmp_path, 59)


def test_who_has_seen_enough_ends_what_runs(tmp_path):
    found = tasks().run(suffer, calls(tmp_path, 2, {1: "until never"}))
    assert next(found) == 0
    deadline = time.monotonic() + 120
    while not attempts(tmp_path, 1):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found.close()  # pyright: ignore[reportAttributeAccessIssue]  it is a generator
    pid = int((tmp_path / "call-1").read_text())
    while not ended(pid):
        assert time.monotonic() < deadline, "the task goes on"
        time.sleep(0.05)
