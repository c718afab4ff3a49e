"""The service under load: concurrent clients for a minute, errors, latencies and queries a second.

    python jobs/benchmark_service.py [RUN] [--clients 32] [--seconds 60] [--k 10] [--tokens]     default runs/demo

Serves the run on 127.0.0.1 and asks it with the texts of its own targets. Each client waits for an answer before it
asks again. Needs httpx (extra dev).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from influray.data.catalogue import Catalogue
from influray.store.run_directory import RunDirectory

START_SECONDS = 300.0
_READY = re.compile(r"at (http://\S+)")


@contextlib.contextmanager
def served(run_dir: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve a run in a process of its own and yield its address; it ends with the block, by SIGTERM."""
    command = [sys.executable, "-m", "influray", "serve", str(run_dir), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # empty where the process ends without being ready
        found = _READY.search(line)
        if found is None:
            process.kill()
            raise RuntimeError(f"not served: {line}{process.communicate()[1]}")
        yield found[1], process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)


def questions(run_dir: Path) -> list[dict[str, Any]]:
    """Return the prompts and answers of the run's targets."""
    catalogue = Catalogue(RunDirectory(run_dir).data("target"))
    found = []
    for row in range(len(catalogue)):
        turns = catalogue.parsed(row).turns
        if [turn.role for turn in turns] == ["user", "assistant"]:
            found.append({"prompt": turns[0].content, "answer": turns[1].content})
    return found


async def load(address: str, bodies: list[dict[str, Any]], clients: int, seconds: float) -> dict[str, Any]:
    """Return what `clients` saw in `seconds`: counts of statuses, and latencies in seconds of what was answered."""
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    turn = itertools.cycle(bodies)
    end = time.perf_counter() + seconds

    async def client(web: httpx.AsyncClient) -> None:
        while time.perf_counter() < end:
            started = time.perf_counter()
            try:
                answer = await web.post("query", json=next(turn))
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
                continue
            statuses[str(answer.status_code)] += 1
            if answer.status_code == 200 and answer.json()["helpful"]:
                latencies.append(time.perf_counter() - started)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as web:
        await web.post("query", json=bodies[0])
        started = time.perf_counter()
        await asyncio.gather(*(client(web) for _ in range(clients)))
        took = time.perf_counter() - started
    p50, p95, p99 = np.quantile(latencies, [0.5, 0.95, 0.99]).tolist() if latencies else [float("nan")] * 3
    return {
        "clients": clients,
        "seconds": round(took, 2),
        "statuses": dict(statuses),
        "errors": sum(count for status, count in statuses.items() if status != "200"),
        "queries_per_second": round(len(latencies) / took, 2),
        "p50_s": round(p50, 3),
        "p95_s": round(p95, 3),
        "p99_s": round(p99, 3),
        "max_s": round(max(latencies, default=float("nan")), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/demo"))
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--tokens", action="store_true")
    arguments = parser.parse_args()
    bodies = [{**one, "k": arguments.k, "tokens": arguments.tokens} for one in questions(arguments.run)]
    begun = time.perf_counter()
    with served(arguments.run) as (address, _):
        print(f"ready after {time.perf_counter() - begun:.1f} s; load average {os.getloadavg()[0]:.1f}", flush=True)
        print(json.dumps(asyncio.run(load(address, bodies, arguments.clients, arguments.seconds)), indent=1))


if __name__ == "__main__":
    main()
