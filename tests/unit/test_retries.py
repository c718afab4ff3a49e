"""What is tried again, for every error of Ray's; how many run side by side after kills for memory."""

from __future__ import annotations

import ast
import errno
import inspect
import math
import time
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
)

from influray.protocols import USER_ERRORS, ArtifactMismatch, ConfigError, DataError, RunStopped, StorageError
from influray.runtime.retries import NEWS_SECONDS, SideBySide, TooLittleMemory, loss_of, need_memory

RUNTIME = Path(__file__).parents[2] / "influray" / "runtime"


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("compute", "a traceback", cause, pid=1, ip="127.0.0.1")


@pytest.mark.parametrize(
    "error", [ActorDiedError(), NodeDiedError("gone"), LocalRayletDiedError(), ActorUnavailableError("later", None)]
)
def test_a_process_that_is_gone_is_a_loss_without_a_cause(error):
    loss = loss_of(error)
    assert loss.cause is None
    assert not loss.memory
    assert loss.reason
    assert "\n" not in loss.reason


def test_every_error_of_rays_is_told_apart_from_our_own():
    """None of them may come through as an unknown exception; which there are is Ray's matter."""
    kinds = [kind for _, kind in inspect.getmembers(ray.exceptions, inspect.isclass) if issubclass(kind, RayError)]
    assert len(kinds) > 20
    for kind in kinds:
        error = kind.__new__(kind)
        error.args = ("gone",)
        if isinstance(error, RayTaskError):
            continue
        try:
            loss = loss_of(error)
        except (AttributeError, TypeError):  # its text needs what __init__ sets
            continue
        assert loss.memory == issubclass(kind, OutOfMemoryError)


def test_a_kill_for_memory_is_told_in_its_first_line_also_of_a_process_that_another_one_waited_for():
    error = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.\nRefer to ...")
    for found in (loss_of(error), loss_of(task_error(error))):
        assert found.memory
        assert found.cause is None
        assert found.reason == "1 worker(s) were killed due to the node running low on memory."


@pytest.mark.parametrize("cause", [ConfigError("a"), DataError("b"), ArtifactMismatch("c"), RunStopped("d")])
def test_what_no_attempt_would_change_is_raised_as_it_is(cause):
    with pytest.raises(type(cause)) as raised:
        loss_of(task_error(cause))
    assert raised.value is cause


def test_a_full_disk_is_named_and_a_bug_keeps_its_cause():
    with pytest.raises((*USER_ERRORS, StorageError), match="no space left"):
        loss_of(task_error(OSError(errno.ENOSPC, "no space left on device", "/run/logs/x")))
    bug = loss_of(task_error(ZeroDivisionError("by nought")))
    assert isinstance(bug.cause, ZeroDivisionError)
    assert bug.reason == "ZeroDivisionError: by nought"


def test_a_kill_counts_only_where_nobody_was_beside_it():
    beside = SideBySide()
    began = time.monotonic()
    assert beside.limit(4) == 4
    # Three of four die at once: one is left, and none of the three was alone.
    assert [beside.killed(began, others) for others in (3, 2, 1)] == [False] * 3
    assert (beside.limit(4), beside.kills) == (1, 3)
    assert not beside.killed(began, 0), "what was at work before there were fewer had others beside it"
    assert not beside.killed(time.monotonic(), 0), "nor is it news what had died with the others"
    assert beside.killed(time.monotonic() + 2 * NEWS_SECONDS, 0)
    assert beside.limit(4) == 1


def test_a_lone_one_that_is_killed_is_charged_at_once():
    beside = SideBySide()
    assert beside.killed(time.monotonic(), 0)
    assert beside.most == math.inf


def test_the_message_names_what_to_lower():
    error = need_memory("pool rows 0-7", 5, "features.token_budget (now 4096)", "killed at 23 of 24 GiB")
    assert isinstance(error, TooLittleMemory)
    assert isinstance(error, ConfigError), "the user can mend it: exit 2"
    assert str(error).startswith("features.token_budget (now 4096): ")


def test_only_one_place_reads_rays_errors():
    def imported(path: Path) -> set[str]:
        nodes: Any = ast.walk(ast.parse(path.read_text()))
        return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}

    assert {path.name for path in RUNTIME.glob("*.py") if "ray.exceptions" in imported(path)} == {"retries.py"}
