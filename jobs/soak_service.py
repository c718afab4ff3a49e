"""The service for a long time: steady questions, bursts and half-sent requests, a restart on its port, and its memory.

    python jobs/soak_service.py [RUN] [--minutes 10] [--clients 8]     default runs/demo

Serves the run on 127.0.0.1 with a token file, ends it and serves it again on the same port, and asks it with the texts
of its own targets. Every half minute 64 more clients ask once, and 300 connections send half a request and wait. The
memory is the private memory of the driver, the engine and Ray's processes, by the median of the second and of the
last tenth of the time. Needs httpx (extra dev) and psutil.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import secrets
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx
import numpy as np
import psutil

from jobs.benchmark_service import questions, served

BURST_SECONDS, BURST, HALF = 30.0, 64, 300
SAMPLE_SECONDS = 2.0
HALF_SENT = b"POST /query HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"


class Soak:
    """What was asked and seen."""

    def __init__(
        self, web: httpx.AsyncClient, alone: httpx.AsyncClient, bodies: list[dict[str, Any]], process: psutil.Process
    ) -> None:
        # Connections of `alone` are used once: one that rests gives way to those of a burst, maybe just as it is used.
        self._web, self._alone, self._bodies, self._process = web, alone, bodies, process
        self.statuses: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.health: list[float] = []
        self.memory: list[int] = []

    async def ask(self, number: int) -> None:
        started = time.perf_counter()
        try:
            answer = await self._web.post("query", json=self._bodies[number % len(self._bodies)])
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
            return
        self.statuses[str(answer.status_code)] += 1
        if answer.status_code == 200:
            self.latencies.append(time.perf_counter() - started)
        else:
            await asyncio.sleep(float(answer.headers.get("retry-after", 1)))

    async def client(self, end: float, number: int) -> None:
        while time.perf_counter() < end:
            await self.ask(number)
            number += 1

    async def bursts(self, end: float, port: int) -> None:
        while time.perf_counter() + BURST_SECONDS < end:
            await asyncio.sleep(BURST_SECONDS)
            with contextlib.ExitStack() as stack:
                for _ in range(HALF):
                    half = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                    half.sendall(HALF_SENT)
                await asyncio.gather(*(self.ask(i) for i in range(BURST)))

    async def watch(self, end: float) -> None:
        while time.perf_counter() < end:
            started = time.perf_counter()
            answer = await self._alone.get("health")
            assert answer.status_code == 200, answer.text
            self.health.append(time.perf_counter() - started)
            self.memory.append(await asyncio.to_thread(memory_of, self._process))
            await asyncio.sleep(SAMPLE_SECONDS)


def memory_of(process: psutil.Process) -> int:
    """Return the bytes of private memory of a process and of all that it has started."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += one.memory_full_info().uss
    return total


async def soak(address: str, token: str, pid: int, bodies: list[dict[str, Any]], seconds: float, clients: int) -> Any:
    headers, port = {"authorization": f"Bearer {token}"}, int(address.rsplit(":", 1)[1].strip("/"))
    limits = httpx.Limits(max_connections=clients + BURST + 1)
    make = functools.partial(httpx.AsyncClient, base_url=address, headers=headers, timeout=120)
    async with make(limits=limits) as web, make(limits=httpx.Limits(max_keepalive_connections=0)) as alone:
        one = Soak(web, alone, bodies, psutil.Process(pid))
        end = time.perf_counter() + seconds
        await asyncio.gather(*(one.client(end, i) for i in range(clients)), one.bursts(end, port), one.watch(end))
    tenth = max(1, len(one.memory) // 10)
    first, last = (float(np.median(part)) for part in (one.memory[tenth : 2 * tenth], one.memory[-tenth:]))
    quantiles: Callable[[list[float]], list[float]] = lambda of: np.quantile(of, [0.5, 0.95, 1.0]).round(3).tolist()  # noqa: E731
    return {
        "seconds": round(seconds),
        "statuses": dict(one.statuses),
        "latency_p50_p95_max_s": quantiles(one.latencies),
        "health_p50_p95_max_s": quantiles(one.health),
        "memory_mib": [round(first / 2**20, 1), round(last / 2**20, 1)],
        "growth_percent": round(100 * (last / first - 1), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/demo"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    bodies = [{**one, "k": 10} for one in questions(arguments.run)]
    with tempfile.NamedTemporaryFile("w", suffix=".token") as file:
        token = secrets.token_hex(32)
        file.write(token)
        file.flush()
        with served(arguments.run, "--token-file", file.name) as (address, _):
            port = address.rsplit(":", 1)[1].strip("/")
        with served(arguments.run, "--token-file", file.name, "--port", port) as (again, process):
            assert again == address, "restarted on its port"
            found = asyncio.run(soak(address, token, process.pid, bodies, 60 * arguments.minutes, arguments.clients))
    print(json.dumps(found, indent=1))
    return int(found["growth_percent"] > 5)


if __name__ == "__main__":
    sys.exit(main())
