"""What the fault suite runs on: a disk that can be filled, and drivers that are forked and not started.

Run as a script on the head of a cluster, it forks a driver for every line of its standard input.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.cluster.local_cluster import LocalCluster

DISK_MIB = 256


class Disk:
    """A small disk that can be filled, as a tmpfs at `path`."""

    def __init__(self, path: Path, mib: int = DISK_MIB) -> None:
        self.path = path
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)], check=True)

    def fill(self) -> None:
        with contextlib.suppress(OSError), open(self.path / "ballast", "wb", buffering=0) as file:
            while True:
                file.write(bytes(2**20))
        with contextlib.suppress(OSError), open(self.path / "ballast", "ab", buffering=0) as file:
            while True:
                file.write(bytes(512))

    def free(self) -> None:
        (self.path / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)
        self.path.rmdir()


class Drivers:
    """Drivers on the head of a cluster, forked from one process that has imported everything: 0.1 s each, not 5 s."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._process = cluster.popen(
            [sys.executable, str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._address = cluster.address

    def start(self, argv: Sequence[str], log: Path, columns: bool) -> int:
        """Start a driver that carries out `influray ARGV` and return its pid."""
        order = {"argv": [*argv, "--address", self._address], "log": str(log), "columns": columns}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """Return the exit status of the driver that runs, minus the signal where one ended it."""
        return int(self._answer())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that forks drivers is gone")
        return line


def fork_drivers() -> None:
    """Fork a driver for every line of standard input, and answer with its pid and then with its exit status."""
    import ray
    import torch
    from transformers import AutoTokenizer  # noqa: F401 - all that a driver needs is there before the fork

    import influray.features.gradient
    import influray.runtime.scoring
    import influray.runtime.selection
    import influray.steps.score  # noqa: F401 - as above

    torch.set_num_threads(1)
    assert not ray.is_initialized()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if not pid:
            _drive(order)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _drive(order: Mapping[str, Any]) -> None:
    import logging

    from influray import progress
    from influray.cli import app as cli
    from influray.runtime import columns

    log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    steps = logging.StreamHandler(sys.stderr)
    steps.setLevel(logging.DEBUG)
    progress.logger.addHandler(steps)
    progress.logger.setLevel(logging.DEBUG)  # it tells when a step begins
    if order["columns"]:
        columns.LARGE_BYTES = 0  # the real way of a large matrix, for one that is made in a second
    sys.argv = ["influray", *order["argv"]]
    status = 0
    try:
        cli.main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - a bug: its traceback is in the log, and the status says so
        import traceback

        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    fork_drivers()
