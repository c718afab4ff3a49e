"""Kills a process in the middle of its work."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable

LOOK_SECONDS = 0.02


def kill_when(process: subprocess.Popen, ready: Callable[[], bool], seconds: float = 240.0) -> None:
    """Kill a process without warning as soon as `ready()`; it fails where the process ends or `seconds` pass before."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "there was nothing to be killed at"
        time.sleep(LOOK_SECONDS)
    process.send_signal(signal.SIGKILL)
    process.wait()
