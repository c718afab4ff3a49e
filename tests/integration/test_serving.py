"""`influray serve` as a process: it starts, answers many at once as the engine does, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from influray.runs import Run
from influray.store.artifact import read_sealed, write_sealed
from tests.unit.asked_run import build_asked_run

pytestmark = [pytest.mark.ray, pytest.mark.endurance]

JOB = Path(__file__).parents[2] / "jobs" / "benchmark_service.py"
TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def job() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_service", JOB)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return build_asked_run(tmp_path_factory.mktemp("serving"))


@pytest.fixture(autouse=True)
def _no_cluster_of_others(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_served_run_answers_explains_is_full_and_ends_cleanly(run, job, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with job.served(run.directory.path, "--token-file", str(tmp_path / "token")) as (address, process):
        assert address.startswith("http://127.0.0.1:")
        assert httpx.get(f"{address}health").status_code == 401
        with httpx.Client(base_url=address, headers={"authorization": f"Bearer {TOKEN}"}, timeout=60) as web:
            assert web.get("health").json()["status"] == "ok"
            found = web.post("query", json={"prompt": "What is 7+8?", "answer": "15", "k": 5}).json()
            assert [hit["row"] for hit in found["helpful"]] == [
                h.row for h in run.query("What is 7+8?", "15", k=5).helpful
            ]
            assert web.get("explain/sum-3").json()["id"] == "sum-3"
            assert web.get("selection/bids?limit=2").json()["total"] == 6
            assert web.get("", headers={"host": "evil.example"}).status_code == 421
            assert "text/html" in web.get("").headers["content-type"]
            assert web.post("query", json={"like": "nobody"}).status_code == 404
        statuses, alike = asyncio.run(storm(address, run))
        assert set(statuses) <= {200, 503}, "more than are answered in time are told to come again, and nobody is lost"
        assert len(statuses) == 228
        assert alike
    assert process.returncode == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    port = int(address.rsplit(":", 1)[1].strip("/"))
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as whoever serves there next
        probe.bind(("127.0.0.1", port))


async def storm(address: str, run: Run) -> tuple[list[int], bool]:
    """Ask 180 while slow ones hold the engine, each until it is answered.

    Returns the statuses of the first attempts, and whether each answer is that of its question.
    """
    ids = [f"t-sum-{i}" for i in range(50, 53)] + [f"t-rev-{i}" for i in range(3)]
    expected = {one: run.query(like=one, k=3).helpful[0].row for one in ids}
    slow = {"prompt": "Say yes.", "answer": "yes " * 20, "k": 3, "tokens": True}
    headers = {"authorization": f"Bearer {TOKEN}"}
    limits = httpx.Limits(max_connections=240)
    statuses: list[int] = []

    async def ask(web: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        first = True
        while True:
            answer = await web.post("query", json=body)
            if first:
                statuses.append(answer.status_code)
            if answer.status_code == 200:
                return answer.json()
            assert answer.status_code == 503, answer.text
            first = False
            await asyncio.sleep(float(answer.headers["retry-after"]))

    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=120, limits=limits) as web:
        held = [asyncio.ensure_future(ask(web, slow)) for _ in range(48)]
        await asyncio.sleep(0.5)
        asked = [ids[i % len(ids)] for i in range(180)]
        answers = await asyncio.gather(*(ask(web, {"like": one, "k": 3}) for one in asked))
        health = await web.get("health")
        assert health.json()["status"] == "ok"
        await asyncio.gather(*held)
    alike = [found["helpful"][0]["row"] == expected[one] for one, found in zip(asked, answers, strict=True)]
    return statuses, all(alike)


def test_a_model_that_is_not_the_runs_ends_the_command_with_2(run, tmp_path):
    checkpoint = run.directory.checkpoint(1) / "state.json"
    before = read_sealed(checkpoint)
    write_sealed(checkpoint, {**before, "schema": 0})
    try:
        command = [sys.executable, "-m", "influray", "serve", str(run.directory.path), "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=dict(os.environ))
    finally:
        write_sealed(checkpoint, before)
    assert done.returncode == 2, done.stderr
    assert "state.json: schema 0" in done.stderr
    assert "Traceback" not in done.stderr
